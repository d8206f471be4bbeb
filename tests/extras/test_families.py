"""Other decoders: equal to transformers', saved under their own names, and never guessed."""
import json

import pytest
import torch
from conftest import FIXTURES, TINY, save_run, tiny_model, tiny_tokenizer
from test_parity import assert_no_parity, assert_parity, assert_saved_again, fixtures_of

from extras import families
from model import FAMILIES, CheckpointError, RewardModel, open_model, read_json

CASES = fixtures_of(families.MORE_FAMILIES, ("default",))
SMOLLM3 = TINY | {"model_type": "smollm3", "no_rope_layers": [1, 0]}


def build(**settings) -> RewardModel:
    return families.build(SMOLLM3 | settings, "config.json")


def save_smollm3(folder, **settings):
    """Random numbers, as a smollm3 folder. Returns: the folder."""
    save_run(folder, tiny_model(), tiny_tokenizer())
    text = json.dumps(SMOLLM3 | settings)
    (folder / "config.json").write_text(text)
    return folder


# ---------------------------------------------------------------- parity


def test_every_family_has_a_fixture():
    assert CASES == ["smollm3"]
    assert set(families.MORE_FAMILIES) == {"smollm3"}
    assert not families.MORE_FAMILIES.keys() & FAMILIES.keys()


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_and_rewards_equal_those_of_transformers(case):
    config_json = read_json(FIXTURES / case / "config.json")
    model = RewardModel.from_pretrained(FIXTURES / case)
    assert model.config.max_length == config_json["sliding_window"], "a window limits the length"
    assert_parity(case, tokens=model.config.max_length)


def test_layers_without_positions_are_part_of_what_the_fixture_proves():
    model = RewardModel.from_pretrained(FIXTURES / "smollm3")
    for layer in model.model.layers:
        layer.self_attn.__class__ = families.Attention
    assert_no_parity("smollm3", tokens=6, model=model)


@pytest.mark.parametrize("case", CASES)
def test_it_is_saved_under_its_own_name(case, tmp_path):
    config_json = read_json(FIXTURES / case / "config.json")
    assert config_json["architectures"] == ["SmolLM3ForSequenceClassification"]
    assert_saved_again(case, tmp_path, config_json)
    assert_parity(case, tokens=6, model=RewardModel.from_pretrained(tmp_path))


def test_a_config_without_architectures_is_saved_as_its_family(tmp_path):
    model = RewardModel.from_pretrained(save_smollm3(tmp_path))
    model.save_pretrained(tmp_path, pad_token_id=0, state=model.state_dict())
    saved = read_json(tmp_path / "config.json")
    assert saved["model_type"] == "smollm3"
    assert saved["architectures"] == ["SmolLM3ForSequenceClassification"]
    assert saved["no_rope_layers"] == [1, 0]


# ---------------------------------------------------------------- smollm3, by hand


@pytest.mark.parametrize("no_rope_layers, sees_order", [([1, 0], False), ([0, 1], True)])
def test_layers_without_positions_alone_do_not_see_the_order(tmp_path, no_rope_layers, sees_order):
    folder = save_smollm3(tmp_path, no_rope_layers=no_rope_layers)
    model = RewardModel.from_pretrained(folder)
    # One layer. With two, a state of the first already holds what came before its token.
    del model.model.layers[0]
    mask = torch.ones(1, 4, dtype=torch.long)
    reward = model(torch.tensor([[5, 6, 7, 8]]), mask)
    swapped = model(torch.tensor([[7, 6, 5, 8]]), mask)
    assert ((reward - swapped).abs().item() > 1e-4) == sees_order


@pytest.mark.parametrize("settings, expected", [
    ({"no_rope_layers": [1, 1, 0, 1]}, [1, 1, 0, 1]),
    ({"no_rope_layers": None}, [1, 1, 1, 0]),
    ({"no_rope_layers": [], "no_rope_layer_interval": 2}, [1, 0, 1, 0]),
    ({"no_rope_layers": None, "no_rope_layer_interval": 3}, [1, 1, 0, 1]),
])
def test_which_layers_have_no_positions(settings, expected):
    model = build(num_hidden_layers=4, **settings)
    rotates = []
    for layer in model.model.layers:
        rotates.append(not isinstance(layer.self_attn, families.AttentionWithoutPositions))
    assert rotates == expected


@pytest.mark.parametrize("settings, expected", [
    ({"sliding_window": 8, "use_sliding_window": True}, 8),
    ({"sliding_window": 8, "use_sliding_window": False}, 256),
    ({"sliding_window": None}, 256),
])
def test_a_window_limits_the_length_where_it_is_in_use(settings, expected):
    assert build(**settings).config.max_length == expected


# ---------------------------------------------------------------- invalid input


@pytest.mark.parametrize("settings, message", [
    ({"no_rope_layers": [1]}, "no_rope_layers is not a list of one number for each of 2 layers"),
    ({"no_rope_layers": 3}, "no_rope_layers is not a list"),
    ({"no_rope_layers": None, "no_rope_layer_interval": "x"}, "no_rope_layer_interval is 'x'"),
    ({"num_key_value_heads": None}, "no num_key_value_heads; refusing to guess"),
    ({"num_hidden_layers": None}, "no num_hidden_layers; refusing to guess"),
    ({"rope_theta": None}, "no rope_theta; refusing to guess"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
])
def test_what_would_change_the_arithmetic_is_named_and_refused(settings, message):
    with pytest.raises(CheckpointError, match="config.json: " + message):
        build(**settings)


@pytest.mark.parametrize("model_type", ["mamba", None, ["llama"]])
def test_an_unknown_family_is_refused_with_the_names_of_all_known_ones(tmp_path, model_type):
    folder = save_smollm3(tmp_path, model_type=model_type)
    with pytest.raises(CheckpointError, match="model_type .* is not one of") as caught:
        open_model(folder)
    for name in (repr(model_type), "llama", "qwen3", "smollm3"):
        assert name in str(caught.value)
