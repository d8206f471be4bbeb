"""What README, docs and docstrings say is what the code does: names, options, numbers, commands."""
import importlib.util
import json
import math
import re
import subprocess

import pytest
from conftest import ROOT, command

import data
import eval as evaluation
import loss
import model
import train_rm

FILES = {"loss.py": loss, "model.py": model, "data.py": data, "eval.py": evaluation}
FILES["train_rm.py"] = train_rm
README = (ROOT / "README.md").read_text("utf-8")
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "exercises").rglob("*.md")]
TEXT = "\n".join(page.read_text("utf-8") for page in PAGES)
EXTRAS = sorted((ROOT / "extras").rglob("*.py"))
SCRIPTS = (ROOT / "benchmarks").glob("*.py")
BENCHMARKS = [path.stem for path in SCRIPTS if "def tables(" in path.read_text("utf-8")]
TESTS = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))


def test_every_test_that_the_pages_name_exists():
    named = re.findall(r"`(test_\w+)`", TEXT)
    assert len(named) > 40
    assert [name for name in named if f"def {name}(" not in TESTS] == []


def test_every_test_file_that_an_extra_names_exists():
    for extra in EXTRAS:
        for file in re.findall(r"tests/[\w/]+\.py", extra.read_text("utf-8")):
            assert (ROOT / file).exists(), f"{extra.name} names {file}"


def test_every_function_that_the_readme_places_in_a_file_is_there():
    placed = re.findall(r"`([\w.]+)` in (\w+\.py)", README)
    assert len(placed) >= 8
    for name, file in placed:
        thing = FILES[file]
        for part in name.split("."):
            thing = getattr(thing, part)


def test_every_extra_in_the_docs_exists_and_every_extra_is_there():
    page = (ROOT / "docs" / "extras.md").read_text("utf-8")
    table = page.partition("| extra |")[2].partition("\n\n")[0]
    first_column = [line.split("|")[1] for line in table.splitlines()[2:]]
    named = set(re.findall(r"`(\w+)`", "\n".join(first_column)))
    there = {path.stem for path in (ROOT / "extras").iterdir() if not path.name.startswith("_")}
    assert named == there


def options_of(main, *args):
    status, out, _ = command(main, *args, "--help")
    assert status == 0
    return set(re.findall(r"--[a-z][a-z0-9-]+", out))


def test_every_option_that_pages_and_docstrings_name_exists():
    known = options_of(train_rm.main)
    for name in ("report", "score", "rank"):
        known |= options_of(evaluation.main, name)
    known |= {"--nproc-per-node", "--nnodes", "--rdzv-id", "--rdzv-backend", "--rdzv-endpoint"}
    known |= {"--index-url", "--help", "--logdir", "--runner", "--convert", "--dtype", "--tables"}
    known |= {"--label-noise", "--length-bias", "--plant", "--beta"}  # extras/, docs/zoo.py
    known |= {"--continue-on-collection-errors", "--responses", "--rows", "--batch", "--accumulation"}  # benchmarks/
    known |= {"--trl", "--transformers", "--llamafactory", "--shape", "--old"}  # benchmarks/
    texts = [TEXT, *(file.__doc__ for file in FILES.values())]
    texts += [extra.read_text("utf-8").split('"""')[1] for extra in EXTRAS]
    for text in texts:
        unknown = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)) - known
        assert not unknown, "an option that is gone, or has another name now"


@pytest.mark.parametrize("script", BENCHMARKS)
def test_the_tables_of_the_pages_are_those_of_the_result_files(script, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))  # where they find each other
    spec = importlib.util.spec_from_file_location(script, ROOT / "benchmarks" / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, table in module.tables().items():
        assert table in TEXT, f"benchmarks/{script}.py --tables: {name} is not what the pages say"


def test_the_toy_report_in_the_pages_is_what_the_result_file_holds():
    results = json.loads((ROOT / "benchmarks" / "results.json").read_text())
    report = evaluation.describe(results["toy, seed 0"]["report"])
    page = (ROOT / "docs" / "reports.md").read_text("utf-8")
    assert report in page
    shown = README.partition("among others:\n\n```\n")[2].partition("```")[0].splitlines()
    assert len(shown) == 9
    assert [line for line in shown if line not in page] == [], "README and page differ"


def test_the_readme_is_short_and_counts_the_lines_of_the_five_files():
    assert len(README.splitlines()) <= 150
    for name in FILES:
        count = len((ROOT / name).read_text("utf-8").splitlines())
        said = README.partition(f"| `{name}` |")[2].split("|")[1]
        assert abs(int(said.replace(",", "")) - count) <= 50, f"{name} has {count} lines now"


def test_the_picture_is_what_its_script_draws():
    script = ROOT / "docs" / "pictures" / "idea.py"
    spec = importlib.util.spec_from_file_location("idea", script)
    idea = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(idea)
    assert idea.FILE.read_text("utf-8") == idea.picture(), f"run python {script}"


def test_every_page_that_a_page_links_to_exists():
    for page in PAGES:
        for target in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_rows_in_the_pages_are_read():
    rows = [json.loads(line) for line in TEXT.splitlines() if line.startswith('{"')]
    assert len(rows) >= 8
    for row in rows:
        parsed = data.parse_row(row)
        assert len(parsed.responses) >= 2 and len(set(parsed.scores)) >= 2


def test_the_coin_is_log_2_wherever_it_is_mentioned():
    for text in (TEXT, *(path.read_text("utf-8") for path in ROOT.glob("*.py"))):
        for number in re.findall(r"log 2 = (\d\.\d+)", text):
            assert float(number) == round(math.log(2), len(number) - 2)


def test_the_commands_of_ci_are_those_of_the_readme():
    assert len(re.findall(r"^python -m pytest", README, re.M)) == 1
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


def test_every_tracked_file_is_where_it_should_be():
    git = ["git", "ls-files"]
    tracked = subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not tracked:  # a downloaded archive has no git
        tracked = [path.name for path in ROOT.iterdir()]
    top = {path.split("/")[0] for path in tracked} - {".gitignore", ".ci"}
    folders = {"extras", "exercises", "tests", "docs", "benchmarks"}
    assert top <= {*FILES, *folders, "README.md", "LICENSE", "requirements.txt"}
    assert {*FILES, *folders} <= top
