"""Other decoders: equal to transformers', saved under their own names, and never guessed.

test_families_together.py trains, packs, shards and freezes them.
"""
import json
import shutil

import pytest
import torch
from conftest import FIXTURES, TINY, save_run, tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file
from test_parity import assert_no_parity, assert_parity, assert_saved_again, fixtures_of, outputs

from extras import families
from extras.families import qwen3_moe
from model import FAMILIES, CheckpointError, RewardModel, RMSNorm
from model import Attention, open_model, read_json

CASES = fixtures_of(families.MORE_FAMILIES, ("default", "linear", "longrope"))
SMOLLM3 = TINY | {"model_type": "smollm3", "no_rope_layers": [1, 0]}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 40}
LONGROPE |= {"short_factor": [1.0, 1.0, 1.0, 1.0]}
LIMITS = {"smollm3": 6, "phi3": 17, "phi3-longrope": 40}  # of the length, where it is below 64


def build(**settings) -> RewardModel:
    return families.build(SMOLLM3 | settings, "config.json")


def config_of(case: str) -> dict:
    return read_json(FIXTURES / case / "config.json")


def save_smollm3(folder, **settings):
    """Random numbers, as a smollm3 folder. Returns: the folder."""
    save_run(folder, tiny_model(), tiny_tokenizer())
    text = json.dumps(SMOLLM3 | settings)
    (folder / "config.json").write_text(text)
    return folder


def copy_fixture(case: str, folder, changes: dict, leave_out=()):
    """A fixture with another config.json. Returns: the folder."""
    shutil.copytree(FIXTURES / case, folder)
    config_json = config_of(case) | changes
    for key in leave_out:
        del config_json[key]
    (folder / "config.json").write_text(json.dumps(config_json))
    return folder


# ---------------------------------------------------------------- parity


