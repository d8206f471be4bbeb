"""model.py: token ids in, one reward out.  Read after loss.py.

A reward model is a language model with its last layer exchanged. A decoder turns the tokens of prompt and response
into one hidden state per token; because attention is causal, only the state of the LAST token has seen everything.
A single linear map, the value head, reads the reward off that state (Stiennon et al. 2020, §3.4):

    L = Σ attention_mask − 1            index of the last valid token of a row padded on the right
    r = wᵀ h_L + b                      the reward, in nats: differences are log-odds of being preferred (loss.py)

The decoder is the Llama family's: RMSNorm (Zhang & Sennrich 2019), rotary positions (Su et al. 2021), grouped-query
attention (Ainslie et al. 2023), SwiGLU (Shazeer 2020). Module names and config keys are those of Hugging Face, so
that a checkpoint loads without a translation table and ours opens in transformers as
<Family>ForSequenceClassification with one label.

Shapes: N sequences (2 per pair)   T tokens, padded on the right   D hidden_size
        (in the shared-prompt form, see "speed" below: one row of T tokens that holds all sequences)
        H query heads   K key/value heads   P head_dim   V vocab_size   I intermediate_size
"""
import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Iterator

import torch
import torch.nn.functional as F
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

SHARD_BYTES = 5 * 10**9  # larger checkpoints are split, as transformers does
SMALL_TREE = 128  # tokens; up to here one call with a mask is faster than a call for each sequence


class CheckpointError(ValueError):
    """A folder that cannot be loaded as a reward model; the message is one line saying which file and why."""


