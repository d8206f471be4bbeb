"""foreign_folders.py: what a folder is that cannot be opened, in one sentence.

Only one kind of folder is read here: config.json and safetensors of a decoder. For others model.py
has an error that is true and says little. This file looks at the folder and says what it is and
what to do:

    pairs.gguf                   llama.cpp's format, rounded to a few bits
    pytorch_model.bin            pickled: opening it runs what is in it. Never read; how to convert
    value_head.bin               the same for a head: the folder would look like a language model
    "quantization_config"        weights in few bits (bitsandbytes, GPTQ, AWQ, fp8, MLX)
    deberta-v2, bert, t5         not a decoder: there is no last token that has seen everything
    vision_config                reads images too
    global_step…, mp_rank…       pieces of DeepSpeed, Megatron or FSDP, to be put together first
    version https://git-lfs…     three lines that stand for a file that was not downloaded

It costs nothing: it runs only after an error, and reads names and sizes, never weights. An error
in a folder that is none of these stays as it was. There is no option.

tests/extras/test_foreign_folders.py makes each of these folders, and runs the commands that the
sentences recommend.
"""
from pathlib import Path

from safetensors import SafetensorError, safe_open

from extras import heads
from model import CheckpointError, read_json

ENCODERS = (
    "albert", "bert", "deberta", "deberta-v2", "distilbert", "electra", "longformer", "modernbert",
    "roberta", "xlm-roberta",
)
# What the tensors of a quantised model are called, beside or instead of "weight".
QUANTISED = {
    ".qweight": "GPTQ or AWQ",
    ".absmax": "bitsandbytes (4 bits)",
    ".SCB": "bitsandbytes (8 bits)",
    ".weight_scale": "fp8 or compressed-tensors",
    ".weight_scale_inv": "fp8",
    ".weight_packed": "compressed-tensors",
    ".W_q": "HQQ",
}
# Files that only other kinds of folders have: a pattern, and what to say.
MADE_FROM = "take the model that it was made from, in safetensors"
DEEPSPEED = (
    "a DeepSpeed checkpoint, in pieces; put them together with the script that DeepSpeed leaves "
    "beside them: python zero_to_fp32.py FOLDER NEW --safe_serialization"
)
FSDP = (
    "a checkpoint of torch.distributed (FSDP), in pieces; put them together: "
    "accelerate merge-weights FOLDER NEW"
)
MEGATRON = "a Megatron checkpoint, in pieces; convert it with the tools of Megatron"
OTHER_FILES = {
    "zero_to_fp32.py": DEEPSPEED,
    "global_step*": DEEPSPEED,
    "*.distcp": FSDP,
    "*/*.distcp": FSDP,
    "mp_rank_*": MEGATRON,
    "*/mp_rank_*": MEGATRON,
    "*.gguf": f"is GGUF, llama.cpp's format, mostly of a few bits; {MADE_FROM}",
    "*.onnx": f"is ONNX, which can be run, but not trained; {MADE_FROM}",
    "*/*.onnx": f"is ONNX, which can be run, but not trained; {MADE_FROM}",
    "*.npz": f"is MLX's older format; {MADE_FROM}",
}
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# Pickles that hold other things.
NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state", "value_head")


def explain(folder: Path, error: CheckpointError) -> str:
    """What the folder is, and what to do; or the error itself, where nothing is known of it."""
    if folder.is_file():
        return f"{folder}: a file; name the folder that holds config.json and the weights"
    config_json = read_or_empty(folder / "config.json")
    shapes, dtypes = read_names(folder)
    for sentence in (
        lfs_pointer(folder),
        other_architecture(config_json, error),
        quantised(config_json, shapes, dtypes),
        adapter(shapes),
        head_in_a_pickle(folder, error),
        several_labels(folder, shapes),
        not_safetensors(folder),
        no_config(folder),
    ):
        if sentence:
            return f"{folder}: {sentence}"
    return str(error)


def read_or_empty(path: Path) -> dict:
    """A JSON object; {} where it is missing or broken."""
    try:
        return read_json(path)
    except CheckpointError:
        return {}


def read_names(folder: Path) -> tuple[dict[str, list[int]], set[str]]:
    """Name -> shape of the tensors in all safetensors of a folder, and the types that they have."""
    shapes, dtypes = {}, set()
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():
                    about = tensors.get_slice(name)
                    shapes[name] = about.get_shape()
                    dtypes.add(about.get_dtype())
        except (OSError, SafetensorError):
            continue  # the error that is to be explained says so
    return shapes, dtypes


def lfs_pointer(folder: Path) -> str | None:
    """git clone without git-lfs leaves three lines of text in place of a large file."""
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as start:
            if start.read(30).startswith(b"version https://git-lfs"):
                return (
                    f"{file.name} is a Git LFS pointer, the name of a file that was not "
                    f"downloaded; run `git lfs pull` in the folder"
                )
    return None


