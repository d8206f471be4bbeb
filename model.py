"""model.py: token ids in, one reward out.  Read after loss.py.

A reward model is a language model whose last layer was replaced. A decoder turns the tokens of
prompt and response into one hidden state per token. Attention is causal, so only the state of the
LAST token has seen everything. One linear map, the value head, reads the reward from that state
(Stiennon et al. 2020, §3.4):

    L = Σ attention_mask − 1            index of the last valid token, in a row padded on the right
    r = wᵀ h_L + b                      the reward, in nats: differences are log-odds (loss.py)

The decoder is that of the Llama family: RMSNorm (Zhang & Sennrich 2019), rotary positions
(Su et al. 2021), grouped-query attention (Ainslie et al. 2023), SwiGLU (Shazeer 2020). Modules and
config keys have their Hugging Face names. So a checkpoint loads without a table of names, and ours
opens in transformers as <Family>ForSequenceClassification with one label.

Contents: the decoder, the reward model with its gather, and how a folder is read.

Shapes: R rows of a batch   S sequences in a row: 1, unless rows are packed (extras/packing.py)
        N = R · S sequences in all   T tokens in a row   D hidden_size   I intermediate_size
        H query heads   G key/value heads, each for a group of query heads   P head_dim
"""
import contextlib
import dataclasses
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class CheckpointError(ValueError):
    """A folder that cannot be loaded as a reward model. One line says which file, and why."""


SHARD_BYTES = 5 * 10**9  # larger checkpoints are split into several files, as transformers does


@dataclasses.dataclass
class Config:
    """The settings that change the arithmetic, under their Hugging Face names."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: dict  # the rope rule: rope_type, rope_theta and other numbers
    max_length: int  # tokens of the longest text
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    initializer_range: float = 0.02
    config_json: dict = dataclasses.field(default_factory=dict, repr=False)  # for saving it again


# ---------------------------------------------------------------- how sequences lie in a batch

# cuDNN's attention makes a plan for every new shape, and hardly two batches have the same shape: on
# an H100 more than half of a step went there. The other kernels need no plan.
torch.backends.cuda.enable_cudnn_sdp(False)


class Padded:
    """One sequence a row (S = 1), padded on the right.

    The model asks this object three things: where is the last token of each sequence, which
    position has each token, and what does a token see. extras/packing.py has another form with
    the same three methods. There the responses to a prompt share one row.
    """

    def last(self, attention_mask: Tensor) -> Tensor:
        """Index of the last valid token of each row: L = Σ mask − 1.  (R, T) -> (R, 1)

        The mask is the only witness of length. To compare ids with the pad id fails wherever the
        pad is also the end token, which is common: the reward is read one token too early, or in
        the middle of the prompt.
        """
        check_padding(attention_mask)
        return attention_mask.sum(-1, keepdim=True) - 1

    def positions(self, input_ids: Tensor) -> Tensor:
        """0, 1, 2, … for the tokens of a row.  (R, T) -> (T,)"""
        return torch.arange(input_ids.shape[1], device=input_ids.device)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q kᵀ / √P) v, over earlier tokens only.  q (R, H, T, P), k and v (R, G, T, P)"""
        # No padding mask: pads are on the right, and a causal token never looks right. What the
        # pads themselves compute is never read. So is_causal alone is exact, and fastest.
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)


def check_padding(attention_mask: Tensor):
    """Raises: ValueError unless every row of the mask is ones, at least one, and then zeros."""
    # The trap: with padding on the left, Σ mask − 1 points into the text or at a pad. Training
    # goes on, and is only worse.
    mask = attention_mask.bool()
    empty = ~mask[:, 0]  # (R,)
    one_after_zero = mask[:, 1:] & ~mask[:, :-1]  # (R, T − 1)
    if empty.any() | one_after_zero.any():  # not `or`: a GPU is asked once
        raise ValueError(
            "attention_mask must be ones then zeros in every row: pad on the right, no empty row"
        )


PADDED = Padded()


# ---------------------------------------------------------------- the decoder


class RMSNorm(nn.Module):
    """x / rms(x) · weight, in float32 (Zhang & Sennrich 2019, eq 4).  (..., D) -> (..., D)"""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        mean_square = x32.square().mean(-1, keepdim=True)  # (..., 1)
        x32 = x32 * torch.rsqrt(mean_square + self.eps)
        return self.weight * x32.to(x.dtype)


