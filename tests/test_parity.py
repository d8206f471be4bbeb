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
