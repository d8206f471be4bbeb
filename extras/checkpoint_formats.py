"""checkpoint_formats.py: reward models as other projects store them.

The decoder has the same names everywhere, those of Hugging Face, and the value head has not. What
heads are called, and which are computed, is in extras/heads.py. Where they are stored:

    transformers, TRL, OpenRLHF     with the decoder; the head has no bias
    LLaMA-Factory                   in value_head.safetensors, with a bias; the rest is an ordinary
                                    language model (…ForCausalLM)

Names of the decoder vary in what they begin with:

    model.layers.0.…                a language model or a classifier: the usual names
    layers.0.…                      the decoder alone, without a head (Qwen3-Embedding, e5-mistral)
    module.model.layers.0.…         a wrapper's name before all others: module. (DDP, DeepSpeed),
                                    _orig_mod. (torch.compile), pretrained_model. (TRL's models with
                                    a value head), base_model.model. (PEFT), or several of them

Reading needs no option: a model with these names is opened, and its head is kept. It is saved
under the usual names. Where names of the decoder begin in two ways, the model is refused, because
nobody can say which tensors belong to it.

Writing LLaMA-Factory's layout, for their programs to score or to train with:

    python extras/checkpoint_formats.py RUN OUT

No number changes: tests/extras/test_checkpoint_formats.py compares rewards through both layouts.
"""
import argparse
import json
import shutil
import sys
from pathlib import Path

from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from torch import Tensor

if __name__ == "__main__":  # Python looks beside this file; model.py is one folder up
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data import Tokenizer
from extras import heads
from extras.chat_template import DIALOGUE
from model import CLASS_NAMES, SHARD_BYTES, CheckpointError, RewardModel

WRAPPERS = ("module.", "_orig_mod.", "pretrained_model.", "base_model.model.", "base_model.")
# Language models of transformers whose class is not called …ForCausalLM after the family.
LANGUAGE_MODELS = {"gpt2": "GPT2LMHeadModel", "gemma3_text": "Gemma3ForCausalLM"}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
# What only a classifier's config has.
CLASSIFIER_KEYS = ("num_labels", "id2label", "label2id", "problem_type", "torch_dtype")


# ---------------------------------------------------------------- reading


def translate(state: dict[str, Tensor], model: RewardModel, folder: Path) -> dict[str, Tensor]:
    """The same tensors under the names of model.py. A name that nobody knows stays as it is.

    Raises: CheckpointError where names begin in two ways, or heads.translate refuses the head.
    """
    state = without_wrappers(state, folder)
    state = with_model(state, model, folder)
    state.pop("lm_head.weight", None)  # read_tensors knows it without a wrapper only
    return heads.translate(state, model, folder)


def without_wrappers(state: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """module.model.norm.weight -> model.norm.weight, and so on."""
    short_names, wrappers = {}, set()
    for name, tensor in state.items():
        short = without_wrapper(name)
        if "layers." in short:  # a part of the decoder; a head may be outside of the wrapper
            wrappers.add(name.removesuffix(short))
        if short in short_names:
            raise CheckpointError(f"{folder}: two tensors are called {short}; refusing to guess")
        short_names[short] = tensor
    if len(wrappers) > 1:
        first, second = sorted(wrappers)[:2]
        raise CheckpointError(
            f"{folder}: names of layers begin with {first!r} and with {second!r}; refusing to guess"
        )
    return short_names


def without_wrapper(name: str) -> str:
    """A name without the wrappers that it begins with, one inside the other."""
    for wrapper in WRAPPERS:
        if name.startswith(wrapper):
            return without_wrapper(name.removeprefix(wrapper))
    return name


def with_model(state: dict[str, Tensor], model: RewardModel, folder: Path) -> dict[str, Tensor]:
    """norm.weight -> model.norm.weight: the names of a decoder that was saved alone."""
    expected = model.state_dict().keys()
    alone = []
    for name in state:
        if f"model.{name}" in expected:
            alone.append(name)
    usual = [name for name in state if name.startswith("model.")]
    if alone and usual:
        raise CheckpointError(
            f"{folder}: some names begin with model. ({usual[0]}), others do not ({alone[0]}); "
            f"refusing to guess"
        )
    renamed = dict(state)
    for name in alone:
        renamed[f"model.{name}"] = renamed.pop(name)
    return renamed


# ---------------------------------------------------------------- writing


def write_llamafactory(run: str, out: Path) -> None:
    """Write the model of RUN into the new folder OUT, as LLaMA-Factory has it.

    Raises: CheckpointError where RUN is no reward model, or OUT exists.
    """
    model = RewardModel.from_pretrained(run)
    if out.exists():
        raise CheckpointError(f"{out}: exists already; name a new folder")
    refuse_other_reading(model, run)
    if isinstance(model.score, heads.HeadOfLayers):
        raise CheckpointError(f"{run}: its head has several layers, LLaMA-Factory's has one")
    out.mkdir(parents=True)

    config_json = dict(model.config.config_json)
    for key in CLASSIFIER_KEYS:
        config_json.pop(key, None)
    family = model.config.model_type
    usual = CLASS_NAMES[family] + "ForCausalLM"
    config_json["architectures"] = [LANGUAGE_MODELS.get(family, usual)]
    config_json["dtype"] = "float32"
    text = json.dumps(config_json, indent=2) + "\n"
    (out / "config.json").write_text(text, encoding="utf-8")

    state = dict(model.state_dict())
    head = {}
    for part in ("weight", "bias"):
        head[f"v_head.summary.{part}"] = state.pop(f"score.{part}")
    save_file(head, out / "value_head.safetensors")
    save_torch_state_dict(state, out, max_shard_size=SHARD_BYTES)
    for name in TOKENIZER_FILES:
        if (model.folder / name).exists():
            shutil.copyfile(model.folder / name, out / name)


def refuse_other_reading(model: RewardModel, run: str) -> None:
    """Raises: CheckpointError where LLaMA-Factory would read the reward at another token."""
    pad_id = model.config.config_json.get("pad_token_id")
    if not model.folder or not (model.folder / "tokenizer.json").exists():
        return
    tokenizer = Tokenizer.from_folder(model.folder, head_config=model.config.config_json)
    ids = tokenizer.backend.encode(tokenizer.render(DIALOGUE), add_special_tokens=False).ids
    if tokenizer.as_rendered and ids[-1] == pad_id:
        raise CheckpointError(
            f"{run}: its texts end with its pad token, and its reward is read before that token; "
            "LLaMA-Factory reads at the last token, and would give other rewards"
        )


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, or 2 for invalid input."""
    parser = argparse.ArgumentParser(description="Write a run folder in LLaMA-Factory's layout.")
    parser.add_argument("run", metavar="RUN", help="folder of a reward model, or a hub name")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write; must be new")
    args = parser.parse_args(arguments)
    try:
        write_llamafactory(args.run, args.out)
    except (CheckpointError, OSError) as e:
        print(f"checkpoint_formats.py: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
