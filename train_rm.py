"""train_rm.py: train a reward model from human choices.  Read last; it uses loss, model, data and eval.

    python train_rm.py                                                  the toy world: no download, a minute or two
    python train_rm.py --data pairs.jsonl                               a small model from scratch on your pairs
    python train_rm.py --model DIR --data pairs.jsonl --epochs 1        from pretrained weights, as one would for RLHF
    torchrun --nproc-per-node 8 train_rm.py --model DIR --data …        the same on eight GPUs (docs/scaling.md)

One optimizer step, on --batch-size pairs (x, y_w, y_l) drawn without replacement (or so many prompts with K responses
each, whose pairs weigh as much as one together):

    r_w, r_l = rewards of chosen and rejected                            both in the same forward pass (model.py)
    θ ← AdamW(θ, ∇ mean −log σ(r_w − r_l))                               (loss.py; Ouyang et al. 2022, eq 1)

--gradient-accumulation-steps and the number of processes share out those pairs; they do not change the step.
"""
import argparse
import contextlib
import datetime
import hashlib
import importlib.metadata
import itertools
import json
import math
import os
import platform
import re
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Iterable, Iterator

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from data import DataError, Pairs, Preferences, Tokenizer, cached_preferences, collate, data_files, describe_audit
from data import encode_preferences, gold_reward, model_folder, parse_preference, split_by_prompt, step_batches
from data import toy_preferences, write_folder
from eval import check_ids, describe, number, pick_device, plot_curve, pyplot, replacing, report, score, score_pairs
from eval import speak_utf8, usable_length
from loss import bradley_terry_loss, pairwise_accuracy
from model import CheckpointError, FrozenLinear, RewardModel, RowsInUse, few, is_sharded, place, read_json, whole

CACHE_FROM = 50 * 10**6  # bytes of data

# ---------------------------------------------------------------- options