@dataclasses.dataclass
class Config:
    """The settings that change the arithmetic, under Hugging Face's names; `read_config` below fills them in."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_type: str  # default, linear, dynamic, llama3 or yarn, see rotary_tables
    rope_scaling: dict  # the numbers of that rule
    max_position_embeddings: int
    windows: list[int | None]  # of each layer: how many tokens a token sees, itself included; None: all before it
    uses_rope: list[bool]  # of each layer
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    initializer_range: float = 0.02
    # The whole of config.json, for saving it again.
    raw: dict = dataclasses.field(default_factory=dict, repr=False)


# ---------------------------------------------------------------- the decoder


class RMSNorm(nn.Module):
    """x / rms(x) · weight, computed in float32 (Zhang & Sennrich 2019, eq 4).  (..., D) -> (..., D)"""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * x32.to(x.dtype)


def rotary_tables(config: Config, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of position · frequency, (T, P) each, in float32: in bfloat16 position 257 would be 256.

    Frequencies are θ^(−2i/P), i = 0 … P/2−1 (Su et al. 2021, eq 15). To take longer texts than those it was trained
    on, a model may slow them down, by `factor` s: all of them (linear; Chen et al. 2023), or only those that do not
    turn once in the old context, with a blend in between: by wavelength (llama3, Meta's `apply_scaling`), or by index
    and with cos and sin scaled up a little (yarn; Peng et al. 2023, §3.2 and 3.4). "dynamic" starts to slow beyond
    max_position_embeddings, by the longest text of a batch; no text goes there, so here it is the default rule.
    """
    P, s, scale = config.head_dim, config.rope_scaling, 1.0
    exponents = torch.arange(0, P, 2, device=position_ids.device).float() / P  # (P/2,)
    inv_freq = config.rope_theta**-exponents  # (P/2,)
    keep = torch.ones_like(inv_freq)  # share of a frequency that is kept; the rest of it is divided by s
    if config.rope_type == "linear":
        keep = torch.zeros_like(inv_freq)
    elif config.rope_type == "llama3":
        turns = s["original_max_position_embeddings"] * inv_freq / (2 * math.pi)  # in the old context
        keep = (turns - s["low_freq_factor"]) / (s["high_freq_factor"] - s["low_freq_factor"])
    elif config.rope_type == "yarn":
        index = lambda turns: (P * math.log(s["original_max_position_embeddings"] / (turns * 2 * math.pi))
                               / (2 * math.log(config.rope_theta)))  # of the frequency that turns so often
        low, high = max(math.floor(index(s["beta_fast"])), 0), min(math.ceil(index(s["beta_slow"])), P - 1)
        keep = 1 - (torch.arange(P // 2, device=position_ids.device) - low) / max(high - low, 0.001)
        scale = s["attention_factor"]
    keep = keep.clamp(0, 1)
    inv_freq = keep * inv_freq + (1 - keep) * inv_freq / s.get("factor", 1)
    angles = position_ids.float()[:, None] * inv_freq  # (T, P/2)
    angles = torch.cat((angles, angles), dim=-1)  # (T, P)
    return angles.cos() * scale, angles.sin() * scale


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i+P/2}) by its angle: Hugging Face pairs halves, the paper neighbours.  (N, H, T, P)"""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat((-second, first), dim=-1) * sin.to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention: H query heads share K key/value heads."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        c = config
        self.window, self.uses_rope = c.windows[layer], c.uses_rope[layer]
        self.head_dim = c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, c.num_attention_heads * c.head_dim, bias=c.qkv_bias)
        self.k_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=c.qkv_bias)
        self.v_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=c.qkv_bias)
        self.o_proj = nn.Linear(c.num_attention_heads * c.head_dim, c.hidden_size, bias=c.o_bias)
        if c.qk_norm:  # Qwen3
            self.q_norm = RMSNorm(c.head_dim, c.rms_norm_eps)
            self.k_norm = RMSNorm(c.head_dim, c.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, shared: "TreeAttention | None" = None, last: Tensor | None = None
    ) -> Tensor:
        """x (N, T, D), rotary tables (T, P) each -> (N, T, D); with `last`, of these tokens only: (1, len(last), D)"""
        N, T, _ = x.shape
        q = self.q_proj(x).view(N, T, -1, self.head_dim)  # (N, T, H, P)
        k = self.k_proj(x).view(N, T, -1, self.head_dim)  # (N, T, K, P)
        v = self.v_proj(x).view(N, T, -1, self.head_dim)  # (N, T, K, P)
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (N, H or K, T, P)
        if self.uses_rope:
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        # No padding mask: pads sit on the right, and a causal token never looks right. What the pads themselves
        # compute is never read. So is_causal alone is exact, and it selects the fastest kernel there is.
        grouped = q.shape[1] != k.shape[1]
        if shared is not None:
            out = shared.attend(q, k, v, grouped, self.window)  # (1, H, T, P)
        elif self.window is None or T <= self.window:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)  # (N, H, T, P)
        else:
            near = torch.ones(T, T, dtype=torch.bool, device=x.device).tril().triu(1 - self.window)  # (queries, keys)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=near, enable_gqa=grouped)
        out = out.transpose(1, 2).reshape(N, T, -1)  # (N, T, H·P)
        return self.o_proj(out if last is None else out.index_select(1, last))  # (N, T, D)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x)) (Shazeer 2020, eq 6).  (N, T, D) -> (N, T, D)"""

    def __init__(self, config: Config):
        super().__init__()
        D, I, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(D, I, bias=bias)
        self.up_proj = nn.Linear(D, I, bias=bias)
        self.down_proj = nn.Linear(I, D, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # (N, T, I) inside


class DecoderLayer(nn.Module):
    """Attention, then MLP, each on a normed copy and added back."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, shared: "TreeAttention | None" = None, last: Tensor | None = None
    ) -> Tensor:
        """(N, T, D) -> (N, T, D); with `last`, of these tokens only: (1, T, D) -> (1, len(last), D)"""
        mixed = self.self_attn(cast_once(self.input_layernorm(x)), cos, sin, shared, last)
        x = mixed + (x if last is None else x.index_select(1, last))
        return x + self.mlp(cast_once(self.post_attention_layernorm(x)))


def cast_once(x: Tensor) -> Tensor:
    """Under autocast every Linear makes its own low-precision copy of its input: three for q, k and v. One will do."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class Decoder(nn.Module):
    """Token ids -> hidden states after the final norm.  (N, T) -> (N, T, D)

    No dropout, even where a config asks for some: it would make the two rewards of a pair noisy independently, and
    their difference is all the loss sees.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.recompute = False  # gradient checkpointing (Chen et al. 2016), see below
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, input_ids: Tensor, trees=None) -> Tensor:
        """(N, T) -> (N, T, D); in the shared-prompt form (1, T) -> (1, N, D), the states of the N last tokens."""
        # In the type of the norms, even where a frozen table is kept in half precision: layers add to this.
        x = self.embed_tokens(input_ids).to(self.norm.weight.dtype)  # (N, T, D)
        if trees is None:
            cos, sin = rotary_tables(self.config, torch.arange(x.shape[1], device=x.device))
            for layer in self.layers:
                x = self.run_layer(layer, x, cos, sin)
        else:
            cos, sin = rotary_tables(self.config, trees.position_ids)
            shared = TreeAttention(trees)
            for layer in self.layers[:-1]:
                x = self.run_layer(layer, x, cos, sin, shared)
            # Nobody reads the last layer's other states, so it computes only those. (Keys and values it needs of all.)
            x = self.run_layer(self.layers[-1], x, cos, sin, shared, trees.last)  # (1, N, D)
        return self.norm(x)

    def run_layer(self, layer: DecoderLayer, *inputs) -> Tensor:
        """layer(*inputs); with `recompute` only its inputs are kept for the backward pass, which computes the layer
        again: memory for one layer instead of all, for a third more work."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)


# ---------------------------------------------------------------- speed: shared prompts, rows in use


class TreeAttention:
    """Attention in the shared-prompt form (data.pack): one row holds trees [prompt | rest 1 | … | rest K], one behind
    the other. A token sees its own tree's prompt and its own rest, up to itself, and nothing else:

        mask[q, k] = k ≤ q and (branch[k] = 0 or branch[k] = branch[q])          branch 0 is the prompt

    so that every sequence gets the attention it would get alone, and no gradient flows between two of them.
    """

    def __init__(self, trees):
        self.sizes, self.trees, self.made = [sum(parts) for parts in trees.parts], trees, {}

    def masks(self, window: int | None) -> list[Tensor | None]:
        """For every tree what its queries see, (queries, keys), or None where it is better to go without a mask."""
        slides = window is not None and window < self.trees.longest
        if slides not in self.made:  # once for all layers
            self.made[slides] = []
            for branch, position in zip(self.trees.branch.split(self.sizes), self.trees.position_ids.split(self.sizes)):
                mask, S = None, len(branch)
                if S <= SMALL_TREE or slides:
                    mask = torch.ones(S, S, dtype=torch.bool, device=branch.device).tril()
                    mask = mask & ((branch == 0) | (branch == branch[:, None]))
                if slides:
                    mask = mask & (position[:, None] - position < window)
                self.made[slides].append(mask)
        return self.made[slides]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grouped: bool, window: int | None) -> Tensor:
        """q (1, H, T, P), k and v (1, K, T, P) -> (1, H, T, P)"""
        sdpa, out = functools.partial(F.scaled_dot_product_attention, enable_gqa=grouped), []
        each = zip(self.trees.parts, self.masks(window), *(x.split(self.sizes, 2) for x in (q, k, v)))
        for parts, mask, *qkv in each:
            if mask is not None:
                out.append(sdpa(*qkv, attn_mask=mask))
                continue
            # A mask grows with the square of its tree, and what it rules out is computed all the same. So one by one:
            # the prompt, then every rest, whose queries are the last rows of the triangle over prompt and rest.
            (q_prompt, *q_rests), (k_prompt, *k_rests), (v_prompt, *v_rests) = (x.split(parts, 2) for x in qkv)
            if parts[0]:
                out.append(sdpa(q_prompt, k_prompt, v_prompt, is_causal=True))
            for q_rest, k_rest, v_rest in zip(q_rests, k_rests, v_rests):
                if q_rest.shape[2]:
                    k_seen, v_seen = torch.cat((k_prompt, k_rest), 2), torch.cat((v_prompt, v_rest), 2)
                    out.append(sdpa(q_rest, k_seen, v_seen, attn_mask=last_rows(q_rest.shape[2], k_seen.shape[2])))
        return torch.cat(out, 2)


