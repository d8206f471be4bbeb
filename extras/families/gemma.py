"""gemma.py: Gemma 2 and Gemma 3, text only (Gemma Team 2024, §2; 2025, §2).

What differs from Llama in both:

    norms         x / rms(x) · (1 + weight): a weight of 0 changes nothing
    layers        x + norm(attention(norm(x))), then the same with the MLP: before and after
    embedding     times √D, so that it is as large as what the layers add
    scale         q·k / √query_pre_attn_scalar, which need not be √P
    MLP           GELU in place of SiLU
    windows       most layers see only the last `sliding_window` tokens, others see all:

                      Gemma 2     window, all, window, all, …
                      Gemma 3     5 × window, all, 5 × window, all, …

    Gemma 2       a soft cap: logits l of the attention become c · tanh(l / c), within ±c = 50
    Gemma 3       norms on queries and keys, in place of the cap; layers with a window turn by a
                  rope of their own (base 10,000), because they never look far

A window is no limit of the length here: layers that see all carry what is further away.
gemma_attention.py has the cap and the windows, and says what they cost.

In use where config.json says "model_type": "gemma2" or "gemma3_text". The published 4B and larger
models of Gemma 3 read images too ("gemma3"): they are refused.
tests/extras/test_families.py shows that hidden states are those of transformers.
"""
import dataclasses
import math

import torch.nn.functional as F
from torch import nn

from extras import rope_scaling
from extras.families.gemma_attention import ALL, WINDOW, GemmaForm, Rules, what_is_seen
from extras.families.parts import gelu_of, only
from model import MLP, ROPE_NUMBERS, ROPE_RULES, Attention, CheckpointError, Config, Decoder
from model import RewardModel, RMSNorm, positive_number, read_rope, rope_settings, rope_type
from model import rotary_tables

# ---------------------------------------------------------------- config.json


def like_llama(config_json: dict, where: str) -> dict:
    """The config in words that model.read_config knows."""
    gelu_of(config_json, "hidden_activation", where)
    only(config_json, where, use_bidirectional_attention=False)
    if config_json["model_type"] == "gemma3_text":
        only(config_json, where, attn_logit_softcapping=None)
    return config_json | {
        "model_type": "llama",
        "hidden_act": None,  # hidden_activation decides
        "head_dim": positive_number(config_json, "head_dim", where),  # it need not be D / H
        "layer_types": None,  # these windows limit no length
        "use_sliding_window": None,
        "rope_scaling": None,
        "rope_parameters": read_ropes(config_json)[ALL],
    }


def read_ropes(config_json: dict) -> dict[str, dict]:
    """The rope of layers that see all, and of those with a window."""
    ROPE_RULES.update(rope_scaling.ROPE_RULES)
    ROPE_NUMBERS.update(rope_scaling.ROPE_NUMBERS)
    given = rope_settings(config_json)
    if ALL in given or WINDOW in given:  # Gemma 3 in transformers 5
        return {
            ALL: given.get(ALL) or {},
            WINDOW: given.get(WINDOW) or {},
        }
    far = {"rope_theta": config_json.get("rope_theta")} | given
    near = far
    if config_json["model_type"] == "gemma3_text":
        near = {"rope_theta": config_json.get("rope_local_base_freq")}
    return {ALL: far, WINDOW: near}


def for_older_versions(config_json: dict) -> dict:
    """Where transformers 4 looks for the two ropes of Gemma 3."""
    if config_json["model_type"] == "gemma2":
        return {}
    ropes = read_ropes(config_json)
    scaling = dict(ropes[ALL])
    keys = {
        "rope_theta": scaling.pop("rope_theta"),
        "rope_local_base_freq": ropes[WINDOW]["rope_theta"],
    }
    if rope_type(config_json | {"rope_parameters": ropes[ALL]}) != "default":
        keys["rope_scaling"] = scaling
    return keys


def kinds_of_layers(config_json: dict, where: str) -> list[str]:
    """WINDOW or ALL for each layer."""
    layers = config_json["num_hidden_layers"]
    kinds = config_json.get("layer_types")
    if kinds is None:
        every = 2  # Gemma 2 never says it
        if config_json["model_type"] == "gemma3_text":
            every = positive_number(config_json, "sliding_window_pattern", where)
        kinds = []
        for number in range(1, layers + 1):
            kinds.append(WINDOW if number % every else ALL)
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise CheckpointError(f"{where}: layer_types is not a list of {layers} names")
    for kind in kinds:
        if kind not in (WINDOW, ALL):
            raise CheckpointError(f"{where}: layer_types {kind!r} is not computed here")
    return kinds


