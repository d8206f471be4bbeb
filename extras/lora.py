"""lora.py: leave every big matrix as it is, and train two thin ones beside it.

    python train_rm.py --model DIR --data pairs.jsonl --bf16 --lora-rank 8
    python train_rm.py --model DIR --data pairs.jsonl --freeze-layers 6

Training changes a matrix W into W + ΔW. A small task needs a small change, so let ΔW have a rank of
at most r: it is then the product of a tall and a wide matrix, and only these two are trained (Hu et
al. 2021, "LoRA", eq 3):

    W x + b + (α/r) · B A x             W (out, in) and b frozen      B (out, r)    A (r, in)

            in               r       in
         ┌───────┐          ┌─┐   ┌───────┐
         │       │          │ │   └───────┘ r       4096 × 4096 numbers in W: 16,777,216
    out  │   W   │  + α/r · │ │       A             2 × 8 × 4096 in B and A:      65,536
         │       │          │ │
         └───────┘          └─┘ B

B starts at 0. Then B A = 0, and training starts from exactly the model that was given. A starts
random, within ±1/√in. If it were 0 too, nothing would ever move: with g the gradient of the output,
that of B is (α/r) g (A x)ᵀ and that of A is (α/r) Bᵀ g xᵀ. Each has the other factor in it.

α/r keeps the size of the change about the same when r is changed, so the learning rate can stay.
The paper sets α once and does not tune it (§4.1). Here α = 2 r, so α/r is always 2.

What it saves: a trained number takes 16 bytes (itself, its gradient and AdamW's two moments, all in
float32), a frozen one in bfloat16 takes 2. For 7 billion numbers that is 14 GB instead of 112, and
less than 1 GB for the factors. The gradient of W, a third of the work, is not computed either.
What it costs: two more products for each matrix, small but not free; and a change that needs a
higher rank cannot be learned.

--freeze-layers N trains nothing of the embedding and the first N layers. Alone, it leaves the other
layers to ordinary training; with --lora-rank, the first N layers have no factors.

When the model is saved, W + (α/r) B A takes the place of W, and nothing shows that LoRA was used.
The factors alone are saved too, as adapter/ in the run folder (extras/write_adapter.py).
tests/extras/test_lora.py proves that the rewards stay the same.
"""
import hashlib
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import CheckpointError, RewardModel, whole

SCALE = 2.0  # α/r


def train_less(model: RewardModel, frozen_layers: int, lora_rank: int) -> None:
    """Freeze the embedding and the first layers; with a rank, everything but LoRA's factors.

    To be called before the weights are copied: RewardModel.take_weights leaves frozen weights in
    the type that they have in their file. The value head is always trained; its bias stays as the
    caller has set it.

    Args:    frozen_layers: the first so many layers are not trained, and get no factors.
             lora_rank: r of the factors, or 0 for no factors: then the other layers are trained.
    Raises:  CheckpointError where the model has fewer layers, or none is left for LoRA.
    """
    layers = model.model.layers
    check_layers(len(layers), frozen_layers, lora_rank)
    if model.files:
        model.base = hash_of_files(model.files)
    for name, part in model.model.named_children():
        if name not in ("layers", "norm"):  # the embedding; GPT-2 has one of positions too
            part.requires_grad_(False)
    for layer in layers[:frozen_layers]:
        freeze(layer)
    if lora_rank:
        for layer in layers[frozen_layers:]:
            freeze(layer)
            add_factors(layer, lora_rank)
        model.model.norm.requires_grad_(False)


def hash_of_files(files: list[Path]) -> str:
    """Tells one base model from another. A checkpoint holds only what is trained, and a run that
    is resumed reads the rest from these files again.

    Sizes, and the first and last megabyte of each file: a whole model may be 16 GB.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        size = path.stat().st_size
        with open(path, "rb") as file:
            digest.update(f"{path.name} {size}".encode() + file.read(2**20))
            file.seek(max(0, size - 2**20))
            digest.update(file.read())
    return digest.hexdigest()


def check_layers(layers: int, frozen_layers: int, lora_rank: int) -> None:
    """Raises: CheckpointError unless there are so many layers, and one more for LoRA."""
    option = f"--freeze-layers {frozen_layers}"
    if frozen_layers > layers:
        raise CheckpointError(f"{option}: the model has only {layers} layers")
    if lora_rank and frozen_layers == layers:
        raise CheckpointError(f"{option}: no layer of {layers} is left for --lora-rank")


def freeze(layer: nn.Module) -> None:
    """Train nothing of a layer. Its matrices may then be of another type than its inputs."""
    layer.requires_grad_(False)
    for name, module in list(layer.named_modules()):
        if isinstance(module, nn.Linear):
            layer.set_submodule(name, FrozenLinear(module))


def add_factors(layer: nn.Module, rank: int) -> None:
    """Give every matrix of a frozen layer its two factors."""
    for name, module in list(layer.named_modules()):
        if isinstance(module, FrozenLinear):
            layer.set_submodule(name, LoraLinear(module, rank))


class FrozenLinear(nn.Module):
    """W x + b, of which nothing is trained.  (..., in) -> (..., out)"""

    def __init__(self, linear: nn.Module):
        super().__init__()
        self.weight = linear.weight  # (out, in), in any floating-point type
        self.bias = linear.bias  # (out,) or None

    def forward(self, x: Tensor) -> Tensor:
        # The weights of a file in bfloat16 stay in bfloat16. Training computes in bfloat16 too, so
        # nothing is copied. A report in float32 widens one matrix at a time.
        dtype = computing_type(x)
        bias = self.bias
        if bias is not None:
            bias = bias.to(dtype)
        return F.linear(x.to(dtype), self.weight.to(dtype), bias)


class LoraLinear(FrozenLinear):
    """W x + b + (α/r) · B A x, of which A and B are trained.  (..., in) -> (..., out)"""

    def __init__(self, linear: FrozenLinear, rank: int):
        super().__init__(linear)
        out_features, in_features = linear.weight.shape
        # Drawn on the CPU: with the same seed every process has the same numbers.
        A = torch.empty(rank, in_features)  # (r, in)
        B = torch.zeros(out_features, rank)  # (out, r)
        bound = 1 / math.sqrt(in_features)
        self.lora_A = nn.Parameter(A.uniform_(-bound, bound))
        self.lora_B = nn.Parameter(B)
        self.register_state_dict_post_hook(merge)

    def forward(self, x: Tensor) -> Tensor:
        # From right to left: B A would be as large as W.
        change = F.linear(x, self.lora_A)  # (..., r)
        change = F.linear(change, self.lora_B)  # (..., out)
        return super().forward(x) + SCALE * change


def computing_type(x: Tensor) -> torch.dtype:
    """The type in which a matrix product with x is computed: autocast's, where it is on."""
    device_type = x.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return x.dtype


def merge(module: LoraLinear, state: dict, prefix: str, _) -> None:
    """Put W + (α/r) B A into a state_dict in place of W, A and B: one ordinary float32 matrix.

    torch calls this for every LoraLinear when model.state_dict() is called.
    """
    A = whole(state.pop(prefix + "lora_A"))  # (r, in)
    B = whole(state.pop(prefix + "lora_B"))  # (out, r)
    W = whole(state[prefix + "weight"])  # (out, in)
    merged = W.float() + SCALE * (B @ A)
    # To the CPU at once: in float32 the whole model may be too large for the GPU that trains it.
    state[prefix + "weight"] = merged.cpu()
