"""What the tests of train_rm.py share: rows, a folder to train from, a look into a run folder."""
import json

import pytest
import torch
from conftest import command, read_lines, save_run, tiny_model, tiny_tokenizer, write_rows

import train_rm
from extras import toy_world

SMALL = ["--hidden-size", 16, "--num-hidden-layers", 1, "--num-attention-heads", 2]
SMALL += ["--vocab-size", 400]
# A learning rate so small that no weight changes: every step then sees the same model.
STILL = ["--lr", 1e-30]

# Rows of two, three and four responses, some of them tied, some with a margin.
MIXED = [
    {"prompt": "Which colour is grass?", "responses": ["red", "It is green", "green it is", "go"],
     "scores": [1, 5, 5, 0]},
    {"prompt": "Which colour is snow?", "chosen": "It is white, as you know.", "rejected": "black"},
    {"prompt": "Who?", "responses": ["me", "you", "they"], "ranks": [2, 1, 3], "margin": 0.5},
    {"prompt": "Is it? Is it not?", "chosen": "yes", "rejected": "no, the cat is", "margin": 2.0},
    {"prompt": "And the dog?", "chosen": "did not sit on the mat", "rejected": "sat"},
]


def pairs(count: int, first: int = 0):
    """Rows of one pair, of different lengths, each with a prompt of its own."""
    for i in range(first, first + count):
        prompt = f"Where is cat {i}?" + " the mat" * (i % 3)
        chosen = f"On mat {i}" + " sat" * (3 * i % 5)
        yield {"prompt": prompt, "chosen": chosen, "rejected": "not" + " a dog" * (i % 4)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """tiny (a reward model), 21 rows to train on, 7 held-out rows."""
    folder = tmp_path_factory.mktemp("train")
    save_run(folder / "tiny", tiny_model(), tiny_tokenizer(), 256)
    write_rows(folder / "train.jsonl", pairs(21))
    write_rows(folder / "held_out.jsonl", pairs(7, first=21))
    return folder


@pytest.fixture
def small_toy(monkeypatch):
    """A toy world of 300 rows."""
    monkeypatch.setattr(toy_world, "ROWS", 300)


@pytest.fixture
def every_step(monkeypatch):
    """metrics.jsonl gets a line after each step."""
    monkeypatch.setattr(train_rm, "LOGGING_STEPS", 1)


def train(folder, *args):
    """python train_rm.py on the rows of the folder: exit status, stdout, stderr."""
    data = []
    for option, file in (("--data", "train.jsonl"), ("--eval-data", "held_out.jsonl")):
        if option not in args:
            data += [option, folder / file]
    return command(train_rm.main, "--model", folder / "tiny", *data, "--batch-size", 7, *args)


def toy(*args):
    """python train_rm.py on the toy world, a small model from scratch."""
    return command(train_rm.main, *SMALL, "--batch-size", 16, *args)


def options(*args):
    """Options as train_rm.py reads them."""
    args = train_rm.parse_options([str(arg) for arg in args])
    args.device = torch.device("cpu")
    return args


def metrics(run):
    """The lines of metrics.jsonl, without the speed."""
    lines = read_lines(run / "metrics.jsonl")
    for line in lines:
        line.pop("rows_per_second", None)
    return lines


def column(run, name):
    """One number of each training step that is logged."""
    return [line[name] for line in metrics(run) if "loss" in line]


def report(run):
    """report.json."""
    return json.loads((run / "report.json").read_text())


def assert_close(found, expected, atol=1e-6, rtol=1e-4, message="these differ"):
    """Two dictionaries of tensors. The message has the name of the one that differs."""
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], atol=atol, rtol=rtol,
            msg=lambda m: f"{message}: {name}: {m}",
        )


def assert_equal(found, expected, message="these differ"):
    """Two dictionaries of tensors, bit for bit."""
    assert_close(found, expected, atol=0, rtol=0, message=message)
