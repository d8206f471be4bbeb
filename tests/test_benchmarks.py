"""benchmarks/scaling.py on a CPU: what it runs on a GPU, with a tiny model."""
import json
import math

import pytest
from conftest import ROOT


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))  # where the scripts find each other
    import scaling

    return scaling


def test_every_kind_of_process_reports_finite_losses_tokens_and_a_share_of_the_peak(scaling, monkeypatch, tmp_path):
    monkeypatch.setattr(scaling, "spawn", scaling.worker)  # all in this process: starting nine takes a minute
    file = tmp_path / "scaling.json"
    scaling.main(["gpu", "--device", "cpu", "--shape", "tiny", "--length", "32", "--pairs", "2", "--steps", "1",
                  "--results", str(file)])
    rows = json.loads(file.read_text())["gpu"]
    assert [(r["how"], "--lora-rank" in r["options"], r["options"][-1]) for r in rows] == [
        ("one process", False, "--bf16"), ("DDP, one rank", False, "--bf16"), ("FSDP2, one rank", False, "--bf16"),
        ("one process", False, "--fp16"),
        ("one process", True, "--bf16"), ("DDP, one rank", True, "--bf16"), ("FSDP2, one rank", True, "--bf16")]
    for row in rows:
        assert len(row["losses"]) == 2 + row["skipped"] and all(map(math.isfinite, row["losses"]))
        assert row["tokens_per_second"] > 0 and 0 < row["of_peak"] < 1
        assert row["losses"][0] == pytest.approx(rows[4 if "--lora-rank" in row["options"] else 0]["losses"][0], abs=0.01)
    assert list(scaling.tables(file)) == ["gpu"] and scaling.tables(file)["gpu"].count("| finite |") == len(rows)


def test_a_measurement_is_a_process_of_its_own_and_replaces_an_earlier_one_of_its_name(scaling, monkeypatch, tmp_path):
    file = tmp_path / "scaling.json"
    for steps in ("1", "2"):
        scaling.main(["size", "--only", "1M, 256", "--steps", steps, "--results", str(file)])
        monkeypatch.setattr(scaling, "spawn", scaling.worker)  # the second one here, to save time
    (row,) = json.loads(file.read_text())["size"]
    assert row["steps"] == 2 and row["parameters"] == 1130881 and row["peak_mb"] > 100


def test_flops_are_six_for_a_weight_and_token_and_twelve_for_what_attention_sees(scaling):
    from data import collate
    from model import RewardModel, read_config

    shape = scaling.SHAPES["tiny"]
    D, I, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    model = RewardModel(read_config(shape))
    weights = sum(p.numel() for p in model.model.layers.parameters() if p.ndim > 1)
    assert weights == layers * (D * D * 3 + 3 * D * I)  # two key/value heads for four query heads
    trees = collate(scaling.speed.random_pairs(1, 8, 500), [0], 0, True).trees
    tokens, seen = 12, 4 * 5 / 2 + 2 * (4 * 4 + 4 * 5 / 2)  # prompt of 4, twice a rest of 4
    of_weights = weights * tokens - (D * D + 3 * D * I) * (tokens - 2)
    attention = 12 * layers * D * seen
    assert scaling.model_flops(model, trees, weights, False) == 6 * of_weights + attention
    assert scaling.model_flops(model, trees, weights, True) == 4 * of_weights + attention
