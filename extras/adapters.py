"""adapters.py: reward models that are stored as a small change to another model.

    python eval.py score ADAPTER                       the base is the model that ADAPTER names
    python train_rm.py --model ADAPTER --base DIR …    the base is DIR: the named one has moved

LoRA trains two thin factors beside each matrix W (extras/lora.py). PEFT, the library of most
projects, saves these factors without W. An adapter folder holds

    adapter_config.json            the name of the base, and how large the change is
    adapter_model.safetensors      A and B of each matrix; and the head, trained as a whole
    value_head.safetensors         LLaMA-Factory keeps the head here instead

and is opened by one rule, once for each matrix:

    base:  W ──────────────┐
                           ├──►  W + s · B A        in float32, in place of W
    adapter:  A, B, s ─────┘                        s = α/r, or what the settings say

After that the model is an ordinary one: it is scored with, trained on (all of it, or new factors),
and saved as a whole. The tokenizer is the adapter's, or where it has none, the base's.

A base is a folder or a hub name. A relative path counts from where the program is started. An
adapter of another base is an error where names or shapes differ; PEFT records no hash.

The other way, from a run to PEFT: extras/write_adapter.py.

What it costs: merged matrices are float32, 4 bytes a number, where the base may have 2; with
--shard every process merges for itself. extras/adapter_settings.py reads the settings.
tests/extras/test_adapters.py compares with rewards that PEFT computed.
"""
import os
import re
import sys
from pathlib import Path

import tokenizers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from extras import adapter_settings, heads, hub
from extras.adapter_settings import CONFIG, AdapterSettings
from data import special_tokens
from model import CheckpointError, RewardModel, open_model, read_json

WEIGHTS = "adapter_model.safetensors"
HEAD = "value_head.safetensors"
PREFIX = "base_model.model."  # in front of every name: PEFT's two wrappers
FACTOR = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")


# ---------------------------------------------------------------- reading


def open_adapter(folder: Path, base: str | None, fresh_head: bool) -> RewardModel:
    """The base of an adapter, with the adapter merged. Otherwise as open_model in model.py.

    Args:   base: a folder or a hub name, or None for the one that the adapter names.
    Raises: CheckpointError on anything that is missing, does not fit, or is not computed here.
    """
    settings = adapter_settings.read(folder)
    if (folder / "model.safetensors").exists():
        raise CheckpointError(f"{folder}: an adapter and a whole model; take one of them away")
    base_folder = find_base(folder, settings, base)
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"{folder}: an adapter, merged into its base {base_folder}", file=sys.stderr)
    factors, tensors = read_adapter(folder)

    def merge(state):
        matrices = [name.removesuffix(".weight") for name in state if state[name].ndim == 2]
        settings.check_factors(list(factors), matrices)
        settings.check_whole(list(tensors), list(state))
        for name, (A, B) in factors.items():
            add_change(state, name, A, B, settings)
        replace(state, tensors, folder)

    model = open_model(base_folder, fresh_head, change=merge)
    model.files += weight_files(folder)
    if (folder / "tokenizer.json").exists() and (folder / "tokenizer_config.json").exists():
        model.folder = folder
        take_pad(model, folder)
    return model


def take_pad(model: RewardModel, folder: Path):
    """config.json's pad_token_id, which decides where a reward is read, is the base's.

    The trainer changed it in memory, and PEFT does not save it. The tokenizer has its name.
    LLaMA-Factory, whose head is in a file of its own, compares no ids (extras/heads.py).
    """
    names = special_tokens(read_json(folder / "tokenizer_config.json"))
    if "pad_token" not in names or (folder / HEAD).exists():
        return
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    pad_id = backend.token_to_id(names["pad_token"])
    if pad_id is not None:
        model.config.config_json["pad_token_id"] = pad_id


