"""Processes, with copies or with shards of the model, take the step that one process takes.

ranks.py trains in one, two and four processes, in the background. Here the results are compared.
"""
import json

import pytest
import torch
import torch.distributed as dist
from conftest import read_lines
from ranks import KINDS, MAX_NORM, RUNS_OF_ONE, RUNS_OF_TWO, WAYS, WAYS_OF_FOUR
from ranks import prepare_folder, resume, start_in_background
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from data import Examples, collate
from extras import lora, sharding
from model import RewardModel, open_model

CASES = [(2, way) for way in WAYS]
CASES += [(4, way) for way in WAYS_OF_FOUR]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models and rows, and ranks.py at work on them."""
    folder = tmp_path_factory.mktemp("ranks")
    prepare_folder(folder)
    process = start_in_background(folder)
    yield folder, process
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def done(folder):
    """The folder, when ranks.py is done."""
    folder, process = folder
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    return folder


@pytest.fixture
def process_group():
    """Leaves no process group to the next test."""
    yield
    dist.destroy_process_group()


# ---------------------------------------------------------------- one process, while ranks.py works


def test_one_process_alone_can_shard_without_torchrun(folder, process_group):
    expected = open_model(folder[0] / "tiny").state_dict()
    model = open_model(folder[0] / "tiny")
    sharding.shard(model, torch.device("cpu"))
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor), name
    state = model.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert not isinstance(tensor, DTensor), name
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_shards_keep_the_types_and_compute_what_the_model_computes(dtype, folder, process_group):
    plain, sharded = open_model(folder[0] / "half"), open_model(folder[0] / "half")
    for model in (plain, sharded):
        torch.manual_seed(0)
        lora.train_less(model, 0, 2)
    plain.take_weights("cpu")
    sharding.shard(sharded, torch.device("cpu"), dtype)
    types = {name: parameter.dtype for name, parameter in plain.named_parameters()}
    for name, parameter in sharded.named_parameters():
        assert parameter.dtype == types[name], name
    ids = torch.randint(3, 300, (2, 9))
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        r, expected = sharded(ids, ids > 0), plain(ids, ids > 0)
    assert torch.equal(r, expected), "is the sum that layers add to rounded to bfloat16?"


def test_after_an_evaluation_the_parameters_are_those_that_the_optimizer_knows(
    folder, process_group
):
    model = open_model(folder[0] / "tiny")
    sharding.shard(model, torch.device("cpu"))
    before = list(model.parameters())
    ids = torch.ones(1, 3, dtype=torch.long)
    with torch.no_grad():
        model(ids, ids)
    for (name, parameter), known in zip(model.named_parameters(), before):
        assert parameter is known, f"{name} is still put together: its moments are not found"


# ---------------------------------------------------------------- gradients, norms, weights


@pytest.fixture(scope="module")
def results(done):
    """A function: how many processes, way or kind -> what they found."""

    def load(ranks, way):
        return load_file(done / f"{ranks} {way}.safetensors")

    return load


# By how much results may differ. Half precision rounds whatever is summed in another order.
TOLERANCE = {
    "gradient": 1e-5,  # of numbers up to 1.5
    "norm": 1e-5,  # of 1.5 to 6.4
    "loss": 1e-6,
    "rewards": 1e-5,
    "weight": 1e-6,
}
TOLERANCE_OF_HALF = {
    "gradient": 0.2,
    "norm": 0.3,
    "loss": 0.05,
    "rewards": 0.1,
    "weight": 0.01,
}


@pytest.mark.parametrize("ranks, way", CASES)
def test_processes_take_the_step_of_one(ranks, way, results):
    kind, _ = WAYS[way]
    one, many = results(1, kind), results(ranks, way)
    assert many.keys() == one.keys()
    tolerance = TOLERANCE_OF_HALF if "half" in kind else TOLERANCE
    for name in one.keys() - {"share"}:
        what = name.split("/")[0]
        difference = (many[name] - one[name]).abs().max()
        assert difference <= tolerance[what], f"{name}: not that of one process"


@pytest.mark.parametrize("kind", KINDS)
def test_the_steps_that_are_compared_have_gradients_and_clip_them(kind, results):
    found = results(1, kind)
    for name, tensor in found.items():
        if name.startswith("gradient/1/"):
            assert tensor.any(), name
    for step in range(2):
        assert found[f"norm/{step}"] > 2 * MAX_NORM, "nothing is clipped: a wrong norm would pass"


@pytest.mark.parametrize("ranks, way", CASES)
def test_a_process_keeps_its_share_of_a_sharded_model_and_a_copy_of_another(ranks, way, results):
    share = results(ranks, way)["share"].item()
    if way.startswith("ddp"):
        assert share == 1
    else:
        # The first process has the row that the head consists of, and of 2 rows over 4 it has 1.
        assert 1 / ranks <= share < 1 / ranks + 0.02


@pytest.mark.parametrize("ranks", [2, 4])
def test_no_process_ever_holds_two_whole_layers(ranks, done):
    notes = json.loads((done / f"notes of {ranks}.json").read_text())
    # Before each of 3 layers and the rest is copied from its file, and when all is done.
    assert notes["copies"] == [0] * 5, "whole tensors of an earlier layer are still in memory"


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("kind", ["all", "lora"])
def test_a_checkpoint_of_whole_tensors_can_be_put_back_into_shards(ranks, kind, done):
    notes = json.loads((done / f"notes of {ranks}.json").read_text())
    assert notes[f"{kind} survives"]


# ---------------------------------------------------------------- whole runs


def last_lines(run) -> dict:
    """The last figures of training and of evaluation."""
    figures = {}
    for line in read_lines(run / "metrics.jsonl"):
        if line["step"] == 5:
            figures |= line
    figures.pop("rows_per_second")
    return figures


def assert_same_run(a, b, tolerance=2e-4) -> None:
    """The same figures at the end, but for rounding (AdamW makes it larger)."""
    figures, expected = last_lines(a), last_lines(b)
    assert figures.keys() == expected.keys()
    for name, value in expected.items():
        value = pytest.approx(value, abs=tolerance)
        assert figures[name] == value, f"{a.name}: {name}"


def test_adamw_learns_the_same_on_shards(done):
    assert_same_run(done / "two", done / "one")
    assert_same_run(done / "two lora", done / "one lora")


def test_a_run_can_be_continued_by_another_number_of_processes(done):
    assert_same_run(done / "one, then two", done / "one")
    assert_same_run(done / "two lora, then two", done / "two lora")
    resume(done, "two", "two, then one")
    assert_same_run(done / "two, then one", done / "two")


@pytest.mark.parametrize("run", [*RUNS_OF_ONE, *RUNS_OF_TWO])
def test_what_is_saved_is_an_ordinary_model_with_the_rewards_of_the_report(run, done):
    model = RewardModel.from_pretrained(done / run)
    base = RewardModel.from_pretrained(done / "tiny")
    assert model.state_dict().keys() == base.state_dict().keys()
    examples = Examples(done / "tokens")
    numbers = examples.numbers(held_out=True)
    batch = collate([examples[number] for number in numbers], 0)
    rewards = model(**batch.inputs())
    margins = rewards[batch.chosen] - rewards[batch.rejected]
    mean_margin = margins.mean().item()
    reported = json.loads((done / run / "report.json").read_text())
    assert reported["mean_margin"] == pytest.approx(mean_margin, abs=1e-5)


@pytest.mark.parametrize("run, alone", [
    ("two best", "one best"),
    ("two copies best", "one best"),
    ("two lora best", "one lora best"),
])
def test_two_processes_agree_on_the_best_model_and_when_to_end(run, alone, done):
    for name in (run, alone):
        lines = read_lines(done / name / "metrics.jsonl")
        losses = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
        assert list(losses) == [1, 2, 3, 4] and losses[2] == min(losses.values()), name
        reported = json.loads((done / name / "report.json").read_text())
        assert reported["step"] == 2, "not the step of the lowest held-out loss"
        assert reported["loss"] == pytest.approx(losses[2], abs=1e-5), "another model was saved"
    found = load_file(done / run / "model.safetensors")
    for name, tensor in load_file(done / alone / "model.safetensors").items():
        torch.testing.assert_close(found[name], tensor, atol=2e-3, rtol=0, msg=name)


def test_half_precision_on_shards_learns_what_float32_learns(done):
    half, full = last_lines(done / "two half lora"), last_lines(done / "two lora")
    assert half["loss"] == pytest.approx(full["loss"], abs=0.05)