class HelpPage(argparse.RawDescriptionHelpFormatter):
    """Keeps the docstring's lines, and says each default."""

    def _get_help_string(self, action):
        return action.help + ("" if action.default in (None, False, argparse.SUPPRESS) else " (default: %(default)s)")


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line -> options. Those whose default depends on others are filled in, so vars(args) tells all."""
    natural, share = number(int, above=0), number(float, at_least=0, below=1)
    positive, not_negative = number(float, above=0), number(float, at_least=0)
    parser = argparse.ArgumentParser(
        usage="python train_rm.py [options]", description=__doc__,
        formatter_class=lambda prog: HelpPage(prog, max_help_position=32, width=120),
    )
    flag = argparse.BooleanOptionalAction
    add = parser.add_argument_group("what to learn from").add_argument
    add("--model", metavar="DIR", help="folder with config.json, tokenizer.json and safetensors to start from, or "
        "owner/name on the Hugging Face hub; a reward head in it is kept, otherwise a new one is made (default: a "
        "small decoder from scratch)")
    add("--revision", help="branch, tag or commit of a --model on the hub (default: main)")
    files = {"nargs": "+", "action": "extend", "metavar": "FILE"}
    add("--data", **files, help="pairs or ranked responses, .jsonl or .json, gzipped or not, a folder, or "
        "hub:owner/name/FILE; parse_preference in data.py lists the layouts (default: the toy world)")
    add("--eval-data", **files, help="held-out pairs (default: hold out some prompts of --data)")
    add("--eval-fraction", type=number(float, above=0, below=1), help="share of prompts to hold out (default: 0.1; in "
        "the toy world 1/6)")
    add("--max-length", type=natural, help="tokens of prompt + response (default: what the model takes, at most 1024)")
    add("--too-long", choices=["shorten-prompt", "drop"], default="shorten-prompt", help="longer pairs: cut the oldest "
        "tokens of the prompt (never a response), or leave the pair out")
    add("--skip-bad-rows", action=flag, default=False, help="leave malformed rows out and count them")
    add("--cache-dir", metavar="DIR", help="keep the data's tokens there, mapped into memory and shared by all "
        f"processes and later runs (default: runs/cache for files of over {CACHE_FROM // 10**6} MB, otherwise memory)")
    add("--toy-pairs", type=natural, default=48000, help="size of the toy world, held-out pairs included")

    add = parser.add_argument_group("a model from scratch (without --model)").add_argument
    add("--hidden-size", type=natural, default=64, help="width D")
    add("--num-hidden-layers", type=natural, default=2, help="depth")
    add("--num-attention-heads", type=natural, default=4, help="heads, each D / heads wide")
    add("--vocab-size", type=number(int, at_least=300), default=4096, help="byte-level BPE tokens, at most")

    add = parser.add_argument_group("how long and how fast").add_argument
    add("--epochs", type=positive, default=1.0, help="passes over the training pairs")
    add("--max-steps", type=natural, help="optimizer steps, instead of --epochs")
    add("--batch-size", type=natural, default=64, help="rows per optimizer step, over all processes: pairs, or K "
        "responses with all their pairs")
    add("--gradient-accumulation-steps", type=natural, default=1, help="cut each process's share of a step into this "
        "many forward passes, to save memory; the step stays the same")
    add("--tokens-per-batch", type=natural, help="instead of --gradient-accumulation-steps: as many forward passes as "
        "it takes for each to hold at most this many tokens, prompts counted once (or one row)")
    add("--lr", type=positive, help="peak learning rate (default: 1e-5 with --model, 1e-4 with --lora-rank, 1e-3 from "
        "scratch)")
    add("--lr-scheduler", choices=["cosine", "linear", "constant"], default="cosine", help="decay to 0 after warmup")
    add("--warmup-ratio", type=share, default=0.05, help="share of steps with a rising learning rate")
    add("--weight-decay", type=not_negative, default=0.01, help="AdamW's, on matrices only")
    add("--max-grad-norm", type=positive, default=1.0, help="clip the gradient's 2-norm to this")

    add = parser.add_argument_group("the loss").add_argument
    add("--label-smoothing", type=number(float, at_least=0, below=0.5), default=0.0, help="share of flipped labels")
    add("--center-rewards-coefficient", type=not_negative, default=0.0, help="penalty on (r_w + r_l)², keeps rewards "
        "around 0; TRL suggests 0.01")

    add = parser.add_argument_group("a model too large for the memory (docs/scaling.md)").add_argument
    add("--gradient-checkpointing", action=flag, default=False, help="keep only each layer's input for the backward "
        "pass and compute the rest again: less memory for about a third more work, the same step")
    add("--lora-rank", type=natural, help="train two factors of this rank beside every matrix of the layers, and the "
        "value head, instead of all weights (LoRA, Hu et al. 2021); merged into ordinary weights when saved")
    add("--lora-alpha", type=positive, help="their product counts alpha / rank times (default: twice the rank)")
    add("--freeze-layers", type=number(int, at_least=0), default=0, help="leave the embedding and the first N layers "
        "as they are")
    add("--shard", action=flag, default=False, help="every process keeps only its share of weights, gradients and "
        "moments (FSDP2), instead of a copy of all")

    add = parser.add_argument_group("the machine").add_argument
    add("--device", help="cpu, cuda, cuda:1 … (default: cuda where there is one; under torchrun one for each process)")
    add("--bf16", action=flag, default=False, help="bfloat16 autocast, float32 weights")
    add("--fp16", action=flag, default=False, help="float16 autocast with loss scaling, float32 weights")
    add("--shared-prompts", action=flag, default=True, help="compute a pair's prompt once, and no padding: the same "
        "rewards and gradients in less time; --no-shared-prompts trains in the plain form")
    add("--compile", action=flag, default=False, help="torch.compile: faster steps after slow first ones; it needs a "
        "C++ compiler, and says so where there is none")
    add("--seed", type=number(int, at_least=0, below=2**63), default=0, help="of weights, split, order and toy world")
    add("--deterministic", action=flag, default=False, help="only operations that give the same bits every time; on "
        "CPUs they all do, on GPUs some are slower")
    add("--on-nan", choices=["stop", "skip"], default="stop", help="a step whose loss or gradient is not a finite "
        "number is never taken: stop with a checkpoint of what was before, or leave that step out and go on")

    add = parser.add_argument_group("what to keep").add_argument
    add("--output", metavar="DIR", help="run folder (default: runs/toy; with --data runs/FOLDER-FILE, after it)")
    add("--resume", nargs="?", const="newest", metavar="CHECKPOINT", help="go on from the newest checkpoint in "
        "--output, or from this one, exactly as if never interrupted; give the same options again")
    add("--logging-steps", type=natural, default=10, help="steps between lines of metrics.jsonl")
    add("--eval-steps", type=natural, help="steps between evaluations (default: three in a run)")
    add("--save-steps", type=natural, default=500, help="steps between checkpoints; Ctrl-C writes one too")
    add("--save-format", choices=["transformers", "llamafactory"], default="transformers", help="layout of the trained "
        "model; both open here, and checkpoints are always the first")
    add("--normalize", action=flag, default=False, help="keep mean and standard deviation of the held-out rewards in "
        "config.json, for `eval.py score --normalized` (and OpenRLHF)")
    add("--plot", action=flag, default=False, help="draw the learning curve as curve.png (needs matplotlib)")
    add("--save-total-limit", type=number(int, at_least=0), default=1, help="checkpoints kept; 0 keeps all")
    args = parser.parse_args(argv)

    if args.hidden_size % (2 * args.num_attention_heads):
        parser.error(f"--hidden-size {args.hidden_size} is not a multiple of twice {args.num_attention_heads} heads")
    scratch = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    if args.model and (given := [name for name in scratch if getattr(args, name) != parser.get_default(name)]):
        parser.error(f"--{given[0].replace('_', '-')} is for a model from scratch; --model has its own")
    for name in ("revision", "lora_rank", "freeze_layers"):
        if getattr(args, name) and not args.model:
            parser.error(f"--{name.replace('_', '-')} needs --model")
    if args.lora_alpha and not args.lora_rank:
        parser.error("--lora-alpha needs --lora-rank")
    args.lora_alpha = args.lora_alpha or 2.0 * (args.lora_rank or 0)
    if args.bf16 and args.fp16:
        parser.error("choose one of --bf16 and --fp16")
    ranks = world()[1]
    if args.tokens_per_batch and (args.gradient_accumulation_steps > 1 or not args.shared_prompts):
        parser.error("--tokens-per-batch needs --shared-prompts, and no --gradient-accumulation-steps beside it")
    if args.batch_size % (args.gradient_accumulation_steps * ranks):
        parser.error(f"--batch-size {args.batch_size} is not a multiple of {args.gradient_accumulation_steps} "
                     f"--gradient-accumulation-steps x {ranks} processes")
    if args.eval_data and not args.data:
        parser.error("--eval-data needs --data")
    if args.eval_fraction is None:
        args.eval_fraction = 0.1 if args.data else 1 / 6
    if args.lr is None:
        args.lr = 1e-4 if args.lora_rank else 1e-5 if args.model else 1e-3
    if args.output is None:
        source = Path(args.data[0]).absolute() if args.data else None
        args.output = "runs/toy" if source is None else f"runs/{source.parent.name}-{source.name.split('.')[0]}"
    return args


# ---------------------------------------------------------------- what training starts from


def load_preferences(args) -> tuple[Iterable, Iterable]:
    """Training and held-out preferences, both to be gone through as often as needed."""
    if args.data is None:
        rows = list(toy_preferences(args.toy_pairs, args.seed))
        preferences = [parse_preference(row, f"toy:{i + 1}") for i, row in enumerate(rows)]
    else:
        preferences = Preferences(args.data, args.skip_bad_rows)
    if args.eval_data is None:
        return split_by_prompt(preferences, args.eval_fraction, args.seed)
    return preferences, Preferences(args.eval_data, args.skip_bad_rows)


def encode(args, name: str, preferences: Iterable, tokenizer: Tokenizer, max_length: int) -> tuple[Pairs, dict]:
    """The tokenised preferences and their audit; of large files from the cache, which they are put into once."""
    options = (tokenizer, max_length, args.too_long == "drop", args.skip_bad_rows)
    sources = args.eval_data if args.eval_data and name == "held out" else args.data
    files = [file.absolute() for path in sources or [] for file in data_files(path)]
    files = [file for file in files if file.exists()]  # of another one it is said where it is read
    if not files or (not args.cache_dir and sum(file.stat().st_size for file in files) < CACHE_FROM):
        return encode_preferences(preferences, *options)
    # Whatever the result depends on: the files by name, size and time, and data.py, which somebody may be changing.
    state = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    side = None if args.eval_data else [name, args.eval_fraction, args.seed]
    code = Path(__file__).with_name("data.py").read_text("utf-8")
    decides = [code, state, side, tokenizer.backend.to_str(), tokenizer.template_source, tokenizer.names, *options[1:]]
    key = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]
    folder = Path(args.cache_dir or "runs/cache") / f"{files[0].name.split('.')[0]}-{key}"
    how = "made earlier" if folder.exists() else "made once for all processes and runs"
    say(f"{name}: tokens in {folder}, {how}")
    return cached_preferences(folder, preferences, *options)


def build_model(args, train_set: Iterable, resume: Path | None) -> tuple[RewardModel, Tokenizer]:
    """The model to train and its tokenizer: from a checkpoint or --model, opened and not yet loaded; or from scratch.

    With LoRA a checkpoint holds the merged model, to be used, and the factors beside it; the model below them is read
    from --model again.
    """
    torch.manual_seed(args.seed)
    if resume or args.model:
        source = resume if resume and not args.lora_rank else model_folder(args.model, args.revision)
        tokenizer = Tokenizer.from_folder(source)
        model = RewardModel.open(source, fresh_head=source != resume)
        for key in ("mean", "std"):  # what --normalize left there is of other weights from now on
            model.config.raw.pop(key, None)
        return model, tokenizer
    texts = (m["content"] for p in train_set for messages in (p.prompt, *p.responses) for m in messages)
    tokenizer = Tokenizer.train(itertools.chain(texts, ["User: Assistant: System:"]), args.vocab_size)
    model = RewardModel.from_scratch({
        "model_type": "llama", "vocab_size": tokenizer.backend.get_vocab_size(), "hidden_size": args.hidden_size,
        "intermediate_size": 8 * -(-args.hidden_size // 3), "num_hidden_layers": args.num_hidden_layers,
        "num_attention_heads": args.num_attention_heads, "num_key_value_heads": args.num_attention_heads,
        "head_dim": args.hidden_size // args.num_attention_heads, "max_position_embeddings": args.max_length or 1024,
        "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        # The usual 0.02 is about this at D = 2048. At D = 64 it would leave attention uniform for hundreds of steps.
        "initializer_range": round(0.8 / math.sqrt(args.hidden_size), 4),
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
        "bos_token_id": None, "eos_token_id": tokenizer.end_id,
    })
    return model, tokenizer


def to_the_machine(model: RewardModel, args, used_ids: np.ndarray) -> None:
    """Decide what of the model is trained, share it out to the ranks, and bring its numbers to the device."""
    if args.lora_rank or args.freeze_layers:
        model.train_less(args.freeze_layers, args.lora_rank or 0, args.lora_alpha, autocast_dtype(args))
    else:
        model.model.embed_tokens = RowsInUse(model.model.embed_tokens, torch.from_numpy(used_ids))
    # The head's bias cancels in every difference, so its Bradley-Terry gradient is rounding noise, which Adam would
    # blow up to steps of size lr. It trains only where the centering penalty gives it a gradient.
    model.score.bias.requires_grad_(args.center_rewards_coefficient > 0)
    model.model.recompute = args.gradient_checkpointing
    opened = bool(model.tensors)  # names and shapes so far
    if not opened:
        model.to(args.device)
    if args.shard:
        model.shard(mesh(args), autocast_dtype(args))
    if opened:
        model.load(args.device)
    if args.compile:
        compile_or_say(model)


def mesh(args):
    """All processes, as FSDP2 wants them."""
    return dist.init_device_mesh(args.device.type, (world()[1],))


def compile_or_say(model: RewardModel) -> None:
    """--compile where that works; it needs a C++ compiler (CPU) or Triton (CUDA), which not every machine has."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(2, device=model.score.weight.device))
    except Exception as e:  # whatever is missing, and there are many ways
        say(f"--compile: no working compiler here, going on without ({(str(e) or repr(e)).splitlines()[0]})")
    else:
        model.compile_layers()


