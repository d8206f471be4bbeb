"""The least that a training step can take: its matrix products alone. A worker of speed.py."""
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import asked_to_work, read_json

from data import common_prefix

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def floor(s: dict) -> dict:
    """Seconds that the matrix products of a row take: every linear layer, forward and backward.

    On the real tokens, each prompt once, the rows of a micro-batch together.
    """
    shape = read_json(Path(s["folder"], "model", "config.json"))
    sizes = matrices(shape)
    tokens = tokens_of_rows(Path(s["folder"], "ids.json"))
    batches = []
    for first in range(0, len(tokens), s["batch"]):
        batch = tokens[first : first + s["batch"]]
        batches.append(sum(batch))
    seconds = []
    for tokens_of_batch in batches:
        layer_seconds(tokens_of_batch, sizes, s)  # warm up: every batch has a shape of its own
        seconds.append(layer_seconds(tokens_of_batch, sizes, s))
    in_all = shape["num_hidden_layers"] * sum(seconds)
    return {
        "seconds_per_row": in_all / len(tokens),
        "tokens_per_row": sum(tokens) / len(tokens),
    }


def tokens_of_rows(file: Path) -> list[int]:
    """The tokens of each row, what all its sequences begin with counted once."""
    tokens = []
    for row in read_json(file):
        sequences = [np.array(ids) for ids in row]
        shared = common_prefix(sequences)
        tokens.append(shared + sum(len(sequence) - shared for sequence in sequences))
    return tokens


def matrices(shape: dict) -> list[tuple[int, int]]:
    """(in, out) of the linear maps of a layer."""
    D, I = shape["hidden_size"], shape["intermediate_size"]
    wide = shape["num_attention_heads"] * shape["head_dim"]
    narrow = shape["num_key_value_heads"] * shape["head_dim"]
    attention = [(D, wide), (D, narrow), (D, narrow), (wide, D)]
    mlp = [(D, I), (D, I), (I, D)]
    return attention + mlp


def layer_seconds(tokens: int, sizes: list, s: dict) -> float:
    """x Wᵀ, and the gradients of x and of W, for every W of a layer."""
    dtype = DTYPES[s["dtype"]]
    options = {"dtype": dtype, "device": s["device"]}
    total = 0.0
    for n, m in sizes:
        x = torch.randn(tokens, n, **options)
        w = torch.randn(m, n, **options)
        g = torch.randn(tokens, m, **options)
        wait(s["device"])
        began = time.perf_counter()
        F.linear(x, w)
        g @ w
        g.T @ x
        wait(s["device"])
        total += time.perf_counter() - began
    return total


def wait(device: str) -> None:
    """Until the GPU has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    asked_to_work({"floor": floor})
