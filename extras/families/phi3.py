"""phi3.py: Phi-3 and Phi-4-mini are Mistral, but matrices that read the same input are one.

    qkv_proj        q_proj, k_proj and v_proj, one below the other
    gate_up_proj    gate_proj and up_proj

One large product is faster than several small ones, and nothing else changes. --lora-rank gives
qkv_proj two factors, not six. In Phi-4-mini only three quarters of each query and key turn.

Phi-3-mini-4k has a sliding window of 2,047 tokens: a limit of the length here, as Mistral's is.

    longrope    Each pair turns s_i times slower (Ding et al. 2024). There are two lists of s: one
                for texts of up to 4,096 tokens, and one for longer texts. transformers takes the
                second for a whole batch where one text of it is longer, so a reward would depend on
                its neighbours. Here longer texts are refused, and the first list is the rule. cos
                and sin are multiplied by a = √(1 + ln s / ln L), with L = 4,096 and s · L the
                longest text that the model is made for.

In use where config.json says "model_type": "phi3". It costs what Mistral costs.
tests/extras/test_families.py shows that hidden states are those of transformers.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

from extras.families.parts import numbers_that_turn, only, rotate_first
from model import ROPE_RULES, CheckpointError, Config, RewardModel, default_frequencies
from model import positive_number, rope_settings, rope_type

LONGROPE = ("longrope", "su")  # two names of one rule


# ---------------------------------------------------------------- config.json


def like_llama(config_json: dict, where: str) -> dict:
    """The config in words that model.read_config knows."""
    only(config_json, where, attention_bias=False, mlp_bias=False, head_dim=None)
    part = {"partial_rotary_factor": 1.0} | config_json
    words = {
        "model_type": "mistral",
        "head_dim": numbers_that_turn(part, "partial_rotary_factor", where),
        "partial_rotary_factor": None,
        "rope_scaling": None,
        "rope_parameters": {"rope_theta": read_theta(config_json)},
    }
    kind = rope_type(config_json)
    if kind in LONGROPE:
        longest = positive_number(config_json, "max_position_embeddings", where)
        L = length_of_first_list(config_json, where)
        words["max_position_embeddings"] = min(longest, L)
    elif kind != "default":
        raise CheckpointError(f"{where}: rope type {kind!r} is not computed here")
    return config_json | words


def read_theta(config_json: dict):
    """rope_theta, where old and where new versions of transformers write it."""
    older = config_json.get("rope_theta")
    return rope_settings(config_json).get("rope_theta", older)


def length_of_first_list(config_json: dict, where: str) -> int:
    """L: texts of up to so many tokens turn by short_factor."""
    everywhere = config_json | rope_settings(config_json)
    return positive_number(everywhere, "original_max_position_embeddings", where)


def longrope(config_json: dict, pairs: int, where: str) -> dict:
    """The rope rule, for Config.rope."""
    given = rope_settings(config_json)
    slower = given.get("short_factor")
    if not isinstance(slower, list) or len(slower) != pairs:
        raise CheckpointError(f"{where}: short_factor is not a list of {pairs} numbers")
    for number in slower:
        one = {"short_factor": number}
        positive_number(one, "short_factor", where, (int, float))
    only(given, where, factor=None, attention_factor=None)
    L = length_of_first_list(config_json, where)
    s = config_json["max_position_embeddings"] / L
    scale = math.sqrt(1 + math.log(max(s, 1)) / math.log(L))
    return {
        "rope_type": "longrope",
        "rope_theta": read_theta(config_json),
        "short_factor": slower,
        "scale": scale,
    }


def longrope_frequencies(config: Config) -> tuple:
    """f_i / s_i.  Returns: (P/2,), and the scale a."""
    frequencies, _ = default_frequencies(config)  # (P/2,)
    slower = torch.tensor(config.rope["short_factor"])  # (P/2,)
    return frequencies / slower, config.rope["scale"]


# ---------------------------------------------------------------- the decoder


def change(model: RewardModel, config_json: dict, where: str) -> None:
    """Take the place of the separate matrices."""
    config = model.config
    if rope_type(config_json) in LONGROPE:
        ROPE_RULES["longrope"] = longrope_frequencies
        config.rope = longrope(config_json, config.head_dim // 2, where)
    for layer in model.model.layers:
        layer.self_attn = FusedAttention(config)
        layer.mlp = FusedMLP(config)


class FusedAttention(nn.Module):
    """model.Attention with one matrix for queries, keys and values."""

    def __init__(self, config: Config):
        super().__init__()
        D = config.hidden_size
        H = config.num_attention_heads
        G = config.num_key_value_heads
        self.head_dim = D // H
        self.heads = [H, G, G]
        width = sum(self.heads) * self.head_dim
        self.qkv_proj = nn.Linear(D, width, bias=False)
        self.o_proj = nn.Linear(D, D, bias=False)

    def forward(self, x, cos, sin, form):
        """x (R, T, D), rotary tables for the numbers that turn -> (R, T, D)"""
        R, T, D = x.shape
        together = self.qkv_proj(x)
        together = together.view(R, T, -1, self.head_dim)  # (R, T, H + 2G, P)
        q, k, v = together.transpose(1, 2).split(self.heads, dim=1)  # (R, H or G, T, P)
        q = rotate_first(q, cos, sin)
        k = rotate_first(k, cos, sin)
        mixed = form.attend(q, k, v)  # (R, H, T, P)
        mixed = mixed.transpose(1, 2).reshape(R, T, D)
        return self.o_proj(mixed)


class FusedMLP(nn.Module):
    """model.MLP with one matrix for gate and up.  (R, T, D) -> (R, T, D)"""

    def __init__(self, config: Config):
        super().__init__()
        D, I = config.hidden_size, config.intermediate_size
        self.gate_up_proj = nn.Linear(D, 2 * I, bias=False)
        self.down_proj = nn.Linear(I, D, bias=False)

    def forward(self, x):
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)  # (R, T, I) each
        return self.down_proj(F.silu(gate) * up)