def make_optimizer(model: RewardModel, args) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) with weight decay on matrices only: a decayed norm or bias serves nothing."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in trained if p.ndim >= 2], "weight_decay": args.weight_decay},
              {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.lr, fused=True)  # fused: one pass over memory instead of a dozen


def learning_rate(step: int, total: int, args) -> float:
    """Linear warmup to args.lr, then cosine or linear decay to 0 at the end, or no decay."""
    warmup = math.ceil(args.warmup_ratio * total)
    if step < warmup:
        return args.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    decayed = {"cosine": 0.5 + 0.5 * math.cos(math.pi * progress), "linear": 1 - progress, "constant": 1.0}
    return args.lr * decayed[args.lr_scheduler]


# ---------------------------------------------------------------- run folder and checkpoints


def world() -> tuple[int, int]:
    """This process's number and how many there are; torchrun sets both."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def autocast_dtype(args) -> torch.dtype | None:
    """The type of --bf16 or --fp16."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None


def say(text: str) -> None:
    """Print, once for all processes, above a progress bar where there is one."""
    if world()[0] == 0:
        tqdm.write(text)
        sys.stdout.flush()


def check_output(output: Path) -> None:
    """Fail before the work, not after it, where the run folder cannot be made.  Raises: OSError, DataError."""
    existing = next(p for p in (output, *output.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise DataError(f"--output {output}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise DataError(f"--output {output}: no permission to write in {existing}")
    ours = ("options.json", "options.json.tmp")  # the second where a run was killed as it wrote the first
    if output.exists() and any(output.iterdir()) and not any((output / name).exists() for name in ours):
        raise DataError(f"--output {output}: holds files that are not a run's; choose a new folder")


def open_run_folder(output: Path) -> None:
    """Make the folder. A run that is already there is moved aside, never overwritten."""
    if (output / "options.json").exists():
        number = next(i for i in range(1, 10**6) if not output.with_name(f"{output.name}.{i}").exists())
        output.rename(output.with_name(f"{output.name}.{number}"))
        say(f"an earlier run was in {output}; it is now in {output}.{number}")
    output.mkdir(parents=True, exist_ok=True)


def save_model(folder: Path, model, tokenizer, max_length: int, save_format: str = "transformers") -> None:
    """What makes a folder a run folder."""
    model.save_pretrained(folder, tokenizer.pad_id, save_format)
    tokenizer.save(folder, max_length)


def save_checkpoint(folder: Path, model, tokenizer, optimizer, state: dict, max_length: int) -> None:
    """Everything the next step depends on. The data's place is the step number, see data.step_batches.

    One ordinary folder, whatever the number of ranks, so that a run goes on with another number of them: all ranks call
    this and put shards together; rank 0 collects and writes them, first the weights, then the moments, each in its
    host's memory. (torch.distributed.checkpoint would write shards faster, but its metadata are pickled.)
    """

    def write(temporary: Path):
        save_model(temporary, model, tokenizer, max_length)
        save_file(dict(optimizer_tensors(model, optimizer)), temporary / "optimizer.safetensors")
        (temporary / "trainer_state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")

    if world()[0] == 0:
        write_folder(folder, write)
    else:
        join_in(model, optimizer)
    if dist.is_initialized():
        dist.barrier()


def optimizer_tensors(model, optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    """(key/parameter, whole tensor) of AdamW's state: exp_avg, exp_avg_sq, step. With LoRA also "trained", what a
    merged model no longer tells apart."""
    lora = any("lora_" in name for name, _ in model.named_parameters())
    for name, p in model.named_parameters():
        kept = dict(optimizer.state.get(p, {})) | ({"trained": p} if lora and p.requires_grad else {})
        for key, value in kept.items():
            yield f"{key}/{name}", whole(value.detach()).cpu().contiguous()


def join_in(model, optimizer=None) -> None:
    """What ranks do that write nothing: take part where sharded tensors are put together, in the same order."""
    if is_sharded(model.score.weight):
        for _ in itertools.chain(model.weights(), optimizer_tensors(model, optimizer) if optimizer else ()):
            pass


def check_same_options(folder: Path, args) -> None:
    """Raises: DataError where a checkpoint belongs to another model or other options."""
    state = read_json(folder / "trainer_state.json")
    if missing := {"options", "data_fingerprint", "step", "since_log", "scaler"} - state.keys():
        raise DataError(f"{folder / 'trainer_state.json'}: no {', '.join(sorted(missing))}")
    for option, there in state["options"].items():
        if (here := options_that_decide(args).get(option)) != there:
            raise DataError(f"--resume {folder}: made with --{option.replace('_', '-')} {there}, not {here}")


def load_checkpoint(folder: Path, model, optimizer, scaler) -> tuple[int, np.ndarray]:
    """Put back the optimizer (the model was built from this folder) -> steps done, sums since the last logged line."""
    state, file = read_json(folder / "trainer_state.json"), folder / "optimizer.safetensors"
    parameters = dict(model.named_parameters())
    with safe_open(file, "pt") as tensors, torch.no_grad():
        for full_name in sorted(tensors.keys()):
            key, _, name = full_name.partition("/")
            p, value = parameters.get(name), tensors.get_tensor(full_name)
            if p is None or (value.ndim and value.shape != p.shape):  # fused AdamW would take any shape, and misread it
                raise DataError(f"{file}: {full_name} does not fit this model")
            if key == "trained":
                place(p, value)
            elif value.ndim:
                optimizer.state[p][key] = torch.zeros_like(p)
                place(optimizer.state[p][key], value)
            else:
                optimizer.state[p][key] = value.to(p.device, copy=True)
    check_base(folder, model)
    scaler.load_state_dict(state["scaler"])
    return state["step"], np.array(state["since_log"])


def check_base(folder: Path, model) -> None:
    """With LoRA: --model is what it was if one of its matrices, merged, is that of the checkpoint."""
    name = f"model.layers.{len(model.model.layers) - 1}.self_attn.q_proj"
    module = model.get_submodule(name)
    if isinstance(module, FrozenLinear) and module.lora_A is not None:
        file = next(file for file, names in RewardModel.open(folder).tensors.items() if f"{name}.weight" in names)
        with safe_open(file, "pt") as tensors:
            saved = tensors.get_tensor(f"{name}.weight")
        if not torch.allclose(module.merged(whole(module.weight)).cpu(), saved, atol=1e-4, rtol=1e-3):
            raise DataError(f"--resume {folder}: made with another model below the LoRA factors than {model.folder}")


def checkpoints(output: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    found = [p for p in output.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """How many steps were done."""
    return int(checkpoint.name.split("-")[1])


def find_checkpoint(args) -> Path | None:
    """The checkpoint --resume means; None for a run that was stopped before its first one.  Raises: DataError where
    there is no such run or checkpoint."""
    if args.resume == "newest" and not checkpoints(Path(args.output)):
        if not (Path(args.output) / "options.json").exists():
            raise DataError(f"--resume: no checkpoint in {args.output}")
        say(f"no checkpoint in {args.output} yet: starting at the beginning")
        return None
    folder = checkpoints(Path(args.output))[-1] if args.resume == "newest" else Path(args.resume)
    if not (folder / "trainer_state.json").exists():
        raise DataError(f"--resume {folder}: no trainer_state.json, so not a checkpoint of train_rm.py")
    if folder.resolve().parent != Path(args.output).resolve() and (Path(args.output) / "options.json").exists():
        raise DataError(f"--resume {folder}: --output {args.output} holds another run")
    return folder


def options_that_decide(args) -> dict:
    """The options that decide what is learned. The others may differ between a run and its continuation (which is then
    equal but for the order of floating-point sums)."""
    free = {"output", "resume", "data", "eval_data", "device", "gradient_accumulation_steps", "tokens_per_batch",
            "shared_prompts", "compile", "gradient_checkpointing", "shard", "deterministic", "on_nan", "cache_dir",
            "save_format", "normalize", "plot", "logging_steps", "eval_steps", "save_steps", "save_total_limit"}
    return {k: v for k, v in vars(args).items() if k not in free}


# ---------------------------------------------------------------- the loop

STOPPING = (signal.SIGTERM, signal.SIGINT)
LOGGED = ("loss", "accuracy", "mean_margin", "mean_reward", "mean_abs_reward")  # means over rows; rewards in nats


def accumulate_gradients(model, batches: list, n: int, args, scaler) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Add the gradient of a step's mean loss to the parameters, one micro-batch after the other.

    Each row weighs 1/n, whatever micro-batch and rank it is in, so that accumulation and ranks take the step of the
    big batch, ragged last step included. (The usual loss / accumulation_steps favours rows of small micro-batches.)

    Args:    model: a RewardModel or its DistributedDataParallel.  batches: this rank's micro-batches, data.Batch.
             n: rows of the step over all ranks.
    Returns: (6,) sums over this rank's rows: what LOGGED names, and the number of rows; the rewards of each batch.
    """
    device, ranks = batches[0].input_ids.device, world()[1]
    sums, seen = torch.zeros(6, device=device, dtype=torch.float64), []
    # DDP: ranks exchange gradients once, in the last backward pass. Shards are too large to keep all gradients until
    # then, and are summed in every one.
    later = getattr(model, "no_sync", contextlib.nullcontext)
    # Autocast around all micro-batches: it keeps its low-precision copies of the weights until it ends.
    with torch.autocast(device.type, autocast_dtype(args), enabled=args.bf16 or args.fp16):
        for i, batch in enumerate(batches):
            with contextlib.nullcontext() if i == len(batches) - 1 else later():
                rewards = model(batch.input_ids, batch.attention_mask, batch.trees)  # (N,)
                r_chosen, r_rejected = rewards[batch.chosen], rewards[batch.rejected]  # (B,) each
                loss = bradley_terry_loss(r_chosen, r_rejected, batch.margin, args.label_smoothing,
                                          args.center_rewards_coefficient, batch.weight)
                with torch.autocast(device.type, enabled=False):  # backward runs in the types that forward chose
                    # Ranks are averaged over, hence the factor.
                    scaler.scale(loss * (batch.rows / n * ranks)).backward()
            seen.append(rewards.detach())
            if batch.rows:  # else it stands in for a rank that has none, whose backward pass the others wait for
                with torch.no_grad():
                    accuracy, _ = pairwise_accuracy(r_chosen, r_rejected, batch.weight)
                    margin, reward, size = ((batch.weight * x).sum() / batch.weight.sum() for x in (
                        r_chosen - r_rejected, (r_chosen + r_rejected) / 2, (r_chosen.abs() + r_rejected.abs()) / 2))
                    means = (loss, accuracy, margin, reward, size, torch.ones_like(loss))
                    sums += batch.rows * torch.stack([mean.double() for mean in means])
    return sums, seen


def rows_to_blame(pairs, hands: list, batches: list, seen: list) -> list[str]:
    """Where the rows stand that have a reward which is not finite; all rows of the step if there is none (a gradient
    can overflow behind finite rewards). Over all ranks: every rank has to ask."""
    bad, every = [], []
    for hand, batch, rewards in zip(hands, batches, seen):
        finite, first = torch.isfinite(rewards).cpu().numpy(), 0
        for r in hand if batch.rows else []:
            behind = first + int(pairs.row_sequences[r + 1] - pairs.row_sequences[r])
            every.append(pairs.tags(r)["where"])
            bad += [] if finite[first:behind].all() else [every[-1]]
            first = behind
    of_rank = [(bad, every)]
    if dist.is_initialized():
        of_rank = [None] * world()[1]
        dist.all_gather_object(of_rank, (bad, every))
    bad, every = ([place for part in parts for place in part] for parts in zip(*of_rank))
    return bad or every


class Stopped(Exception):
    """A signal asked to stop, and a checkpoint is written."""


def train(args, model, tokenizer, pairs, held_out, max_length: int, resume: Path | None) -> int:
    """Train in place, log and save. Returns the steps done.

    Raises: Stopped with the signal's number; DataError at a step that is not finite. Both after a checkpoint.
    """
    (rank, ranks), output, device = world(), Path(args.output), args.device
    per_epoch = math.ceil(pairs.rows / args.batch_size)
    total = args.max_steps or max(1, math.ceil(args.epochs * per_epoch))
    eval_steps = args.eval_steps or math.ceil(total / 3)

    optimizer = make_optimizer(model, args)
    scaler = torch.amp.GradScaler(device.type, enabled=args.fp16)  # passes everything through unless enabled
    start, since_log = 0, np.zeros(6)  # since_log: sums over all rows since the last logged line
    if resume:
        start, since_log = load_checkpoint(resume, model, optimizer, scaler)
        say(f"resumed from {resume} at step {start}")
        for later in (p for p in checkpoints(output) if rank == 0 and step_of(p) > start):
            say(f"{later} lies ahead of that and will be written anew")
            remove(later)
    ddp = ranks > 1 and not args.shard
    parallel = torch.nn.parallel.DistributedDataParallel(
        model, forward_sync_buffers=False, gradient_as_bucket_view=True  # or gradients would be there twice
    ) if ddp else model

    def prepare(step):
        """The batches of a step, on the device; in a thread, so that they are ready when the step before is done."""
        hands, n = step_batches(pairs, step, args.batch_size, args.gradient_accumulation_steps, rank, ranks, args.seed,
                                args.tokens_per_batch, args.shared_prompts)
        batches = []
        for hand in hands:
            # An epoch's tail can be smaller than the ranks: one without rows must join in, or the others wait forever.
            batch = collate(pairs, hand if len(hand) else [0], tokenizer.pad_id, args.shared_prompts)
            batches.append(batch._replace(rows=len(hand)).to(device))
        pairs.release()
        return hands, batches, n

    def save(done):
        state = {"step": done, "since_log": since_log.tolist(), "data_fingerprint": pairs.fingerprint,
                 "options": options_that_decide(args), "scaler": scaler.state_dict()}
        save_checkpoint(output / f"checkpoint-{done}", model, tokenizer, optimizer, state, max_length)
        if rank == 0:
            drop_old_checkpoints(output, args.save_total_limit)

    with (stop_signals() as stop, metrics_log(output, start) as log, progress_bar(total, start) as bar,
          ThreadPoolExecutor(max_workers=1) as thread):
        began, pairs_done, upcoming = time.perf_counter(), 0, thread.submit(prepare, start)
        for step in range(start, total):
            # evaluate; before the step, so that a run resumed here evaluates too
            if step and step % eval_steps == 0:
                try:
                    result = evaluate(model, held_out, args, dtype=autocast_dtype(args))
                    log(evaluation_line(step, result))
                    say(f"step {step}/{total}  held-out {headline(result)}")
                except DataError as e:  # a reward that is not finite
                    if args.on_nan == "stop":
                        save(step)
                        raise
                    say(f"step {step}/{total}  held-out: {e}; skipped")

            # set the learning rate
            lr = learning_rate(step, total, args)
            for group in optimizer.param_groups:
                group["lr"] = lr

            # micro-batches
            hands, batches, n = upcoming.result()
            upcoming = thread.submit(prepare, step + 1) if step + 1 < total else None
            sums, seen = accumulate_gradients(parallel, batches, n, args, scaler)

            # clip; sums of all ranks, and whether one of them got a signal
            scaler.unscale_(optimizer)
            grad_norm = whole(torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm))
            sums = torch.cat([sums, sums.new_tensor([number in stop for number in STOPPING])])
            if ranks > 1:
                dist.all_reduce(sums)
            *sums, grad_norm = torch.cat([sums, grad_norm.double()[None]]).tolist()
            sums, stopping = sums[:6], [number for number, asked in zip(STOPPING, sums[6:]) if asked]

            # step; a step that is not finite never reaches the weights
            done, pairs_done = step + 1, pairs_done + n * len(pairs) / pairs.rows
            if math.isfinite(sums[0]) and math.isfinite(grad_norm):
                scaler.step(optimizer)
                scaler.update()
            elif math.isfinite(sums[0]) and args.fp16 and scaler.get_scale() > 1:
                scaler.update(scaler.get_scale() / 2)  # float16 overflowed, which is what the scale is for
            else:
                what = f"loss is {sums[0] / n}" if not math.isfinite(sums[0]) else f"gradient's norm is {grad_norm}"
                rows = rows_to_blame(pairs, hands, batches, seen)
                message = f"step {done}: the {what}; rows: {few(rows, 8)}"
                if args.on_nan == "stop":
                    if step > start:
                        save(step)
                    raise DataError(f"{message}. Try a lower --lr, or --bf16 instead of --fp16; or --on-nan skip"
                                    + (f" with --resume, from step {step}" if step > start else ""))
                say(f"{message}; skipped")
                log({"step": done, "skipped": what, "rows": rows})
                scaler.update(scaler.get_scale())  # the same; but it takes no other step before it is told of this one
                sums = [0.0] * 6
            optimizer.zero_grad(set_to_none=True)

            # log the mean over all rows and ranks since the last line
            since_log += sums
            if (done % args.logging_steps == 0 or done == total) and since_log[5]:
                means = dict(zip(LOGGED, (since_log / since_log[5]).tolist()))
                elapsed = time.perf_counter() - began
                log({"step": done, "epoch": done / per_epoch, **means, "lr": lr,
                     "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
                     "pairs_per_second": pairs_done / elapsed})
                since_log = np.zeros(6)
                status = f"loss {means['loss']:.3f}  acc {means['accuracy']:.3f}  {pairs_done / elapsed:.0f} pairs/s"
                bar.set_postfix_str(status)
                if bar.disable:
                    say(f"step {done}/{total}  {status}  {(total - done) * elapsed / (done - start):.0f} s left")
            bar.update()

            # save
            if stopping or (done % args.save_steps == 0 and done < total):
                save(done)
            if stopping:
                raise Stopped(stopping[0])
    return total


def not_compiled(args):
    """Compiled layers would be compiled once more for evaluation, which does not pay."""
    return torch.compiler.set_stance("force_eager") if args.compile else contextlib.nullcontext()


def evaluate(model: RewardModel, held_out, args, **options) -> dict:
    """The report on the held-out pairs."""
    with not_compiled(args):
        rewards = score_pairs(model, held_out, tokens_per_batch=args.tokens_per_batch or 8192, **options)
    return report(rewards, held_out)


def evaluation_line(step: int, result: dict) -> dict:
    """What metrics.jsonl keeps of an evaluation."""
    kept = ("loss", "accuracy", "accuracy_ci95", "mean_margin")
    return {"step": step, **{f"eval_{name}": result[name] for name in kept}}


def headline(result: dict) -> str:
    """The one figure a line has room for, with its error and what to hold it against."""
    low, high = result["accuracy_ci95"]
    ceiling = f" (ceiling {result['ceiling_accuracy']:.3f})" if "ceiling_accuracy" in result else ""
    return f"loss {result['loss']:.3f}  acc {result['accuracy']:.3f} ± {(high - low) / 2:.3f}{ceiling}"


@contextlib.contextmanager
def stop_signals():
    """The signals received so far: Ctrl-C or a cluster's SIGTERM asks to stop after the step; another one, two seconds
    later or more, stops at once. (torchrun passes on the Ctrl-C that the terminal has sent already.)"""
    received: dict[int, float] = {}

    def on_signal(number, frame):
        if received and time.monotonic() - min(received.values()) > 2:
            raise KeyboardInterrupt
        received.setdefault(number, time.monotonic())

    previous = {number: signal.signal(number, on_signal) for number in STOPPING}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def metrics_log(output: Path, start: int):
    """A function that appends a line to metrics.jsonl (rank 0's alone). Lines of steps that will be done again are
    taken out first, an evaluation at `start` too: it comes before the next step."""
    if world()[0] > 0:
        yield lambda line: None
        return
    path = output / "metrics.jsonl"
    lines = path.read_text("utf-8").splitlines(True) if path.exists() else []
    lines = [line for line in lines if line.endswith("\n")]  # a killed run may leave half a line
    try:
        records = [json.loads(line) for line in lines]
    except ValueError as e:
        raise DataError(f"{path}: not JSON lines ({e})") from None
    stays = lambda r: r["step"] < start or (r["step"] == start and "eval_loss" not in r)
    kept = [line for line, r in zip(lines, records) if stays(r)]
    with replacing(path) as file:
        file.write("".join(kept))
    with open(path, "a", encoding="utf-8") as file:
        yield lambda line: (file.write(json.dumps(line) + "\n"), file.flush())


def progress_bar(total: int, start: int) -> tqdm:
    """A bar on a terminal; elsewhere a disabled one, and the loop prints plain lines."""
    hidden = world()[0] > 0 or not sys.stderr.isatty()
    return tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, disable=hidden)


def drop_old_checkpoints(output: Path, limit: int) -> None:
    """All but the newest ones; limit 0 keeps all."""
    for path in checkpoints(output)[:-limit] if limit else []:
        remove(path)


def remove(checkpoint: Path) -> None:
    """Under another name, so that half of it never passes for a checkpoint, should this be killed."""
    gone = checkpoint.with_name(f"{checkpoint.name}.tmp")
    shutil.rmtree(gone, ignore_errors=True)
    shutil.rmtree(checkpoint.rename(gone))


# ---------------------------------------------------------------- from start to end


def run(args) -> int:
    """Options -> run folder. Returns the exit status."""
    output, started = Path(args.output), time.perf_counter()
    check_output(output)
    if args.plot:
        pyplot()  # missing? better now than after the work
    if args.resume == "newest" and (output / "report.json").exists():
        say(f"{output} is finished: nothing to resume")
        return 0
    resume = find_checkpoint(args) if args.resume else None  # still None where it has to start at the beginning
    if resume:
        check_same_options(resume, args)

    # data, model
    train_set, eval_set = load_preferences(args)
    model, tokenizer = build_model(args, train_set, resume)
    max_length = min(usable_length(model, tokenizer, args.max_length), args.max_length or 1024)
    parts, audits = [], {}
    for name, preferences in (("train", train_set), ("held out", eval_set)):
        part, audits[name] = encode(args, name, preferences, tokenizer, max_length)
        say(describe_audit(name, audits[name]))
        if not len(part):
            raise DataError(f"no pairs left in the {name} data; the audit above says why")
        check_ids(part.used_ids, model, f"{name} data")
        parts.append(part)
    pairs, held_out = parts
    if shared := np.isin(held_out.prompt_key, pairs.prompt_key).sum():
        say(f"warning: {shared} of {held_out.rows} evaluation pairs have a prompt that is trained on too")
    if resume and read_json(resume / "trainer_state.json")["data_fingerprint"] != pairs.fingerprint:
        raise DataError(f"--resume {resume}: made with other training data")
    size = sum(p.numel() for p in model.parameters())
    to_the_machine(model, args, pairs.used_ids)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    head = "continued from a checkpoint" if resume else model.head_origin
    say(f"model: {size:,} parameters, {trained:,} of them trained, vocabulary {model.config.vocab_size:,}, value head "
        f"{head}; reward read at {tokenizer.end_token!r}")

    # run folder
    if world()[0] == 0:
        if args.resume:
            output.mkdir(parents=True, exist_ok=True)
            (output / "report.json").unlink(missing_ok=True)  # it says that a run is finished
        else:
            open_run_folder(output)
        versions = {name: importlib.metadata.version(name) for name in ("numpy", "safetensors", "tokenizers")}
        versions |= {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
        options = vars(args) | {"device": str(args.device), "processes": world()[1], "versions": versions,
                                "data_fingerprint": pairs.fingerprint, "audit": audits}
        with replacing(output / "options.json") as file:
            file.write(json.dumps(options, indent=2) + "\n")
        if args.eval_data is None and not (resume and (output / "held_out.jsonl").exists()):
            with replacing(output / "held_out.jsonl") as file:
                file.writelines(json.dumps(p.to_row(), ensure_ascii=False) + "\n" for p in eval_set)
    if dist.is_initialized():
        dist.barrier()

    # train, save, evaluate
    steps = train(args, model, tokenizer, pairs, held_out, max_length, resume)
    keep_model(args, model, tokenizer, max_length)
    if args.shard and autocast_dtype(args):  # its layers are put together in half precision; a report is in float32
        model = RewardModel.open(output)
        model.shard(mesh(args))
        model.load(args.device)
    result = keep_report(args, model, held_out, steps)
    say(f"\n{describe(result)}\n")
    if args.data is None:
        with not_compiled(args):
            summarise_toy(model, tokenizer, result, output)
    data = args.eval_data[0] if args.eval_data else output / "held_out.jsonl"
    say(f"{output} written after {time.perf_counter() - started:.0f} s. Next:\n"
        f"  python eval.py report {output} --data {data}\n"
        "  echo '{\"prompt\": \"Which colour is grass?\", \"response\": \"It is green.\"}' | "
        f"python eval.py score {output}")
    return 0


def keep_model(args, model, tokenizer, max_length: int) -> None:
    """The trained model into the run folder."""
    bias = whole(model.score.bias.detach()).item()
    if world()[0] > 0:
        join_in(model)
    else:
        write_folder(Path(args.output), lambda into: save_model(into, model, tokenizer, max_length, args.save_format))
        if bias and args.save_format == "transformers":
            say(f"note: the head has a bias of {bias:+.4f}, kept as score.bias; transformers and others have no such "
                f"tensor and give every reward without it, {bias:+.4f} away from ours")
    if dist.is_initialized():
        dist.barrier()


def keep_report(args, model, held_out, steps: int) -> dict:
    """The trained model's report into the run folder; it is returned."""
    output = Path(args.output)
    result = evaluate(model, held_out, args)
    if world()[0] == 0:
        with open(output / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(evaluation_line(steps, result)) + "\n")
        with replacing(output / "report.json") as file:
            file.write(json.dumps(result, indent=2) + "\n")
        if args.normalize:
            config = read_json(output / "config.json") | {"mean": result["mean_reward"], "std": result["std_reward"]}
            with replacing(output / "config.json") as file:
                file.write(json.dumps(config, indent=2) + "\n")
        if args.plot:
            lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text("utf-8").splitlines()]
            figure, axis = pyplot().subplots(layout="constrained")
            plot_curve(axis, None, None, result, lines)
            figure.savefig(output / "curve.png", dpi=150)
    return result


def summarise_toy(model, tokenizer, result: dict, output: Path) -> None:
    """What the toy run shows, in words, with a few scored answers."""
    say(f"Labels are drawn at random from the true rewards, so on average nothing can score more than "
        f"{result['ceiling_accuracy']:.1%} on\nsuch pairs; the model scores {result['accuracy']:.1%}. Learned and true "
        f"rewards of one prompt's responses correlate by {result['gold_correlation']:.3f}.\n")
    prompt = "Which colour is grass?"
    responses = ["I am happy to help. It is green. Painters mix it often.", "It is green.",
                 "You ask too much. It is green.", "It is green. Many trains go there. It sleeps a lot.",
                 "It is red.", "You ask too much. It is red."]
    rewards = score(model, [{"prompt": prompt, "response": r} for r in responses], tokenizer)
    offset = np.mean(rewards) - np.mean([gold_reward(prompt, r) for r in responses])  # a reward has no zero point
    say(f"{prompt:<58} learned   true   (nats, learned ones shifted by {-offset:+.2f})")
    for response, reward in zip(responses, rewards):
        say(f"  {response:<56} {reward - offset:+7.2f} {gold_reward(prompt, response):+6.1f}")
    say("")


def start_processes(args) -> None:
    """The process group: torchrun's, or with --shard alone one of this process."""
    backend, where = "gloo", {}
    if args.device.type == "cuda":
        local = os.environ.get("LOCAL_RANK") if world()[1] > 1 else args.device.index
        args.device = torch.device("cuda", int(local or 0))
        torch.cuda.set_device(args.device)
        backend, where = "nccl", {"device_id": args.device}
    try:
        alone = {} if world()[1] > 1 else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
        # Others wait while rank 0 writes a large checkpoint: NCCL's ten minutes may be too few.
        dist.init_process_group(backend, timeout=datetime.timedelta(hours=2), **where, **alone)
    except ValueError as e:
        raise DataError(f"WORLD_SIZE is {world()[1]}, but not by torchrun ({e})") from None


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0; 1 where another process is gone; 2 for a mistake in what was given,
    a full disk, or a step that is not finite; 130 when stopped by Ctrl-C, 143 by SIGTERM, both with a checkpoint."""
    args = parse_options(argv)
    speak_utf8()
    try:
        args.device = pick_device(args.device)
        if args.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
            torch.use_deterministic_algorithms(True)
        if world()[1] > 1 or args.shard:
            start_processes(args)
        return run(args)
    except Stopped as e:
        say(f"stopped; the same command with --resume goes on from the checkpoint in {args.output}")
        return 128 + e.args[0]
    except (DataError, CheckpointError, SafetensorError, OSError) as e:
        return complain(e, 2)
    except (RuntimeError, MemoryError) as e:
        line = (str(e) or repr(e)).splitlines()[0]
        if isinstance(e, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in line:
            return complain(f"out of memory ({line}); docs/scaling.md says what to try, in order", 2)
        if world()[1] == 1 or not re.search("gloo|nccl|connection|socket|peer", line, re.I):
            raise
        return complain(f"process {world()[0]} of {world()[1]} lost another one, whose own message says why; --resume "
                        f"goes on from the last checkpoint ({line})", 1)
    except KeyboardInterrupt:
        return complain("interrupted", 130)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def complain(what, status: int) -> int:
    """One line for whoever started this. A mistake that all processes meet is said by the first; the others wait for
    torchrun to end them, and speak only where it does not."""
    if world()[0] > 0:
        time.sleep(3)
    print(f"train_rm.py: {what}", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
