"""The bug zoo: every bug can be planted today, and has a guard that was seen to fail."""
import importlib.util
import json

import pytest
from conftest import ROOT

spec = importlib.util.spec_from_file_location("zoo", ROOT / "docs" / "zoo.py")
zoo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(zoo)


@pytest.fixture(scope="module")
def code():
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


def test_a_planted_copy_has_one_mistake_and_no_tests_that_would_name_it(tmp_path, code):
    folder = tmp_path / "hunt"
    zoo.plant_for_others("3", str(folder))
    changed = [name for name in code if (folder / name).read_text("utf-8") != code[name]]
    assert changed == [file for file, _, _ in zoo.BUGS[2].changes]
    assert not (folder / "tests").exists() and (folder / "extras" / "toy_world.py").exists()
    for number, name in (("0", "new"), ("x", "new"), ("3", str(folder))):
        with pytest.raises(SystemExit, match="--plant N FOLDER: N from 1 to 11"):
            zoo.plant_for_others(number, name)
