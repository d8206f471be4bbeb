"""The benchmarks at tiny sizes: what they time is what they say, and all contestants do the same."""
import itertools
import json
import re
import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, read_lines, write_rows

import train_rm
from data import Tokenizer, epoch_order, parse_row
from extras.toy_world import gold_reward, random_response, toy_rows
from model import RewardModel, read_config

sys.path.insert(0, str(ROOT / "benchmarks"))  # where the scripts find each other

import data_path
import floor
import overoptimisation
import prepare
import scaling
import speed
import step_cost
import trainers
from common import SHAPES


@pytest.fixture
def toy_file(tmp_path):
    """Rows of the toy world."""
    return write_rows(tmp_path / "toy.jsonl", toy_rows(40, seed=0))


# ---------------------------------------------------------------- speed.py


def test_all_trainers_get_the_pairs_in_the_order_in_which_train_rm_takes_them(toy_file, tmp_path):
    prepare.prepare(tmp_path, SHAPES["tiny"], str(toy_file), 8, 64)
    tokenizer = Tokenizer.from_folder(tmp_path / "model")
    rows = read_lines(tmp_path / "pairs.jsonl")
    ids = json.loads((tmp_path / "ids.json").read_text())
    for number, pair in zip(epoch_order(8, 0, 0), ids):
        sequences, _, _ = tokenizer.encode_row(parse_row(rows[number]))
        assert [sequence.tolist() for sequence in sequences] == pair, "TRL gets other pairs a step"


def test_the_forms_that_speed_compares_take_the_same_steps(toy_file, tmp_path, monkeypatch):
    monkeypatch.setattr(train_rm, "LOGGING_STEPS", train_rm.LOGGING_STEPS)  # a trainer sets them
    monkeypatch.setattr(train_rm, "learning_rate", train_rm.learning_rate)
    workers = {"ours": trainers.train_ours, "floor": floor.floor}

    def in_this_process(python, script, worker, settings, cwd=None):
        return workers[worker](settings)

    monkeypatch.setattr(speed, "spawn", in_this_process)  # a new process would need seconds
    file = tmp_path / "speed.json"
    small = ["--pairs", "8", "--batch", "2", "--accumulation", "2", "--max-length", "64"]
    train = ["train", "--data", str(toy_file), "--shape", "tiny", "--pack", "--lr", "1e-3"]
    speed.main([*train, *small, "--repeats", "1", "--results", str(file)])
    (entry,) = json.loads(file.read_text()).values()
    assert list(entry["who"]) == ["padded", "packed", "packed, used rows"]
    assert entry["steps_timed"] == 1, "two steps, of which the first is not timed"
    for of_one in entry["who"].values():
        assert of_one["losses"] == pytest.approx(entry["who"]["padded"]["losses"], abs=1e-5)
        assert len(of_one["losses"]) == 2 and of_one["pairs_per_second"] > 0
    assert "| tiny, float32 | packed, used rows |" in speed.tables(file)["train"]


def test_a_contestant_that_does_something_else_is_not_compared():
    fine = {"tokens": "a", "losses": [0.7, 0.6]}
    speed.check_equal({"padded": [fine], "TRL": [fine]}, "float32")
    for changed in ({"tokens": "b"}, {"losses": [0.7, 0.61]}):
        with pytest.raises(SystemExit, match="TRL"):
            speed.check_equal({"padded": [fine], "TRL": [fine | changed]}, "float32")


# ---------------------------------------------------------------- scaling.py


@pytest.fixture
def in_this_process(monkeypatch):
    """Measurements of scaling.py without a process of their own: starting nine takes a minute."""

    def work(python, script, worker, settings):
        return step_cost.WORKERS[worker](settings)

    monkeypatch.setattr(scaling, "spawn", work)