def read_rules(config_json: dict, where: str) -> Rules:
    """Raises: CheckpointError naming the key that is missing or not computed."""
    numbers = (int, float)
    cap = config_json.get("attn_logit_softcapping")
    # null means "no cap". Where Gemma 2 does not say it, transformers takes 50.
    unsaid = "attn_logit_softcapping" not in config_json
    if cap is not None or (unsaid and config_json["model_type"] == "gemma2"):
        cap = positive_number(config_json, "attn_logit_softcapping", where, numbers)
    return Rules(
        window=positive_number(config_json, "sliding_window", where),
        scalar=positive_number(config_json, "query_pre_attn_scalar", where, numbers),
        cap=cap,
    )


# ---------------------------------------------------------------- the decoder


def change(model: RewardModel, config_json: dict, where: str) -> None:
    """Take the place of Llama's decoder."""
    config = model.config
    config.qk_norm = config_json["model_type"] == "gemma3_text"
    rope = {"rope_parameters": read_ropes(config_json)[WINDOW]}
    model.model = Gemma(
        config,
        near=dataclasses.replace(config, rope=read_rope(rope, where)),
        rules=read_rules(config_json, where),
        kinds=kinds_of_layers(config_json, where),
        gelu=gelu_of(config_json, "hidden_activation", where),
    )


class Gemma(Decoder):
    """Token ids -> hidden states after the last norm.  (R, T) -> (R, T, D)

    Args: near: the config of layers with a window, which have another rope.
    """

    def __init__(self, config: Config, near: Config, rules: Rules, kinds: list[str], gelu: str):
        super().__init__(config)
        self.near = near
        self.rules = rules
        for index, kind in enumerate(kinds):
            self.layers[index] = Layer(config, kind, gelu)
        self.norm = GemmaNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, input_ids, form):
        """(R, T) -> (R, T, D)"""
        positions = form.positions(input_ids)  # (T,)
        seen, seen_near = what_is_seen(form, positions, self.rules)  # (T, T) each, or None
        cos, sin = rotary_tables(self.config, positions)  # (T, P) each
        cos_near, sin_near = rotary_tables(self.near, positions)
        context = {
            ALL: (cos, sin, GemmaForm(form, self.rules, seen)),
            WINDOW: (cos_near, sin_near, GemmaForm(form, self.rules, seen_near)),
        }
        x = self.embed_tokens(input_ids).float()  # (R, T, D)
        x = x * math.sqrt(self.config.hidden_size)
        return self.through_layers(x, context)


class Layer(nn.Module):
    """Attention, then MLP, each between two norms."""

    def __init__(self, config: Config, kind: str, gelu: str):
        super().__init__()
        D, eps = config.hidden_size, config.rms_norm_eps
        self.kind = kind
        self.input_layernorm = GemmaNorm(D, eps)
        self.self_attn = Attention(config)
        if config.qk_norm:
            self.self_attn.q_norm = GemmaNorm(config.head_dim, eps)
            self.self_attn.k_norm = GemmaNorm(config.head_dim, eps)
        self.post_attention_layernorm = GemmaNorm(D, eps)
        self.pre_feedforward_layernorm = GemmaNorm(D, eps)
        self.mlp = GemmaMLP(config, gelu)
        self.post_feedforward_layernorm = GemmaNorm(D, eps)

    def forward(self, x, context):
        """x (R, T, D), for both kinds of layers the tables and the form -> (R, T, D)"""
        cos, sin, form = context[self.kind]
        normed = self.input_layernorm(x)
        attended = self.self_attn(normed, cos, sin, form)
        x = x + self.post_attention_layernorm(attended)
        normed = self.pre_feedforward_layernorm(x)
        added = self.mlp(normed)
        return x + self.post_feedforward_layernorm(added)


class GemmaNorm(RMSNorm):
    """x / rms(x) · (1 + weight), in float32.  (..., D) -> (..., D)"""

    def forward(self, x):
        weight = 1 + self.weight.float()
        normed = F.rms_norm(x.float(), weight.shape, weight, self.eps)
        return normed.to(x.dtype)


class GemmaMLP(MLP):
    """down(gelu(gate(x)) · up(x)).  (R, T, D) -> (R, T, D)"""

    def __init__(self, config: Config, gelu: str):
        super().__init__(config)
        self.gelu = gelu

    def forward(self, x):
        gate = self.gate_proj(x)  # (R, T, I)
        gate = F.gelu(gate, approximate=self.gelu)
        return self.down_proj(gate * self.up_proj(x))
