"""The scripts under docs/ do what the pages say of them."""
import contextlib
import importlib.util
import io
import json
import re

import pytest
from conftest import ROOT


def script(name):
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


zoo = script("zoo")


def test_step_0_learns_manners_and_cannot_learn_truth(capsys):
    found = script("step0").main()
    learned = found["learned"]
    assert learned["Happy to help."] > 0.3 > -0.3 > learned["Stop asking me."]
    for answer in ("It is green.", "It is white."):
        assert abs(learned[answer]) < 0.3, "words alone cannot say which answer is right"
    assert 0.55 < found["accuracy"] < 0.75 < found["ceiling"]
    page = (ROOT / "docs" / "lesson.md").read_text("utf-8")
    assert capsys.readouterr().out in page, "docs/lesson.md shows another output"


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    """The five files, as text by name."""
    return {path.name: path.read_text("utf-8") for path in ROOT.glob("*.py")}


@pytest.mark.parametrize("bug", zoo.BUGS, ids=lambda bug: bug.name)
def test_every_bug_of_the_zoo_can_be_planted_in_the_code_of_today(bug, code):
    for file, old, new in bug.changes:
        assert code[file].count(old) == 1, f"{file} has changed: write the change anew in zoo.py"
        compile(code[file].replace(old, new), file, "exec")


@pytest.mark.parametrize("bug", zoo.BUGS, ids=lambda bug: bug.name)
def test_every_bug_of_the_zoo_has_a_guard_that_was_seen_to_fail(bug):
    file, _, test = bug.guard.partition("::")
    assert f"def {test}(" in (ROOT / file).read_text("utf-8")
    assert json.loads(zoo.RESULTS.read_text("utf-8"))[bug.name]["caught"]


def test_the_page_of_bugs_is_what_its_script_writes():
    found = json.loads(zoo.RESULTS.read_text("utf-8"))
    assert zoo.PAGE.read_text("utf-8") == zoo.page(found), "run python docs/zoo.py --page"


def blocks_of_the_lesson():
    """(language, text) of each block of code."""
    page = (ROOT / "docs" / "lesson.md").read_text("utf-8")
    return re.findall(r"^```(\w+)\n(.*?)^```", page, re.M | re.S)


def test_code_that_the_lesson_shows_is_in_the_five_files_or_runs_and_prints_what_it_says(code):
    blocks = blocks_of_the_lesson()
    quoted = ran = 0
    for (language, text), (_, printed) in zip(blocks, [*blocks[1:], ("", "")]):
        if language != "python":
            continue
        if text.startswith("import"):
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(text, "lesson.md", "exec"), {})
            assert out.getvalue() == printed
            ran += 1
        else:
            assert any(text in file for file in code.values()), f"no file has:\n{text}"
            quoted += 1
    assert quoted >= 5 and ran >= 2