def default_frequencies(config: Config) -> tuple[Tensor, float]:
    """θ^(−2i/P) for i = 0 … P/2−1 (Su et al. 2021, eq 15).  Returns: (P/2,), and a scale of 1."""
    exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim  # (P/2,)
    # Not θ ** −exponents: it differs in the last bit, and position 650 multiplies that by 650.
    return 1 / config.rope["rope_theta"] ** exponents, 1.0


ROPE_RULES = {"default": default_frequencies}  # extras/rope_scaling.py adds more


def rotary_tables(config: Config, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of position · frequency.  (T,) -> (T, P) each

    In float32: in bfloat16 position 257 would be 256.
    """
    frequencies, scale = ROPE_RULES[config.rope["rope_type"]](config)
    angles = positions.float()[:, None] * frequencies.to(positions.device)  # (T, P/2)
    angles = torch.cat((angles, angles), dim=-1)  # (T, P)
    return angles.cos() * scale, angles.sin() * scale


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i+P/2}) by its angle.  (R, H, T, P) -> (R, H, T, P)

    The paper pairs neighbours; Hugging Face checkpoints pair the two halves.
    """
    first, second = x.chunk(2, dim=-1)  # (R, H, T, P/2) each
    turned = torch.cat((-second, first), dim=-1)
    return x * cos.to(x.dtype) + turned * sin.to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention: H query heads share G key/value heads."""

    def __init__(self, config: Config):
        super().__init__()
        c = config
        self.head_dim = c.head_dim
        query_width = c.num_attention_heads * c.head_dim  # H · P
        key_width = c.num_key_value_heads * c.head_dim  # G · P
        self.q_proj = nn.Linear(c.hidden_size, query_width, bias=c.qkv_bias)
        self.k_proj = nn.Linear(c.hidden_size, key_width, bias=c.qkv_bias)
        self.v_proj = nn.Linear(c.hidden_size, key_width, bias=c.qkv_bias)
        self.o_proj = nn.Linear(query_width, c.hidden_size, bias=c.o_bias)
        self.q_norm = RMSNorm(c.head_dim, c.rms_norm_eps) if c.qk_norm else nn.Identity()  # Qwen3
        self.k_norm = RMSNorm(c.head_dim, c.rms_norm_eps) if c.qk_norm else nn.Identity()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, form: Padded) -> Tensor:
        """x (R, T, D), rotary tables (T, P) each -> (R, T, D)"""
        R, T, _ = x.shape
        q = self.q_proj(x).view(R, T, -1, self.head_dim)  # (R, T, H, P)
        k = self.k_proj(x).view(R, T, -1, self.head_dim)  # (R, T, G, P)
        v = self.v_proj(x).view(R, T, -1, self.head_dim)  # (R, T, G, P)
        q = self.q_norm(q).transpose(1, 2)  # (R, H, T, P)
        k = self.k_norm(k).transpose(1, 2)  # (R, G, T, P)
        v = v.transpose(1, 2)  # (R, G, T, P)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = form.attend(q, k, v)  # (R, H, T, P)
        mixed = mixed.transpose(1, 2).reshape(R, T, -1)  # (R, T, H·P)
        return self.o_proj(mixed)  # (R, T, D)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x)) (Shazeer 2020, eq 6).  (R, T, D) -> (R, T, D)"""

    def __init__(self, config: Config):
        super().__init__()
        D, I = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(D, I, bias=config.mlp_bias)
        self.up_proj = nn.Linear(D, I, bias=config.mlp_bias)
        self.down_proj = nn.Linear(I, D, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.silu(self.gate_proj(x)) * self.up_proj(x)  # (R, T, I)
        return self.down_proj(hidden)  # (R, T, D)


class DecoderLayer(nn.Module):
    """Attention, then MLP. Each reads a normed copy of x and adds its result to x."""

    def __init__(self, config: Config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, form: Padded) -> Tensor:
        """(R, T, D) -> (R, T, D)"""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, form)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Token ids -> hidden states after the last norm.  (R, T) -> (R, T, D)

    No dropout, even where a config asks for it: it would add noise to both rewards of a pair, and
    their difference is all that the loss sees.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList()
        for _ in range(config.num_hidden_layers):
            self.layers.append(DecoderLayer(config))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False

    def forward(self, input_ids: Tensor, form: Padded) -> Tensor:
        """(R, T) -> (R, T, D)"""
        cos, sin = rotary_tables(self.config, form.positions(input_ids))  # (T, P) each
        # float32, also where the embedding is kept in bfloat16: every layer adds to this sum.
        x = self.embed_tokens(input_ids).float()  # (R, T, D)
        return self.through_layers(x, cos, sin, form)

    def through_layers(self, x: Tensor, *context) -> Tensor:
        """All layers and the last norm. Each layer gets x and the context.  (R, T, D) -> same"""
        for layer in self.layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                # Keep only x for the backward pass, which computes the layer again: memory for
                # one layer instead of all, for a third more work (Chen et al. 2016).
                x = checkpoint(layer, x, *context, use_reentrant=False)
            else:
                x = layer(x, *context)
        return self.norm(x)


# ---------------------------------------------------------------- the reward model


class RewardModel(nn.Module):
    """A decoder and a value head: token ids (R, T) -> one reward for each sequence, in nats."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.folder: Path | None = None  # where it was loaded from; its tokenizer is there too
        self.files: list[Path] = []  # the weights it was loaded from
        self.head_origin = "new"
        self.base = ""  # a hash of the files that frozen weights come from (extras/lora.py)
        # Where a head is saved under other names, and what config.json says then (extras/heads.py).
        self.saved_names: dict[str, str] = {}
        self.saved_config: dict = {}
        self.model = Decoder(config)
        self.score = nn.Linear(config.hidden_size, 1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, form: Padded = PADDED) -> Tensor:
        """The reward of each sequence: the value head at its last valid token.

        A sequence has the same reward alone and in any batch, up to float rounding.

        Args:    input_ids, attention_mask: (R, T). What input_ids holds at pads does not matter.
        Returns: (N,) float32.
        Raises:  ValueError on a mask that is not ones, then zeros.
        """
        last = form.last(attention_mask)  # (R, S) attention_mask.sum(-1) − 1
        hidden = self.model(input_ids, form)  # (R, T, D)
        index = last[..., None].expand(-1, -1, hidden.shape[-1])  # (R, S, D)
        last_hidden = torch.gather(hidden, 1, index)  # (R, S, D) the states at the last tokens
        # The head runs after the gather: on S tokens of a row, not on T. And in float32: in
        # bfloat16 a reward of 5 has steps of 0.03, and close pairs would tie.
        with torch.autocast(hidden.device.type, enabled=False):
            rewards = self.score(last_hidden.float())  # (R, S, 1)
        return rewards.flatten()  # (N,)

    def init_head(self):
        """A new value head: weights N(0, 1/(D+1)), bias 0 (Stiennon et al. 2020).

        Rewards have a size of about 1 at first. Two responses to one prompt differ by much less,
        so training starts near a loss of log 2.
        """
        D = self.config.hidden_size
        self.score = nn.Linear(D, 1)  # on the CPU: the old one may have no numbers yet
        nn.init.normal_(self.score.weight, std=1 / math.sqrt(D + 1))
        nn.init.zeros_(self.score.bias)

    @classmethod
    def from_scratch(cls, config_json: dict) -> "RewardModel":
        """Random weights, N(0, initializer_range²) as Hugging Face has them; norms 1, biases 0."""
        config = read_config(config_json)
        model = cls(config)
        for module in model.model.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        model.init_head()
        return model

    @classmethod
    def from_pretrained(cls, folder: str | Path, device="cpu", base=None) -> "RewardModel":
        """A trained reward model, ready to score with, in float32.  Raises: CheckpointError."""
        model = open_model(folder, base=base)
        model.take_weights(device)
        return model.eval()

    def take_weights(self, device: str | torch.device):
        """Copy the weights to the device, in float32. Until then they are only mapped from a file.

        Weights that are not trained keep the type that they have in their file (extras/lora.py).
        """
        for parameter in self.parameters():
            dtype = torch.float32 if parameter.requires_grad else parameter.dtype
            # copy=True: a file aligns its tensors to 8 bytes, memory to 64, and some kernels sum
            # in another order then. A resumed run would differ in the last bit.
            parameter.data = parameter.data.to(device, dtype, copy=True)
            check_finite(parameter.data, self.files)

    def save_pretrained(
        self,
        folder: Path,
        pad_token_id: int | None,
        state: dict[str, Tensor],
        dtype: torch.dtype = torch.float32,
    ):
        """Write config.json and safetensors, for us and for transformers.

        pad_token_id must not be a token that a text can end with: transformers finds the last
        token by comparing with it. state is self.state_dict(): with sharded weights all processes
        have to ask for it (extras/sharding.py), and one of them writes.
        """
        family = CLASS_NAMES[self.config.model_type]
        config_json = with_both_ropes(self.config.config_json) | {
            "architectures": [family + "ForSequenceClassification"],
            # Without one label transformers makes a head of two. Without "regression" its
            # pipeline applies a sigmoid.
            "num_labels": 1,
            "id2label": {"0": "reward"},
            "label2id": {"reward": 0},
            "problem_type": "regression",
            "pad_token_id": pad_token_id,
            "dtype": str(dtype).removeprefix("torch."),
        }
        config_json |= self.saved_config
        config_json.pop("torch_dtype", None)  # the old name of dtype
        text = json.dumps(config_json, indent=2) + "\n"
        (Path(folder) / "config.json").write_text(text, encoding="utf-8")
        tensors = {}
        for name, tensor in state.items():
            tensors[self.saved_names.get(name, name)] = tensor.to("cpu", dtype).contiguous()
        # transformers has no bias on this head. A bias of 0 is left out (it is trained only under
        # the centering penalty). Another one is kept, and in transformers every reward misses it.
        if "score.bias" in tensors and not tensors["score.bias"].any():
            del tensors["score.bias"]
        save_torch_state_dict(tensors, folder, max_shard_size=SHARD_BYTES)


# ---------------------------------------------------------------- opening a folder


def open_model(name: str | Path, fresh_head=False, base=None, change=None) -> RewardModel:
    """The model of a folder. Its weights are mapped from the files, and not yet read.

    A language model's `lm_head` is left out. A value head in the folder is always kept. Where
    there is none, fresh_head makes a new one, to train it. Without fresh_head that is an error,
    because a random head gives plausible rewards that mean nothing.

    An adapter is merged into its base: the one that it names, or the folder or hub name `base`.

    change: change(state) is called with the tensors of the files (extras/adapters.py).
    Raises: CheckpointError on anything missing, unexpected, of a wrong shape, or not supported.
    """
    folder = Path(name)
    if not folder.exists():  # a name on the Hugging Face hub, or a typing error
        from extras import hub

        folder = hub.model_folder(str(name))
    if base or (folder / "adapter_config.json").exists():
        from extras import adapters

        return adapters.open_adapter(folder, base, fresh_head)
    try:
        model = empty_model(folder)
        model.init_head()  # what the folder does not have stays: a new head, or a bias of 0
        state = read_tensors(folder)
        if change:
            change(state)
        if state.keys() - model.state_dict().keys():  # other projects have other names
            from extras import checkpoint_formats

            state = checkpoint_formats.translate(state, model, folder)
        load(model, state, folder)
        if "score.weight" in state or "score.0.weight" in state:
            model.head_origin = "kept"
        elif not fresh_head or (folder / "value_head.bin").exists():
            reason = "a language model without a reward head (score.weight)"
            raise CheckpointError(f"{folder}: {reason}")
    except CheckpointError as e:
        with contextlib.suppress(ImportError):  # without extras/ the error itself is all
            from extras import foreign_folders

            raise CheckpointError(foreign_folders.explain(folder, e)) from None
        raise
    model.score.float()  # the head computes in float32, whatever the type of its file
    model.folder = folder
    model.files = weight_files(folder)
    return model


def empty_model(folder: Path) -> RewardModel:
    """The model that config.json describes: names and shapes, and no numbers yet."""
    where = str(folder / "config.json")
    config_json = read_json(folder / "config.json")
    if rope_type(config_json) != "default":
        from extras import rope_scaling

        ROPE_RULES.update(rope_scaling.ROPE_RULES)
        ROPE_NUMBERS.update(rope_scaling.ROPE_NUMBERS)
        config_json = rope_scaling.fill_in(config_json)
    with torch.device("meta"):
        if config_json.get("model_type") in list(FAMILIES):
            return RewardModel(read_config(config_json, where))
        from extras import families

        return families.build(config_json, where)


def load(model: RewardModel, state: dict[str, Tensor], folder: Path):
    """Give the model these tensors.  Raises: CheckpointError naming those that do not fit it."""
    try:
        missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as e:  # it names every tensor of a wrong shape, on a line of its own
        raise CheckpointError(f"{folder}: {' '.join(str(e).split())}") from None
    missing = [f"missing: {name}" for name in missing if not name.startswith("score.")]
    unexpected = [f"not expected: {name}" for name in unexpected]
    problems = missing + unexpected
    if problems:
        shown = missing[:2] + unexpected[:2]
        more = len(problems) - len(shown)
        text = "; ".join(shown) + (f" and {more} more" if more else "")
        raise CheckpointError(f"{folder}: tensors do not fit config.json: {text}")


WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


# Not ours to compute: the language-model head, and in some old checkpoints tables: frequencies of
# rope, and causal masks, which are called "bias" there.
LEFT_OUT = ("lm_head.weight", "embed_out.weight", "rotary_emb.inv_freq")
LEFT_OUT += (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Name -> tensor of all safetensors of a folder. They are mapped: memory is used when read."""
    state = {}
    for file in weight_files(folder):
        try:
            tensors = load_file(file)
        except (OSError, SafetensorError) as e:
            raise CheckpointError(f"{file}: not a complete safetensors file ({e})") from None
        for name, tensor in tensors.items():
            if name.endswith(LEFT_OUT):
                continue
            if tensor.dtype not in WEIGHT_DTYPES:
                raise CheckpointError(f"{file}: {name} is {tensor.dtype}: quantised weights?")
            state[name] = tensor
    return state


def weight_files(folder: Path) -> list[Path]:
    """The safetensors that belong to a model: one file, or those that an index names."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if not (folder / names[0]).exists():
        if not index.exists():
            raise CheckpointError(f"{folder}: no model.safetensors (only safetensors are read)")
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{index}: no weight_map")
        names = sorted(set(map(str, weight_map.values())))
    for name in names:
        # No path from a file leaves its folder.
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index}: {name!r} is not a file name in this folder")
    if (folder / "value_head.safetensors").exists():  # LLaMA-Factory keeps the head there
        names.append("value_head.safetensors")
    return [folder / name for name in names]


def check_finite(weight: Tensor, files: list[Path]):
    """Raises: CheckpointError naming the file and the tensor that hold NaN or infinity."""
    # NaN and infinity stay in a sum, and a sum is fast. isfinite() takes five times as long as the
    # copy before it. It decides where finite numbers have a sum that is too large for float32.
    if weight.sum(dtype=torch.float32).isfinite() or weight.isfinite().all():
        return
    for file in files:
        for name, tensor in load_file(file).items():
            if not tensor.isfinite().all():
                raise CheckpointError(f"{file}: {name} holds NaN or infinity, not finite numbers")


# ---------------------------------------------------------------- config.json

# What differs between the families. A string is the config key that decides.
FAMILIES = {
    "llama": {"qkv_bias": "attention_bias", "o_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    "mistral": {},
    "qwen2": {"qkv_bias": True},  # Qwen2.5 too
    "qwen3": {"qkv_bias": "attention_bias", "o_bias": "attention_bias", "qk_norm": True},
}
CLASS_NAMES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
# The numbers that every config has to give, and settings that have only one value here.
NEEDED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim",
)
ONLY = {"hidden_act": "silu", "partial_rotary_factor": 1, "quantization_config": None}
ROPE_NUMBERS = {"default": ()}  # what each rope rule needs besides rope_theta


def read_config(config_json: dict, where: str = "config.json") -> Config:
    """A Hugging Face config -> Config. What changes the arithmetic is never guessed.

    Raises: CheckpointError naming the key that is missing, or that this decoder does not compute.
    """
    family = config_json.get("model_type")
    if family not in list(FAMILIES):  # a list: JSON may hold an object here, which has no hash
        known = ", ".join(FAMILIES)
        raise CheckpointError(f"{where}: model_type {family!r} is not one of {known}")
    for key, only in ONLY.items():
        if config_json.get(key) not in (None, only):
            raise CheckpointError(f"{where}: {key} {config_json[key]!r} is not computed here")
    return Config(
        model_type=family,
        rms_norm_eps=positive_number(config_json, "rms_norm_eps", where, (int, float)),
        rope=read_rope(config_json, where),
        max_length=longest_text(config_json, where),
        initializer_range=config_json.get("initializer_range", 0.02),
        config_json=config_json,
        **read_sizes(config_json, where),
        **read_switches(config_json),
    )


def read_sizes(config_json: dict, where: str) -> dict[str, int]:
    """The numbers of NEEDED. Two of them have defaults in some families."""
    family, config = config_json["model_type"], dict(config_json)
    heads = positive_number(config, "num_attention_heads", where)
    if family == "llama" and config.get("num_key_value_heads") is None:
        config["num_key_value_heads"] = heads  # Llama 1 does not say it
    if family != "qwen3" and config.get("head_dim") is None:  # Qwen3's are wider: it has to say it
        D = positive_number(config, "hidden_size", where)
        if D % heads:
            raise CheckpointError(f"{where}: hidden_size {D} is not a multiple of {heads} heads")
        config["head_dim"] = D // heads
    sizes = {}
    for key in NEEDED:
        sizes[key] = positive_number(config, key, where)
    if heads % sizes["num_key_value_heads"] or sizes["head_dim"] % 2:
        raise CheckpointError(f"{where}: key/value heads must divide heads; head_dim must be even")
    return sizes


def read_switches(config_json: dict) -> dict[str, bool]:
    """qkv_bias and so on, as FAMILIES says."""
    switches = {}
    for name, decides in FAMILIES[config_json["model_type"]].items():
        switches[name] = decides
        if isinstance(decides, str):
            switches[name] = config_json.get(decides, False)
    return switches


def longest_text(config_json: dict, where: str) -> int:
    """How many tokens a text may have. A sliding window that is in use is a limit here.

    A model with a window of w tokens is an ordinary model for texts of up to w tokens.
    """
    limit = positive_number(config_json, "max_position_embeddings", where)
    slides = config_json.get("use_sliding_window", config_json["model_type"] == "mistral")
    kinds = config_json.get("layer_types") or ["full_attention"]
    kinds = set(map(str, kinds if isinstance(kinds, list) else [kinds]))
    if kinds - {"full_attention", "sliding_attention"}:
        raise CheckpointError(f"{where}: layer_types {sorted(kinds)} are not computed here")
    slides = slides or "sliding_attention" in kinds
    if slides and config_json.get("sliding_window") is not None:
        limit = min(limit, positive_number(config_json, "sliding_window", where))
    return limit


def read_rope(config_json: dict, where: str) -> dict:
    """The rope rule: its rope_type, rope_theta and other numbers."""
    kind = rope_type(config_json)
    if kind not in list(ROPE_NUMBERS):
        known = ", ".join(ROPE_NUMBERS)
        raise CheckpointError(f"{where}: rope type {kind!r} is not one of {known}")
    rope = {"rope_theta": config_json.get("rope_theta")} | rope_settings(config_json)
    rope.pop("type", None)  # the old name of rope_type
    if rope.get("partial_rotary_factor") in (None, 1):
        rope.pop("partial_rotary_factor", None)
    numbers = ("rope_theta", *ROPE_NUMBERS[kind])
    for key in numbers:
        positive_number(rope, key, where, (int, float))
    unknown = sorted(rope.keys() - {"rope_type", *numbers})
    if unknown:
        raise CheckpointError(f"{where}: rope setting {unknown[0]!r} is not computed here")
    return rope | {"rope_type": kind}


def rope_type(config_json: dict):
    """The name of the rope rule."""
    rope = rope_settings(config_json)
    return rope.get("rope_type", rope.get("type", "default"))


def rope_settings(config_json: dict) -> dict:
    """transformers 5 writes rope_parameters; older versions rope_theta beside rope_scaling."""
    rope = config_json.get("rope_parameters") or config_json.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise CheckpointError(f"config.json: rope_scaling is {rope!r}, not an object")
    return rope


def with_both_ropes(config_json: dict) -> dict:
    """The config with its rope rule in both layouts: transformers 4 does not read the new one.

    It would take its default rule instead, and give other rewards without a word.
    """
    rope = dict(config_json.get("rope_parameters") or {})
    if "rope_theta" not in rope:
        return config_json
    theta = rope.pop("rope_theta")
    scaling = rope if rope.get("rope_type", "default") != "default" else None
    return config_json | {"rope_theta": theta, "rope_scaling": scaling}


def positive_number(source: dict, key: str, where: str, kind=int):
    """source[key].  Raises: CheckpointError unless it is a number of this kind, above 0."""
    value = source.get(key)
    if value is None:
        raise CheckpointError(f"{where}: no {key}; refusing to guess")
    if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < 2**40:
        raise CheckpointError(f"{where}: {key} is {value!r}, not a usable number above 0")
    return value


def read_json(path: Path) -> dict:
    """A JSON object from a file.  Raises: CheckpointError in one line."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise CheckpointError(f"{path}: {e.strerror}") from None
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path}: not JSON ({e})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return value


# ---------------------------------------------------------------- for sharded models


def whole(tensor: Tensor) -> Tensor:
    """A tensor in one piece. Of a sharded one (extras/sharding.py) all processes must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
