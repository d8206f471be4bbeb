"""The scoring contract: a text has one reward, whatever it is batched with, and it is read at its last valid token."""
import json
import math

import pytest
import torch
from conftest import SHARED, TINY, needs_shared, save_run, tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file

from data import pad_right
from model import CheckpointError, RewardModel, last_token_index, read_config

END, PAD = 2, 0


def random_texts(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 400, (n,), generator=generator).numpy() for n in lengths]


def alone(model, ids):
    return model(torch.tensor(ids)[None].long(), torch.ones(1, len(ids), dtype=torch.long)).item()


# ---------------------------------------------------------------- one text, one reward


def test_reward_is_the_same_alone_and_in_a_padded_batch():
    model, texts = tiny_model(), random_texts([1, 2, 9, 31, 64])
    together = model(*pad_right(texts, PAD))
    for text, reward in zip(texts, together):
        assert alone(model, text) == pytest.approx(reward.item(), abs=1e-5)


@pytest.mark.parametrize("width", [10, 11, 40, 127])
def test_reward_is_the_same_at_any_padding_width(width):
    model, [text] = tiny_model(), random_texts([10])
    input_ids, mask = torch.full((1, width), PAD), torch.zeros(1, width, dtype=torch.long)
    input_ids[0, :10], mask[0, :10] = torch.from_numpy(text), 1
    assert model(input_ids, mask).item() == pytest.approx(alone(model, text), abs=1e-5)


def test_order_in_the_batch_changes_nothing():
    model, texts = tiny_model(), random_texts([5, 30, 12, 21])
    forwards, backwards = model(*pad_right(texts, PAD)), model(*pad_right(texts[::-1], PAD))
    torch.testing.assert_close(forwards, backwards.flip(0), atol=1e-5, rtol=0)


def test_reward_is_right_where_the_pad_is_the_end_token():
    model = tiny_model()
    texts = [torch.tensor([7, 9, END]).numpy(), torch.tensor([7, 9, 11, 13, 4, END]).numpy()]
    by_end, by_other = model(*pad_right(texts, END)), model(*pad_right(texts, PAD))
    torch.testing.assert_close(by_end, by_other, atol=1e-6, rtol=0)
    assert by_end[0].item() == pytest.approx(alone(model, texts[0]), abs=1e-5)


def test_an_end_token_inside_the_prompt_does_not_end_the_text():
    # The rule "first end token" would give both responses the reward of their shared prompt.
    model, prompt = tiny_model(), [5, END, 6, END]
    chosen, rejected = (torch.tensor(prompt + [r, END]).numpy() for r in (8, 9))
    rewards = model(*pad_right([chosen, rejected], PAD))
    assert abs((rewards[0] - rewards[1]).item()) > 1e-3
    assert rewards[0].item() == pytest.approx(alone(model, chosen), abs=1e-5)


def test_the_reward_is_the_head_applied_to_the_last_valid_hidden_state():
    model, texts = tiny_model(), random_texts([1, 6, 19, 20])
    input_ids, mask = pad_right(texts, PAD)
    rewards, hidden = model(input_ids, mask), model.model(input_ids)
    for row, text in enumerate(texts):
        by_hand = hidden[row, len(text) - 1] @ model.score.weight[0] + model.score.bias[0]
        assert rewards[row].item() == pytest.approx(by_hand.item(), abs=1e-6)


def test_what_stands_behind_the_mask_has_zero_gradient_and_no_effect():
    model, texts = tiny_model(), random_texts([4, 12])
    input_ids, mask = pad_right(texts, PAD)
    seen = []
    hook = model.model.embed_tokens.register_forward_hook(lambda module, args, out: (out.retain_grad(), seen.append(out))[0])
    rewards = model(input_ids, mask)
    rewards.sum().backward()
    hook.remove()
    gradient = seen[0].grad  # (N, T, D)
    assert (gradient[mask == 0] == 0).all()
    assert (gradient[mask == 1].abs().sum(-1) > 0).all()
    garbage = torch.where(mask == 1, input_ids, torch.full_like(input_ids, 399))
    torch.testing.assert_close(model(garbage, mask), rewards, atol=1e-6, rtol=0)


