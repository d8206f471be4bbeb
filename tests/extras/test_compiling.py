"""--compile computes the same numbers, compiles one layer once, and says where it cannot work.

torch.compile cuts code into programs and hands each to a compiler. Here that "compiler" counts the
programs and leaves them as they are, so the tests need no C++ and no minute of waiting.
"""
import functools

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import tiny_model

from data import DataError, Example, collate
from extras import compiling, lora, packing, sharding
from model import whole


@pytest.fixture
def programs(monkeypatch):
    """The programs that torch.compile has made so far."""
    found = []

    def compiler(program, inputs):
        found.append(program)
        return program

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=compiler))
    yield found
    torch.compiler.reset()


def batch(rows: int, longest: int, make_batch=collate):
    """A batch of some pairs of random ids."""
    random = np.random.default_rng(rows)
    examples = []
    for i in range(rows):
        sequences = []
        prompt = random.integers(3, 400, 2)
        for length in (longest, longest - i % 3):
            response = random.integers(3, 400, length - 2)
            sequences.append(np.concatenate((prompt, response)))
        examples.append(Example(sequences, [1.0, 0.0], start=2))
    return make_batch(examples, 0, rows)


def gradients(model, batch) -> dict[str, torch.Tensor]:
    """The rewards, and the gradient of their sum."""
    model.zero_grad()
    rewards = model(**batch.inputs())
    rewards.sum().backward()
    found = {"rewards": rewards.detach()}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[name] = parameter.grad.clone()
    return found


def assert_same(found, expected) -> None:
    """The same rewards and gradients, but for rounding."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        difference = (found[name] - tensor).abs().max()
        assert difference < 1e-4, f"{name} differs by {difference}"


@pytest.mark.parametrize("make_batch, checkpointing", [
    (collate, False), (collate, True), (packing.collate, False)
])
def test_rewards_and_gradients_are_those_without_compile(programs, make_batch, checkpointing):
    plain, compiled = tiny_model(), tiny_model()
    compiled.model.gradient_checkpointing = checkpointing
    compiling.compile_layers(compiled)
    for rows, longest in ((3, 9), (4, 20)):
        pairs = batch(rows, longest, make_batch)
        assert_same(gradients(compiled, pairs), gradients(plain, pairs))
    assert len(programs) > 1, "only the check was compiled"


def test_all_layers_and_all_sizes_of_batches_use_one_program(programs):
    model = tiny_model(num_hidden_layers=4)
    compiling.compile_layers(model)
    programs.clear()  # that of the check
    for rows, longest in ((2, 9), (3, 31), (5, 12)):
        gradients(model, batch(rows, longest))
    assert len(programs) == 1, "each layer or each size of a batch was compiled by itself"


def test_packed_batches_are_not_compiled_again_for_new_sizes(programs):
    model = tiny_model(num_hidden_layers=4)
    compiling.compile_layers(model)
    gradients(model, batch(2, 9, packing.collate))
    of_first_batch = len(programs)
    for rows, longest in ((3, 31), (5, 12), (1, 90)):
        gradients(model, batch(rows, longest, packing.collate))
    assert len(programs) == of_first_batch, "the attention of packed rows has to stay outside"


def test_layers_with_factors_use_one_program_besides_the_first(programs):
    plain, compiled = tiny_model(num_hidden_layers=4), tiny_model(num_hidden_layers=4)
    for model in (plain, compiled):
        torch.manual_seed(1)
        lora.train_less(model, 0, 2)
    compiling.compile_layers(compiled)
    programs.clear()
    pairs = batch(3, 9)
    assert_same(gradients(compiled, pairs), gradients(plain, pairs))
    # The embedding is frozen, so the input of the first layer needs no gradient: another program.
    assert len(programs) == 2


def test_shards_can_be_compiled_too(programs):
    plain, compiled = tiny_model(), tiny_model()
    sharding.shard(compiled, torch.device("cpu"))  # a process group of one
    try:
        compiling.compile_layers(compiled)
        pairs = batch(3, 9)
        found = gradients(compiled, pairs)
        for name, tensor in found.items():
            found[name] = whole(tensor)
        assert_same(found, gradients(plain, pairs))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("error, message", [
    (RuntimeError("no g++\nand a page more"), r"--compile: no working compiler here \(no g\+\+\)"),
    (ImportError(), r"--compile: no working compiler here \(ImportError\)"),
])
def test_a_machine_without_a_compiler_says_so_in_one_line(error, message, monkeypatch):
    def failing(*args, **options):
        raise error

    monkeypatch.setattr(torch, "compile", failing)
    with pytest.raises(DataError, match=f"^{message}$"):
        compiling.compile_layers(tiny_model())
