"""gemma.py: Gemma 2 and Gemma 3, text only (Gemma Team 2024, §2; 2025, §2).

What differs from Llama in both:

    norms         x / rms(x) · (1 + weight): a weight of 0 changes nothing
    layers        x + norm(attention(norm(x))), then the same with the MLP: before and after
    embedding     times √D, so that it is as large as what the layers add
    scale         q·k / √query_pre_attn_scalar, which need not be √P
    MLP           GELU in place of SiLU
    windows       most layers see only the last `sliding_window` tokens. Others see all.

                  layers of Gemma 2     ◣ window   ◣ all   ◣ window   ◣ all  …
                  layers of Gemma 3     5 × window, then 1 × all, again and again

    Gemma 2       soft cap: logits l of the attention become c · tanh(l / c), never above c = 50
    Gemma 3       norms on queries and keys, in place of the cap; layers with a window turn by a
                  rope of their own (base 10,000), because they never look far

A window is not a limit of the length here: layers that see all carry what is further away.

What it costs: a soft cap needs all T × T logits in memory, and so does no fast kernel. Layers with
a window are slower than others where a text is longer than the window: a mask hides what is further
away, and it is computed all the same. --pack works, but such a mask is as long as the packed row.

In use where config.json says "model_type": "gemma2" or "gemma3_text". The 4B and larger models of
Gemma 3 have a decoder for images too ("gemma3"): they are refused.
tests/extras/test_families.py shows that hidden states are those of transformers.
"""
import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extras import rope_scaling
from extras.families.parts import gelu_of, only
from model import MLP, ROPE_NUMBERS, ROPE_RULES, Attention, CheckpointError, Config, Decoder
from model import Padded, RewardModel, RMSNorm, positive_number, read_rope, rope_settings
from model import rotary_tables

WINDOW, ALL = "sliding_attention", "full_attention"


# ---------------------------------------------------------------- config.json


def like_llama(config_json: dict, where: str) -> dict:
    """The config in words that model.read_config knows."""
    gelu_of(config_json, "hidden_activation", where)
    only(config_json, where, use_bidirectional_attention=False)
    if config_json["model_type"] == "gemma3_text":
        only(config_json, where, attn_logit_softcapping=None)
    ropes = read_ropes(config_json)
    return config_json | {
        "model_type": "llama",
        "hidden_act": None,  # hidden_activation decides
        "head_dim": positive_number(config_json, "head_dim", where),  # it need not be D / H
        "layer_types": None,  # these windows limit no length
        "use_sliding_window": None,
        "rope_scaling": None,
        "rope_parameters": ropes[ALL],
    }


def read_ropes(config_json: dict) -> dict[str, dict]:
    """The rope of layers that see all, and of those with a window."""
    ROPE_RULES.update(rope_scaling.ROPE_RULES)
    ROPE_NUMBERS.update(rope_scaling.ROPE_NUMBERS)
    given = rope_settings(config_json)
    if ALL in given or WINDOW in given:  # Gemma 3 in transformers 5
        return {kind: given.get(kind) or {} for kind in (ALL, WINDOW)}
    rope = {"rope_theta": config_json.get("rope_theta")} | given
    if config_json["model_type"] == "gemma2":
        return {ALL: rope, WINDOW: rope}
    return {ALL: rope, WINDOW: {"rope_theta": config_json.get("rope_local_base_freq")}}


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
            kinds.append(ALL if number % every == 0 else WINDOW)
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise CheckpointError(f"{where}: layer_types is not a list of {layers} names")
    for kind in kinds:
        if kind not in (WINDOW, ALL):
            raise CheckpointError(f"{where}: layer_types {kind!r} is not computed here")
    return kinds


@dataclasses.dataclass
class Settings:
    """What only Gemma's config says."""

    kinds: list[str]  # of layers
    window: int  # tokens, with the token itself
    scalar: float  # attention logits are q·k / √scalar
    cap: float | None  # none of them is above
    gelu: str
    config_near: Config  # the config of layers with a window: it has their rope


def read_settings(config: Config, config_json: dict, where: str) -> Settings:
    """Raises: CheckpointError naming the key that is missing or not computed."""
    numbers = (int, float)
    cap = config_json.get("attn_logit_softcapping")
    if cap is not None or config_json["model_type"] == "gemma2":
        # null means "no cap". Where the key is missing, transformers takes 50.
        if "attn_logit_softcapping" not in config_json or cap is not None:
            cap = positive_number(config_json, "attn_logit_softcapping", where, numbers)
    rope = read_rope({"rope_parameters": read_ropes(config_json)[WINDOW]}, where)
    return Settings(
        kinds=kinds_of_layers(config_json, where),
        window=positive_number(config_json, "sliding_window", where),
        scalar=positive_number(config_json, "query_pre_attn_scalar", where, numbers),
        cap=cap,
        gelu=gelu_of(config_json, "hidden_activation", where),
        config_near=dataclasses.replace(config, rope=rope),
    )


