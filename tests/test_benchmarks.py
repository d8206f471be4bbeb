"""The benchmarks at tiny sizes: they time what they say, and all contestants do the same."""
import itertools
import json
import re
import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, read_lines, write_rows

import train_rm
from data import DataError, Tokenizer, epoch_order, parse_row
from extras import compiling
from extras.toy_world import gold_reward, random_response, toy_rows
from model import PADDED, RewardModel, read_config

sys.path.insert(0, str(ROOT / "benchmarks"))  # where the scripts find each other

import data_path
import floor
import gpu
import memory
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


@pytest.mark.parametrize("K", [2, 3])
def test_all_trainers_get_the_rows_in_the_order_in_which_train_rm_takes_them(K, toy_file, tmp_path):
    prepare.prepare(tmp_path, SHAPES["tiny"], str(toy_file), 8, 128, K)
    tokenizer = Tokenizer.from_folder(tmp_path / "model")
    rows = read_lines(tmp_path / "rows.jsonl")
    ids = json.loads((tmp_path / "ids.json").read_text())
    for number, row in zip(epoch_order(8, 0, 0), ids):
        sequences, _, _ = tokenizer.encode_row(parse_row(rows[number]))
        assert [sequence.tolist() for sequence in sequences] == row, "TRL gets other rows a step"
    pairs = trainers.read_pairs({"folder": tmp_path})
    assert len(pairs) == 8 * K * (K - 1) // 2
    assert pairs[:2] == [[ids[0][0], ids[0][1]], [ids[0][0], ids[0][2]] if K == 3 else ids[1]]


def test_the_forms_that_speed_compares_take_the_same_steps(toy_file, tmp_path, monkeypatch):
    monkeypatch.setattr(train_rm, "LOGGING_STEPS", train_rm.LOGGING_STEPS)  # a trainer sets them
    monkeypatch.setattr(train_rm, "learning_rate", train_rm.learning_rate)
    workers = {"ours": trainers.train_ours, "floor": floor.floor}

    def in_this_process(python, script, worker, settings, cwd=None):
        return workers[worker](settings)

    monkeypatch.setattr(speed, "spawn", in_this_process)  # a new process would need seconds
    file = tmp_path / "speed.json"
    small = ["--rows", "8", "--batch", "2", "--accumulation", "2", "--max-length", "64"]
    train = ["train", "--data", str(toy_file), "--shape", "tiny", "--lr", "1e-3"]
    who = ["--who", "padded", "packed", "packed, used rows"]  # the compiler takes a minute
    speed.main([*train, *small, *who, "--repeats", "1", "--results", str(file)])
    (entry,) = json.loads(file.read_text()).values()
    assert list(entry["who"]) == ["padded", "packed", "packed, used rows"]
    assert entry["steps_timed"] == 1, "two steps, of which the first is not timed"
    for of_one in entry["who"].values():
        assert of_one["losses"] == pytest.approx(entry["who"]["padded"]["losses"], abs=1e-5)
        assert len(of_one["losses"]) == 2 and of_one["rows_per_second"] > 0
    assert "| tiny, pairs, float32, cpu | packed, used rows |" in speed.tables(file)["train"]


def test_a_contestant_that_does_something_else_is_not_compared():
    fine = {"tokens": "a", "losses": [0.7, 0.6]}
    speed.check_equal({"padded": [fine], "TRL": [fine]}, "float32")
    for changed in ({"tokens": "b"}, {"losses": [0.7, 0.61]}):
        with pytest.raises(SystemExit, match="TRL"):
            speed.check_equal({"padded": [fine], "TRL": [fine | changed]}, "float32")


# ---------------------------------------------------------------- scaling.py, step_cost.py


@pytest.fixture
def in_this_process(monkeypatch):
    """Measurements without a process of their own: starting nine takes a minute."""

    def work(python, script, worker, settings):
        return step_cost.WORKERS[worker](settings)

    for script in (scaling, gpu, memory):
        monkeypatch.setattr(script, "spawn", work)


def test_a_measurement_replaces_an_earlier_one_of_its_name(in_this_process, tmp_path):
    file = tmp_path / "scaling.json"
    one = ["size", "--only", "1m, 256 tokens, plain", "--results", str(file)]
    for most in ("1", "2"):
        scaling.main([*one, "--steps", most])
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


@pytest.mark.parametrize("error, said", [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "CUDA out of memory"),
    (DataError("--compile: no working compiler here"), "no working compiler"),
])
def test_a_measurement_that_cannot_be_made_says_why(error, said, monkeypatch):
    def measure(settings):
        raise error

    monkeypatch.setattr(step_cost, "measure", measure)
    assert said in step_cost.WORKERS["measure"]({})["did_not_run"]


def test_a_bug_is_not_taken_for_too_little_memory(monkeypatch):
    monkeypatch.setattr(step_cost, "measure", lambda settings: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError):
        step_cost.WORKERS["measure"]({})


# ---------------------------------------------------------------- gpu.py, memory.py


GPU = ["--device", "cpu", "--tiny", "--pairs", "2", "--steps", "1"]


