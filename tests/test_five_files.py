"""The five files are complete: alone in a folder, without extras/, they do all that they teach.

And what keeps them so: the few doors to extras/, who imports whom, and how dense a line may be.
"""
import ast
import io
import json
import os
import shutil
import subprocess
import sys
import tokenize

import pytest
from conftest import ROOT, read_lines, save_run, tiny_model, tiny_tokenizer, write_rows
from runs import MIXED, pairs
from safetensors.torch import load_file, save_file

from eval import score
from model import RewardModel

FIVE = ["loss.py", "model.py", "data.py", "eval.py", "train_rm.py"]
EXTRAS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "extras").rglob("*.py"))

# ---------------------------------------------------------------- alone in a folder

# One Python for everything, because a start costs seconds. It works in the folder of the files.
DRIVER = '''
import contextlib, io, itertools, json, os, signal, sys, traceback
import eval as evaluation
import train_rm

found = {}

def call(name, main, *args, stdin=""):
    out, err = io.StringIO(), io.StringIO()
    sys.stdin = io.StringIO(stdin)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(list(map(str, args)))
        except Exception:
            status = 1
            traceback.print_exc()
    found[name] = {"status": status, "out": out.getvalue(), "err": err.getvalue()}

loss, steps = train_rm.bradley_terry_loss, itertools.count(1)

def stopping_in_step_3(*args, **options):
    if next(steps) == 3:
        os.kill(os.getpid(), signal.SIGINT)
    return loss(*args, **options)

small = ["--hidden-size", 16, "--num-hidden-layers", 1, "--vocab-size", 400, "--batch-size", 8]
call("from scratch", train_rm.main, "--data", "rows.jsonl", *small, "--max-steps", 3,
     "--output", "scratch")
pretrained = ["--model", "lm", "--data", "rows.jsonl", "--lr", 1e-3, "--batch-size", 8]
pretrained += ["--max-steps", 10]
call("pretrained", train_rm.main, *pretrained, "--output", "one")
train_rm.bradley_terry_loss = stopping_in_step_3
call("stopped", train_rm.main, *pretrained, "--output", "stopped")
train_rm.bradley_terry_loss = loss
call("resumed", train_rm.main, "--resume", "stopped")

call("report", evaluation.main, "report", "one", "--data", "one/held_out.jsonl",
     "--output", "r.json")
call("score", evaluation.main, "score", "one", stdin=open("texts.jsonl").read())
call("rank", evaluation.main, "rank", "one", "--best", stdin=open("candidates.jsonl").read())

call("--pack", train_rm.main, *pretrained, "--pack", "--output", "a")
call("--lora-rank", train_rm.main, *pretrained, "--lora-rank", 2, "--output", "b")
call("toy world", train_rm.main, "--output", "c")
call("rank --pack", evaluation.main, "rank", "one", "--pack", stdin=open("candidates.jsonl").read())
os.mkdir("extras")  # it is there, and a file is missing
call("--pack, empty extras", train_rm.main, *pretrained, "--pack", "--output", "d")
print(json.dumps(found))
'''


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A folder with the five files, rows, and a language model without a head."""
    folder = tmp_path_factory.mktemp("alone")
    for name in FIVE:
        shutil.copy(ROOT / name, folder)
    model = tiny_model()
    save_run(folder / "lm", model, tiny_tokenizer(), 256)
    state = {name: t for name, t in model.state_dict().items() if not name.startswith("score.")}
    save_file(state, folder / "lm" / "model.safetensors")
    config = json.loads((folder / "lm" / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "lm" / "tokenizer_config.json").write_text(json.dumps(config))

    rows = [*MIXED, *pairs(20)]
    write_rows(folder / "rows.jsonl", rows)
    texts = [{"prompt": row["prompt"], "response": row["chosen"]} for row in pairs(6)]
    write_rows(folder / "texts.jsonl", texts)
    candidates = [{"prompt": "Who?", "responses": ["me", "you", "they", "the cat"]}]
    write_rows(folder / "candidates.jsonl", candidates)
    (folder / "driver.py").write_text(DRIVER)
    return folder


@pytest.fixture(scope="module")
def found(alone):
    """What one process and two processes did there, at the same time."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    settings = {"cwd": alone, "env": environment, "text": True}
    settings |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    two = [*torchrun, "--nproc-per-node", "2", "train_rm.py", "--model", "lm"]
    two += ["--data", "rows.jsonl", "--lr", "1e-3", "--batch-size", "8", "--max-steps", "10"]
    two = subprocess.Popen([*two, "--output", "two"], **settings)
    driver = subprocess.run([sys.executable, "driver.py"], timeout=200, **settings)
    out, err = two.communicate(timeout=200)
    assert driver.returncode == 0, driver.stderr
    two = {"status": two.returncode, "out": out, "err": err}
    return json.loads(driver.stdout.splitlines()[-1]) | {"two processes": two}


