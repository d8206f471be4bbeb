"""rope_scaling.py: rope rules for texts longer than those a model first learned from.

A decoder tells positions apart by turning pairs of numbers: pair i of every query and key turns by
the angle position · f_i, with f_i = θ^(−2i/P) (rotary_tables in model.py). Say the model learned
from texts of at most L tokens. Position 2L then has angles that it never saw, and the attention
breaks there. To read texts of s·L tokens, change the frequencies. In config.json s is `factor`.

    linear    f_i / s: position p turns as p / s did, so no angle is new. But neighbours are now
              hard to tell apart, by the fast pairs too (Chen et al. 2023, §2.3).

    yarn      Fast pairs tell neighbours apart: they stay as they are. Slow pairs, which do not
              turn once in L tokens, become s times slower. Between the two there is a ramp over
              the index i (Peng et al. 2023, "NTK-by-parts", §3.2).
                  f_i · (1 − slowed_i) + (f_i / s) · slowed_i        slowed_i = 0 … 1
              The softmax over more tokens has to be sharper. So cos and sin are multiplied by
              a = 0.1 · ln s + 1, and q·k grows by a². The formula was found by trying (§3.4).

    llama3    Fast and slow pairs as in yarn, but the ramp is over the number of turns in L tokens,
              and cos and sin do not grow (Meta's `apply_scaling`, in the code of Llama 3.1).

    dynamic   Changes texts of more than max_position_embeddings tokens, and only those (§3.3).
              Such texts are refused here, so this is the default rule.

These rules cost nothing: they only change the table of cos and sin. They are in use where
rope_scaling (or rope_parameters) in a model's config.json names one of them.

tests/extras/test_rope_scaling.py shows that hidden states are those of transformers.
"""
import math

import torch
from torch import Tensor

from model import Config, default_frequencies, rope_type


def linear_frequencies(config: Config) -> tuple[Tensor, float]:
    """f_i / s.  Returns: (P/2,), and a scale of 1."""
    frequencies, scale = default_frequencies(config)
    return frequencies / config.rope["factor"], scale


def yarn_frequencies(config: Config) -> tuple[Tensor, float]:
    """Fast pairs as they are, slow ones s times slower.  Returns: (P/2,), and the scale a.

    The paper's ramp is even in the number of turns. That of its authors' program is even in the
    index i. Models were trained with the program, so the index counts here too.
    """
    rope = config.rope
    frequencies, _ = default_frequencies(config)  # (P/2,)
    first = math.floor(index_of_turns(rope["beta_fast"], config))
    last = math.ceil(index_of_turns(rope["beta_slow"], config))
    first, last = max(first, 0), min(last, config.head_dim - 1)
    width = max(last - first, 0.001)  # never 0: it divides

    index = torch.arange(len(frequencies))  # (P/2,)
    slowed = ((index - first) / width).clamp(0, 1)  # (P/2,) from 0 at `first` to 1 at `last`
    slow = frequencies / rope["factor"]
    return (1 - slowed) * frequencies + slowed * slow, rope["attention_factor"]


def index_of_turns(turns: float, config: Config) -> float:
    """Which pair turns that often in the L tokens of the old context.

    A pair turns L · θ^(−2i/P) / 2π times. Solved for i: P · ln(L / (2π · turns)) / (2 ln θ).
    """
    length = config.rope["original_max_position_embeddings"]
    theta = config.rope["rope_theta"]
    return config.head_dim * math.log(length / (2 * math.pi * turns)) / (2 * math.log(theta))


def llama3_frequencies(config: Config) -> tuple[Tensor, float]:
    """Pairs of many turns as they are, of few turns s times slower.  Returns: (P/2,), scale 1."""
    rope = config.rope
    frequencies, scale = default_frequencies(config)  # (P/2,)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)  # (P/2,)
    few, many = rope["low_freq_factor"], rope["high_freq_factor"]
    slowed = ((many - turns) / (many - few)).clamp(0, 1)  # (P/2,) from 0 at `many` to 1 at `few`
    slow = frequencies / rope["factor"]
    return (1 - slowed) * frequencies + slowed * slow, scale


# ---------------------------------------------------------------- what model.open_model asks for

ROPE_RULES = {
    "linear": linear_frequencies,
    "yarn": yarn_frequencies,
    "llama3": llama3_frequencies,
    "dynamic": default_frequencies,
}
# The numbers that each rule needs besides rope_theta.
ROPE_NUMBERS = {
    "linear": ("factor",),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "attention_factor",
    ),
    "llama3": (
        "factor",
        "original_max_position_embeddings",
        "low_freq_factor",
        "high_freq_factor",
    ),
    "dynamic": ("factor",),
}


def fill_in(config_json: dict) -> dict:
    """A copy of config.json in which yarn's defaults are written down.

    They are those of transformers. The model is saved with them: a config that names its defaults
    means the same. What cannot be filled in is left for model.read_rope to refuse.
    """
    key = "rope_parameters" if config_json.get("rope_parameters") else "rope_scaling"
    rope = config_json.get(key)
    if not isinstance(rope, dict) or rope_type(config_json) != "yarn":
        return dict(config_json)
    defaults = {
        "beta_fast": 32,  # pairs that turn more often stay as they are
        "beta_slow": 1,  # pairs that turn less often become s times slower
        "original_max_position_embeddings": config_json.get("max_position_embeddings"),
        "attention_factor": attention_factor(rope.get("factor")),
    }
    given = {}
    for name, value in rope.items():
        if value is not None:  # null means "the default" too
            given[name] = value
    return config_json | {key: defaults | given}


def attention_factor(factor) -> float | None:
    """a = 0.1 · ln s + 1.  None where s is not a number: read_rope then says so."""
    if not isinstance(factor, (int, float)):
        return None
    return 0.1 * math.log(max(factor, 1)) + 1