def test_changing_any_token_changes_the_reward_and_any_swap_does():
    model, [text] = tiny_model(), random_texts([12])
    reward = alone(model, text)
    for position in range(12):
        changed = text.copy()
        changed[position] = 3 + (changed[position] - 2) % 397
        assert abs(alone(model, changed) - reward) > 1e-6
    assert abs(alone(model, text[::-1].copy()) - reward) > 1e-6


@pytest.mark.parametrize("mask", [[[0, 1, 1]], [[1, 0, 1]], [[0, 0, 0]], [[1, 1, 1], [0, 1, 1]]])
def test_a_mask_that_is_not_ones_then_zeros_is_refused(mask):
    with pytest.raises(ValueError, match="ones then zeros"):
        last_token_index(torch.tensor(mask))
    with pytest.raises(ValueError, match="ones then zeros"):
        tiny_model()(torch.zeros(len(mask), 3, dtype=torch.long), torch.tensor(mask))


def test_one_response_never_sees_the_other():
    model = tiny_model()
    input_ids, mask = pad_right(random_texts([8, 8]), PAD)
    seen = []
    model.model.embed_tokens.register_forward_hook(lambda module, args, out: (out.retain_grad(), seen.append(out))[0])
    r_chosen, r_rejected = model(input_ids, mask).chunk(2)
    r_rejected.sum().backward()
    assert (seen[0].grad[0] == 0).all() and (seen[0].grad[1] != 0).any()


def test_two_training_passes_agree_because_nothing_is_dropped_out():
    model = tiny_model(attention_dropout=0.5).train()
    batch = pad_right(random_texts([8, 9]), PAD)
    torch.testing.assert_close(model(*batch), model(*batch), atol=0, rtol=0)


