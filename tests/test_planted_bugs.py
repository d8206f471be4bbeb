"""The planted bugs fit today's code, and the page of known bugs is complete. plant.py plants them."""
import re

from conftest import ROOT
from plant import BUGS, judged
from planted_bugs import BUGS as OURS

PAGE = (ROOT / "docs" / "known_bugs.md").read_text("utf-8")
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if re.match(r"\| \d", line)]


def test_every_bug_can_be_planted_in_the_code_of_today():
    for bug in OURS:
        changed = {}
        for file, old, new in bug.changes:
            text = changed.get(file) or (ROOT / file).read_text("utf-8")
            count = text.count(old)
            assert count == 1, f"{bug.name}: {old!r} is {count} times in {file}: write it again"
            changed[file] = text.replace(old, new)
        for file, text in changed.items():
            compile(text, file, "exec")


def test_every_guard_is_a_test_that_is_there():
    for bug in BUGS:
        file, _, test = bug.guard.partition("::")
        assert f"\ndef {test}(" in (ROOT / file).read_text("utf-8"), f"{bug.name}: no {bug.guard}"


def test_every_bug_has_a_name_of_its_own():
    names = [bug.name for bug in BUGS]
    assert len(names) == len(set(names))
    assert f"it plants {len(BUGS)} mistakes" in PAGE, f"the page has to say that it is {len(BUGS)}"


def test_a_bug_is_caught_by_a_failing_test_and_not_by_a_test_that_cannot_run():
    def outcome(status, message, failed="tests/test_a.py::test_b"):
        return judged(1.0, failed, message, status).outcome

    assert outcome(1, "AssertionError: the reward moved\nassert 1 == 2") == "caught"
    assert outcome(0, "") == "PASSED"
    assert outcome(1, "NameError: name 'bos' is not defined") == "broken"
    assert outcome(2, "ImportError while importing test module", failed="") == "broken"
    assert outcome(4, "") == "broken", "the guard was not found"


def test_a_caught_bug_is_told_by_the_sentence_of_the_test():
    of_numpy = "AssertionError: \nNot equal to tolerance rtol=1e-06, atol=0\nis it added?\nMismatch"
    assert judged(1.0, "test", of_numpy, 1).message == "is it added?"
    assert judged(1.0, "test", "Failed: it was taken", 1).message == "it was taken"


def test_the_page_has_every_known_bug_once_with_its_guard_or_a_reason():
    numbers = sorted(int(row[0]) for row in ROWS)
    assert numbers == list(range(1, len(ROWS) + 1)) and len(ROWS) >= 46
    for number, *cells in ROWS:
        assert len(cells) == 3 and all(cells), f"bug {number} has an empty cell"
        here = cells[2]
        assert "`test_" in here or here.startswith("Cannot occur: "), f"bug {number} has no guard"
    assert len(PAGE.splitlines()) <= 150
