"""Heads of two maps give the rewards of the projects they come from, and are saved as they came."""
import json

import pytest
import torch
from conftest import command, save_run, tiny_model, tiny_tokenizer, write_rows
from runs import pairs
from safetensors.torch import load_file, save_file
from torch import nn

import eval as evaluation
import train_rm
from extras import checkpoint_formats
from model import PADDED, CheckpointError, RewardModel, open_model, read_json

D, M = 16, 12
IDS = torch.arange(3, 21).reshape(2, 9)
MASK = torch.ones_like(IDS)
# The head's name, the numbers after each of its maps, and the class in config.json.
QWEN_MATH = ("score", [D, 1], "Qwen2ForRewardModel")
GRM = ("v_head.summary", [M, 1], "LlamaForCausalLM")
DEEPER_GRM = ("v_head.summary", [M, M, 1], None)
KINDS = [QWEN_MATH, GRM, DEEPER_GRM]


def their_head(sizes) -> nn.Sequential:
    """Linear, ReLU, Linear, …, as those projects write it."""
    torch.manual_seed(7)
    parts, size = [], D
    for next_size in sizes:
        parts += [nn.Linear(size, next_size), nn.ReLU()]
        size = next_size
    return nn.Sequential(*parts[:-1])


def make_folder(folder, kind, head=None, more=None, **settings):
    """A reward model as those projects store it."""
    name, sizes, architecture = kind
    save_run(folder, tiny_model(), tiny_tokenizer())
    tensors = {"lm_head.weight": torch.zeros(400, D)} | (more or {})
    for key, tensor in load_file(folder / "model.safetensors").items():
        if not key.startswith("score."):
            tensors[key] = tensor
    for key, tensor in (head or their_head(sizes)).state_dict().items():
        tensors[f"{name}.{key}"] = tensor
    save_file(tensors, folder / "model.safetensors")
    config_json = read_json(folder / "config.json") | settings
    del config_json["architectures"]
    if architecture:
        config_json["architectures"] = [architecture]
    (folder / "config.json").write_text(json.dumps(config_json))
    return folder


def rewards_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, MASK)


def their_rewards(kind) -> torch.Tensor:
    with torch.no_grad():
        last = tiny_model().model(IDS, PADDED)[:, -1]
        return their_head(kind[1])(last).flatten()


# ---------------------------------------------------------------- score


@pytest.mark.parametrize("kind", KINDS)
def test_rewards_are_those_of_linear_relu_linear(tmp_path, kind):
    model = RewardModel.from_pretrained(make_folder(tmp_path, kind))
    assert model.head_origin == "kept"
    torch.testing.assert_close(rewards_of(model), their_rewards(kind), atol=1e-6, rtol=0, msg=(
        "other rewards than linear, ReLU, linear: is the ReLU missing?"
    ))


def test_the_relu_is_part_of_what_this_proves():
    head = their_head([M, 1])
    without = nn.Sequential(head[0], head[2])
    states = torch.randn(20, D)
    assert (head(states) - without(states)).abs().max() > 0.01


@pytest.mark.parametrize("wrapper", ["module.", "base_model.model."])
def test_a_wrappers_name_may_be_before_it(tmp_path, wrapper):
    make_folder(tmp_path, GRM)
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {wrapper + name: tensor for name, tensor in tensors.items()}
    save_file(renamed, tmp_path / "model.safetensors")
    model = RewardModel.from_pretrained(tmp_path)
    torch.testing.assert_close(rewards_of(model), their_rewards(GRM), atol=1e-6, rtol=0)