def find_base(folder: Path, settings: AdapterSettings, base: str | None) -> Path:
    """The folder of the base.  Raises: CheckpointError where there is none."""
    name = base or settings.base
    if not name:
        raise CheckpointError(f"{folder / CONFIG}: names no base; name it with --base")
    found = Path(name)
    if not found.is_dir():
        if settings.revision and not base:
            name = f"{name}@{settings.revision}"
        try:
            found = hub.model_folder(name)
        except CheckpointError as e:
            raise CheckpointError(f"{folder}: no base ({e}); name it with --base") from None
    if (found / CONFIG).exists():
        raise CheckpointError(f"{folder}: its base {found} is an adapter too; merge that one first")
    return found


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of an adapter.  Raises: CheckpointError where there are only pickled ones."""
    if not (folder / WEIGHTS).exists():
        raise CheckpointError(f"{folder}: no {WEIGHTS} (adapter_model.bin is pickled: never read)")
    if (folder / HEAD).exists():
        return [folder / WEIGHTS, folder / HEAD]
    if (folder / "value_head.bin").exists():
        raise CheckpointError(f"{folder}: its head is in value_head.bin, pickled: never read")
    return [folder / WEIGHTS]


def read_adapter(folder: Path) -> tuple[dict[str, list], dict[str, Tensor]]:
    """The pairs [A, B], by the names of their matrices; and the tensors trained as a whole."""
    stored = {}
    for file in weight_files(folder):
        try:
            stored |= load_file(file)
        except (OSError, SafetensorError) as e:
            raise CheckpointError(f"{file}: not a complete safetensors file ({e})") from None
    found, tensors = {}, {}
    for name, tensor in stored.items():
        short = name.removeprefix(PREFIX)
        factor = FACTOR.fullmatch(short)
        if "lm_head" in short.split("."):  # it gives the next word, and no reward
            continue
        if factor:
            found.setdefault(factor[1], {})[factor[2]] = tensor
        elif ".lora_" in short or ".base_layer." in short:
            raise CheckpointError(f"{folder / WEIGHTS}: {name} is not computed here")
        elif ".original_module." not in short:  # that is the base's own
            tensors[re.sub(r"\.modules_to_save(\.default)?\.", ".", short)] = tensor
    factors = {}
    for name, pair in found.items():
        if len(pair) < 2 or pair["A"].ndim != 2 or pair["B"].ndim != 2:
            raise CheckpointError(f"{folder / WEIGHTS}: no pair lora_A, lora_B for {name}")
        factors[name] = [pair["A"], pair["B"]]
    return factors, tensors


# ---------------------------------------------------------------- merging


def add_change(state: dict, name: str, A: Tensor, B: Tensor, settings: AdapterSettings):
    """W + s · B A in place of W.  A (r, in)   B (out, r)   W (out, in)"""
    rank = settings.rank(name)
    if len(A) != rank or B.shape[1] != rank:
        raise CheckpointError(f"{settings.where}: rank {rank} for {name}; its A has {len(A)} rows")
    change = settings.scale(name) * (B.float() @ A.float())
    if name.rpartition(".")[2].startswith("c_"):
        change = change.T  # GPT-2's files hold (in, out)
    key = name_in_base(f"{name}.weight", state)
    there = tuple(state[key].shape) if key else "missing"
    if there != tuple(change.shape):
        raise CheckpointError(f"{settings.where}: an adapter of another base: its factors need "
                              f"{name} of {tuple(change.shape)}; it is {there} in this one")
    state[key] = state[key].float() + change


def name_in_base(name: str, state: dict) -> str:
    """PEFT's name of a tensor -> its name in the base's files, or "".

    Names start with `model.` or not: it depends on which class opened the same files.
    """
    for candidate in (name, f"model.{name}", name.partition(".")[2]):
        if candidate in state:
            return candidate
    return ""


def replace(state: dict, tensors: dict, folder: Path):
    """Tensors trained as a whole take the place of the base's. A head takes that of every head."""
    names_of_heads = tuple(f"{head}." for head in heads.HEADS)
    if any(name.startswith(names_of_heads) for name in tensors):
        for name in list(state):
            if name.startswith(names_of_heads):
                del state[name]
    for name, tensor in tensors.items():
        if name.startswith(names_of_heads):
            state[name] = tensor
            continue
        key = name_in_base(name, state)
        if not key or state[key].shape != tensor.shape:
            there = tuple(state[key].shape) if key else "missing"
            raise CheckpointError(f"{folder}: an adapter of another base: it has {name} of "
                                  f"{tuple(tensor.shape)}; it is {there} in this one")
        state[key] = tensor
