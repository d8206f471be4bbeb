"""docs/lesson.md is true: its code prints what it says, and what it quotes is in the files."""
import contextlib
import importlib.util
import io
import json
import re
import textwrap

import pytest
from conftest import ROOT

import eval as evaluation
import train_rm
from extras import toy_world

DOCS = ROOT / "docs"
LESSON = (DOCS / "lesson.md").read_text("utf-8")
RESULTS = (DOCS / "results.md").read_text("utf-8")

spec = importlib.util.spec_from_file_location("notebook", DOCS / "notebook.py")
notebook = importlib.util.module_from_spec(spec)
spec.loader.exec_module(notebook)
BLOCKS = notebook.blocks(LESSON)


def run(code, names):
    """Run some code among these names -> what it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "docs/lesson.md", "exec"), names)  # noqa: S102  to run it is the test
    return out.getvalue()


def test_every_code_block_prints_what_the_lesson_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    names = {"__name__": "lesson"}
    code = [block for block in BLOCKS if block.kind == "python"]
    assert len(code) >= 5
    for block in code:
        printed = run(block.text, names)
        assert printed == block.output, f"the lesson says otherwise after:\n{block.text}"


def test_the_cells_of_the_notebook_run_in_order_and_print_their_outputs(monkeypatch):
    monkeypatch.chdir(DOCS)  # where a notebook server starts them
    names = {"__name__": "notebook"}
    cells = json.loads((DOCS / "lesson.ipynb").read_text("utf-8"))["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            printed = run("".join(cell["source"]), names)
            expected = "".join("".join(output["text"]) for output in cell["outputs"])
            assert printed == expected, f"cell {cell['id']}"


def test_the_notebook_is_what_its_script_writes():
    written = (DOCS / "lesson.ipynb").read_text("utf-8")
    assert written == notebook.text_of_notebook(), "run python docs/notebook.py"


QUOTES = [block for block in BLOCKS if block.kind.startswith("python ")]


@pytest.mark.parametrize("quote", QUOTES, ids=lambda quote: quote.kind.split()[1])
def test_lines_that_the_lesson_quotes_are_in_the_file(quote):
    file = quote.kind.split()[1]
    source = (ROOT / file).read_text("utf-8")
    assert quote.text in source, f"{file} has no such lines now; copy them again"


def test_each_of_the_five_files_is_quoted_and_run():
    quoted = {quote.kind.split()[1] for quote in QUOTES}
    ran = "".join(block.text for block in BLOCKS if block.kind == "python")
    for name in ("loss", "model", "data", "eval", "train_rm"):
        assert f"{name}.py" in quoted
        assert f"from {name} import" in ran or f"**Run it:** `python {name}.py`" in LESSON


def test_the_glossary_has_every_number_of_a_report_and_of_metrics_jsonl():
    glossary = LESSON.partition("## Every number")[2]
    glossary = glossary.partition("## References")[0]
    named = set(re.findall(r"`([^`]+)`", glossary))
    logged = {"epoch", "lr", "grad_norm", "mean_reward", "mean_abs_reward", "loss", "accuracy"}
    missing = (set(evaluation.MEANINGS) | logged) - named
    assert not missing, "a number is printed that the lesson does not explain"


def test_the_commands_of_the_lesson_are_understood():
    commands = re.findall(r"(?<!`)`python train_rm\.py([^`]*)`", LESSON)
    assert len(commands) >= 2
    for options in commands:
        train_rm.parse_options(options.split())


def test_what_the_lesson_says_about_over_optimisation_is_in_the_results():
    path = ROOT / "benchmarks" / "overoptimisation.json"
    curves = json.loads(path.read_text())["curves"]
    few, many = curves["3,000 pairs"], curves["48,000 pairs"]
    at_256, at_1024 = few["true"][8], few["true"][10]
    said = [f"is {few['learned'][10]:.1f}, and the true one is {at_1024:.1f}."]
    said += [f"was {at_256:.1f} at 256 already"]
    said += [f"{many['learned'][10]:.1f} and {many['true'][10]:.1f}."]
    text = " ".join(LESSON.split())
    assert [sentence for sentence in said if sentence not in text] == []


def test_what_the_lesson_says_about_the_toy_world_is_its_rule():
    said = f"the right answer ±{toy_world.RIGHT}, manners ±{toy_world.MANNERS}"
    assert f"{said}, each added sentence ±{toy_world.ADDITION}" in " ".join(LESSON.split())
    results = json.loads((ROOT / "benchmarks" / "results.json").read_text())["toy, seed 0"]
    assert f"the ceiling is {results['report']['ceiling_accuracy']:.3f}" in " ".join(LESSON.split())


def test_the_links_of_the_lesson_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)", LESSON)
    assert links
    assert [link for link in links if not (DOCS / link).exists()] == []


def test_the_lesson_can_be_read_in_one_sitting():
    assert len(LESSON.splitlines()) <= 410
    code = "\n".join(block.text for block in BLOCKS if block.kind == "python")
    assert max(map(len, textwrap.dedent(code).splitlines())) <= 100