def test_all_that_gpu_measures_takes_the_same_steps(in_this_process, tmp_path, monkeypatch):
    compiled = []  # the compiler takes a minute, and tests/extras/test_compiling.py runs it
    monkeypatch.setattr(compiling, "compile_layers", compiled.append)
    file = tmp_path / "gpu.json"
    gpu.main([*GPU, "--results", str(file)])
    rows = json.loads(file.read_text())["gpu"]
    kinds = [" ".join(row["options"]) for row in rows]
    full = ["--bf16", "--bf16 --pack", "--bf16 --pack --compile", "--bf16 --pack --shard",
            "--fp16 --pack"]
    assert kinds == [*full, *(f"{kind} --lora-rank 16" for kind in full)]
    assert len(compiled) == 2
    for row in rows:
        assert len(row["losses"]) == 2 + row["skipped"]
        assert all(map(math.isfinite, row["losses"]))
        assert row["tokens_per_second"] > 0 and 0 < row["of_peak"] < 1 and row["needed_mb"] > 0
    first = [row["losses"][0] for row in rows]
    assert first[:5] == pytest.approx(first[:1] * 5, abs=0.01), "packed or sharded: another step"
    assert first[5:] == pytest.approx(first[5:6] * 5, abs=0.01)
    assert gpu.tables(file)["gpu"].count("| finite |") == len(rows)


def test_what_does_not_fit_the_card_is_not_tried(tmp_path, monkeypatch):
    def work(python, script, worker, settings):
        assert worker == "card", "a step was tried that cannot fit"
        return {"peak_flops_per_second": 1e12, "memory_bytes": 10**6}

    monkeypatch.setattr(gpu, "spawn", work)
    file = tmp_path / "gpu.json"
    gpu.main([*GPU, "--only", "--bf16 --pack,", "--results", str(file)])
    (row,) = json.loads(file.read_text())["gpu"]
    assert row["did_not_run"].startswith("not tried: needs ")
    assert row["did_not_run"] in gpu.tables(file)["gpu"]


def test_what_fails_on_a_card_does_not_end_the_rest(tmp_path, monkeypatch):
    def work(python, script, worker, settings):
        if worker == "card":
            return {"peak_flops_per_second": 1e12, "memory_bytes": 10**12}
        sys.exit("measure failed:\n\nImportError: file too short\n")

    monkeypatch.setattr(gpu, "spawn", work)
    file = tmp_path / "gpu.json"
    gpu.main([*GPU, "--results", str(file)])
    rows = json.loads(file.read_text())["gpu"]
    assert [row["did_not_run"] for row in rows] == ["failed: ImportError: file too short"] * 10


def test_a_trained_number_takes_16_bytes_and_a_frozen_one_2():
    tiny = SHAPES["tiny"]
    full = memory.needed(tiny, ["--bf16"], 64)
    lora = memory.needed(tiny, ["--bf16", "--lora-rank", "2"], 64)
    model = RewardModel(read_config(tiny))
    assert full["states"] == 16 * step_cost.count(model) == 16 * full["parameters"]
    head = step_cost.count(model.score)
    factors = 2 * 2 * ((64 + 64) * 2 + (64 + 32) * 2 + (64 + 128) * 3)  # 2 layers, rank 2
    assert lora["states"] == 2 * (full["parameters"] - head) + 16 * (factors + head)
    assert lora["report"] == 4 * full["parameters"], "all of the saved model, in float32"


def test_activations_are_those_that_a_whole_model_saves():
    tiny, tokens = SHAPES["tiny"], 48
    layers = tiny["num_hidden_layers"]
    model = RewardModel.from_scratch(tiny)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = {}

    def note(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.model(torch.ones(1, tokens, dtype=torch.long), PADDED)
    whole = sum(found.nbytes() for address, found in saved.items() if address not in weights)
    one_too_many = memory.saved_bytes(tiny, [], tokens)  # for gradients in flight
    computed = tokens * memory.kept_per_token(tiny, []) - one_too_many
    assert computed == pytest.approx(whole, rel=0.05)
    less = tokens * memory.kept_per_token(tiny, ["--gradient-checkpointing"])
    assert layers == 2 and less > computed / 2, "one layer at a time is whole"


def test_the_memory_page_is_made_of_the_result_file(in_this_process, tmp_path, monkeypatch):
    file = tmp_path / "memory.json"
    monkeypatch.setattr(memory, "CHECKED", [("tiny", ["--bf16"])])
    for command in ("fits", "check"):
        memory.main([command, "--shapes", "tiny", "--length", "32", "--results", str(file)])
    found = memory.tables(file)
    assert found["fits"].count("8 GB") == 6, "three ways, without and with checkpointing"
    assert "| tiny | `--bf16` | 64 |" in found["check"]


def test_a_tenth_of_a_card_is_left():
    assert memory.smallest_card(7.1e9) == "8 GB" and memory.smallest_card(7.3e9) == "16 GB"
    assert memory.smallest_card(71e9) == "80 GB" and memory.smallest_card(121e9) == "none"


# ---------------------------------------------------------------- data_path.py, overoptimisation.py


def test_every_part_of_a_run_is_measured(monkeypatch):
    for part in data_path.PARTS:  # it puts watched ones there
        monkeypatch.setattr(train_rm, part, getattr(train_rm, part))
    result = data_path.measure({"rows": 200, "device": "cpu"})
    assert list(result["parts"]) == list(data_path.PARTS), "train_rm.run has other parts now"
    assert result["tokens_mb"] > result["tokens"] * 4 / 1e6 and result["held_out"] == 2
    peaks = [part["peak_mb"] for part in result["parts"].values()]
    assert peaks == sorted(peaks) and peaks[0] >= result["peak_mb_before"]
    assert all(part["seconds"] > 0 for part in result["parts"].values())


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