def last_rows(queries: int, keys: int):
    """The causal mask of queries that are the last ones of so many tokens. On GPUs it is a flag of the fast kernels."""
    from torch.nn.attention.bias import causal_lower_right  # here, because importing it takes a second

    return causal_lower_right(queries, keys)


class RowsInUse(nn.Module):
    """An embedding that trains only the rows of some tokens: those of the training data.  (N, T) -> (N, T, D)

    The other rows get no gradient from any pair, yet AdamW would keep two moments for each of them and walk through
    all at every step. Of the 152k rows of a Qwen model a small data set uses 5 or 10 thousand. What is learned is the
    same, but that weight decay does not pull at rows that are never read.
    """

    def __init__(self, embedding: nn.Embedding, used: Tensor):
        super().__init__()
        (V, D), device = embedding.weight.shape, embedding.weight.device
        self.used = used  # (used,) token ids in order; no buffer: `load` makes all of those anew
        self.weight = nn.Parameter(torch.empty(len(used), D, device=device))  # (used, D)
        self.register_buffer("frozen", torch.empty(V, D, device=device), persistent=False)
        self.register_buffer("row", torch.empty(V, dtype=torch.long, device=device), persistent=False)
        if not embedding.weight.is_meta:
            self.fill(embedding.weight.detach())

    @torch.no_grad()
    def fill(self, table: Tensor) -> None:
        """Take the numbers of an ordinary embedding, (V, D)."""
        place(self.weight, table[self.used.to(table.device)])
        self.frozen.copy_(table)
        self.row.fill_(-1)  # (V,): where a token's row is in `weight`, or −1
        self.row[self.used.to(self.row.device)] = torch.arange(len(self.used), device=self.row.device)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(N, T) -> (N, T, D)"""
        row = self.row[input_ids]  # (N, T)
        trained = F.embedding(row.clamp(min=0), self.weight)
        return torch.where(row[..., None] < 0, F.embedding(input_ids, self.frozen), trained)

    def table(self, weight: Tensor) -> Tensor:
        """The table as an ordinary embedding has it, (V, D), with these trained rows (used, D) in it."""
        return self.frozen.index_copy(0, self.used.to(weight.device), weight)


# ---------------------------------------------------------------- memory: frozen weights, LoRA, shards


class FrozenLinear(nn.Linear):
    """A linear map that stays as it was, kept in `dtype` if given; with a rank r, LoRA beside it:

        W x + b + (α/r) · B A x         A (r, in), B (out, r) are all that is trained (Hu et al. 2021, eq 3)

    B starts at 0, so training starts from the model as it was. A matrix of 4096 x 4096 with r = 8 trains 65,536
    numbers instead of 16.8 million, and only those need gradients and Adam's two moments.
    """

    def __init__(self, linear: nn.Linear, rank: int = 0, alpha: float = 0.0, dtype: torch.dtype | None = None):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        frozen = lambda p: p if p is None else nn.Parameter(p.detach().to(dtype or p.dtype), requires_grad=False)
        self.weight, self.bias, self.scale = frozen(linear.weight), frozen(linear.bias), alpha / max(rank, 1)
        self.lora_A = self.lora_B = None
        if rank:
            device = linear.weight.device
            self.lora_A = nn.Parameter(torch.empty(rank, linear.in_features, device=device))
            self.lora_B = nn.Parameter(torch.empty(linear.out_features, rank, device=device))
            if not self.weight.is_meta:
                self.start_lora()

    @torch.no_grad()
    def start_lora(self) -> None:
        """A uniform within ±1/√in, as nn.Linear starts; B zero."""
        A = torch.empty(self.lora_A.shape)  # whole and on the CPU: every rank, and one rank alone, draws the same
        place(self.lora_A, A.uniform_(-1, 1) / math.sqrt(self.in_features))
        nn.init.zeros_(self.lora_B)

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        # Under autocast x and W are both in half precision. Without, as in a float32 evaluation, W is widened.
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        out = F.linear(x, self.weight.to(dtype), self.bias if self.bias is None else self.bias.to(dtype))
        return out if self.lora_A is None else out + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)

    def merged(self, weight: Tensor) -> Tensor:
        """One ordinary matrix that does the same, in float32.  (out, in)"""
        if self.lora_A is None:
            return weight.float()
        return weight.float() + self.scale * (whole(self.lora_B.detach()) @ whole(self.lora_A.detach()))


def place(parameter: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a parameter; into a rank's shard of it, where it is sharded."""
    if is_sharded(parameter):
        from torch.distributed.tensor import distribute_tensor

        # src_data_rank None: every rank has the value already, nothing is sent.
        mesh, value = parameter.device_mesh, value.to(parameter.device, parameter.dtype)
        value = distribute_tensor(value, mesh, parameter.placements, src_data_rank=None)
    parameter.copy_(value)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together again, for which all ranks have to ask; one that is not sharded as it is."""
    # A copy, because it may be part of a longer, padded piece of memory, which cannot be saved.
    return tensor.full_tensor().clone() if is_sharded(tensor) else tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is torch's DTensor, of which each rank holds a part."""
    return hasattr(tensor, "device_mesh")


