"""write_adapter.py: what a run with --lora-rank leaves for PEFT, beside the whole model.

    python train_rm.py --model DIR --lora-rank 8 --data pairs.jsonl --output RUN

    RUN/model.safetensors                     W + (α/r) B A: an ordinary model, as large as its base
    RUN/adapter/adapter_model.safetensors     A, B and the head: a few megabytes
    RUN/adapter/adapter_config.json           r, α, the matrices, the name of the base
    RUN/adapter/tokenizer.json, …             the run's: its chat template may not be the base's

PEFT opens RUN/adapter on the same base, and its rewards are those of RUN. So many reward models can
share one base on a server. PEFT saves no pad token: give the base's config the pad_token_id of the
tokenizer in RUN/adapter, or transformers may read the reward elsewhere. extras/adapters.py, which
opens it here, does that by itself.

Where PEFT could not use it, nothing is written, and a line says why: the base was an adapter
itself, the head has two maps, transformers gives the matrices other names, or only some layers
have experts.

With --shard all processes must ask for the tensors; the first one writes. It costs no more than the
copy of the factors. tests/extras/test_adapters.py compares the rewards.
"""
import json
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from extras import checkpoint_formats, lora
from extras.adapter_settings import CONFIG, last_part
from extras.adapters import FACTOR, PREFIX, WEIGHTS, name_in_base
from model import RewardModel, whole


def tensors_of(model: RewardModel) -> dict[str, Tensor]:
    """The factors and the head of a model in training, under PEFT's names.

    With --shard all processes have to ask.
    """
    tensors = {}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            name += ".weight"
        elif not name.startswith("score."):
            continue
        tensors[PREFIX + name] = whole(parameter.detach()).float().cpu().contiguous()
    # As in save_pretrained: PEFT has no bias here. A bias of 0 changes nothing.
    bias = tensors.get(f"{PREFIX}score.bias")
    if bias is not None and not bias.any():
        del tensors[f"{PREFIX}score.bias"]
    return tensors


def write(folder: Path, tensors: dict[str, Tensor], model: RewardModel, base: str) -> str:
    """Write what tensors_of found into RUN/adapter. Returns what to say about it."""
    if any(file.name == WEIGHTS for file in model.files):
        return f"no {folder.name}/ is written: no folder holds its base, a merged adapter"
    obstacle = obstacle_in(tensors)
    if obstacle:
        return f"no {folder.name}/ is written: {obstacle}"
    names_of_base = set()
    for file in model.files:
        with safe_open(file, "pt") as stored:
            names_of_base |= set(stored.keys())
    factors = [FACTOR.fullmatch(name.removeprefix(PREFIX)) for name in tensors]
    matrices = {factor[1] for factor in factors if factor}
    for name in sorted(matrices):
        if not name_in_base(f"{name}.weight", names_of_base):
            return f"no {folder.name}/ is written: transformers has another name for {name}"
    rank = next(len(tensors[f"{PREFIX}{name}.lora_A.weight"]) for name in matrices)
    settings = describe(matrices, rank, round(rank * lora.SCALE))
    settings |= name_of_base(base)
    folder.mkdir(exist_ok=True)
    for name in checkpoint_formats.TOKENIZER_FILES:  # the run's: its template may be another one
        if (folder.parent / name).exists():
            shutil.copyfile(folder.parent / name, folder / name)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    # Last: without it this is no adapter.
    text = json.dumps(settings, indent=2) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    return f"{folder} holds the factors alone, for PEFT"


def obstacle_in(names) -> str:
    """What keeps PEFT from using these tensors as they are meant, or "".

    PEFT would say little or nothing, and give other rewards.
    """
    if f"{PREFIX}score.weight" not in names:
        return "transformers has no head of two maps"
    has_experts = any(".mlp.experts." in name for name in names)
    if has_experts and any(".mlp.up_proj." in name for name in names):
        return "PEFT leaves the factors of layers without experts out"
    return ""


def describe(matrices: set[str], rank: int, alpha: int) -> dict:
    """The settings of an adapter that has factors for these matrices, and a head."""
    layers = sorted({int(name.split(".")[2]) for name in matrices})  # model.layers.3.…
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted({last_part(name) for name in matrices}),
        "layers_to_transform": layers,
        "modules_to_save": ["score"],
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }


def name_of_base(base: str) -> dict:
    """The base as PEFT names it: a folder, or a hub name and its revision."""
    if Path(base).is_dir():
        return {"base_model_name_or_path": str(Path(base).resolve()), "revision": None}
    name, _, revision = base.partition("@")
    return {"base_model_name_or_path": name, "revision": revision or None}
