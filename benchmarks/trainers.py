"""One training run each, on the same weights and rows, in a process of its own.

speed.py and parity.py start these processes in a folder that speed.prepare filled. A trainer gets
its settings and returns what `result` says. All take steps with a constant learning rate: the
schedules of the three differ by a step. AdamW has the same betas, weight decay and clipping.
"""
import hashlib
import itertools
import json
import os
import sys
from pathlib import Path

from common import StepClock, asked_to_work, losses_of_run, read_json


def result(clock: StepClock, losses: list[float], ids: list, **versions) -> dict:
    """Seconds of each step, memory, the loss of each step, and a hash of the token ids."""
    return {
        "step_seconds": clock.seconds(),
        "peak_mb": clock.peak_mb,
        "losses": losses,
        "tokens": hashlib.sha256(json.dumps(sorted(ids)).encode()).hexdigest()[:12],
        "versions": versions,
    }


# ---------------------------------------------------------------- ours


def train_ours(s: dict) -> dict:
    """train_rm.py as it is here, with the options that the settings add."""
    clock = StepClock()
    import torch

    import train_rm
    from data import Examples

    train_rm.LOGGING_STEPS = 1
    train_rm.learning_rate = constant
    losses = train(train_rm, s)
    examples = Examples(Path(s["folder"], "run", "tokens"))
    ids = []
    for number in examples.numbers(held_out=False):
        sequences = [sequence.tolist() for sequence in examples[number].sequences]
        ids += pairs_of_row(sequences)
    return result(clock, losses, ids, torch=torch.__version__)


def constant(step: int, total: int, peak: float) -> float:
    """A learning rate without warmup and decay."""
    return peak


def train(train_rm, s: dict) -> list[float]:
    """Train for one epoch of the prepared rows -> the loss of each step."""
    folder = Path(s["folder"])
    options = {
        "--model": folder / "model",
        "--data": folder / "rows.jsonl",
        "--eval-data": folder / "held_out.jsonl",
        "--output": folder / "run",
        "--batch-size": s["batch"] * s["accumulation"],
        "--gradient-accumulation-steps": s["accumulation"],
        "--lr": s["lr"],
        "--weight-decay": s["weight_decay"],
        "--eval-steps": 100000,  # none that would be timed
        "--max-length": s["max_length"],
        "--device": s["device"],
    }
    argv = [*s["options"]]
    for name, value in options.items():
        argv += [name, str(value)]
    if s["dtype"] == "bf16":
        argv.append("--bf16")
    if train_rm.main(argv):
        sys.exit("train_rm.py failed")
    return losses_of_run(folder / "run")


# ---------------------------------------------------------------- other trainers


def shared_settings(s: dict) -> dict:
    """What TRL and LLaMA-Factory call by the same names, because transformers does."""
    return {
        "per_device_train_batch_size": s["batch"] * s.get("pairs_of_row", 1),
        "gradient_accumulation_steps": s["accumulation"],
        "learning_rate": s["lr"],
        "lr_scheduler_type": "constant",
        "weight_decay": s["weight_decay"],
        "adam_beta1": s["betas"][0],
        "adam_beta2": s["betas"][1],
        "max_grad_norm": 1.0,
        "num_train_epochs": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": s["dtype"] == "bf16",
        "use_cpu": s["device"] == "cpu",
    }


def read_pairs(s: dict) -> list:
    """The token ids of the pairs to train on, in the order of the steps.

    Of K responses, the best one first, K (K − 1) / 2 pairs.
    """
    pairs = []
    for row in read_json(Path(s["folder"], "ids.json")):
        pairs += pairs_of_row(row)
    return pairs


def pairs_of_row(sequences: list) -> list:
    """All pairs of a row whose sequences are in order, the better one first."""
    return [list(pair) for pair in itertools.combinations(sequences, 2)]


def train_trl(s: dict) -> dict:
    """TRL's RewardTrainer. With "texts" it renders and encodes the dialogues itself."""
    clock = StepClock()
    import torch
    import transformers
    import trl
    from datasets import Dataset

    if s.get("texts"):
        rows = read_json(Path(s["folder"], "texts.json"))
    else:
        rows = [{"chosen_ids": a, "rejected_ids": b} for a, b in read_pairs(s)]
    config = trl.RewardConfig(
        output_dir=f"{s['folder']}/trl",
        max_length=s["max_length"],
        gradient_checkpointing=False,
        train_sampling_strategy="sequential",
        **shared_settings(s),
    )
    trainer = trl.RewardTrainer(
        model=f"{s['folder']}/model", args=config, train_dataset=Dataset.from_list(rows)
    )
    ids = [[row["chosen_ids"], row["rejected_ids"]] for row in trainer.train_dataset]
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    versions = {"trl": trl.__version__, "transformers": transformers.__version__}
    return result(clock, losses, ids, torch=torch.__version__, **versions)


def train_llamafactory(s: dict) -> dict:
    """LLaMA-Factory's stage rm. It makes a value head of its own, so its losses are others."""
    skip_torchaudio()
    clock = StepClock()
    import torch
    import transformers
    from datasets import Dataset
    from llamafactory.extras.env import VERSION
    from llamafactory.train.rm import workflow
    from llamafactory.train.tuner import run_exp

    ids = read_pairs(s)
    dataset = Dataset.from_list([llamafactory_row(*pair) for pair in ids])
    workflow.get_dataset = lambda *args, **kwargs: {"train_dataset": dataset}  # the same ids
    versions = {"llamafactory": VERSION, "transformers": transformers.__version__}

    class Done(transformers.TrainerCallback):
        """Ends the process when training is done: saving fails for some models."""

        def on_train_end(self, args, state, control, **kwargs):
            losses = [line["loss"] for line in state.log_history if "loss" in line]
            found = result(clock, losses, ids, torch=torch.__version__, **versions)
            print(json.dumps(found), flush=True)
            os._exit(0)

    settings = shared_settings(s) | {
        "stage": "rm",
        "do_train": True,
        "finetuning_type": "full",
        "template": "empty",
        "dataset": "pairs",
        "cutoff_len": s["max_length"],
        "model_name_or_path": f"{s['folder']}/model",
        "output_dir": f"{s['folder']}/llamafactory",
        "overwrite_output_dir": True,
        "disable_shuffling": True,
        "remove_unused_columns": False,
        "disable_gradient_checkpointing": True,
    }
    run_exp(settings, callbacks=[Done()])
    sys.exit("LLaMA-Factory did not finish")


def llamafactory_row(chosen: list[int], rejected: list[int]) -> dict:
    """A pair as its collator wants it."""
    row = {"images": None, "videos": None, "audios": None}
    for side, ids in (("chosen", chosen), ("rejected", rejected)):
        row[f"{side}_input_ids"] = row[f"{side}_labels"] = ids
        row[f"{side}_attention_mask"] = [1] * len(ids)
    return row


def skip_torchaudio() -> None:
    """LLaMA-Factory imports it, sound or not."""
    import importlib.machinery
    import types

    try:
        import torchaudio  # noqa: F401
    except ImportError:
        module = types.ModuleType("torchaudio")
        module.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
        sys.modules["torchaudio"] = module


if __name__ == "__main__":
    asked_to_work({
        "ours": train_ours,
        "trl": train_trl,
        "llamafactory": train_llamafactory,
    })
