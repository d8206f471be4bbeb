"""parts.py: what more than one family of this folder needs.

LayerNorm (Ba et al. 2016) is older than RMSNorm: it takes the mean away too, and has a bias.

    LayerNorm    (x − mean(x)) / std(x) · weight + bias
    RMSNorm       x / rms(x) · weight

GELU (Hendrycks & Gimpel 2016) is x times the probability that a standard normal number is below x.
The first programs had no error function on their GPU and took a formula with tanh (§2). It differs
by up to 0.0005, so a model keeps the one that it was trained with.

Partial rotary positions: only the first numbers of each query and key turn. The others compare
tokens without regard to their distance (Black et al. 2022, §2.1). Here Config.head_dim is how many
turn, since rotary tables are made for that many.

tests/extras/test_families.py compares the models that have these parts.
"""
import torch
import torch.nn.functional as F
from torch import nn

from model import CheckpointError, positive_number, rope_settings, rotate


class LayerNorm(nn.LayerNorm):
    """(x − mean) / std · weight + bias, in float32.  (..., D) -> (..., D)"""

    def forward(self, x):
        # Weights that are not trained may be of another type than x (extras/lora.py).
        weight = self.weight.float()
        bias = self.bias.float()
        normed = F.layer_norm(x.float(), weight.shape, weight, bias, self.eps)
        return normed.to(x.dtype)


# Name in config.json -> how F.gelu computes it.
GELU = {
    "gelu": "none",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_pytorch_tanh": "tanh",
}


def gelu_of(config_json: dict, key: str, where: str) -> str:
    """Which GELU: an argument of F.gelu.  Raises: CheckpointError naming the key."""
    name = config_json.get(key)
    if name is None:
        raise CheckpointError(f"{where}: no {key}; refusing to guess")
    if name not in list(GELU):
        raise CheckpointError(f"{where}: {key} {name!r} is not computed here")
    return GELU[name]


def numbers_that_turn(config_json: dict, key: str, where: str) -> int:
    """How many numbers of each query and key are rotated.

    Args: key: what says which part of them. transformers 5 has it among rope's settings.
    """
    D = positive_number(config_json, "hidden_size", where)
    heads = positive_number(config_json, "num_attention_heads", where)
    if D % heads:
        raise CheckpointError(f"{where}: hidden_size {D} is not a multiple of {heads} heads")
    part = config_json.get(key)
    newer = rope_settings(config_json).get("partial_rotary_factor")
    if newer is not None:
        part = newer
    positive_number({key: part}, key, where, (int, float))
    if part > 1:
        raise CheckpointError(f"{where}: {key} is {part}, more than the whole")
    return int(D // heads * part)


def rotate_first(x, cos, sin):
    """Rotate as many numbers as cos has; the others stay.  (R, H, T, P) -> (R, H, T, P)"""
    turns = cos.shape[-1]
    turned = rotate(x[..., :turns], cos, sin)
    return torch.cat((turned, x[..., turns:]), dim=-1)


def only(config_json: dict, where: str, **computed) -> None:
    """Raises: CheckpointError where a key has another value than the one that is computed."""
    for key, value in computed.items():
        given = config_json.get(key)
        if given is not None and given != value:
            raise CheckpointError(f"{where}: {key} {given!r} is not computed here")
