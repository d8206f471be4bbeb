"""checking.py: what the checks share. It decides whose answers are checked:

    python -m pytest exercises/                 yours, in level1.py … level4.py
    SOLUTIONS=1 python -m pytest exercises/     those in solutions/: all are green
"""
import functools
import importlib
import os

import torch

from data import Tokenizer, collate, parse_row, tokenize
from extras.toy_world import toy_rows
from model import RewardModel


def answers(level):
    """The module with the answers of a level: "level1" …"""
    folder = "exercises.solutions" if os.environ.get("SOLUTIONS") else "exercises"
    return importlib.import_module(f"{folder}.{level}")


def assert_close(found, expected, hint, tolerance=1e-4):
    """Both have the same shape and numbers. If not, the hint says what is probably wrong."""
    assert found is not None, "The function returns None: does it end with `return …`?"
    found = torch.as_tensor(found).detach().double()
    expected = torch.as_tensor(expected).detach().double()
    shapes = f"yours is {tuple(found.shape)}, expected is {tuple(expected.shape)}"
    assert found.shape == expected.shape, f"The shape is wrong: {shapes}. {hint}"
    same = torch.allclose(found, expected, atol=tolerance, rtol=tolerance)
    assert same, f"{hint}\n  yours     {found.tolist()}\n  expected  {expected.tolist()}"


# ---------------------------------------------------------------- a small model, and rows for it

SMALL = {
    "model_type": "llama",
    "vocab_size": 400,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "initializer_range": 0.3,  # large: every token changes the reward
}


def small_model(cls=RewardModel):
    """A random model of this class, the same one every time."""
    torch.manual_seed(0)
    model = cls.from_scratch(SMALL).eval()
    torch.nn.init.constant_(model.score.bias, 0.25)  # not 0: a forgotten bias is noticed
    return model


@functools.cache
def small_tokenizer():
    """Byte-level BPE of the toy world."""
    texts = []
    for row in toy_rows(50, seed=0):
        texts += [row["prompt"], row["chosen"], row["rejected"]]
    return Tokenizer.train(texts, SMALL["vocab_size"])


def small_batch(count=4):
    """A batch of toy pairs. Their lengths differ, so there is padding."""
    tokenizer = small_tokenizer()
    examples = []
    for row in toy_rows(count, seed=1):
        examples.append(tokenize(parse_row(row), tokenizer, 128))
    return collate(examples, tokenizer.pad_id)