def test_every_family_has_a_fixture():
    names = {case.split("-")[0] for case in CASES}
    assert names == set(families.MORE_FAMILIES)
    assert not families.MORE_FAMILIES.keys() & FAMILIES.keys()
    in_several_files = [c for c in CASES if (FIXTURES / c / "model.safetensors.index.json").exists()]
    assert len(in_several_files) >= 5
    tied = {config_of(case)["tie_word_embeddings"] for case in CASES}
    assert tied == {True, False}


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_and_rewards_equal_those_of_transformers(case):
    model = RewardModel.from_pretrained(FIXTURES / case)
    limit = LIMITS.get(case, 64)
    assert model.config.max_length == limit, "of Gemma's windows none limits the length"
    assert_parity(case, tokens=min(limit, 40), model=model)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_a_reward_is_the_same_alone_and_in_a_padded_batch(case):
    model = RewardModel.from_pretrained(FIXTURES / case)
    limit = min(40, model.config.max_length)
    lengths = [limit, 1, limit // 2]
    ids = torch.randint(3, 48, (3, limit))
    mask = (torch.arange(limit) < torch.tensor(lengths)[:, None]).long()
    together = model(ids, mask)
    for row, length, reward in zip(ids, lengths, together):
        alone = model(row[None, :length], torch.ones(1, length, dtype=torch.long))
        torch.testing.assert_close(alone[0], reward, atol=1e-5, rtol=0, msg="do pads count?")


def gelu_of_the_other_kind(model):
    for layer in model.model.layers:
        layer.mlp.gelu = {"none": "tanh", "tanh": "none"}[layer.mlp.gelu]


def one_after_the_other(model):
    for layer in model.model.layers:
        layer.parallel = not layer.parallel


def no_positions(model):
    torch.nn.init.zeros_(model.model.wpe.weight)


def norms_per_head(model):
    for layer in model.model.layers:
        layer.self_attn.q_norm.__class__ = RMSNorm
        layer.self_attn.q_norm.forward = lambda x: x


def no_window(model):
    model.model.rules = model.model.rules._replace(window=64)


def no_cap(model):
    model.model.rules = model.model.rules._replace(cap=None)


def scale_of_llama(model):
    model.model.rules = model.model.rules._replace(scalar=model.config.head_dim)


def one_rope(model):
    model.model.near = model.config


def weights_without_1(model):
    model.model.norm.__class__ = RMSNorm


def all_rotate(model):
    for layer in model.model.layers:
        layer.self_attn.__class__ = Attention


def unscaled(model):
    model.config.rope["scale"] = 1.0


def first_list(model):
    model.config.rope["short_factor"] = [1.0, 1.0]


def probabilities_not_normed(model):
    for layer in model.model.layers:
        if isinstance(layer.mlp, qwen3_moe.Experts):
            layer.mlp.normed = not layer.mlp.normed


def one_expert(model):
    for layer in model.model.layers:
        if isinstance(layer.mlp, qwen3_moe.Experts):
            layer.mlp.used = 1


@pytest.mark.parametrize("case, change", [
    ("gpt_neox", one_after_the_other), ("gpt_neox-serial", one_after_the_other),
    ("gpt_neox", gelu_of_the_other_kind), ("gpt2", gelu_of_the_other_kind), ("gpt2", no_positions),
    ("olmo2", norms_per_head), ("gemma2", no_window), ("gemma2", no_cap),
    ("gemma2", scale_of_llama), ("gemma2", weights_without_1), ("gemma2", gelu_of_the_other_kind),
    ("gemma2-untied", no_window), ("gemma3_text", no_window), ("gemma3_text", scale_of_llama),
    ("gemma3_text", one_rope), ("gemma3_text", weights_without_1), ("smollm3", all_rotate),
    ("phi3-longrope", unscaled), ("phi3-longrope", first_list),
    ("qwen3_moe", probabilities_not_normed), ("qwen3_moe-plain", probabilities_not_normed),
    ("qwen3_moe", one_expert),
])
def test_each_difference_is_part_of_what_the_fixture_proves(case, change):
    model = RewardModel.from_pretrained(FIXTURES / case)
    change(model)
    hidden, _ = outputs(case, min(40, model.config.max_length), model)
    difference = (hidden[0] - hidden[1]).abs().max()
    # The two GELUs are much alike. The limit of parity is 1e-5.
    least = 1e-4 if change is gelu_of_the_other_kind else 1e-2
    assert difference > least, "this fixture does not show the difference: it proves nothing"


def test_layers_without_positions_are_part_of_what_the_fixture_proves():
    model = RewardModel.from_pretrained(FIXTURES / "smollm3")
    all_rotate(model)
    assert_no_parity("smollm3", tokens=6, model=model)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("case", CASES)
def test_it_is_saved_under_its_own_name(case, tmp_path):
    config_json = config_of(case)
    class_name = families.MORE_FAMILIES[config_json["model_type"]].class_name
    assert config_json["architectures"] == [class_name + "ForSequenceClassification"]
    assert_saved_again(case, tmp_path, config_json)
    again = RewardModel.from_pretrained(tmp_path)
    assert_parity(case, min(40, again.config.max_length), again)


def test_a_config_without_architectures_is_saved_as_its_family(tmp_path):
    model = RewardModel.from_pretrained(save_smollm3(tmp_path))
    model.save_pretrained(tmp_path, pad_token_id=0, state=model.state_dict())
    saved = read_json(tmp_path / "config.json")
    assert saved["model_type"] == "smollm3"
    assert saved["architectures"] == ["SmolLM3ForSequenceClassification"]
    assert saved["no_rope_layers"] == [1, 0]


@pytest.mark.parametrize("case, expected", [
    ("gpt_neox-serial", {"rotary_pct": 1.0, "rotary_emb_base": 1000.0}),
    ("gemma3_text", {"rope_theta": 1000.0, "rope_local_base_freq": 10.0,
                     "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    ("qwen3_moe", {"num_experts": 5}),
])
def test_a_saved_config_says_it_in_the_words_of_older_versions_too(case, expected, tmp_path):
    model = RewardModel.from_pretrained(FIXTURES / case)
    model.save_pretrained(tmp_path, pad_token_id=0, state=model.state_dict())
    saved = read_json(tmp_path / "config.json")
    for key, value in expected.items():
        assert saved[key] == value, f"{key}: transformers 4 would take its default"


@pytest.mark.parametrize("case, prefix, mask", [
    ("gpt2", "transformer.", "h.0.attn.bias"), ("gpt_neox", "gpt_neox.", "layers.0.attention.bias")
])
def test_old_checkpoints_have_masks_a_language_model_head_and_maybe_no_prefix(
    case, prefix, mask, tmp_path
):
    folder = copy_fixture(case, tmp_path / "old", {})
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        tensors[name.removeprefix(prefix)] = tensor
    tensors[mask] = torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril()
    tensors[mask.replace("bias", "masked_bias")] = torch.tensor(-1e9)
    tensors["embed_out.weight" if case == "gpt_neox" else "lm_head.weight"] = torch.ones(48, 24)
    save_file(tensors, folder / "model.safetensors")
    assert_parity(case, model=RewardModel.from_pretrained(folder))


def test_an_error_names_tensors_as_the_file_does(tmp_path):
    folder = copy_fixture("gpt2", tmp_path / "damaged", {})
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.0.ln_1.weight"]
    tensors["transformer.h.0.ln_3.weight"] = torch.ones(24)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        open_model(folder)
    assert "missing: transformer.h.0.ln_1.weight" in str(caught.value)
    assert "not expected: transformer.h.0.ln_3.weight" in str(caught.value)


# ---------------------------------------------------------------- config.json


@pytest.mark.parametrize("case, leave_out, older", [
    # as versions 2 to 4 of transformers wrote them
    ("gpt_neox", ["rope_parameters"], {"rotary_pct": 0.25, "rotary_emb_base": 1000}),
    ("gpt_neox", ["rope_parameters", "attention_bias", "use_parallel_residual"],
     {"rotary_pct": 0.25, "rotary_emb_base": 1000}),
    ("gpt2", ["scale_attn_weights", "add_cross_attention"], {"n_ctx": 64}),
    ("olmo2", ["rope_parameters"], {"rope_theta": 10000.0, "rope_scaling": None}),
    ("gemma2", ["rope_parameters", "layer_types"],
     {"rope_theta": 10000.0, "hidden_act": "gelu_pytorch_tanh"}),
    ("gemma3_text", ["rope_parameters", "layer_types"],
     {"rope_theta": 1000.0, "rope_local_base_freq": 10, "sliding_window_pattern": 2,
      "rope_scaling": {"type": "linear", "factor": 4.0}}),
    ("phi3", ["rope_parameters"], {"rope_theta": 10000.0, "rope_scaling": None}),
    ("phi3-longrope", ["rope_parameters"],
     {"rope_theta": 100.0, "original_max_position_embeddings": 40, "partial_rotary_factor": 0.5,
      "rope_scaling": {"type": "su", "short_factor": [1.5, 3.0], "long_factor": [4.0, 9.0]}}),
    ("qwen3_moe", ["rope_parameters", "num_local_experts"],
     {"rope_theta": 10000.0, "num_experts": 5}),
])
def test_older_spellings_of_a_config_mean_the_same(case, leave_out, older, tmp_path):
    folder = copy_fixture(case, tmp_path / "older", older, leave_out)
    model = RewardModel.from_pretrained(folder)
    assert_parity(case, min(40, model.config.max_length), model)


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


@pytest.mark.parametrize("case, changes, message", [
    ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers is not a list of one number for each"),
    ("smollm3", {"no_rope_layers": 3}, "no_rope_layers is not a list"),
    ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": "x"},
     "no_rope_layer_interval is 'x'"),
    ("smollm3", {"num_key_value_heads": None}, "no num_key_value_heads; refusing to guess"),
    ("smollm3", {"num_hidden_layers": None}, "no num_hidden_layers; refusing to guess"),
    ("smollm3", {"rope_parameters": None}, "no rope_theta; refusing to guess"),
    ("smollm3", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ("olmo2", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ("olmo2", {"num_key_value_heads": None}, "no num_key_value_heads; refusing to guess"),
    ("gpt_neox", {"hidden_act": "relu"}, "hidden_act 'relu'"),
    ("gpt_neox", {"hidden_act": None}, "no hidden_act; refusing to guess"),
    ("gpt_neox", {"rope_parameters": {"rope_theta": 10.0}}, "no rotary_pct; refusing to guess"),
    ("gpt_neox", {"rope_parameters": None, "rotary_pct": 0.25}, "no rope_theta"),
    ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 2}}, "rotary_pct is 2, more than"),
    ("gpt_neox", {"num_attention_heads": 5}, "hidden_size 24 is not a multiple of 5 heads"),
    ("gpt_neox", {"layer_norm_eps": None}, "no layer_norm_eps; refusing to guess"),
    ("gpt2", {"activation_function": "relu"}, "activation_function 'relu'"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights False"),
    ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn True"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention True"),
    ("gpt2", {"n_head": None}, "no n_head; refusing to guess"),
    ("gpt2", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("gemma2", {"hidden_activation": None}, "no hidden_activation; refusing to guess"),
    ("gemma2", {"hidden_activation": "silu"}, "hidden_activation 'silu'"),
    ("gemma2", {"head_dim": None}, "no head_dim; refusing to guess"),
    ("gemma2", {"query_pre_attn_scalar": None}, "no query_pre_attn_scalar; refusing to guess"),
    ("gemma2", {"sliding_window": None}, "no sliding_window; refusing to guess"),
    ("gemma2", {"layer_types": ["full_attention"]}, "layer_types is not a list of 3 names"),
    ("gemma2", {"layer_types": ["chunked_attention"] * 3}, "layer_types 'chunked_attention'"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention True"),
    ("gemma2", {"rope_parameters": {"rope_type": "longrope"}}, "rope type 'longrope'"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
    ("gemma3_text", {"layer_types": None, "sliding_window_pattern": None},
     "no sliding_window_pattern; refusing to guess"),
    ("gemma3_text", {"rope_parameters": {"rope_theta": 1e6}}, "no rope_theta; refusing to guess"),
    ("phi3", {"attention_bias": True}, "attention_bias True"),
    ("phi3", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ("phi3", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope type 'yarn'"),
    ("phi3-longrope", {"rope_parameters": LONGROPE | {"short_factor": [1.0]}},
     "short_factor is not a list of 4 numbers"),
    ("phi3-longrope", {"rope_parameters": LONGROPE | {"short_factor": [1.0, 1.0, 1.0, -1.0]}},
     "short_factor is -1.0"),
    ("phi3-longrope", {"rope_parameters": LONGROPE | {"factor": 8.0}}, "factor 8.0"),
    ("qwen3_moe", {"num_experts_per_tok": 9}, "num_experts_per_tok 9 of only 5 experts"),
    ("qwen3_moe", {"norm_topk_prob": None}, "no norm_topk_prob; refusing to guess"),
    ("qwen3_moe", {"num_local_experts": None}, "no num_experts; refusing to guess"),
])
def test_what_would_change_the_arithmetic_is_named_and_refused(case, changes, message):
    with pytest.raises(CheckpointError, match="^config.json: " + message):
        families.build(config_of(case) | changes, "config.json")


def test_gemma_2_without_a_word_about_its_cap_is_refused():
    config_json = config_of("gemma2")
    del config_json["attn_logit_softcapping"]  # transformers takes 50; null is no cap
    with pytest.raises(CheckpointError, match="no attn_logit_softcapping; refusing to guess"):
        families.build(config_json, "config.json")


@pytest.mark.parametrize("settings, expected", [
    ({"sliding_window": 8, "use_sliding_window": True}, 8),
    ({"sliding_window": 8, "use_sliding_window": False}, 256),
    ({"sliding_window": None}, 256),
])
def test_a_window_limits_the_length_where_it_is_in_use(settings, expected):
    assert build(**settings).config.max_length == expected


@pytest.mark.parametrize("model_type", ["mamba", "gemma3", None, ["llama"]])
def test_an_unknown_family_is_refused_with_the_names_of_all_known_ones(tmp_path, model_type):
    folder = save_smollm3(tmp_path, model_type=model_type)
    with pytest.raises(CheckpointError, match="model_type .* is not one of") as caught:
        open_model(folder)
    for name in (repr(model_type), "llama", "qwen3", *families.MORE_FAMILIES):
        assert name in str(caught.value)


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
