"""checkpoint_formats.py: reward models as other projects store them.

The decoder has the same names everywhere, those of Hugging Face. The value head has not:

    transformers, TRL       score.weight, one tensor among the others, without a bias
    LLaMA-Factory           v_head.summary.weight and .bias, in value_head.safetensors; the rest is
                            an ordinary language model (…ForCausalLM)
    OpenRLHF                value_head.weight, or what config.json calls value_head_prefix
    others                  v_head.weight, out_proj.weight

Reading needs no option: a model that has one of these names is opened, and its head is kept. A
model with two of them is refused, because nobody can say which one was trained.

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

from model import CLASS_NAMES, SHARD_BYTES, CheckpointError, RewardModel

HEADS = ("score", "v_head.summary", "value_head", "v_head", "out_proj")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
# What only a classifier's config has.
CLASSIFIER_KEYS = ("num_labels", "id2label", "label2id", "problem_type", "torch_dtype")


# ---------------------------------------------------------------- reading


def translate(state: dict[str, Tensor], config_json: dict, folder: Path) -> dict[str, Tensor]:
    """The same tensors, with the head called `score`. Other names stay as they are.

    Raises: CheckpointError where there is more than one head.
    """
    heads = []
    for head in (*HEADS, str(config_json.get("value_head_prefix"))):
        if f"{head}.weight" in state and head not in heads:
            heads.append(head)
    if len(heads) > 1:
        found = ", ".join(heads)
        raise CheckpointError(f"{folder}: more than one reward head ({found}); refusing to guess")

    translated = dict(state)
    for head in heads:
        for part in ("weight", "bias"):
            if f"{head}.{part}" in translated:
                translated[f"score.{part}"] = translated.pop(f"{head}.{part}")
    return translated


# ---------------------------------------------------------------- writing


def write_llamafactory(run: str, out: Path) -> None:
    """Write the model of RUN into the new folder OUT, as LLaMA-Factory has it.

    Raises: CheckpointError where RUN is no reward model, or OUT exists.
    """
    model = RewardModel.from_pretrained(run)
    if out.exists():
        raise CheckpointError(f"{out}: exists already; name a new folder")
    out.mkdir(parents=True)

    config_json = dict(model.config.config_json)
    for key in CLASSIFIER_KEYS:
        config_json.pop(key, None)
    config_json["architectures"] = [CLASS_NAMES[model.config.model_type] + "ForCausalLM"]
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
