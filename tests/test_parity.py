"""The decoder computes what transformers computes, and refuses what it does not compute.

make_fixtures.py made fixtures/: tiny random models, and their hidden states and rewards as
transformers has them, for rows of 40, 1 and 17 tokens. tests/extras/ compares the rest of them.
"""
import json
import math

import pytest
import torch
from conftest import FIXTURES, SHARED, TINY, needs_shared, tiny_model
from safetensors.torch import load_file
from torch.testing import assert_close

from model import FAMILIES, MLP, PADDED, Attention, CheckpointError, RewardModel, RMSNorm
from model import default_frequencies, open_model, read_config, read_json, rope_type
from model import rotary_tables, rotate, with_both_ropes


def fixtures_of(model_types, rope_types) -> list[str]:
    """The fixtures of some families, with some rope rules."""
    found = []
    for file in sorted(FIXTURES.glob("*/config.json")):
        config_json = read_json(file)
        if config_json["model_type"] in model_types and rope_type(config_json) in rope_types:
            found.append(file.parent.name)
    return found


CASES = fixtures_of(FAMILIES, ("default",))
WINDOWS = {"mistral-window": 7, "qwen2-window": 5, "qwen3-window": 9}


def outputs(case: str, tokens: int, model: RewardModel | None = None):
    """(ours, transformers') hidden states, and rewards, for the first tokens of each row.

    A row that is longer has no expected reward: its rewards are left out.
    """
    if model is None:
        model = RewardModel.from_pretrained(FIXTURES / case)
    expected = load_file(FIXTURES / case / "expected.safetensors")
    input_ids = expected["input_ids"][:, :tokens]
    mask = expected["attention_mask"][:, :tokens]
    with torch.no_grad():
        hidden = model.model(input_ids, PADDED) * mask[..., None]
        rewards = model(input_ids, mask)
    complete = expected["attention_mask"].sum(-1) <= tokens
    return (
        (hidden, expected["hidden"][:, :tokens]),
        (rewards[complete], expected["rewards"][complete]),
    )


def assert_parity(case: str, tokens: int = 40, model: RewardModel | None = None) -> None:
    for ours, theirs in outputs(case, tokens, model):
        assert theirs.abs().max() > 0.1, "two tensors of zeros would agree too"
        assert_close(ours, theirs, atol=1e-5, rtol=0, msg=lambda m: (
            f"hidden states or rewards are not those of transformers: {m}"
        ))


def assert_no_parity(case: str, tokens: int, model: RewardModel | None = None) -> None:
    hidden, _ = outputs(case, tokens, model)
    difference = (hidden[0] - hidden[1]).abs().max()
    assert difference > 1e-3, "this fixture does not show the difference: it proves nothing"


def assert_saved_again(case: str, folder, config_json: dict) -> None:
    """Saving gives the same tensors under the same names, and this config."""
    model = RewardModel.from_pretrained(FIXTURES / case)
    model.save_pretrained(folder, pad_token_id=0, state=model.state_dict())
    before = {}
    for file in (FIXTURES / case).glob("model*.safetensors"):
        before |= load_file(file)
    after = load_file(folder / "model.safetensors")
    assert after.keys() == before.keys()
    for name in before:
        assert torch.equal(after[name], before[name]), name

    saved = json.loads((folder / "config.json").read_text())
    for key in config_json.keys() - {"id2label", "label2id"}:  # LABEL_0 is called "reward" now
        assert saved[key] == config_json[key], key


# ---------------------------------------------------------------- the decoder, by hand


def test_rope_turns_by_the_theta_of_the_config():
    config = read_config(TINY | {"rope_theta": 500.0})
    frequencies, scale = default_frequencies(config)
    expected = [1, 500 ** (-1 / 3), 500 ** (-2 / 3)]  # θ^(−2i/P) with P = 6
    message = "rope_theta of config.json is not used: is 10000 written in the code?"
    assert frequencies.tolist() == pytest.approx(expected), message
    assert scale == 1

    model, ids = tiny_model(), torch.arange(3, 15)[None]
    hidden = model.model(ids, PADDED)
    model.config.rope["rope_theta"] = 500.0
    assert (model.model(ids, PADDED) - hidden).abs().max() > 1e-3, message


def test_frequencies_are_rounded_as_transformers_rounds_them():
    config = read_config(TINY | {"rope_theta": 500000.0, "head_dim": 128})
    frequencies, _ = default_frequencies(config)
    # torch's float32 power and division, in the order of transformers' compute_default_rope.
    theirs = 1.0 / (500000.0 ** (torch.arange(0, 128, 2, dtype=torch.int64).float() / 128))
    message = "a last bit differs: position 650 multiplies it by 650, and rewards move by 2e-5"
    assert torch.equal(frequencies, theirs), message