@pytest.mark.parametrize(
    "name", ["from scratch", "pretrained", "two processes", "resumed", "report", "score", "rank"]
)
def test_the_five_files_run_alone(name, found):
    assert found[name]["status"] == 0, found[name]["err"]


def test_alone_they_get_a_new_head_and_stop_after_the_step(found):
    assert "value head new" in found["pretrained"]["out"]
    assert found["stopped"]["status"] == 130 and "--resume stopped" in found["stopped"]["out"]
    assert "resumed from stopped/checkpoint-3.safetensors" in found["resumed"]["out"]


def test_alone_a_resumed_run_ends_where_an_uninterrupted_one_does(found, alone):
    one, resumed = (load_file(alone / run / "model.safetensors") for run in ("one", "stopped"))
    assert one.keys() == resumed.keys()
    for name in one:
        assert one[name].equal(resumed[name]), name


def test_alone_two_processes_log_what_one_logs(found, alone):
    one, two = (read_lines(alone / run / "metrics.jsonl") for run in ("one", "two"))
    assert [line["step"] for line in one] == [line["step"] for line in two] == [4, 8, 10, 10]
    for line, of_two in zip(one, two):
        for name in line.keys() - {"rows_per_second", "eval_accuracy_ci95"}:
            assert of_two[name] == pytest.approx(line[name], abs=1e-4), name


def test_alone_report_score_and_rank_give_the_numbers_that_they_give_here(found, alone):
    again, of_run = (json.loads((alone / f).read_text()) for f in ("r.json", "one/report.json"))
    assert again["loss"] == pytest.approx(of_run["loss"], abs=1e-5)
    model = RewardModel.from_pretrained(alone / "one")
    scored = [json.loads(line)["reward"] for line in found["score"]["out"].splitlines()]
    assert scored == pytest.approx(score(model, read_lines(alone / "texts.jsonl")), abs=1e-5)
    [candidates] = read_lines(alone / "candidates.jsonl")
    texts = [{"prompt": "Who?", "response": response} for response in candidates["responses"]]
    rewards = score(model, texts)
    [best] = [json.loads(line) for line in found["rank"]["out"].splitlines()]
    assert best["index"] == rewards.index(max(rewards))


@pytest.mark.parametrize(
    "name", ["--pack", "--lora-rank", "toy world", "rank --pack", "--pack, empty extras"]
)
def test_an_option_whose_extra_is_missing_says_so_in_one_line(name, found):
    assert found[name]["status"] == 2 and "Traceback" not in found[name]["err"]
    last = found[name]["err"].splitlines()[-1]
    assert "extras" in last, last


# ---------------------------------------------------------------- doors, and who imports whom

DOORS = {
    "model.open_model", "model.empty_model", "data.parse_row", "data.json_rows",
    "data.open_tokenizer", "data.Tokenizer.from_folder", "data.batch_function", "eval.report",
    "eval.command_report", "eval.Scorer.read_row", "data.grouped", "train_rm.run",
    "train_rm.toy_data", "train_rm.final_report", "train_rm.prepare", "train_rm.move_to_device",
    "train_rm.Progress.__init__", "train_rm.parse_options",
}