def test_every_kind_of_process_takes_the_same_steps(in_this_process, tmp_path):
    file = tmp_path / "scaling.json"
    small = ["--length", "32", "--pairs", "2", "--steps", "1", "--results", str(file)]
    scaling.main(["gpu", "--device", "cpu", "--shape", "tiny", *small])
    rows = json.loads(file.read_text())["gpu"]
    kinds = [(row["how"], "--lora-rank" in row["options"], row["options"][-1]) for row in rows]
    assert kinds == [
        ("one process", False, "--bf16"),
        ("DDP, one rank", False, "--bf16"),
        ("FSDP2, one rank", False, "--bf16"),
        ("one process", True, "--bf16"),
        ("DDP, one rank", True, "--bf16"),
        ("FSDP2, one rank", True, "--bf16"),
        ("one process", False, "--bf16"),  # without --pack
        ("one process", False, "--fp16"),
    ]
    for row in rows:
        assert len(row["losses"]) == 2 + row["skipped"]
        assert all(map(math.isfinite, row["losses"]))
        assert row["tokens_per_second"] > 0 and 0 < row["of_peak"] < 1
    first = [row["losses"][0] for row in rows]
    assert first[:3] == pytest.approx(first[:1] * 3, abs=0.01), "another step than one process's"
    assert first[3:6] == pytest.approx(first[3:4] * 3, abs=0.01)
    assert first[6] == pytest.approx(first[0], abs=0.01), "--pack changed the loss"
    assert scaling.tables(file)["gpu"].count("| finite |") == len(rows)


def test_a_measurement_replaces_an_earlier_one_of_its_name(in_this_process, tmp_path):
    file = tmp_path / "scaling.json"
    for most in ("1", "2"):
        scaling.main(["size", "--only", "1m, 256", "--steps", most, "--results", str(file)])
    (row,) = json.loads(file.read_text())["size"]
    assert row["steps"] == 2 and row["parameters"] == 1130881 and row["peak_mb"] > 100


def test_flops_are_six_for_a_weight_and_token_and_twelve_for_what_attention_sees():
    shape = SHAPES["tiny"]
    model = RewardModel(read_config(shape))
    D, I, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    weights = layers * (D * D * 3 + 3 * D * I)  # two key/value heads for four query heads
    pairs = step_cost.random_pairs(1, 8, 500)
    plain, packed, lora = (
        step_cost.flops(model, pairs, weights, train_rm.parse_options(["--model", "x", *options]))
        for options in ([], ["--pack"], ["--pack", "--lora-rank", "8"])
    )
    attention = 12 * layers * D
    assert plain == 6 * weights * 16 + attention * 2 * (8 * 9 / 2)  # twice 8 tokens
    seen = 4 * 5 / 2 + 2 * (4 * 4 + 4 * 5 / 2)  # a prompt of 4 tokens, two responses of 4
    assert packed == 6 * weights * 12 + attention * seen
    assert lora == 4 * weights * 12 + attention * seen


# ---------------------------------------------------------------- data_path.py, overoptimisation.py


def test_the_data_path_is_measured_from_file_to_batches():
    result = data_path.measure({"rows": 80})
    assert result["tokens_mb"] == pytest.approx(result["tokens"] * 4 / 1e6, rel=0.1)
    tokens_of_a_sequence = result["tokens"] / 80 / 2
    assert 450 < tokens_of_a_sequence < 550
    assert result["peak_mb_with_batches"] >= result["peak_mb_making"] >= result["peak_mb_before"]


def test_best_of_n_is_the_mean_over_all_ways_to_draw_n():
    rng = np.random.default_rng(0)
    learned, true = rng.normal(size=7), rng.normal(size=7)
    for n in (1, 3, 7):
        best = []
        for drawn in itertools.combinations(range(7), n):
            winner = max(drawn, key=lambda i: learned[i])
            best.append(true[winner])
        assert overoptimisation.best_of_n(learned, true, n) == pytest.approx(np.mean(best))


def test_the_search_finds_more_than_was_trained_on_and_the_true_reward_knows_it():
    rng = random.Random(0)
    prompt = "Which colour is grass?"
    drawn = [gold_reward(prompt, overoptimisation.draw(prompt, rng)) for _ in range(500)]
    trained_on = [gold_reward(prompt, random_response(prompt, rng)) for _ in range(500)]
    assert max(drawn) > max(trained_on) and min(drawn) < min(trained_on)


def test_no_result_names_a_folder_of_the_machine_that_made_it():
    for file in Path(ROOT, "benchmarks").glob("*.json"):
        found = re.search(r"""(?<![\w.])/\w+/""", file.read_text("utf-8"))
        assert not found, f"{file.name}: {found[0]}"