def no_config(folder: Path) -> str | None:
    """Weights alone, or nothing at all."""
    if (folder / "config.json").exists():
        return None
    inside = sorted(folder.glob("*/config.json"))
    if inside:
        names = ", ".join(path.parent.name for path in inside[:3])
        return f"config.json: No such file here, but in {names}; name one of these folders"
    return (
        "config.json: No such file; it says what the weights mean. Copy it, with tokenizer.json, "
        "from the model that was trained"
    )


def other_architecture(config_json: dict, error: CheckpointError) -> str | None:
    """A model that is not a decoder of text."""
    kind = config_json.get("model_type")
    if "model_type" not in str(error):
        return None
    if kind in list(ENCODERS):
        return (
            f"an encoder ({kind}): each of its tokens sees the whole text, and it reads the reward "
            f"at the first one; here decoders are computed. Score with transformers"
        )
    if config_json.get("is_encoder_decoder"):
        return f"an encoder with a decoder ({kind}); here decoders alone are computed"
    if "vision_config" in config_json or "_vl" in str(kind):
        return f"a vision-language model ({kind}), which reads images too; here only text is read"
    return None


def quantised(config_json: dict, shapes: dict, dtypes: set[str]) -> str | None:
    """Weights that are not the numbers to compute with, but codes for them."""
    method = None
    for dtype in dtypes:
        if dtype.startswith("F8"):
            method, where = "fp8", f"tensors of type {dtype}"
    for name in sorted(shapes):
        for ending, project in QUANTISED.items():
            if name.endswith(ending):
                method, where = project, f"a tensor {name}"
    for key in ("quantization", "quantization_config"):  # MLX's key, and that of the others
        settings = config_json.get(key)
        if isinstance(settings, dict):
            method, where = settings.get("quant_method", "MLX"), f"config.json: {key}"
    if method is None:
        return None
    return (
        f"quantised weights ({method}; {where}): codes of a few bits, which cannot be trained; "
        f"take the model that they were made from, in bfloat16 or float32"
    )


def adapter(shapes: dict) -> str | None:
    """LoRA in the weights, and not yet added to them."""
    unmerged = [name for name in shapes if ".lora_A" in name]
    if unmerged:
        return (
            f"a model with an adapter that is not merged ({unmerged[0]}); merge it with "
            f"merge_and_unload() of PEFT, then save_pretrained(NEW)"
        )
    return None


def several_labels(folder: Path, shapes: dict) -> str | None:
    """A plain head of another shape: its name is the usual one, so only loading notices it."""
    shape = shapes.get("score.weight")
    try:
        if shape:
            heads.refuse_several_labels("score.weight", shape, folder)
    except CheckpointError as e:
        return str(e).removeprefix(f"{folder}: ")
    return None


def head_in_a_pickle(folder: Path, error: CheckpointError) -> str | None:
    """LLaMA-Factory's head, where it was told to save no safetensors."""
    path = folder / "value_head.bin"
    if not path.exists() or "without a reward head" not in str(error):
        return None
    return (
        "its reward head is in value_head.bin, which is pickled and never read here (opening a "
        "pickle can run what is in it); convert it: python -c \"import torch, safetensors.torch; "
        f"safetensors.torch.save_file(torch.load('{path}', 'cpu', weights_only=True), "
        f"'{path.with_suffix('.safetensors')}')\". To train a new head instead, move it away"
    )


def not_safetensors(folder: Path) -> str | None:
    """Weights of another program, in pieces, or pickled."""
    if list(folder.glob("model*.safetensors")):
        return None
    for pattern, what in OTHER_FILES.items():
        found = sorted(folder.glob(pattern))
        if found and what.startswith("is "):
            return f"{found[0].relative_to(folder)} {what}"
        if found:
            return what
    pickles = []
    for path in sorted(folder.iterdir()):
        if path.suffix in PICKLES and not path.name.startswith(NO_WEIGHTS):
            pickles.append(path)
    if not pickles:
        return None
    pattern = pickles[0]
    if len(pickles) > 1:
        pattern = folder / f"pytorch_model*{pickles[0].suffix}"
    # clone(): of two names for one tensor, as a tied embedding has, only one would be written.
    return (
        f"no model.safetensors but {pickles[0].name}, which is pickled and never read here "
        "(opening a pickle can run what is in it); convert it: python -c \"import glob, torch, "
        "huggingface_hub as h; h.save_torch_state_dict({k: v.clone() for f in "
        f"glob.glob('{pattern}') for k, v in torch.load(f, 'cpu', weights_only=True).items()}}, "
        f"'{folder}')\""
    )