def test_weights_in_bfloat16_are_computed_in_float32(tmp_path):
    make_folder(tmp_path, QWEN_MATH)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    model = RewardModel.from_pretrained(tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        rewards = rewards_of(model)
    assert rewards.dtype == torch.float32
    head = nn.Sequential(*model.score)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        last = model.model(IDS, PADDED)[:, -1].float()
    with torch.no_grad():
        assert torch.equal(rewards, head(last).flatten())


# ---------------------------------------------------------------- save


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_saved_under_the_names_it_came_with(tmp_path, kind):
    theirs = load_file(make_folder(tmp_path / "in", kind) / "model.safetensors")
    out = save_run(tmp_path / "out", RewardModel.from_pretrained(tmp_path / "in"), tiny_tokenizer())
    ours = load_file(out / "model.safetensors")
    assert ours.keys() == theirs.keys() - {"lm_head.weight"}
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    before = read_json(tmp_path / "in" / "config.json").get("architectures")
    if before:  # vLLM and SGLang choose the program by it
        assert read_json(out / "config.json")["architectures"] == before
    again = RewardModel.from_pretrained(out)
    torch.testing.assert_close(rewards_of(again), their_rewards(kind), atol=1e-6, rtol=0)


def test_llamafactorys_layout_has_no_such_head(tmp_path):
    folder = make_folder(tmp_path / "in", GRM)
    status, _, err = command(checkpoint_formats.main, folder, tmp_path / "out")
    assert status == 2 and "its head has several layers" in err
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- train


@pytest.mark.parametrize("options, last_bias_moves", [
    ([], False),
    (["--center-rewards-coefficient", "0.1"], True),
    (["--lora-rank", "2"], False),
    (["--pack", "--bf16"], False),
])
def test_it_is_trained_on(tmp_path, options, last_bias_moves):
    folder = make_folder(tmp_path / "in", GRM)
    data = write_rows(tmp_path / "d.jsonl", pairs(16))
    args = ["--model", folder, "--data", data, "--lr", "1e-2", "--max-steps", "3", *options]
    args += ["--batch-size", "8", "--output", tmp_path / "run"]
    status, out, err = command(train_rm.main, *args)
    assert status == 0 and "value head kept" in out, err
    before = load_file(folder / "model.safetensors")
    after = load_file(tmp_path / "run" / "model.safetensors")
    moved = {}
    for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
        name = f"v_head.summary.{name}"
        moved[name] = not torch.equal(before[name], after[name])
    assert moved == {
        "v_head.summary.0.weight": True,
        "v_head.summary.0.bias": True,
        "v_head.summary.2.weight": True,
        "v_head.summary.2.bias": last_bias_moves,
    }
    row = json.dumps({"prompt": "q", "response": "a"})
    status, _, err = command(evaluation.main, "score", tmp_path / "run", stdin=row)
    assert status == 0, err


def test_its_gradients_are_those_of_plain_torch(tmp_path):
    model = RewardModel.from_pretrained(make_folder(tmp_path, QWEN_MATH))
    model(IDS, MASK).sum().backward()
    head, last = their_head([D, 1]), tiny_model().model(IDS, PADDED)[:, -1].detach()
    head(last).sum().backward()
    theirs = dict(head.named_parameters())
    for name, parameter in model.score.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-6, rtol=0)


# ---------------------------------------------------------------- heads that are refused


def refused(folder, kind=GRM, **more) -> str:
    make_folder(folder, kind, **more)
    with pytest.raises(CheckpointError) as caught:
        open_model(folder, fresh_head=True)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message
    return message


def test_two_labels_are_refused_whether_the_head_has_one_map_or_two(tmp_path):
    """Qwen2.5-Math-PRM has this: a judge of each step."""
    message = refused(tmp_path / "two", kind=("score", [D, 2], None))
    assert "score.2.weight: a head of 2 labels, [2, 16]" in message
    plain = {"score.weight": torch.zeros(5, D)}
    message = refused(tmp_path / "one", kind=("none", [], None), head=nn.Sequential(), more=plain)
    assert "score.weight: a head of 5 labels, [5, 16]" in message


ARMO = {
    "regression_layer.weight": torch.zeros(19, D),
    "gating.layers.0.weight": torch.zeros(4, D),
    "reward_transform_matrix": torch.zeros(19, 19),
}


@pytest.mark.parametrize("settings, expected", [
    ({}, "a gating network reads from the prompt"),
    ({"num_quantiles": 19}, "predicts the quantiles"),
])
def test_gating_heads_and_distributions_are_refused_by_what_they_are(
    tmp_path, settings, expected
):
    kind = ("none", [], "LlamaForRewardModelWithGating")
    message = refused(tmp_path, kind=kind, head=nn.Sequential(), more=ARMO, **settings)
    assert expected in message


@pytest.mark.parametrize("parts, expected", [
    # A dropout, or something else, between the two: nobody can say which.
    ([nn.Linear(D, M), nn.ReLU(), nn.Dropout(), nn.Linear(M, 1)], "a head of the parts"),
    ([nn.Linear(D, M), nn.LayerNorm(M), nn.Linear(M, 1)], "a head of the parts"),
    ([nn.Linear(D, M, bias=False), nn.ReLU(), nn.Linear(M, 1)], "a head of the parts"),
    ([nn.Linear(D + 1, M), nn.ReLU(), nn.Linear(M, 1)], "its input has 16 numbers"),
    ([nn.Linear(D, M), nn.ReLU(), nn.Linear(M + 1, 1)], "its input has 12 numbers"),
])
def test_other_parts_are_refused_and_named(tmp_path, parts, expected):
    message = refused(tmp_path, head=nn.Sequential(*parts))
    assert expected in message and "v_head.summary" in message


def test_a_plain_head_beside_one_of_two_maps_is_refused(tmp_path):
    message = refused(tmp_path, more={"score.weight": torch.zeros(1, D)})
    assert "more than one reward head (score, v_head.summary)" in message
