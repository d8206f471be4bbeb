"""The decoder computes what transformers computes. fixtures/ is made by make_fixtures.py, which names the version."""
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model import FAMILIES, ROPE_RULES, RewardModel, read_config, read_json

FIXTURES = Path(__file__).parent / "fixtures"
CASES = sorted(p.parent.name for p in FIXTURES.glob("*/config.json"))


def test_every_family_has_a_fixture():
    assert set(FAMILIES) == {case.split("-")[0] for case in CASES}
    assert set(ROPE_RULES) == {read_config(read_json(FIXTURES / case / "config.json")).rope_type for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_and_rewards_equal_those_of_transformers(case):
    model, expected = RewardModel.from_pretrained(FIXTURES / case).eval(), load_file(FIXTURES / case / "expected.safetensors")
    input_ids, mask = expected["input_ids"], expected["attention_mask"]
    with torch.no_grad():
        hidden, rewards = model.model(input_ids) * mask[..., None], model(input_ids, mask)
    assert rewards.std() > 0.1  # they would not agree by all being 0
    torch.testing.assert_close(hidden, expected["hidden"], atol=1e-5, rtol=0)
    torch.testing.assert_close(rewards, expected["rewards"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_saving_again_gives_the_same_tensors_under_the_same_names(case, tmp_path):
    model = RewardModel.from_pretrained(FIXTURES / case)
    model.save_pretrained(tmp_path, pad_token_id=0)
    before = {n: t for f in (FIXTURES / case).glob("model*.safetensors") for n, t in load_file(f).items()}
    after = load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)
    config, saved = (json.loads((p / "config.json").read_text()) for p in (FIXTURES / case, tmp_path))
    arithmetic = config.keys() - {"id2label", "label2id"}
    assert {k: saved[k] for k in arithmetic} == {k: config[k] for k in arithmetic}


@pytest.mark.parametrize("case", ["llama", "llama-linear", "llama-yarn", "qwen2-yarn"])
def test_the_rope_rule_is_part_of_what_a_fixture_proves(case):
    expected = load_file(FIXTURES / case / "expected.safetensors")
    model = RewardModel.from_pretrained(FIXTURES / case).eval()
    model.model.config.rope_type = "default"
    with torch.no_grad():
        assert (model(expected["input_ids"], expected["attention_mask"]) - expected["rewards"]).abs().max() > 1e-3


@pytest.mark.parametrize("case", ["mistral-window", "qwen2-window", "qwen3-window", "smollm3"])
def test_windows_and_layers_without_positions_are_part_of_what_a_fixture_proves(case):
    expected = load_file(FIXTURES / case / "expected.safetensors")
    for setting, plain in (("window", None), ("uses_rope", True)):
        model = RewardModel.from_pretrained(FIXTURES / case).eval()
        if all(getattr(layer.self_attn, setting) == plain for layer in model.model.layers):
            continue
        for layer in model.model.layers:
            setattr(layer.self_attn, setting, plain)
        with torch.no_grad():
            assert (model(expected["input_ids"], expected["attention_mask"]) - expected["rewards"]).abs().max() > 1e-3


# ---------------------------------------------------------------- round trips (what transformers did stands in round-trips/)


def rewards_of(folder, inputs):
    with torch.no_grad():
        return RewardModel.from_pretrained(folder).eval()(inputs["input_ids"], inputs["attention_mask"])


def test_ours_to_transformers_and_back_changes_no_reward(tmp_path):
    expected = load_file(FIXTURES / "qwen3" / "expected.safetensors")
    RewardModel.from_pretrained(FIXTURES / "qwen3").save_pretrained(tmp_path, pad_token_id=0)
    through = FIXTURES / "round-trips" / "qwen3-through-both"  # this folder, opened and written again by transformers
    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(through / "model.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
    for folder in (tmp_path, through):
        torch.testing.assert_close(rewards_of(folder, expected), expected["rewards"], atol=1e-5, rtol=0)


def test_llamafactorys_layout_to_ours_to_transformers_changes_no_reward_but_by_the_bias(tmp_path):
    folder = FIXTURES / "round-trips" / "qwen2-llamafactory"
    expected = load_file(folder / "expected.safetensors")
    torch.testing.assert_close(rewards_of(folder, expected), expected["rewards"], atol=1e-5, rtol=0)
    model = RewardModel.from_pretrained(folder)
    assert model.head_origin == "kept (v_head.summary)"
    bias = model.score.bias.item()
    assert bias == 0.75
    model.save_pretrained(tmp_path, pad_token_id=0)  # what transformers opened when the fixture was made
    torch.testing.assert_close(rewards_of(tmp_path, expected), expected["rewards"], atol=1e-5, rtol=0)
    torch.testing.assert_close(expected["rewards_in_transformers"] + bias, expected["rewards"], atol=1e-5, rtol=0)
    again = tmp_path / "again"
    model.save_pretrained(again, pad_token_id=0, save_format="llamafactory")  # and back into their layout
    names = lambda where: {n for f in ("model", "value_head") for n in load_file(where / f"{f}.safetensors")}
    assert names(again) == names(folder) - {"lm_head.weight"}
    torch.testing.assert_close(rewards_of(again, expected), expected["rewards"], atol=1e-5, rtol=0)
