"""LoRA and frozen layers: what is trained, from where it starts, and what is saved."""
import math

import pytest
import torch
from conftest import save_run, tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file
from torch import nn

from extras import lora
from loss import bradley_terry_loss
from model import CheckpointError, RewardModel, open_model

QWEN2 = {"model_type": "qwen2"}  # its query, key and value maps have a bias


def lora_model(rank=2, frozen_layers=0, **settings) -> RewardModel:
    """tiny_model with factors."""
    model = tiny_model(**settings)
    torch.manual_seed(1)
    lora.train_less(model, frozen_layers, rank)
    return model


def rewards(model: RewardModel) -> torch.Tensor:
    """The rewards of six texts.  (6,)"""
    random = torch.Generator().manual_seed(2)
    input_ids = torch.randint(3, 400, (6, 12), generator=random)
    return model(input_ids, torch.ones_like(input_ids))


def take_steps(model: RewardModel, steps: int = 3) -> None:
    """Plain gradient descent: the first three texts should beat the others."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        r_chosen, r_rejected = rewards(model).chunk(2)
        losses = bradley_terry_loss(r_chosen, r_rejected)
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def trained(model: RewardModel) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found[name] = parameter
    return found


def count(model: RewardModel) -> int:
    """How many numbers are trained."""
    total = 0
    for parameter in trained(model).values():
        total += parameter.numel()
    return total


def saved_in_bfloat16(folder, **settings):
    """A model folder as large models are published."""
    save_run(folder, tiny_model(**settings), tiny_tokenizer())
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        tensors[name] = tensors[name].bfloat16()
    save_file(tensors, file)
    return folder


# ---------------------------------------------------------------- the equation


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_the_output_is_w_x_plus_b_plus_two_b_a_x_for_every_rank(rank):
    linear = nn.Linear(4, 3)
    module = lora.LoraLinear(lora.FrozenLinear(linear), rank)
    nn.init.normal_(module.lora_B)
    x = torch.randn(4)
    W = linear.weight.tolist()
    b = linear.bias.tolist()
    A = module.lora_A.tolist()
    B = module.lora_B.tolist()
    out = module(x).tolist()
    for i in range(3):
        expected = b[i]
        for j in range(4):
            change = 0.0
            for k in range(rank):
                change += B[i][k] * A[k][j]
            expected += (W[i][j] + 2 * change) * x[j].item()  # α = 2 r, so α/r = 2
        assert out[i] == pytest.approx(expected, abs=1e-5), "is B A scaled by α/r = 2?"


@pytest.mark.parametrize("family", [{}, QWEN2])
def test_training_starts_from_exactly_the_model_that_was_given(family):
    before = rewards(tiny_model(**family))
    model = lora_model(**family)
    assert torch.equal(rewards(model), before), "B has to start at 0"
    mlp = model.model.layers[0].mlp
    nn.init.constant_(mlp.up_proj.lora_B, 0.1)
    change = rewards(model) - before
    assert change.abs().max() > 1e-3, "the factors are not used"


def test_a_starts_random_because_two_zeros_would_never_learn():
    model = lora_model(rank=64)
    rewards(model).sum().backward()
    factors = trained(model)
    for name, A in factors.items():
        if name.endswith("lora_A"):
            B = factors[name.replace("lora_A", "lora_B")]
            bound = 1 / math.sqrt(A.shape[1])
            assert not B.any()
            assert B.grad.any(), "is A 0 too? Then B would never learn"
            assert 0.95 * bound < A.abs().max() <= bound
            assert not A.grad.any(), "B is 0, so A has no gradient in the first step"


def test_the_factors_depend_on_the_seed_alone():
    first = trained(lora_model())
    second = trained(lora_model())
    for name, parameter in first.items():
        assert torch.equal(parameter, second[name]), name


# ---------------------------------------------------------------- what is trained


def test_the_number_of_trained_parameters_is_what_the_formula_says():
    D, I, queries, keys, r = 16, 24, 24, 12, 2  # tiny_model: 4 and 2 heads, 6 wide each
    attention = (D + queries) + 2 * (D + keys) + (queries + D)  # in + out of each matrix
    mlp = 3 * (D + I)
    of_layer = r * (attention + mlp)
    head = D + 1
    assert count(lora_model(r)) == 2 * of_layer + head
    assert count(lora_model(r, frozen_layers=1)) == of_layer + head


def test_the_head_is_trained_and_its_bias_stays_as_the_caller_set_it():
    for bias in (True, False):
        model = tiny_model()
        model.score.bias.requires_grad_(bias)
        lora.train_less(model, 0, 2)
        assert model.score.weight.requires_grad, "the value head is new: it has to be trained"
        assert model.score.bias.requires_grad == bias


@pytest.mark.parametrize("rank", [0, 2])
def test_frozen_layers_stay_bit_for_bit_and_the_rest_trains(rank):
    before = tiny_model().state_dict()
    model = tiny_model()
    lora.train_less(model, 1, rank)
    take_steps(model)
    changed = set()
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor, before[name]):
            changed.add(name)
    expected = {"score.weight", "score.bias"}
    for name in before:
        in_last_layer = name.startswith("model.layers.1.")
        if in_last_layer and (rank == 0 or "_proj" in name):
            expected.add(name)
    if rank == 0:
        expected.add("model.norm.weight")
    # The bias cancels in every difference: it may or may not move by a rounding error.
    assert changed | {"score.bias"} == expected, "--freeze-layers 1 freezes the FIRST layer"


@pytest.mark.parametrize("frozen_layers, rank", [(1, 0), (1, 2), (0, 2)])
def test_frozen_numbers_keep_the_type_of_their_file_and_trained_ones_are_float32(
    frozen_layers, rank, tmp_path
):
    folder = saved_in_bfloat16(tmp_path / "half", **QWEN2)
    model = open_model(folder)
    lora.train_less(model, frozen_layers, rank)
    model.take_weights("cpu")
    stored = load_file(folder / "model.safetensors")
    for name, parameter in model.named_parameters():
        expected = torch.float32 if parameter.requires_grad else torch.bfloat16
        assert parameter.dtype == expected, name
        if name in stored:
            assert torch.equal(parameter.float(), stored[name].float()), name
    with torch.autocast("cpu", torch.bfloat16):
        rewards(model).sum().backward()


def test_a_frozen_model_in_bfloat16_computes_in_float32_where_autocast_is_off(tmp_path):
    folder = saved_in_bfloat16(tmp_path / "half", **QWEN2)
    model = open_model(folder)
    lora.train_less(model, 0, 2)
    model.take_weights("cpu")
    expected = rewards(RewardModel.from_pretrained(folder))  # every number widened
    torch.testing.assert_close(rewards(model), expected, atol=1e-5, rtol=0)


def test_a_head_in_bfloat16_whose_bias_is_frozen_computes_in_float32(tmp_path):
    model = open_model(saved_in_bfloat16(tmp_path / "half"))
    model.score.bias.requires_grad_(False)  # as train_rm.py does without the centering penalty
    lora.train_less(model, 0, 2)
    model.take_weights("cpu")
    assert rewards(model).dtype == torch.float32


def test_recomputed_layers_learn_although_the_embedding_is_frozen():
    plain, recomputed = lora_model(), lora_model()
    recomputed.model.gradient_checkpointing = True
    for model in (plain, recomputed):
        rewards(model).sum().backward()
    others = trained(recomputed)
    for name, parameter in trained(plain).items():
        gradient = others[name].grad
        assert gradient is not None, f"{name} gets no gradient: a re-entrant checkpoint needs one"
        torch.testing.assert_close(gradient, parameter.grad, msg=name)


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize("family", [{}, QWEN2])
def test_merged_factors_give_the_same_rewards(family, tmp_path):
    before = rewards(tiny_model(**family))
    model = lora_model(frozen_layers=1, **family)
    take_steps(model)
    unmerged = rewards(model)
    folder = save_run(tmp_path / "run", model, tiny_tokenizer())
    merged = RewardModel.from_pretrained(folder)
    change = unmerged - before
    assert change.abs().max() > 1e-2, "the steps changed nothing, so nothing is proved"
    torch.testing.assert_close(rewards(merged), unmerged, atol=1e-5, rtol=0, msg=lambda m: (
        f"the saved model is not the one that was trained: is it W + α/r · B A? {m}"
    ))


def test_what_is_saved_has_ordinary_names_and_shapes_and_the_model_is_left_as_it_is():
    ordinary = tiny_model().state_dict()
    model = lora_model(frozen_layers=1)
    take_steps(model)
    names = trained(model).keys()
    state, again = model.state_dict(), model.state_dict()
    assert state.keys() == ordinary.keys()
    assert trained(model).keys() == names
    for name, tensor in state.items():
        assert tensor.shape == ordinary[name].shape, name
        assert tensor.dtype == torch.float32, name
        assert torch.equal(tensor, again[name]), f"{name}: merged twice?"


@pytest.mark.parametrize("changed", [0, -1])
def test_a_base_that_differs_at_its_beginning_or_end_is_another_base(changed, tmp_path):
    content = bytearray(3 * 2**20)
    (tmp_path / "a").write_bytes(content)
    before = lora.hash_of_files([tmp_path / "a"])
    content[changed] = 1
    (tmp_path / "a").write_bytes(content)
    assert lora.hash_of_files([tmp_path / "a"]) != before, "a resumed run would not notice it"


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("frozen_layers, rank, message", [
    (3, 0, "--freeze-layers 3: the model has only 2 layers"),
    (3, 2, "--freeze-layers 3: the model has only 2 layers"),
    (2, 2, "--freeze-layers 2: no layer of 2 is left for --lora-rank"),
])
def test_less_to_train_than_there_is_is_refused(frozen_layers, rank, message):
    with pytest.raises(CheckpointError, match=message):
        lora.train_less(tiny_model(), frozen_layers, rank)


def test_all_layers_may_be_frozen_where_there_are_no_factors():
    model = tiny_model()
    lora.train_less(model, 2, 0)
    assert trained(model).keys() == {"model.norm.weight", "score.weight", "score.bias"}