def imports(name):
    """(function, module) of each import in one of the five files; function is "" at the top."""
    found = []

    def visit(node, inside):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ImportFrom):
                found.append((inside, child.module))
            if isinstance(child, ast.Import):
                found.extend((inside, alias.name) for alias in child.names)
            deeper = inside
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                deeper = f"{inside}.{child.name}".strip(".")
            visit(child, deeper)

    visit(ast.parse((ROOT / name).read_text("utf-8")), "")
    return found


@pytest.mark.parametrize("name", FIVE)
def test_extras_are_imported_through_the_named_doors_only(name):
    doors = set()
    for function, module in imports(name):
        if module.split(".")[0] == "extras":
            doors.add(f"{name.removesuffix('.py')}.{function}")
    assert doors <= DOORS


@pytest.mark.parametrize("name, knows", [
    ("loss.py", set()),
    ("model.py", set()),
    ("data.py", set()),
    ("eval.py", {"loss", "model", "data"}),
    ("train_rm.py", {"loss", "model", "data", "eval"}),
])
def test_each_file_knows_only_those_that_are_read_before_it(name, knows):
    modules = {module for _, module in imports(name)}
    assert modules & {file.removesuffix(".py") for file in FIVE} == knows


def test_only_the_packages_of_requirements_txt_are_imported():
    allowed = {"extras", "torch", "numpy", "safetensors", "tokenizers", "huggingface_hub", "tqdm"}
    allowed |= {file.removesuffix(".py") for file in FIVE} | sys.stdlib_module_names
    for name in FIVE:
        packages = {module.split(".")[0] for _, module in imports(name)}
        assert packages <= allowed, name


# ---------------------------------------------------------------- how much is in a line


def docstring_lines(source):
    """The numbers of all lines of docstrings."""
    lines = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                lines.update(range(first.lineno, first.end_lineno + 1))
    return lines


def tokens_in_a_line(source):
    """Names, numbers, strings and operators in a line of code, on average."""
    count, code, docstrings = 0, set(), docstring_lines(source)
    kinds = (tokenize.NAME, tokenize.NUMBER, tokenize.STRING, tokenize.OP)
    begin = getattr(tokenize, "FSTRING_START", None)  # before Python 3.12 an f-string is a STRING
    end = getattr(tokenize, "FSTRING_END", None)
    open_fstrings = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        open_fstrings += token.type == begin
        counts = token.type in kinds and not open_fstrings or token.type == end
        open_fstrings -= token.type == end
        if counts and token.start[0] not in docstrings:
            count += 1
            code.update(range(token.start[0], token.end[0] + 1))
    return count / max(1, len(code))


@pytest.mark.parametrize("name", FIVE + EXTRAS)
def test_lines_are_short_enough_to_be_read(name):
    source = (ROOT / name).read_text("utf-8")
    wide = [n for n, line in enumerate(source.splitlines(), 1) if len(line) > 100]
    assert wide == [], "lines of more than 100 columns"
    limit = 10.5 if name == "model.py" else 9.5
    assert round(tokens_in_a_line(source), 1) <= limit, "too much in a line: use more lines"


@pytest.mark.parametrize("name", FIVE + EXTRAS)
def test_functions_fit_a_screen(name):
    long = {}
    for node in ast.walk(ast.parse((ROOT / name).read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            limit = 70 if node.name in ("parse_options", "train") else 50
            if lines > limit:
                long[node.name] = lines
    assert long == {}


@pytest.mark.parametrize("name", EXTRAS)
def test_an_extra_is_one_topic_of_at_most_250_lines(name):
    lines = (ROOT / name).read_text("utf-8").splitlines()
    assert len(lines) <= 260, "a file that long has more than one topic"
