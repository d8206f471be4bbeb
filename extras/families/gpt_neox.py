"""gpt_neox.py: GPT-NeoX, the decoder of Pythia (Black et al. 2022; Biderman et al. 2023).

    Llama                                   GPT-NeoX
    x = x + attention(norm(x))              x + attention(norm(x)) + mlp(other norm(x))
    x = x + mlp(other norm(x))              both read the same x, so both can run at once
    RMSNorm                                 LayerNorm
    all of a query and key turns            the first quarter (rotary_pct), the rest has no position
    q_proj, k_proj, v_proj, no biases       one matrix, head by head: q k v of head 0, then of 1, …
    SwiGLU                                  down(gelu(up(x)))

Three modules have other names outside the layers, and the decoder is called gpt_neox, not model:
NAMES. Inside a layer all names are Hugging Face's.

In use where config.json says "model_type": "gpt_neox". It costs less than Llama: a smaller MLP.
tests/extras/test_families.py shows that hidden states are those of transformers.
"""
import torch.nn.functional as F
from torch import nn

from extras.families.parts import LayerNorm, gelu_of, numbers_that_turn, rotate_first
from model import Config, RewardModel, positive_number, rope_settings

PREFIX = "gpt_neox."
NAMES = {
    "embed_in": "embed_tokens",
    "layers": "layers",
    "final_layer_norm": "norm",
}


# ---------------------------------------------------------------- config.json


def like_llama(config_json: dict, where: str) -> dict:
    """The config in words that model.read_config knows."""
    gelu_of(config_json, "hidden_act", where)
    eps = positive_number(config_json, "layer_norm_eps", where, (int, float))
    rope = rope_settings(config_json) | {"rope_theta": read_theta(config_json)}
    rope.pop("partial_rotary_factor", None)
    return config_json | {
        "model_type": "llama",
        "hidden_act": None,
        "num_key_value_heads": config_json.get("num_attention_heads"),
        "head_dim": numbers_that_turn(config_json, "rotary_pct", where),
        "rms_norm_eps": eps,
        "attention_bias": config_json.get("attention_bias", True),
        "partial_rotary_factor": None,
        "rope_scaling": None,
        "rope_parameters": rope,
    }


def read_theta(config_json: dict):
    """rope_theta, under the name that it had, or that it has in transformers 5."""
    older = config_json.get("rotary_emb_base")
    if older is None:
        older = config_json.get("rope_theta")
    return rope_settings(config_json).get("rope_theta", older)


def for_older_versions(config_json: dict) -> dict:
    """Where transformers 4 looks for what transformers 5 has among rope's settings."""
    keys = {"rotary_emb_base": read_theta(config_json)}
    part = rope_settings(config_json).get("partial_rotary_factor")
    if part is not None:
        keys["rotary_pct"] = part
    return keys


# ---------------------------------------------------------------- the decoder


def change(model: RewardModel, config_json: dict, where: str) -> None:
    """Take the place of Llama's layers and of the last norm."""
    config, decoder = model.config, model.model
    parallel = config_json.get("use_parallel_residual", True)
    gelu = gelu_of(config_json, "hidden_act", where)
    for index in range(config.num_hidden_layers):
        decoder.layers[index] = Layer(config, parallel, gelu)
    decoder.norm = LayerNorm(config.hidden_size, config.rms_norm_eps)


class Layer(nn.Module):
    """Attention and MLP side by side, or one after the other.  (R, T, D) -> (R, T, D)"""

    def __init__(self, config: Config, parallel: bool, gelu: str):
        super().__init__()
        D, eps = config.hidden_size, config.rms_norm_eps
        self.parallel = parallel
        self.input_layernorm = LayerNorm(D, eps)
        self.attention = Attention(config)
        self.post_attention_layernorm = LayerNorm(D, eps)
        self.mlp = MLP(config, gelu)

    def forward(self, x, cos, sin, form):
        normed = self.input_layernorm(x)
        with_attention = x + self.attention(normed, cos, sin, form)
        if not self.parallel:
            x = with_attention
        normed = self.post_attention_layernorm(x)
        return with_attention + self.mlp(normed)


class Attention(nn.Module):
    """Causal attention. As many key/value heads as query heads."""

    def __init__(self, config: Config):
        super().__init__()
        D = config.hidden_size
        self.head_dim = D // config.num_attention_heads
        self.query_key_value = nn.Linear(D, 3 * D, bias=config.qkv_bias)
        self.dense = nn.Linear(D, D, bias=config.o_bias)

    def forward(self, x, cos, sin, form):
        """x (R, T, D), rotary tables for the numbers that turn -> (R, T, D)"""
        R, T, D = x.shape
        together = self.query_key_value(x)  # (R, T, 3D)
        together = together.view(R, T, -1, 3 * self.head_dim)  # (R, T, H, 3P)
        q, k, v = together.transpose(1, 2).chunk(3, dim=-1)  # (R, H, T, P) each
        q = rotate_first(q, cos, sin)
        k = rotate_first(k, cos, sin)
        mixed = form.attend(q, k, v)  # (R, H, T, P)
        mixed = mixed.transpose(1, 2).reshape(R, T, D)
        return self.dense(mixed)


class MLP(nn.Module):
    """down(gelu(up(x))), with biases.  (R, T, D) -> (R, T, D)"""

    def __init__(self, config: Config, gelu: str):
        super().__init__()
        D, I = config.hidden_size, config.intermediate_size
        self.gelu = gelu
        self.dense_h_to_4h = nn.Linear(D, I)
        self.dense_4h_to_h = nn.Linear(I, D)

    def forward(self, x):
        hidden = self.dense_h_to_4h(x)  # (R, T, I)
        hidden = F.gelu(hidden, approximate=self.gelu)
        return self.dense_4h_to_h(hidden)