def test_attention_written_plainly():
    # 4 query heads, 2 key/value heads: query heads 0 and 1 share key head 0, 2 and 3 share 1.
    torch.manual_seed(0)
    q = torch.randn(1, 4, 5, 6)  # (R, H, T, P)
    k, v = torch.randn(2, 1, 2, 5, 6)  # (R, K, T, P) each
    expected = torch.empty(1, 4, 5, 6)
    for head in range(4):
        shared = head // 2
        for t in range(5):
            seen = slice(0, t + 1)
            attention = k[0, shared, seen] @ q[0, head, t] / math.sqrt(6)  # (t + 1,)
            expected[0, head, t] = attention.softmax(0) @ v[0, shared, seen]
    message = "does a token see later ones? Do neighbouring query heads share a key/value head?"
    assert_close(PADDED.attend(q, k, v), expected, atol=1e-5, rtol=0, msg=message)


def test_the_heads_of_attention_lie_side_by_side():
    torch.manual_seed(0)
    config = read_config(TINY)
    attention, x = Attention(config), torch.randn(1, 5, 16)
    mixed = []  # what o_proj gets
    attention.o_proj.register_forward_pre_hook(lambda module, inputs: mixed.append(inputs[0]))
    attention(x, *rotary_tables(config, torch.zeros(5)), PADDED)  # position 0: nothing turns
    q = attention.q_proj(x)[0]  # (T, H · P)
    k, v = attention.k_proj(x)[0], attention.v_proj(x)[0]  # (T, G · P) each
    for head in range(4):
        of_q = slice(6 * head, 6 * head + 6)
        of_k = slice(6 * (head // 2), 6 * (head // 2) + 6)
        for t in range(5):
            weights = (k[: t + 1, of_k] @ q[t, of_q] / math.sqrt(6)).softmax(0)
            expected = weights @ v[: t + 1, of_k]
            message = f"head {head}, token {t}: are the heads of a token not put side by side?"
            assert_close(mixed[0][0, t, of_q], expected, atol=1e-5, rtol=0, msg=message)


def test_rotary_positions_turn_the_two_halves_of_a_head_against_each_other():
    x = torch.arange(1.0, 7.0).view(1, 1, 1, 6)
    quarter = torch.zeros(1, 6), torch.ones(1, 6)  # cos and sin of 90 degrees
    message = "(x_i, x_{i+P/2}) is a pair in Hugging Face's files, not two neighbours"
    assert rotate(x, *quarter).flatten().tolist() == [-4, -5, -6, 1, 2, 3], message


def test_rms_norm_written_plainly():
    norm = RMSNorm(3, eps=0.5)
    norm.weight.data = torch.tensor([1.0, 2.0, 3.0])
    x = [0.1, -0.2, 0.3]
    rms = math.sqrt((0.01 + 0.04 + 0.09) / 3 + 0.5)
    expected = [1 * 0.1 / rms, 2 * -0.2 / rms, 3 * 0.3 / rms]
    found = norm(torch.tensor(x)).tolist()
    assert found == pytest.approx(expected), "eps is added to the mean square, under the root"


def test_the_mlp_is_down_of_silu_of_gate_times_up():
    torch.manual_seed(0)
    mlp, x = MLP(read_config(TINY)), torch.randn(1, 1, 16)
    gate, up = mlp.gate_proj(x), mlp.up_proj(x)
    expected = mlp.down_proj(gate * torch.sigmoid(gate) * up)
    assert_close(mlp(x), expected, msg="silu belongs to gate_proj, not to up_proj")


def test_a_layer_adds_what_attention_and_mlp_make_of_normed_states():
    model, ids = tiny_model(num_hidden_layers=1), torch.arange(3, 15)[None]
    layer, tables = model.model.layers[0], rotary_tables(model.config, torch.arange(12))
    for norm in (layer.input_layernorm, layer.post_attention_layernorm, model.model.norm):
        torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    x = model.model.embed_tokens(ids)
    x = x + layer.self_attn(layer.input_layernorm(x), *tables, PADDED)
    x = x + layer.mlp(layer.post_attention_layernorm(x))
    message = "is one of the three norms left out, or the sum not x + f(norm(x))?"
    assert_close(model.model(ids, PADDED), model.model.norm(x), msg=message)


def test_attention_depends_on_distances_not_on_positions():
    torch.manual_seed(0)
    config = read_config(TINY)
    attention, x = Attention(config), torch.randn(1, 7, 16)
    here = attention(x, *rotary_tables(config, torch.arange(7)), PADDED)
    further = attention(x, *rotary_tables(config, torch.arange(7) + 50), PADDED)
    problem = "moved by 50 positions it is another result: are queries and keys turned alike?"
    assert_close(here, further, atol=1e-5, rtol=0, msg=problem)


def test_gradient_checkpointing_changes_no_gradient():
    ids = torch.arange(3, 27).reshape(2, 12)
    plain, recomputed = tiny_model(), tiny_model()
    recomputed.model.gradient_checkpointing = True
    calls = []
    for layer in recomputed.model.layers:
        layer.register_forward_pre_hook(lambda *inputs: calls.append("layer"))
    plain(ids, torch.ones_like(ids)).sum().backward()
    recomputed(ids, torch.ones_like(ids)).sum().backward()
    assert len(calls) == 2 * len(recomputed.model.layers), "each layer computes twice"
    others = dict(recomputed.named_parameters())
    for name, parameter in plain.named_parameters():
        assert_close(parameter.grad, others[name].grad, msg=name)


# ---------------------------------------------------------------- equal to transformers


def test_every_family_has_a_fixture():
    families = set()
    for case in CASES:
        families.add(case.split("-")[0])
    assert families == set(FAMILIES)
    assert WINDOWS.keys() < set(CASES)


@pytest.mark.parametrize("case", [case for case in CASES if case not in WINDOWS])
def test_hidden_states_and_rewards_equal_those_of_transformers(case):
    assert_parity(case)


@pytest.mark.parametrize("case, window", WINDOWS.items())
def test_a_model_with_a_window_is_an_ordinary_one_for_texts_of_that_length(case, window):
    config = read_config(read_json(FIXTURES / case / "config.json"))
    assert config.max_length == window, "a window in use is the limit of a text's length"
    assert_parity(case, tokens=window)
    assert_no_parity(case, tokens=window + 5)


@pytest.mark.parametrize("case", CASES)
def test_saving_again_gives_the_same_tensors_under_the_same_names(case, tmp_path):
    assert_saved_again(case, tmp_path, read_json(FIXTURES / case / "config.json"))


def test_ours_to_transformers_and_back_changes_no_reward(tmp_path):
    model = RewardModel.from_pretrained(FIXTURES / "qwen3")
    model.save_pretrained(tmp_path, pad_token_id=0, state=model.state_dict())
    ours = load_file(tmp_path / "model.safetensors")
    # Our folder, opened and written again by transformers.
    through_both = FIXTURES / "round-trips" / "qwen3-through-both"
    theirs = load_file(through_both / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    assert_parity("qwen3", model=RewardModel.from_pretrained(tmp_path))
    assert_parity("qwen3", model=RewardModel.from_pretrained(through_both))


# ---------------------------------------------------------------- configs: never guessed


@pytest.mark.parametrize("settings, message", [
    ({"model_type": "gpt2"}, "model_type 'gpt2' is not one of llama, mistral, qwen2, qwen3"),
    ({"model_type": None}, "model_type None is not one of"),
    ({"model_type": ["llama"]}, "model_type .* is not one of"),
    ({"model_type": "qwen3", "head_dim": None}, "no head_dim; refusing to guess"),
    ({"model_type": "mistral", "num_key_value_heads": None}, "no num_key_value_heads"),
    ({"num_hidden_layers": None}, "no num_hidden_layers; refusing to guess"),
    ({"num_key_value_heads": 3}, "key/value heads"),
    ({"head_dim": 5}, "head_dim"),
    ({"vocab_size": 400.0}, "vocab_size is 400.0"),
    ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'"),
    ({"rms_norm_eps": True}, "rms_norm_eps is True"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"rope_theta": None}, "no rope_theta; refusing to guess"),
    ({"rope_theta": -1.0}, "rope_theta is -1.0"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary"),
    ({"rope_scaling": {"rope_type": "longrope"}}, "'longrope'"),
    ({"rope_scaling": {"rope_type": ["default"]}}, "'default'"),
    ({"rope_scaling": {"type": "default", "mscale": 1.0}}, "rope setting 'mscale'"),
    ({"rope_scaling": "linear"}, "rope_scaling is 'linear', not an object"),
    ({"model_type": "mistral", "sliding_window": "x"}, "sliding_window is 'x'"),
])
def test_what_would_change_the_arithmetic_is_named_and_refused(settings, message):
    with pytest.raises(CheckpointError, match="^config.json: .*" + message):
        read_config(TINY | settings)
        pytest.fail(f"{settings} was taken: is a setting guessed, or read and not computed?")


def test_both_spellings_of_rope_mean_the_same():
    rule = {"rope_type": "default", "rope_theta": 5e5}
    new = read_config(TINY | {"rope_theta": None, "rope_parameters": rule})
    old = read_config(TINY | {"rope_theta": 5e5})
    older = read_config(TINY | {"rope_theta": 5e5, "rope_scaling": {"type": "default"}})
    assert new.rope == old.rope == older.rope == rule
    whole = rule | {"partial_rotary_factor": 1.0}  # transformers 5 writes it: all pairs turn
    assert read_config(TINY | {"rope_theta": None, "rope_parameters": whole}).rope == rule


@pytest.mark.parametrize("scaling", [{}, {"factor": 4.0}])
def test_a_saved_config_has_its_rope_rule_for_transformers_4_too(scaling):
    rule = {"rope_type": "linear" if scaling else "default"} | scaling
    saved = with_both_ropes(TINY | {"rope_theta": None, "rope_parameters": rule | {"rope_theta": 5e5}})
    message = "transformers 4 does not read rope_parameters: it would turn by 10000, in silence"
    assert saved["rope_theta"] == 5e5, message
    assert saved["rope_scaling"] == (rule if scaling else None), message



def test_llama_1_has_as_many_key_heads_as_query_heads():
    config = read_config(TINY | {"num_key_value_heads": None})
    assert config.num_key_value_heads == TINY["num_attention_heads"]


SLIDING, FULL = "sliding_attention", "full_attention"


@pytest.mark.parametrize("family, settings, expected", [
    ("mistral", {"sliding_window": 8}, 8),
    ("mistral", {"sliding_window": None}, 256),
    ("mistral", {"sliding_window": 1000}, 256),
    ("llama", {"sliding_window": 8}, 256),
    ("qwen2", {"sliding_window": 8, "use_sliding_window": False}, 256),
    ("qwen2", {"sliding_window": 8, "use_sliding_window": True}, 8),
    ("qwen3", {"sliding_window": 8, "layer_types": [SLIDING, FULL]}, 8),
    ("qwen3", {"sliding_window": 8, "layer_types": [FULL, FULL]}, 256),
    ("qwen3", {"sliding_window": None, "layer_types": [FULL, FULL]}, 256),
])
def test_a_window_limits_the_length_only_where_it_is_in_use(family, settings, expected):
    config = read_config(TINY | {"model_type": family} | settings)
    assert config.max_length == expected, (
        "beyond a window that is in use, other tokens are seen than in transformers"
    )


@pytest.mark.parametrize("kinds", [[{}], 5, "chunked", [["full_attention"]]], ids=str)
def test_kinds_of_layers_that_are_no_names_are_named(kinds):
    with pytest.raises(CheckpointError, match="layer_types .* are not computed here"):
        read_config(TINY | {"layer_types": kinds})


def test_a_config_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="config.json: No such file"):
        open_model(tmp_path)
    for text in ("{", "[" * 100_000, "\xff", "[]"):
        (tmp_path / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(CheckpointError, match="config.json: not (JSON|a JSON object)"):
            open_model(tmp_path)


PARAMETERS = {  # of the decoder, without the head; the pad of smollm2's classifier is new
    "mistral-7b-v0.1": 7_110_660_096,
    "qwen3-1.7b": 1_720_574_976,
    "qwen2.5-0.5b-instruct": 494_032_768,
    "smollm2-135m-seqcls": 134_515_008 + 576,
    "tinyllama-1.1b-chat": 1_034_512_384,
}


@needs_shared
@pytest.mark.parametrize("name, expected", PARAMETERS.items())
def test_real_configs_build_the_parameters_of_the_real_checkpoints(name, expected):
    folder = SHARED / "hf_metadata" / name
    config = read_config(read_json(folder / "config.json"))
    with torch.device("meta"):
        ours = RewardModel(config).model.state_dict()
    assert sum(parameter.numel() for parameter in ours.values()) == expected
    index = folder / "model.safetensors.index.json"
    if index.exists():
        theirs = read_json(index)["weight_map"].keys()
        assert {f"model.{key}" for key in ours} == theirs - {"lm_head.weight", "score.weight"}