# ---------------------------------------------------------------- the decoder


def change(model: RewardModel, config_json: dict, where: str) -> None:
    """Take the place of Llama's decoder."""
    config = model.config
    config.qk_norm = config_json["model_type"] == "gemma3_text"
    model.model = Gemma(config, read_settings(config, config_json, where))


class Gemma(Decoder):
    """Token ids -> hidden states after the last norm.  (R, T) -> (R, T, D)"""

    def __init__(self, config: Config, settings: Settings):
        super().__init__(config)
        self.settings = settings
        for index, kind in enumerate(settings.kinds):
            self.layers[index] = Layer(config, kind, settings.gelu)
        self.norm = GemmaNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, input_ids: Tensor, form: Padded) -> Tensor:
        """(R, T) -> (R, T, D)"""
        settings = self.settings
        positions = form.positions(input_ids)  # (T,)
        seen, seen_near = what_is_seen(form, positions, settings)  # (T, T) bool each, or None
        context = {
            ALL: (*rotary_tables(self.config, positions), GemmaForm(form, settings, seen)),
            WINDOW: (
                *rotary_tables(settings.config_near, positions),
                GemmaForm(form, settings, seen_near),
            ),
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

    def forward(self, x: Tensor, context: dict[str, tuple]) -> Tensor:
        """(R, T, D) -> (R, T, D)"""
        attended = self.self_attn(self.input_layernorm(x), *context[self.kind])
        x = x + self.post_attention_layernorm(attended)
        added = self.mlp(self.pre_feedforward_layernorm(x))
        return x + self.post_feedforward_layernorm(added)


class GemmaNorm(RMSNorm):
    """x / rms(x) · (1 + weight), in float32.  (..., D) -> (..., D)"""

    def forward(self, x: Tensor) -> Tensor:
        weight = 1 + self.weight.float()
        return F.rms_norm(x.float(), weight.shape, weight, self.eps).to(x.dtype)


class GemmaMLP(MLP):
    """down(gelu(gate(x)) · up(x)).  (R, T, D) -> (R, T, D)"""

    def __init__(self, config: Config, gelu: str):
        super().__init__(config)
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.gate_proj(x), approximate=self.gelu) * self.up_proj(x)  # (R, T, I)
        return self.down_proj(hidden)


# ---------------------------------------------------------------- attention


class GemmaForm:
    """How sequences lie in a batch (model.Padded), with the attention of some layers of Gemma."""

    def __init__(self, form: Padded, settings: Settings, seen: Tensor | None):
        self.form = form
        self.scalar = settings.scalar
        self.cap = settings.cap
        self.seen = seen  # (T, T) bool. None: what the form says, without cap and window

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (R, H, T, P), k and v (R, G, T, P) -> (R, H, T, P)"""
        q = q * math.sqrt(q.shape[-1] / self.scalar)  # what follows divides by √P
        if self.seen is None:
            return self.form.attend(q, k, v)
        if self.cap is None:
            grouped = q.shape[1] != k.shape[1]
            return F.scaled_dot_product_attention(q, k, v, self.seen, enable_gqa=grouped)
        return capped_attention(q, k, v, self.seen, self.cap)


def capped_attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, cap: float) -> Tensor:
    """softmax(c · tanh(q kᵀ / √P / c)) v, over the tokens that are seen."""
    group = q.shape[1] // k.shape[1]
    k = k.repeat_interleave(group, dim=1)  # (R, H, T, P) a copy for each query head
    v = v.repeat_interleave(group, dim=1)
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (R, H, T, T)
    logits = cap * torch.tanh(logits.float() / cap)
    logits = logits.masked_fill(~seen, -math.inf)
    return logits.softmax(-1).to(v.dtype) @ v


def what_is_seen(form: Padded, positions: Tensor, settings: Settings):
    """seen[q, k]: does token q see token k, in a layer that sees all, and in one with a window?

    Returns: (T, T) bool each; None where the form's own attention is exact, and faster.
    """
    seen = seen_near = None
    too_long = len(positions) > settings.window
    if too_long or settings.cap is not None:
        everything = ask_the_form(form, positions)
        distance = positions[:, None] - positions  # (T, T)
        seen_near = everything & (distance < settings.window)
    if settings.cap is not None:
        seen = everything
    return seen, seen_near


def ask_the_form(form: Padded, positions: Tensor) -> Tensor:
    """seen[q, k], without cap and window.  (T,) -> (T, T) bool

    Only the form knows how sequences lie in a row. Where all keys are equal, all tokens that are
    seen have the same weight, above 0. With the rows of an identity as values, the output of the
    attention is its weights.
    """
    T = len(positions)
    same = torch.zeros(1, 1, T, 8, device=positions.device)
    identity = torch.eye(T, device=positions.device)[None, None]  # (1, 1, T, T)
    return form.attend(same, same, identity)[0, 0] > 0