# ---------------------------------------------------------------- the reward model


def last_token_index(attention_mask: Tensor) -> Tensor:
    """Index of the last valid token of each row: Σ mask − 1.  (N, T) -> (N,)

    The mask is the only witness of length. Comparing ids with the pad id instead fails wherever the pad is also the
    end token, which is common: the reward is then read one token early, or from the middle of the prompt.

    Raises: ValueError unless every row is ones, at least one, then zeros: padded on the left, Σ mask − 1 would point
            into the text or at a pad, and training would go on, only worse.
    """
    last = attention_mask.long().sum(-1) - 1  # (N,)
    should_be = torch.arange(attention_mask.shape[1], device=attention_mask.device) <= last[:, None]
    if not torch.equal(attention_mask.bool(), should_be) or (last < 0).any():
        raise ValueError("attention_mask must be ones then zeros in every row (padding on the right, no empty row)")
    return last


class RewardModel(nn.Module):
    """A decoder and a value head: (N, T) token ids -> (N,) rewards in nats."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.folder: Path | None = None  # where it was loaded from; its tokenizer lies there too
        self.head_origin, self.tensors = "new", {}  # of an opened model: file -> {our name: its name there}
        self.stored: set[torch.dtype] = set()  # and in what types its decoder lies there
        self.model = Decoder(config)
        self.score = nn.Linear(config.hidden_size, 1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, trees=None) -> Tensor:
        """Rewards of N sequences padded on the right; or in the shared-prompt form, with the trees of data.pack.

        A sequence has the same reward alone and in any batch, at any padding width, up to float rounding.

        Args:    input_ids, attention_mask: (N, T) integers; what input_ids holds behind the mask does not matter.
                 Shared-prompt form: input_ids (1, T), attention_mask None.
        Returns: (N,) float32.
        Raises:  ValueError on a mask that is not ones-then-zeros.
        """
        if trees is not None:
            last_hidden = self.model(input_ids, trees).squeeze(0)  # (N, D)
        else:
            last = last_token_index(attention_mask)  # (N,)
            hidden = self.model(input_ids)  # (N, T, D)
            index = last[:, None, None].expand(-1, 1, hidden.shape[-1])  # (N, 1, D)
            last_hidden = torch.gather(hidden, dim=1, index=index).squeeze(1)  # (N, D)
        # The head comes after the gather (N rows of work instead of N·T) and in float32 with autocast off: in
        # bfloat16 a reward of 5 has steps of 0.03, and close pairs would tie.
        with torch.autocast(last_hidden.device.type, enabled=False):
            return self.score(last_hidden.float()).squeeze(-1).clone()  # (N,); FSDP2 wants no view

    def compile_layers(self) -> None:
        """torch.compile, layer by layer: they share one compiled code, and no batch shape is compiled in."""
        # Not the loop over trees: its sizes are new in every batch, and it would be compiled again and again.
        TreeAttention.attend = torch.compiler.disable(TreeAttention.attend)
        for layer in self.model.layers:
            layer.compile(dynamic=True)

    def train_less(self, frozen_layers: int = 0, lora_rank: int = 0, lora_alpha: float = 0.0,
                   dtype: torch.dtype | None = None) -> None:
        """Freeze the embedding and the first `frozen_layers` layers. With lora_rank freeze every layer and the last
        norm, and give each matrix behind those first layers its two factors. The value head is always trained. Frozen
        matrices are kept in dtype if they lie in their files in that type, so that nothing of them is lost.

        Raises: CheckpointError where the model has fewer layers, or none is left for LoRA.
        """
        if frozen_layers + bool(lora_rank) > len(self.model.layers):
            raise CheckpointError(f"--freeze-layers {frozen_layers}: the model has {len(self.model.layers)}"
                                  + ", and LoRA needs one" * bool(lora_rank))
        dtype = dtype if self.stored == {dtype} else None
        table = self.model.embed_tokens
        table.weight = nn.Parameter(table.weight.detach().to(dtype or table.weight.dtype), requires_grad=False)
        for i, layer in enumerate(self.model.layers):
            if i >= frozen_layers and not lora_rank:
                break
            layer.requires_grad_(False)
            for block in (layer.self_attn, layer.mlp):
                for name, module in list(block.named_children()):
                    if isinstance(module, nn.Linear):
                        rank = lora_rank if i >= frozen_layers else 0
                        setattr(block, name, FrozenLinear(module, rank, lora_alpha, dtype))
        self.model.norm.requires_grad_(not lora_rank)

    def shard(self, mesh, dtype: torch.dtype | None = None) -> None:
        """Leave every rank of the mesh 1/ranks of each parameter, and of its gradient and moments: FSDP2, after ZeRO
        stage 3 (Rajbhandari et al. 2020, §5). A layer is gathered just before it computes and dropped behind it.
        (Not shared out: rows of the embedding that are not trained, RowsInUse.frozen.)

        dtype: in which layers are gathered and compute (bfloat16, float16); sums of gradients, the embedding, the last
        norm, the head and the weights that are kept stay in float32.
        """
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        # Inputs keep their type: the float32 sum that layers add to would be rounded at every layer.
        policy = MixedPrecisionPolicy(dtype, torch.float32 if dtype else None, cast_forward_inputs=False)
        for layer in self.model.layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(self, mesh=mesh)

    @torch.no_grad()
    def init_head(self) -> None:
        """Weights N(0, 1/(D+1)), bias 0 (Stiennon et al. 2020): rewards of size about 1 at first, differences of
        one prompt's responses much smaller, so training starts near a loss of log 2."""
        D = self.config.hidden_size
        place(self.score.weight, torch.empty(1, D).normal_(std=1 / math.sqrt(D + 1)))
        nn.init.zeros_(self.score.bias)

    @classmethod
    def from_scratch(cls, raw_config: dict) -> "RewardModel":
        """A model of random weights, N(0, initializer_range) as Hugging Face does, norms at 1, with a fresh head."""
        config = read_config(raw_config)
        model = cls(config)
        for module in model.model.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        model.init_head()
        return model

    @classmethod
    def from_pretrained(cls, folder: str | Path, fresh_head: bool = False, device: str = "cpu") -> "RewardModel":
        """Load config.json and safetensors (one file, or shards named by an index) as float32: `open`, then `load`."""
        model = cls.open(folder, fresh_head)
        model.load(device)
        return model

    @classmethod
    def open(cls, folder: str | Path, fresh_head: bool = False) -> "RewardModel":
        """The model of a folder, checked: every name and shape, and no memory yet (torch's meta device). Here it can
        still be cut into shards or given LoRA; `load` then brings the numbers.

        A language model's `lm_head` is dropped: its D×V product at every position would be wasted work. A reward head
        in the checkpoint is always kept. Where there is none, fresh_head=True makes a new one (to train it); without
        it that is an error, because a random head gives plausible, meaningless rewards.

        A head may have any of the names in HEADS; LLaMA-Factory keeps it in a file of its own, value_head.safetensors.

        Raises: CheckpointError on anything missing, extra, misshapen, unreadable or not supported.
        """
        folder = Path(folder)
        config = read_config(read_json(folder / "config.json"), str(folder / "config.json"))
        with torch.device("meta"):
            model = cls(config)
        expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
        files = _tensor_files(folder)
        if (folder / "value_head.safetensors").exists():
            files.append(folder / "value_head.safetensors")
        shapes, stored = {}, {}
        for file in files:
            shapes[file], dtypes = _tensor_shapes(file)
            stored |= dtypes
        found = {name: shape for of_file in shapes.values() for name, shape in of_file.items()}
        heads = [h for h in dict.fromkeys((*HEADS, str(config.raw.get("value_head_prefix")))) if f"{h}.weight" in found]
        if len(heads) > 1:
            raise CheckpointError(f"{folder}: more than one reward head ({', '.join(heads)}); refusing to guess")
        rename = {f"{h}.{part}": f"score.{part}" for h in heads for part in ("weight", "bias")}
        found = {rename.get(name, name): shape for name, shape in found.items()}
        # Not ours to compute: the language-model head, and rotary tables some old checkpoints carry.
        ignored = {n for n in found if n == "lm_head.weight" or n.endswith("rotary_emb.inv_freq")}

        has_head = "score.weight" in found
        optional = {"score.bias"} if has_head else {"score.bias", "score.weight"}
        missing = sorted(expected.keys() - found.keys() - optional)
        extra = sorted(found.keys() - expected.keys() - ignored)
        misshapen = [f"{n} {list(found[n])} instead of {list(expected[n])}"
                     for n in sorted(expected.keys() & found.keys()) if found[n] != expected[n]]
        problems = [f"{what}: {few(names)}" for what, names in
                    (("missing", missing), ("not expected", extra), ("wrong shape", misshapen)) if names]
        if problems:
            raise CheckpointError(f"{folder}: tensors do not fit config.json; " + "; ".join(problems))
        if not has_head and not fresh_head:
            raise CheckpointError(f"{folder}: no reward head (score.weight): a language model, not yet a reward model")
        model.stored = {dtype for name, dtype in stored.items() if name in expected and name.startswith("model.")}
        model.folder, model.head_origin = folder, f"kept ({heads[0]})" if has_head else "new"
        model.tensors = {file: {rename.get(n, n): n for n in names if rename.get(n, n) in expected}
                         for file, names in shapes.items()}
        return model

    @torch.no_grad()
    def load(self, device: str | torch.device = "cpu") -> None:
        """Bring the numbers of an opened model from its files to the device, one tensor after the other, of which a
        rank keeps its shard: no rank ever holds more than one whole tensor.

        They are copied, not mapped: a file aligns its tensors to 8 bytes, memory to 64, and on that depends in which
        order some kernels sum. A resumed run would differ from an uninterrupted one in the last bit.
        """
        self.to_empty(device=device)
        self.init_head()  # for a head that is not in the files, or has no bias there: transformers and TRL have none
        for module in self.modules():
            if isinstance(module, FrozenLinear) and module.lora_A is not None:
                module.start_lora()
        parameters = dict(self.named_parameters())
        for file, names in self.tensors.items():
            with safe_open(file, "pt") as tensors:
                for ours, theirs in names.items():
                    if ours == "model.embed_tokens.weight" and isinstance(self.model.embed_tokens, RowsInUse):
                        self.model.embed_tokens.fill(tensors.get_tensor(theirs))
                    else:
                        place(parameters[ours], tensors.get_tensor(theirs))

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor in float32 on the CPU) as an ordinary checkpoint has them: shards put together (all ranks have
        to take part), LoRA merged, the embedding with all its rows."""
        modules = dict(self.named_modules())
        for name, p in self.named_parameters():
            owner, _, part = name.rpartition(".")
            if not part.startswith("lora_"):
                tensor = whole(p.detach())
                if isinstance(modules[owner], RowsInUse):
                    tensor = modules[owner].table(tensor)
                if isinstance(modules[owner], FrozenLinear) and part == "weight":
                    tensor = modules[owner].merged(tensor)
                yield name, tensor.float().cpu()

    def save_pretrained(self, folder: str | Path, pad_token_id: int, save_format: str = "transformers") -> None:
        """Write config.json and safetensors that transformers opens as a classifier with one label; or, with
        save_format="llamafactory", as LLaMA-Factory has them: a language model, and the head in a file of its own.

        transformers has no bias on this head. A bias of 0 (it is never trained without the centering penalty) is left
        out; another one is written as `score.bias`, which shifts every reward equally and which transformers ignores.

        pad_token_id must not be a token a text can end with: transformers finds the last token by comparing with it.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        raw = dict(self.config.raw)
        raw.pop("torch_dtype", None)
        raw |= {
            "architectures": [CLASSES[self.config.model_type] + "ForSequenceClassification"],
            # Without one label transformers makes a head of two; without "regression" its pipeline applies a sigmoid.
            "num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}, "problem_type": "regression",
            "pad_token_id": pad_token_id, "dtype": "float32",
        }
        if save_format == "llamafactory":
            raw["architectures"] = [CLASSES[self.config.model_type] + "ForCausalLM"]
            of_a_classifier = ("num_labels", "id2label", "label2id", "problem_type")
            raw = {key: value for key, value in raw.items() if key not in of_a_classifier}
        (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")

        state = dict(self.weights())
        if save_format == "llamafactory":
            head = {f"v_head.summary.{part}": state.pop(f"score.{part}") for part in ("weight", "bias")}
            save_file(head, folder / "value_head.safetensors")
        elif not state["score.bias"].any():
            del state["score.bias"]
        save_torch_state_dict(state, folder, max_shard_size=SHARD_BYTES)


# ---------------------------------------------------------------- reading files

# What differs between the families. A string is the config key that decides.
FAMILIES = {
    "llama":   dict(qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias"),
    "mistral": dict(window="sliding_window"),
    "qwen2":   dict(qkv_bias=True, window="use_sliding_window"),  # Qwen2.5 too
    "qwen3":   dict(qkv_bias="attention_bias", o_bias="attention_bias", qk_norm=True, window="use_sliding_window"),
    "smollm3": dict(qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias",
                    window="use_sliding_window"),
}
CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "smollm3": "SmolLM3"}  # in HF
# What a reward head is called by transformers and TRL; LLaMA-Factory; OpenRLHF (or as value_head_prefix says); others.
HEADS = ("score", "v_head.summary", "value_head", "v_head", "out_proj")
# What each rope rule needs to know, with transformers' defaults; None: it has to be there.
ROPE_RULES = {
    "default": {},
    "linear": {"factor": None},
    "dynamic": {"factor": None},
    "llama3": dict.fromkeys(("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")),
    "yarn": {"factor": None, "original_max_position_embeddings": None, "beta_fast": 32, "beta_slow": 1,
             "attention_factor": 0},  # 0: from the factor, below
}


def read_config(raw: dict, where: str = "config.json") -> Config:
    """Read a Hugging Face config. A value that changes the arithmetic is never guessed: CheckpointError."""
    refuse, need = functools.partial(_refuse, where), functools.partial(_need, raw, where)
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        refuse(f"model_type {family!r} is not one this decoder computes ({', '.join(FAMILIES)})")
    if raw.get("hidden_act", "silu") != "silu":
        refuse(f"hidden_act {raw['hidden_act']!r} is not supported, only 'silu'")
    if raw.get("quantization_config"):
        refuse("quantization_config: quantised weights are not supported")

    # Llama 1 has no grouped heads and says nothing; Qwen3's heads are not hidden_size / heads wide: it must say so.
    hidden_size, heads = need("hidden_size"), need("num_attention_heads")
    llama_1 = family == "llama" and raw.get("num_key_value_heads") is None
    kv_heads = heads if llama_1 else need("num_key_value_heads")
    if family == "qwen3" or raw.get("head_dim") is not None:
        head_dim = need("head_dim")
    elif hidden_size % heads:
        refuse(f"hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}")
    else:
        head_dim = hidden_size // heads
    if heads % kv_heads or head_dim % 2:
        refuse(f"{heads} heads over {kv_heads} key/value heads of an even head_dim, not {head_dim}: impossible")

    theta, kind, rope = _read_rope(raw, where)
    # A rule is yes, no, or the key that says which.
    rules = {name: bool(raw.get(rule)) if isinstance(rule, str) else rule for name, rule in FAMILIES[family].items()}
    windows, uses_rope = _read_layers(raw, where, slides=rules.pop("window", False))
    return Config(
        model_type=family,
        vocab_size=need("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=need("intermediate_size"),
        num_hidden_layers=len(windows),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=need("rms_norm_eps", float),
        rope_theta=theta,
        rope_type=kind,
        rope_scaling=rope,
        max_position_embeddings=need("max_position_embeddings"),
        windows=windows,
        uses_rope=uses_rope,
        initializer_range=raw.get("initializer_range", 0.02),
        raw=raw,
        **rules,
    )


def _read_rope(raw: dict, where: str) -> tuple[float, str, dict]:
    """rope_theta, the rule's name, and the numbers it needs."""
    refuse = functools.partial(_refuse, where)
    # transformers 5 writes rope_parameters, older versions rope_theta beside rope_scaling.
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        refuse(f"rope_scaling is {rope!r}, not an object")
    rope = {"rope_theta": raw.get("rope_theta"), "partial_rotary_factor": raw.get("partial_rotary_factor")} | rope
    theta, turned = _need(rope, where, "rope_theta", float), rope.pop("partial_rotary_factor")
    kind = rope.get("rope_type", rope.get("type", "default"))
    rope = {key: value for key, value in rope.items() if key not in ("rope_theta", "rope_type", "type")}
    if turned not in (None, 1):
        refuse(f"partial_rotary_factor {turned!r} is not supported, only 1")
    if not isinstance(kind, str) or kind not in ROPE_RULES or rope.keys() - ROPE_RULES[kind].keys():
        refuse(f"rope type {kind!r} with {sorted(rope)} is not supported: {', '.join(ROPE_RULES)} with what they need")
    if kind == "yarn":  # some leave it to max_position_embeddings, which is then the old context
        rope.setdefault("original_max_position_embeddings", raw.get("max_position_embeddings"))
    defaults = {key: value for key, value in ROPE_RULES[kind].items() if value is not None}
    given = {key: value for key, value in rope.items() if value is not None}
    asked = given.keys() | ROPE_RULES[kind].keys() - defaults.keys()
    rope = defaults | {key: _need(given, where, key, float) for key in ROPE_RULES[kind] if key in asked}
    if kind == "yarn" and not rope["attention_factor"]:
        rope["attention_factor"] = 0.1 * math.log(max(rope["factor"], 1)) + 1
    return theta, kind, rope


def _read_layers(raw: dict, where: str, slides: bool) -> tuple[list[int | None], list[bool]]:
    """Of each layer: its window, and whether it turns queries and keys by their positions."""
    refuse, need = functools.partial(_refuse, where), functools.partial(_need, raw, where)
    family, layers = raw["model_type"], need("num_hidden_layers")
    uses_rope = [True] * layers
    if family == "smollm3":  # every fourth layer goes without positions
        interval = need("no_rope_layer_interval") if raw.get("no_rope_layer_interval") is not None else 4
        uses_rope = raw.get("no_rope_layers") or [(i + 1) % interval != 0 for i in range(layers)]
        if not isinstance(uses_rope, list) or len(uses_rope) != layers:
            refuse(f"no_rope_layers {uses_rope!r} is not a list of one number for each of {layers} layers")
    window = need("sliding_window") if slides and raw.get("sliding_window") is not None else None
    windows = [window] * layers
    if family == "smollm3":  # it slides where there are no positions
        windows = [None if rope else window for rope in uses_rope]
    elif family.startswith("qwen") and window and "layer_types" not in raw:  # its first layers see everything
        first = 0 if raw.get("max_window_layers") == 0 else need("max_window_layers")
        windows = [window if i >= first else None for i in range(layers)]
    if (layer_types := raw.get("layer_types")) is not None:
        kinds = {"full_attention": None, "sliding_attention": window}
        if not isinstance(layer_types, list) or not all(isinstance(t, str) and t in kinds for t in layer_types):
            refuse(f"layer_types {layer_types!r} are not supported, only {', '.join(kinds)}")
        if window is None and "sliding_attention" in layer_types:
            refuse("layer_types name sliding_attention, but no sliding_window is in use; refusing to guess")
        if len(layer_types) != layers:
            refuse(f"layer_types are not one for each of {layers} layers")
        windows = [kinds[t] for t in layer_types]
    return windows, list(map(bool, uses_rope))


def _refuse(where: str, why: str):
    raise CheckpointError(f"{where}: {why}")


def _need(source: dict, where: str, key: str, kind: type = int):
    value = source.get(key)
    if value is None:
        _refuse(where, f"no {key}; refusing to guess")
    if isinstance(value, bool) or not isinstance(value, (int, kind)) or not 0 < value < 2**40:
        _refuse(where, f"{key} is {value!r}, not a positive {'whole ' if kind is int else ''}number")
    return value


def read_json(path: Path) -> dict:
    """A JSON object from a file; CheckpointError in one line where that fails."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise CheckpointError(f"{path}: {e.strerror or e}") from None
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path}: not JSON ({e})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return value


def _tensor_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        raise CheckpointError(f"{folder}: no model.safetensors (only safetensors are read, never pickled .bin)")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: no weight_map")
    for name in weight_map.values():
        # No path from a file leaves its folder.
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index}: {name!r} is not a file name in this folder")
    return [folder / name for name in sorted(set(weight_map.values()))]


def _tensor_shapes(file: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, torch.dtype]]:
    """Shape and type of every tensor in a file."""
    types = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    try:
        with safe_open(file, "pt") as tensors:
            slices = {n: tensors.get_slice(n) for n in tensors.keys()}
            for name, part in slices.items():
                if part.get_dtype() not in types:  # integers: somebody's quantised weights
                    raise CheckpointError(f"{file}: {name} is of type {part.get_dtype()}, not floating point")
            dtypes = {n: types[part.get_dtype()] for n, part in slices.items()}
            return {n: tuple(part.get_shape()) for n, part in slices.items()}, dtypes
    except (OSError, SafetensorError) as e:
        raise CheckpointError(f"{file}: not a complete safetensors file ({e})") from None


def few(names: list[str], most: int = 4) -> str:
    """The first ones, for a line, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