def test_rewards_are_float32_under_bfloat16_autocast_and_close_to_the_exact_ones():
    model, batch = tiny_model(), pad_right(random_texts([8, 30]), PAD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rewards = model(*batch)
    assert rewards.dtype == torch.float32
    torch.testing.assert_close(rewards, model(*batch), atol=0.2, rtol=0)


def test_a_fresh_head_starts_near_a_loss_of_log_2():
    # Two responses to one prompt share most of their hidden state; unrelated texts are the worst case.
    torch.manual_seed(1)
    model = RewardModel.from_scratch(TINY | {"initializer_range": 0.02, "hidden_size": 256})
    rewards = model(*pad_right(random_texts([20] * 200), PAD))
    assert model.score.bias.item() == 0
    assert rewards.std().item() < 1.5
    assert math.log(2) <= torch.nn.functional.softplus(rewards[:100] - rewards[100:]).mean().item() < 1.1


def test_two_seeds_give_two_heads():
    assert not torch.equal(tiny_model(0).score.weight, tiny_model(1).score.weight)


# ---------------------------------------------------------------- saving and loading


def test_rewards_survive_saving_and_loading_bit_for_bit(tmp_path):
    model, batch = tiny_model(), pad_right(random_texts([8, 30]), PAD)
    again = RewardModel.from_pretrained(save_run(tmp_path, model, tiny_tokenizer())).eval()
    torch.testing.assert_close(again(*batch), model(*batch), atol=0, rtol=0)
    assert again.head_origin == "kept (score)"


def test_a_sharded_checkpoint_is_the_same_model(tmp_path, monkeypatch):
    model, batch = tiny_model(), pad_right(random_texts([8, 30]), PAD)
    monkeypatch.setattr("model.SHARD_BYTES", 5000)
    save_run(tmp_path, model, tiny_tokenizer())
    shards = sorted(f.name for f in tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 3 and shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    weight_map = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(weight_map.values()) == set(shards)
    torch.testing.assert_close(RewardModel.from_pretrained(tmp_path)(*batch), model(*batch), atol=0, rtol=0)


def test_a_bias_of_zero_is_left_out_and_another_one_kept(tmp_path):
    model = tiny_model()
    save_run(tmp_path / "zero", model, tiny_tokenizer())
    assert "score.bias" not in load_file(tmp_path / "zero" / "model.safetensors")
    with torch.no_grad():
        model.score.bias.fill_(1.5)
    save_run(tmp_path / "some", model, tiny_tokenizer())
    assert RewardModel.from_pretrained(tmp_path / "some").score.bias.item() == 1.5


def test_the_saved_config_has_one_label_and_no_sigmoid(tmp_path):
    config = json.loads((save_run(tmp_path, tiny_model(), tiny_tokenizer()) / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["id2label"] == {"0": "reward"} and config["problem_type"] == "regression"
    assert config["pad_token_id"] != END


def language_model(folder, tied=False):
    save_run(folder, tiny_model(), tiny_tokenizer())
    state = load_file(folder / "model.safetensors")
    del state["score.weight"]
    if not tied:
        state["lm_head.weight"] = torch.randn(400, 16)
    save_file(state, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_gets_a_fresh_head_only_when_asked(tmp_path, tied):
    folder = language_model(tmp_path, tied)
    with pytest.raises(CheckpointError, match="no reward head"):
        RewardModel.from_pretrained(folder)
    model = RewardModel.from_pretrained(folder, fresh_head=True)
    assert model.head_origin == "new" and not hasattr(model, "lm_head")
    assert model.score.weight.std() > 0 and model.score.bias.item() == 0


def test_a_reward_head_in_the_checkpoint_is_kept_when_training_goes_on(tmp_path):
    model = tiny_model()
    again = RewardModel.from_pretrained(save_run(tmp_path, model, tiny_tokenizer()), fresh_head=True)
    assert torch.equal(again.score.weight, model.score.weight)


def edit(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize("change, message", [
    (lambda s: s.pop("model.norm.weight"), "missing: model.norm.weight"),
    (lambda s: s.update({"model.layers.0.mlp.extra": torch.ones(2)}), "not expected: model.layers.0.mlp.extra"),
    (lambda s: s.update({"model.norm.weight": torch.ones(7)}), r"wrong shape: model.norm.weight \[7\] instead of \[16\]"),
    (lambda s: s.update({"score.weight": torch.ones(2, 16)}), r"wrong shape: score.weight \[2, 16\] instead of \[1, 16\]"),
])
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
    edit(save_run(tmp_path, tiny_model(), tiny_tokenizer()), change)
    with pytest.raises(CheckpointError, match=message):
        RewardModel.from_pretrained(tmp_path)


def test_all_that_does_not_fit_is_named_in_one_error(tmp_path):
    def change(state):
        del state["model.norm.weight"]
        state["score.weight"] = torch.ones(2, 16)

    edit(save_run(tmp_path, tiny_model(), tiny_tokenizer()), change)
    with pytest.raises(CheckpointError, match="missing: model.norm.weight; wrong shape: score.weight"):
        RewardModel.from_pretrained(tmp_path)


def test_a_truncated_file_is_named(tmp_path):
    file = save_run(tmp_path, tiny_model(), tiny_tokenizer()) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="model.safetensors: not a complete safetensors file"):
        RewardModel.from_pretrained(tmp_path)


def test_integer_tensors_are_somebodys_quantised_weights_and_refused(tmp_path):
    edit(save_run(tmp_path, tiny_model(), tiny_tokenizer()), lambda s: s.update({"score.weight": torch.ones(1, 16, dtype=torch.int8)}))
    with pytest.raises(CheckpointError, match="score.weight is of type I8"):
        RewardModel.from_pretrained(tmp_path)


def test_an_index_cannot_point_out_of_its_folder(tmp_path):
    save_run(tmp_path / "a", tiny_model(), tiny_tokenizer())
    (tmp_path / "a" / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (tmp_path / "a" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="not a file name in this folder"):
        RewardModel.from_pretrained(tmp_path / "a")


def test_pickled_weights_are_never_read(tmp_path):
    folder = save_run(tmp_path, tiny_model(), tiny_tokenizer())
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="only safetensors"):
        RewardModel.from_pretrained(folder)


# ---------------------------------------------------------------- configs: what changes the arithmetic is never guessed


@pytest.mark.parametrize("change, message", [
    ({"model_type": "gpt2"}, "model_type 'gpt2'"),
    ({"model_type": None}, "model_type None"),
    ({"rope_theta": None}, "no rope_theta; refusing to guess"),
    ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope type 'longrope'"),
    ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "no low_freq_factor; refusing to guess"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ({"num_hidden_layers": None}, "no num_hidden_layers"),
    ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'"),
    ({"hidden_size": 18, "head_dim": None}, "not a multiple"),
    ({"num_key_value_heads": 3}, "impossible"),
    ({"model_type": "qwen3", "head_dim": None}, "no head_dim"),
    ({"model_type": "mistral", "num_key_value_heads": None}, "no num_key_value_heads"),
    ({"layer_types": ["chunked_attention"]}, "layer_types"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
])
def test_settings_this_decoder_does_not_compute_are_refused(change, message):
    with pytest.raises(CheckpointError, match=message):
        read_config(TINY | change)


def test_both_spellings_of_rope_mean_the_same():
    rule = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    new = read_config(TINY | {"rope_theta": None, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **rule}})
    old = read_config(TINY | {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **rule}})
    older = read_config(TINY | {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", "rope_type": "llama3", **rule}})
    for config in (old, older):
        assert (config.rope_theta, config.rope_scaling) == (new.rope_theta, new.rope_scaling) == (5e5, rule)


def test_a_token_sees_as_many_as_the_sliding_window_and_no_more():
    model = tiny_model(model_type="mistral", sliding_window=8, num_hidden_layers=1)
    embedded = model.model.embed_tokens(torch.arange(3, 23)[None]).detach().requires_grad_()
    model.model.embed_tokens.forward = lambda ids: embedded
    model(torch.zeros(1, 20, dtype=torch.long), torch.ones(1, 20)).sum().backward()
    assert embedded.grad[0].abs().sum(-1).nonzero()[:, 0].tolist() == list(range(12, 20))


@pytest.mark.parametrize("settings, windows", [
    ({"model_type": "mistral", "sliding_window": 8}, [8, 8]),
    ({"model_type": "mistral", "sliding_window": None}, [None, None]),
    ({"model_type": "llama", "sliding_window": 8}, [None, None]),
    ({"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": False, "max_window_layers": 1}, [None, None]),
    ({"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}, [None, 8]),
    ({"model_type": "qwen3", "sliding_window": None, "layer_types": ["full_attention"] * 2}, [None, None]),
    ({"model_type": "qwen3", "sliding_window": 8, "use_sliding_window": True,
      "layer_types": ["sliding_attention", "full_attention"]}, [8, None]),
    ({"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 0}, [8, 8]),
    ({"model_type": "smollm3", "sliding_window": 8, "use_sliding_window": True, "no_rope_layers": [1, 0]}, [None, 8]),
    ({"model_type": "smollm3", "sliding_window": 8, "use_sliding_window": False, "no_rope_layers": [1, 0],
      "layer_types": ["full_attention", "full_attention"]}, [None, None]),
])
def test_a_sliding_window_counts_only_where_a_layer_uses_it(settings, windows):
    assert read_config(TINY | settings).windows == windows


@pytest.mark.parametrize("settings, why", [
    ({"model_type": "qwen3", "layer_types": ["sliding_attention", "full_attention"]}, "no sliding_window is in use"),
    ({"model_type": "qwen3", "layer_types": ["full_attention"]}, "not one for each of 2 layers"),
    ({"model_type": "qwen3", "layer_types": ["chunked_attention"] * 2}, "chunked_attention"),
    ({"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True}, "no max_window_layers; refusing to guess"),
    ({"model_type": "smollm3", "no_rope_layers": [1]}, "no_rope_layers .* each of 2 layers"),
    ({"model_type": "smollm3", "no_rope_layers": 3}, "no_rope_layers 3 is not a list"),
    ({"model_type": "smollm3", "no_rope_layer_interval": "x"}, "no_rope_layer_interval is 'x'"),
    ({"rope_scaling": {"type": "linear"}}, "no factor; refusing to guess"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0}}, "mscale"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": -2.0}}, "factor is -2.0"),
])
def test_what_would_change_the_arithmetic_is_named_and_refused(settings, why):
    with pytest.raises(CheckpointError, match=why):
        read_config(TINY | settings)



def test_an_unreadable_config_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="config.json: No such file"):
        RewardModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="config.json: not JSON"):
        RewardModel.from_pretrained(tmp_path)


@needs_shared
@pytest.mark.parametrize("folder, parameters", [  # without the head; SmolLM2's has a token more
    ("mistral-7b-v0.1", 7_110_660_096), ("qwen3-1.7b", 1_720_574_976), ("qwen2.5-0.5b-instruct", 494_032_768),
    ("smollm2-135m-seqcls", 134_515_008 + 576), ("tinyllama-1.1b-chat", 1_034_512_384),
])
def test_real_configs_build_the_parameters_of_the_real_checkpoints(folder, parameters):
    folder = SHARED / "hf_metadata" / folder
    with torch.device("meta"):
        model = RewardModel(read_config(json.loads((folder / "config.json").read_text())))
    ours = {name: p.numel() for name, p in model.named_parameters() if not name.startswith("score.")}
    assert sum(ours.values()) == parameters
    if (folder / "model.safetensors.index.json").exists():
        theirs = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].keys()
        assert ours.keys() == theirs - {"lm_head.weight", "score.weight"}


@pytest.mark.parametrize("head", ["score", "v_head.summary", "value_head", "v_head", "out_proj", "my_head"])
@pytest.mark.parametrize("own_file", [False, True])
def test_a_reward_head_is_kept_whatever_other_tools_call_it(tmp_path, head, own_file):
    model, folder = tiny_model(), save_run(tmp_path, tiny_model(), tiny_tokenizer())
    tensors = load_file(folder / "model.safetensors")
    theirs = {f"{head}.weight": tensors.pop("score.weight"), f"{head}.bias": torch.tensor([0.75])}
    if own_file:  # as LLaMA-Factory does, beside a language model's weights
        save_file(theirs, folder / "value_head.safetensors")
        tensors["lm_head.weight"] = torch.zeros(400, 16)
    save_file(tensors if own_file else tensors | theirs, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    prefix = "my_head" if head == "my_head" else ["no name"]  # what is no name is no head's
    (folder / "config.json").write_text(json.dumps(config | {"value_head_prefix": prefix}))
    loaded = RewardModel.from_pretrained(folder)
    assert loaded.head_origin == f"kept ({head})"
    ids = torch.randint(3, 400, (2, 9))
    torch.testing.assert_close(loaded(ids, torch.ones_like(ids)), model(ids, torch.ones_like(ids)) + 0.75)


def test_two_reward_heads_or_one_of_another_shape_are_refused(tmp_path):
    folder = save_run(tmp_path, tiny_model(), tiny_tokenizer())
    save_file({"v_head.summary.weight": torch.zeros(1, 16)}, folder / "value_head.safetensors")
    with pytest.raises(CheckpointError, match=r"more than one reward head \(score, v_head.summary\)"):
        RewardModel.from_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, folder / "model.safetensors")
    save_file({"v_head.summary.weight": torch.zeros(2, 16)}, folder / "value_head.safetensors")
    with pytest.raises(CheckpointError, match=r"score.weight \[2, 16\] instead of \[1, 16\]"):
        RewardModel.from_pretrained(folder)
