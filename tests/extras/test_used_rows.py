"""Training only the rows that occur changes the memory of a step, and nothing else."""
import numpy as np
import pytest
import torch
from conftest import TINY, tiny_model
from safetensors.torch import load_file, save_file

import data
from data import Example
from extras import lora, used_rows
from loss import bradley_terry_loss
from model import RewardModel, open_model

OCCUR = np.array([8, 50, 7, 3, 399, 7, 3], dtype=np.int32)  # the first one is there once
USED = [3, 7, 8, 50, 399]
WEIGHT = "model.embed_tokens.weight"


def batch_of(*pairs):
    """Pairs of token lists, as a padded batch. The pad is a token that no text has."""
    examples = []
    for chosen, rejected in pairs:
        sequences = [np.array(chosen), np.array(rejected)]
        examples.append(Example(sequences, [1.0, 0.0], start=1))
    return data.collate(examples, 0, rows_in_step=len(pairs))


TRAIN = batch_of(([3, 50, 7], [3, 8]), ([399, 7], [399, 3, 3, 50]))
HELD_OUT = batch_of(([3, 51, 7], [3, 4]))  # tokens 51 and 4 are not in OCCUR


def take_steps(model, count=5):
    """Training steps with AdamW, without weight decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.0)
    for _ in range(count):
        rewards = model(**TRAIN.inputs())
        losses = bradley_terry_loss(rewards[TRAIN.chosen], rewards[TRAIN.rejected])
        (TRAIN.weight * losses).sum().backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.5)
        optimizer.step()
        optimizer.zero_grad()


def bfloat16_folder(path):
    """A reward model whose file is in bfloat16."""
    model = tiny_model()
    model.save_pretrained(path, 0, model.state_dict())
    file = path / "model.safetensors"
    tensors = {}
    for name, tensor in load_file(file).items():
        tensors[name] = tensor.bfloat16()
    save_file(tensors, file)
    return path


# ---------------------------------------------------------------- the same model


@torch.no_grad()
def test_rewards_stay_the_same_for_tokens_that_occur_and_for_others():
    plain, model = tiny_model(), tiny_model()
    used_rows.train_only(model, OCCUR)
    for batch in (TRAIN, HELD_OUT):
        assert torch.equal(model(**batch.inputs()), plain(**batch.inputs())), (
            "another reward before any training: is a row read at the wrong index?"
        )


def test_the_same_steps_are_taken_and_the_other_rows_stay():
    plain, model = tiny_model(), tiny_model()
    before = plain.state_dict()[WEIGHT].clone()
    used_rows.train_only(model, OCCUR)
    take_steps(plain)
    take_steps(model)
    expected, found = plain.state_dict(), model.state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, atol=1e-5, rtol=1e-4,
            msg=lambda m, name=name: f"after 5 steps {name} differs: {m}",
        )
    moved = (found[WEIGHT] != before).any(1).nonzero().flatten()
    assert moved.tolist() == USED


def test_only_the_rows_that_occur_have_gradients_and_moments():
    model = tiny_model()
    used_rows.train_only(model, OCCUR)
    trained = {n: p for n, p in model.model.embed_tokens.named_parameters() if p.requires_grad}
    shapes = {name: tuple(parameter.shape) for name, parameter in trained.items()}
    assert shapes == {"weight": (len(USED), TINY["hidden_size"])}
    take_steps(model, 1)
    assert model.model.embed_tokens.frozen.grad is None


def test_nothing_of_it_is_a_buffer():
    model = tiny_model()
    used_rows.train_only(model, OCCUR)
    assert not list(model.buffers()), (
        "take_weights would leave a buffer on the CPU, and DDP would send it in every step"
    )


def test_a_frozen_embedding_stays_frozen():
    model = tiny_model()
    lora.train_less(model, frozen_layers=1, lora_rank=0)
    used_rows.train_only(model, OCCUR)
    for parameter in model.model.embed_tokens.parameters():
        assert not parameter.requires_grad, "--freeze-layers and --used-rows train the embedding"


# ---------------------------------------------------------------- files


def test_a_saved_model_has_one_ordinary_table(tmp_path):
    plain, model = tiny_model(), tiny_model()
    used_rows.train_only(model, OCCUR)
    take_steps(model)
    state = model.state_dict()
    assert state.keys() == plain.state_dict().keys()
    assert state[WEIGHT].shape == (TINY["vocab_size"], TINY["hidden_size"])
    model.save_pretrained(tmp_path, 0, state)
    opened = RewardModel.from_pretrained(tmp_path)
    for batch in (TRAIN, HELD_OUT):
        assert torch.equal(opened(**batch.inputs()), model(**batch.inputs())), (
            "the model on disk is not the one in memory"
        )


def test_to_save_leaves_the_model_as_it_was():
    model = tiny_model()
    used_rows.train_only(model, OCCUR)
    frozen = model.model.embed_tokens.frozen.clone()
    take_steps(model, 1)
    first = model.state_dict()[WEIGHT]
    take_steps(model, 1)
    second = model.state_dict()[WEIGHT]
    assert torch.equal(model.model.embed_tokens.frozen, frozen)
    assert not torch.equal(first, second), "the first table changed with the training after it"


def test_the_frozen_table_keeps_the_type_of_its_file_and_the_rows_are_trained_in_float32(tmp_path):
    folder = bfloat16_folder(tmp_path)
    model = open_model(folder)
    used_rows.train_only(model, OCCUR)  # its weights are still mapped from the file
    model.take_weights("cpu")
    embedding = model.model.embed_tokens
    assert embedding.frozen.dtype == torch.bfloat16
    assert embedding.weight.dtype == torch.float32
    plain = RewardModel.from_pretrained(folder)
    for batch in (TRAIN, HELD_OUT):
        assert torch.equal(model(**batch.inputs()), plain(**batch.inputs()))

    take_steps(plain)
    take_steps(model)
    found = model.state_dict()[WEIGHT]
    assert found.dtype == torch.float32, "trained rows are rounded when they are saved"
    torch.testing.assert_close(found, plain.state_dict()[WEIGHT], atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- which tokens occur


class Watched:
    """An array that remembers how many numbers were read from it at once."""

    def __init__(self, array):
        self.array, self.most = array, 0

    def __len__(self):
        return len(self.array)

    def __getitem__(self, index):
        part = self.array[index]
        self.most = max(self.most, len(part))
        return part


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_a_file_of_ids_is_read_in_chunks(tmp_path, chunk, monkeypatch):
    monkeypatch.setattr(used_rows, "CHUNK", chunk)
    file = tmp_path / "ids.bin"
    OCCUR.tofile(file)
    ids = Watched(np.memmap(file, np.int32, "r"))
    used = used_rows.tokens_that_occur(ids, TINY["vocab_size"])
    assert used.tolist() == USED, "a token of the file was missed: one at the end of a chunk?"
    assert ids.most <= chunk


# ---------------------------------------------------------------- beside other extras


def test_sharded_rows_take_the_same_steps():
    from extras import sharding

    plain, model = tiny_model(), tiny_model()
    used_rows.train_only(model, OCCUR)
    take_steps(plain)
    try:
        sharding.shard(model, torch.device("cpu"))
        take_steps(model)
        found = model.state_dict()[WEIGHT]
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(found, plain.state_dict()[WEIGHT], atol=1e-5, rtol=1e-4)
