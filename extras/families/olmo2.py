"""olmo2.py: OLMo 2 is Llama, but a sublayer is normed after it, not before it.

    Llama     x + attention(norm(x))        x + mlp(norm(x))
    OLMo 2    x + norm(attention(x))        x + norm(mlp(x))

So what a layer adds to x has the same size in all layers, which keeps training stable. And queries
and keys are normed before they are split into heads: one norm over all heads together (Walsh et al.
2024, "2 OLMo 2 Furious", §3.1). Qwen 3 has one norm for each head.

In use where config.json says "model_type": "olmo2". It costs what Llama costs.
tests/extras/test_families.py shows that hidden states are those of transformers.
"""
from torch import nn

from model import MLP, Attention, Config, RewardModel, RMSNorm


def like_llama(config_json: dict, where: str) -> dict:
    """The config in words that model.read_config knows."""
    return config_json | {
        "model_type": "llama",
        "mlp_bias": False,
    }


def change(model: RewardModel, config_json: dict, where: str) -> None:
    """Take the place of Llama's layers."""
    config = model.config
    for index in range(config.num_hidden_layers):
        model.model.layers[index] = Layer(config)


class Layer(nn.Module):
    """Attention, then MLP. What each gives is normed and added to x.  (R, T, D) -> (R, T, D)"""

    def __init__(self, config: Config):
        super().__init__()
        D, eps = config.hidden_size, config.rms_norm_eps
        attention = Attention(config)
        attention.q_norm = NormOfAllHeads(attention.q_proj.out_features, eps)
        attention.k_norm = NormOfAllHeads(attention.k_proj.out_features, eps)
        self.self_attn = attention
        self.post_attention_layernorm = RMSNorm(D, eps)
        self.mlp = MLP(config)
        self.post_feedforward_layernorm = RMSNorm(D, eps)

    def forward(self, x, cos, sin, form):
        attended = self.self_attn(x, cos, sin, form)
        x = x + self.post_attention_layernorm(attended)
        added = self.mlp(x)
        return x + self.post_feedforward_layernorm(added)


class NormOfAllHeads(RMSNorm):
    """One RMSNorm over H · P numbers.  (R, T, H, P) -> (R, T, H, P)"""

    def forward(self, x):
        together = x.flatten(2)  # (R, T, H · P)
        normed = super().forward(together)
        return normed.view_as(x)
