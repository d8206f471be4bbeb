"""Other decoders are trained as Llama is: packed, frozen, with LoRA, in shards, recomputed.

test_families.py shows what they compute.
"""
import functools

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import FIXTURES
from safetensors.torch import load_file, save_file
from test_families import CASES, copy_fixture
from test_packing import check_same, example_of

from extras import compiling, lora, packing, sharding, used_rows
from model import RewardModel, open_model

IDS = torch.randint(3, 48, (3, 16), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(16) < torch.tensor([16, 5, 11])[:, None]).long()
every_case = pytest.mark.parametrize("case", [c for c in CASES if c != "smollm3"])


def load(case: str) -> RewardModel:
    return RewardModel.from_pretrained(FIXTURES / case)


def opened(case: str, **options) -> RewardModel:
    """As train_rm.py opens a model."""
    model = open_model(FIXTURES / case)
    torch.manual_seed(0)
    lora.train_less(model, **options)
    model.take_weights("cpu")
    return model


def tokens(count: int) -> list[int]:
    return torch.randint(3, 48, (count,)).tolist()


def examples():
    """Prompts with responses; some are longer than Gemma's windows, and one has many responses."""
    torch.manual_seed(0)
    many = [tokens(1 + i % 2) for i in range(80)]
    return [
        example_of(tokens(9), tokens(3), tokens(7)),
        example_of([], tokens(2), tokens(12)),
        example_of(tokens(1), tokens(4), tokens(1), tokens(15)),
        example_of(tokens(15), *many),
    ]


# ---------------------------------------------------------------- how rows lie, what is kept


@every_case
def test_rewards_and_gradients_of_a_packed_batch_are_those_of_the_padded_form(case):
    check_same(load(case), examples())


@every_case
@pytest.mark.parametrize("packed", [False, True])
def test_gradient_checkpointing_changes_no_gradient(case, packed):
    model = load(case)
    batch = packing.collate(examples()[:1], 0)
    inputs = batch.inputs() if packed else {"input_ids": IDS, "attention_mask": MASK}
    found = []
    for checkpointing in (False, True):
        model.model.gradient_checkpointing = checkpointing
        model.zero_grad()
        rewards = model(**inputs)
        rewards.sin().sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        found.append(gradients | {"rewards": rewards.detach()})
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, msg=name)


@every_case
def test_every_weight_has_a_gradient(case):
    model = load(case)
    model(IDS, MASK).sin().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name}: processes would wait for it"
        assert parameter.grad.isfinite().all(), name


@torch.no_grad()
@every_case
def test_bfloat16_is_near_float32(case):
    model = load(case)
    expected = model(IDS, MASK)
    with torch.autocast("cpu", torch.bfloat16):
        rewards = model(IDS, MASK)
    assert rewards.dtype == torch.float32
    size = model.score.weight.norm()  # hidden states are of size 1
    assert (rewards - expected).abs().max() < 0.2 * size


# ---------------------------------------------------------------- what is trained


@every_case
def test_lora_starts_from_the_model_and_every_matrix_of_a_layer_has_factors(case):
    model = opened(case, frozen_layers=0, lora_rank=2)
    torch.testing.assert_close(model(IDS, MASK), load(case)(IDS, MASK), atol=1e-5, rtol=0)
    with_factors = 0
    for layer in model.model.layers:
        for name, module in layer.named_modules():
            if getattr(module, "weight", torch.ones(1)).ndim == 2:
                assert isinstance(module, lora.LoraLinear), name
                with_factors += 1
    assert with_factors >= 4 * len(model.model.layers)


@every_case
def test_what_lora_learned_is_in_the_folder_that_is_saved(case, tmp_path):
    model = opened(case, frozen_layers=0, lora_rank=2)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.1)
    expected = model(IDS, MASK)
    model.save_pretrained(tmp_path, 0, model.state_dict())
    saved = RewardModel.from_pretrained(tmp_path)
    torch.testing.assert_close(saved(IDS, MASK), expected, atol=1e-5, rtol=1e-5)
    assert (expected - load(case)(IDS, MASK)).abs().max() > 1e-3, "the factors are not used"


@every_case
def test_frozen_layers_keep_the_type_of_their_file_and_are_not_trained(case, tmp_path):
    folder = copy_fixture(case, tmp_path / "half", {})
    for file in folder.glob("model*.safetensors"):
        tensors = load_file(file)
        save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, file)
    expected = RewardModel.from_pretrained(folder)(IDS, MASK)
    model = open_model(folder)
    lora.train_less(model, 1, 0)
    model.take_weights("cpu")
    rewards = model(IDS, MASK)
    torch.testing.assert_close(rewards, expected, atol=1e-5, rtol=0)
    rewards.sum().backward()
    for parameter in model.model.layers[0].parameters():
        assert parameter.dtype == torch.bfloat16 and parameter.grad is None
    for parameter in model.model.layers[1].parameters():
        assert parameter.dtype == torch.float32 and parameter.grad is not None


@every_case
def test_with_used_rows_rewards_and_the_saved_names_stay(case):
    plain, model = load(case), open_model(FIXTURES / case)
    used_rows.train_only(model, np.arange(5, 20))
    model.take_weights("cpu")
    assert torch.equal(model(IDS, MASK), plain(IDS, MASK))
    state = model.state_dict()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(state[name], tensor), name


# ---------------------------------------------------------------- shards, programs


@pytest.fixture
def process_group():
    """Leaves no process group to the next test."""
    yield
    dist.destroy_process_group()


@every_case
def test_shards_compute_and_save_what_the_model_does(case, process_group):
    plain, model = load(case), open_model(FIXTURES / case)
    sharding.shard(model, torch.device("cpu"))
    rewards = model(IDS, MASK)
    assert torch.equal(rewards, plain(IDS, MASK))
    rewards.sum().backward()
    state = model.state_dict()
    assert state.keys() == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize("case", ["gpt_neox", "gpt2", "olmo2", "gemma2", "gemma3_text", "phi3"])
def test_a_compiled_layer_computes_the_same(case, monkeypatch):
    torch.compiler.reset()
    # No C++ compiler: programs are made, and run as they are.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    plain, model = load(case), load(case)
    compiling.compile_layers(model)
    for ids, mask in ((IDS, MASK), (IDS[:2, :12], MASK[:2, :12])):
        torch.testing.assert_close(model(ids, mask), plain(ids, mask), atol=1e-5, rtol=0)
    torch.compiler.reset()
