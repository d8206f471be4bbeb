"""gpt2.py: GPT-2 (Radford et al. 2019), the oldest decoder here.

    Llama                               GPT-2
    queries and keys turn               a second embedding, of positions, is added to the first
    RMSNorm                             LayerNorm
    q_proj, k_proj, v_proj, no biases   one matrix c_attn: all queries, all keys, all values
    SwiGLU                              c_proj(gelu(c_fc(x)))

A text cannot be longer than the table of positions: n_positions, 1,024 tokens. Files hold the
matrices transposed, (in, out): TensorFlow had them so. Here they are nn.Linear like all others, so
LoRA and the rest work. They are turned when a file is read, and turned back when one is written.

Modules outside the layers have other names, and the decoder is called transformer, not model:
NAMES. The files of OpenAI's own checkpoints have no such prefix.

In use where config.json says "model_type": "gpt2". It costs less than Llama: a smaller MLP.
tests/extras/test_families.py shows that hidden states are those of transformers.
"""
import torch.nn.functional as F
from torch import nn

from extras.families.parts import LayerNorm, gelu_of, only
from model import Config, Decoder, RewardModel, positive_number

PREFIX = "transformer."
NAMES = {
    "wte": "embed_tokens",
    "wpe": "wpe",
    "h": "layers",
    "ln_f": "norm",
}
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")

# Llama's word -> GPT-2's.
WORDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "num_key_value_heads": "n_head",
    "max_position_embeddings": "n_positions",
}


def like_llama(config_json: dict, where: str) -> dict:
    """The config in words that model.read_config knows."""
    gelu_of(config_json, "activation_function", where)
    only(config_json, where, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    only(config_json, where, reorder_and_upcast_attn=False, add_cross_attention=False)
    words = {}
    for ours, theirs in WORDS.items():
        words[ours] = positive_number(config_json, theirs, where)
    words["intermediate_size"] = 4 * words["hidden_size"]
    if config_json.get("n_inner") is not None:
        words["intermediate_size"] = positive_number(config_json, "n_inner", where)
    eps = positive_number(config_json, "layer_norm_epsilon", where, (int, float))
    return config_json | words | {
        "model_type": "llama",
        "rms_norm_eps": eps,
        "rope_theta": 1.0,  # not used: nothing turns
    }


def change(model: RewardModel, config_json: dict, where: str) -> None:
    """Take the place of Llama's decoder."""
    gelu = gelu_of(config_json, "activation_function", where)
    model.model = GPT2(model.config, gelu)


class GPT2(Decoder):
    """Token ids -> hidden states after the last norm.  (R, T) -> (R, T, D)"""

    def __init__(self, config: Config, gelu: str):
        super().__init__(config)
        self.wpe = nn.Embedding(config.max_length, config.hidden_size)
        for index in range(config.num_hidden_layers):
            self.layers[index] = Layer(config, gelu)
        self.norm = LayerNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, input_ids, form):
        """(R, T) -> (R, T, D)"""
        positions = form.positions(input_ids)  # (T,)
        x = self.embed_tokens(input_ids).float()  # (R, T, D)
        x = x + self.wpe(positions).float()  # (T, D): the same for all rows
        return self.through_layers(x, form)


class Layer(nn.Module):
    """Attention, then MLP. Each reads a normed copy of x and adds its result to x."""

    def __init__(self, config: Config, gelu: str):
        super().__init__()
        D, eps = config.hidden_size, config.rms_norm_eps
        self.ln_1 = LayerNorm(D, eps)
        self.attn = Attention(config)
        self.ln_2 = LayerNorm(D, eps)
        self.mlp = MLP(config, gelu)

    def forward(self, x, form):
        """(R, T, D) -> (R, T, D)"""
        x = x + self.attn(self.ln_1(x), form)
        return x + self.mlp(self.ln_2(x))


class Attention(nn.Module):
    """Causal attention. As many key/value heads as query heads.  (R, T, D) -> (R, T, D)"""

    def __init__(self, config: Config):
        super().__init__()
        D = config.hidden_size
        self.head_dim = config.head_dim
        self.c_attn = nn.Linear(D, 3 * D)
        self.c_proj = nn.Linear(D, D)

    def forward(self, x, form):
        R, T, D = x.shape
        together = self.c_attn(x)  # (R, T, 3D)
        together = together.view(R, T, -1, self.head_dim)  # (R, T, 3H, P)
        q, k, v = together.transpose(1, 2).chunk(3, dim=1)  # (R, H, T, P) each
        mixed = form.attend(q, k, v)  # (R, H, T, P)
        mixed = mixed.transpose(1, 2).reshape(R, T, D)
        return self.c_proj(mixed)


class MLP(nn.Module):
    """c_proj(gelu(c_fc(x))).  (R, T, D) -> (R, T, D)"""

    def __init__(self, config: Config, gelu: str):
        super().__init__()
        D, I = config.hidden_size, config.intermediate_size
        self.gelu = gelu
        self.c_fc = nn.Linear(D, I)
        self.c_proj = nn.Linear(I, D)

    def forward(self, x):
        hidden = self.c_fc(x)  # (R, T, I)
        hidden = F.gelu(hidden, approximate=self.gelu)
        return self.c_proj(hidden)
