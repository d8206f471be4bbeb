"""train_rm.py: train a reward model from human choices.  Read last; it uses the other four files.

    python train_rm.py                                          the toy world: about a minute
    python train_rm.py --data pairs.jsonl                       a small model from scratch
    python train_rm.py --model DIR --data pairs.jsonl --pack    from pretrained weights, as for RLHF
    python train_rm.py --resume RUN                             continue a run that was stopped
    torchrun --nproc-per-node 8 train_rm.py --model DIR …       the same steps on eight GPUs

One optimizer step, on --batch-size rows of (x, y_w, y_l):

    r_w, r_l = rewards of chosen and rejected                   one forward pass (model.py)
    θ ← AdamW(θ, ∇ mean −log σ(r_w − r_l))                      (loss.py; Ouyang et al. 2022, eq 1)

Micro-batches and processes cut those rows into pieces. They do not change the step. On real data
add --pack: it computes a prompt once for all its responses, and takes the same step in less time.
"""
import argparse
import contextlib
import datetime
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import signal
import sys
import time
import zlib
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from data import (
    Audit, DataError, Examples, Tokenizer, batch_function, describe_audit, examples_of,
    held_out_prompts, layout_options, micro_batches, prompt_hash, read_rows, rows_of_step,
    turn_text, write_tokens,
)
from eval import (
    check_ids, describe, first_line, is_out_of_memory, open_streams, pick_device, report, score,
    score_examples, usable_length,
)
from loss import bradley_terry_loss, pairwise_correct
from model import CheckpointError, RewardModel, open_model, read_json, whole

LOGGING_STEPS = 10  # steps between lines of metrics.jsonl
WARMUP = 0.05  # share of the steps with a rising learning rate
FEW_STEPS = 100  # below this a line says so
BETAS = (0.9, 0.999)  # of AdamW: the usual values
MAX_LENGTH = 1024  # tokens, where --max-length is not given and the model takes so many


# ---------------------------------------------------------------- from start to end


def run(args):
    """Options -> run folder."""
    output, started = Path(args.output), time.perf_counter()
    if args.resume and (output / "report.json").exists():
        on_first(lambda: remove(output / BEST))
        say(f"{output} is finished: nothing to resume")
        return
    if args.resume:
        on_first(lambda: claim(output))
    else:
        check_files(args)  # before an earlier run is moved aside
        on_first(lambda: open_run_folder(args, output))
    say(f"run folder {output}, on {args.device}")

    # 1. Rows -> tokens. The first process writes them into the run folder, once.
    split = Split(args, args.data or toy_data(args, output))
    if not args.model:
        on_first(lambda: make_tokenizer(args, output, split))
    model, tokenizer = build_model(args, output)
    max_length = usable_length(model, tokenizer, args.max_length)
    if not args.max_length:
        max_length = min(max_length, MAX_LENGTH)
    on_first(lambda: write_data(args, output, split, tokenizer, max_length))
    examples = open_examples(args, output, split, model, tokenizer, max_length)

    # 2. Train, and save the model: the best one, or the last.
    prepare(model, args, examples)
    count = sum(parameter.numel() for _, parameter in trained_parameters(model))
    say(f"model: {count:,} trained parameters, vocabulary {model.config.vocab_size:,}, value "
        f"head {model.head_origin}\n{first_pair(examples, tokenizer)}")
    train(args, model, tokenizer, examples)
    kept, about_kept = choose_model(output, model)
    save_model(output, model, tokenizer, max_length, args.save_dtype)
    if args.lora_rank:
        from extras import write_adapter

        tensors = write_adapter.tensors_of(model)  # all processes ask
        on_first(lambda: say(write_adapter.write(output / "adapter", tensors, model, args.model)))

    # 3. Report on the model that was saved.
    del model  # the report opens the saved one: memory may not be enough for both
    model = final_report(args, output, tokenizer, examples, kept)
    on_first(lambda: remove(output / BEST))  # last: until here a killed run needs it
    if not args.data:
        from extras import toy_world

        say(toy_world.summary(lambda rows: score(model, rows, tokenizer)))
    say(f"{about_kept}\n{output} written after {time.perf_counter() - started:.0f} s. Next:\n"
        f"  {next_commands(args, examples)}")


def first_pair(examples, tokenizer):
    """One pair as the model will read it: look at it before you train for hours."""
    example = examples[examples.numbers(held_out=False)[0]]
    better, worse = example.pairs()[0]
    last = tokenizer.backend.id_to_token(int(example.sequences[better][-1]))
    lines = [f"texts are rendered {tokenizer.rendering}; the reward is read at the last token, "
             f"{last!r}"]
    for side, index in (("chosen", better), ("rejected", worse)):
        text = repr(tokenizer.backend.decode(example.sequences[index], skip_special_tokens=False))
        if len(text) > 400:
            text = f"{text[:200]} … {text[-200:]}"
        lines.append(f"  {side:<8} {text}")
    return "\n".join(lines)


def toy_data(args, output):
    """Where no data are given: the file of a small world whose true reward is known."""
    from extras import toy_world

    file = output / "toy.jsonl"
    on_first(lambda: toy_world.write(file, args.seed))
    return [str(file)]


def final_report(args, output, tokenizer, examples, step):
    """Open the saved model, evaluate it in float32 and write report.json. Returns the model."""
    model = open_model(output)
    move_to_device(model, args)
    figures = evaluate(args, model, tokenizer, examples)
    if process_number() == 0:
        with replacing(output / "report.json") as path:
            path.write_text(json.dumps({"step": step} | figures, indent=2) + "\n", "utf-8")
        with contextlib.suppress(ImportError):  # the five files alone write no card
            from extras import model_card

            model_card.write(output, tokenizer, describe_audit)
    say(f"\n{describe(figures)}\n")
    return model


def next_commands(args, examples):
    """What to try with the run: a report on its held-out rows, and the rewards of one of them."""
    held_out = args.eval_data[0] if args.eval_data else examples.folder.parent / "held_out.jsonl"
    names = ""
    for field, name in layout_options(args).items():
        if field != "margin_from_scores":
            names += f" --{field}-field {name!r}"
    commands = f"python eval.py report {args.output} --data {held_out}{names}"
    if str(held_out).endswith(".jsonl"):
        commands += f"\n  head -n 1 {held_out} | python eval.py rank {args.output}{names}"
    return commands


# ---------------------------------------------------------------- the loop


def train(args, model, tokenizer, examples):
    """Train in place, log and save.

    Raises: Stopped after a signal; DataError at a step that is not finite. Both after a checkpoint.
    """
    output = Path(args.output)
    train_rows = examples.numbers(held_out=False)
    steps_per_epoch = math.ceil(len(train_rows) / args.batch_size)
    total = args.max_steps or max(1, math.ceil(args.epochs * steps_per_epoch))
    eval_steps = args.eval_steps or math.ceil(total / 3)
    if total < FEW_STEPS:
        say(f"steps: {total}, which is few to learn from; more rows, more --epochs or a smaller "
            "--batch-size help")
    optimizer = make_optimizer(model, args.lr, args.weight_decay)
    scaler = torch.amp.GradScaler(args.device.type, enabled=args.fp16)  # else it does nothing
    start, since_log = load_checkpoint(output, model, optimizer, scaler)
    if args.resume and start == 0:
        say("there is no checkpoint yet: the run starts again at step 0")
    parallel = model
    if process_count() > 1 and not args.shard:
        parallel = DistributedDataParallel(model)

    with stop_signals() as received, Progress(args, start, total) as progress:
        for step in range(start, total):
            # 1. The learning rate of this step: up during warmup, then down to 0.
            lr = learning_rate(step, total, args.lr)
            for group in optimizer.param_groups:
                group["lr"] = lr

            # 2. The gradient of the mean loss over the step's rows, in pieces that fit into memory.
            row_numbers = rows_of_step(train_rows, step, args.batch_size, args.seed)
            batches = batches_of_step(row_numbers, examples, tokenizer.pad_id, args)
            means = accumulate_gradients(parallel, batches, args, scaler)

            # 3. One update. If the gradient is broken: save the state before this step, and stop.
            scaler.unscale_(optimizer)  # before clipping: the limit is on the true gradient
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            means["grad_norm"] = whole(norm).item()
            if is_broken(means, args):
                save_checkpoint(output, step, model, optimizer, scaler, since_log)
                raise DataError(broken_step(step, means, examples.where(row_numbers[:8])))
            update(optimizer, scaler, means["grad_norm"])
            optimizer.zero_grad()

            # 4. Now and then: how good is the model on prompts that it does not train on?
            done = step + 1
            if done % eval_steps == 0 or done == total:
                figures = evaluate(args, model, tokenizer, examples, autocast_dtype(args))
                progress.log_evaluation(done, figures)
                if done < total and args.keep == "best":
                    save_if_best(output, done, figures["loss"], model)
                if done < total and is_stuck(output, args.patience):
                    say(f"{args.patience} evaluations without a lower held-out loss: training ends")
                    total = done

            # 5. Write down the means since the last line.
            since_log.append(means)
            progress.log_step(len(row_numbers))
            if done % LOGGING_STEPS == 0 or done == total:
                progress.log_means(done, done / steps_per_epoch, lr, since_log)
                since_log = []

            # 6. Save. All processes stop at the same step, or one would wait for the others.
            stopping = asked_to_stop(received, args.device)
            if (stopping or done % args.save_steps == 0) and done < total:
                save_checkpoint(output, done, model, optimizer, scaler, since_log)
                if stopping:
                    raise Stopped(stopping)
            if done == total:  # as planned, or earlier
                break


def batches_of_step(row_numbers, examples, pad_id, args):
    """This process's micro-batches of a step, on the device."""
    accumulation = args.gradient_accumulation_steps
    make_batch = batch_function(args.pack)
    share = process_number(), process_count()
    batches = []
    for numbers in micro_batches(row_numbers, examples.lengths, accumulation, *share):
        batch = make_batch([examples[n] for n in numbers], pad_id, len(row_numbers))
        batches.append(batch.to(args.device))
    return batches


def accumulate_gradients(model, batches, args, scaler):
    """Add the gradient of a step's mean loss to the parameters, one micro-batch after the other.

    The weights of all pairs of a step sum to 1, over all micro-batches and processes. So the sum
    of weight · loss is the mean loss, however the step is cut. (The usual loss / accumulation
    gives more weight to the rows of small micro-batches.)

    Args:    model: a RewardModel, or its DistributedDataParallel.
    Returns: the means over all rows of the step, in all processes; rewards in nats.
    """
    device, dtype = args.device, autocast_dtype(args)
    means = {}
    for i, batch in enumerate(batches):
        if isinstance(model, DistributedDataParallel):
            # Exchange gradients in the last backward pass only: once a step is enough.
            model.require_backward_grad_sync = i == len(batches) - 1
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            rewards = model(**batch.inputs())  # (N,) one for each sequence
        values = objective(rewards, batch, args)  # (B,) each
        loss = (batch.weight * values["loss"]).sum()
        # DDP and FSDP2 average gradients over the processes; we want their sum.
        scaler.scale(loss * process_count()).backward()
        for name, values_of_pairs in values.items():
            share = (batch.weight * values_of_pairs.detach()).sum()
            means[name] = means.get(name, 0) + share
    numbers = torch.stack(list(means.values()))
    if process_count() > 1:
        dist.all_reduce(numbers)
    return dict(zip(means, numbers.tolist()))


def objective(rewards, batch, args):
    """The loss of each pair, and what is logged beside it: (B,) each.

    A loss or a number of your own belongs here. Every option is at hand in args. The weighted mean
    of each number will be in metrics.jsonl.
    """
    r_chosen, r_rejected = rewards[batch.chosen], rewards[batch.rejected]  # (B,) each
    losses = bradley_terry_loss(
        r_chosen,
        r_rejected,
        batch.margin,
        label_smoothing=args.label_smoothing,
        centering=args.center_rewards_coefficient,
    )
    return {
        "loss": losses,
        "accuracy": pairwise_correct(r_chosen, r_rejected),
        "mean_margin": r_chosen - r_rejected,
        "mean_reward": (r_chosen + r_rejected) / 2,
        "mean_abs_reward": (r_chosen.abs() + r_rejected.abs()) / 2,
    }


def is_broken(means, args):
    """Whether the loss or its gradient is not a finite number."""
    if args.fp16:  # gradients overflow now and then: `update` leaves such a step out
        return not math.isfinite(means["loss"])
    return not math.isfinite(means["grad_norm"])


def broken_step(step, means, where):
    """What to say about a step that was not taken."""
    loss, norm = means["loss"], means["grad_norm"]
    return (
        f"step {step + 1} is not taken: the loss is {loss} and the norm of its gradient {norm}; "
        f"try a lower --lr. Its rows: {', '.join(where)}"
    )


def update(optimizer, scaler, grad_norm):
    """Take the step. Where float16 overflowed, skip it and scale the loss less."""
    if math.isfinite(grad_norm):
        scaler.step(optimizer)
        scaler.update()
    else:  # not left to the scaler: it sees only the gradients that are in this process
        scaler.update(scaler.get_scale() / 2)


def evaluate(args, model, tokenizer, examples, dtype=None):
    """The report on the held-out rows."""
    held_out = [examples[n] for n in examples.numbers(held_out=True)]
    rewards = score_examples(model, held_out, batch_function(args.pack), tokenizer.pad_id, dtype)
    return report(rewards, held_out)


# ---------------------------------------------------------------- model and optimizer


def build_model(args, output):
    """The model to train, and its tokenizer."""
    torch.manual_seed(args.seed)
    if args.model:
        model = open_model(args.model, fresh_head=True, base=args.base)
        # A head that is kept is read where it was trained to be read.
        head_config = model.config.config_json if model.head_origin == "kept" else None
        given = (model.folder, args.chat_template, head_config)
        on_first(lambda: keep_tokenizer(output, *given))
        return model, Tokenizer.from_folder(output, head_config=head_config)
    tokenizer = Tokenizer.from_folder(output)
    D, heads = args.hidden_size, args.num_attention_heads
    model = RewardModel.from_scratch({
        "model_type": "llama",
        "vocab_size": tokenizer.backend.get_vocab_size(),
        "hidden_size": D,
        "intermediate_size": 8 * math.ceil(D / 3),
        "num_hidden_layers": args.num_hidden_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": D // heads,
        "max_position_embeddings": args.max_length or MAX_LENGTH,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        # The usual 0.02 is about this at D = 1024. At D = 64 it would leave attention uniform for
        # hundreds of steps.
        "initializer_range": round(0.65 / math.sqrt(D), 4),
        "bos_token_id": None,
        "eos_token_id": tokenizer.end_id,
    })
    return model, tokenizer


def prepare(model, args, examples):
    """Decide what is trained and how it is computed, and bring the weights to the device.

    With `move_to_device` this is the door to the extras that change how a model is trained.
    """
    # The bias cancels in every difference. Its gradient is rounding noise, of which Adam would
    # make steps of size lr. So it is trained only where the centering penalty gives it a gradient.
    model.score.bias.requires_grad_(args.center_rewards_coefficient > 0)
    model.model.gradient_checkpointing = args.gradient_checkpointing
    if args.lora_rank or args.freeze_layers:
        from extras import lora

        lora.train_less(model, args.freeze_layers, args.lora_rank)
    if args.used_rows:
        from extras import used_rows

        used_rows.train_only(model, examples.ids)
    move_to_device(model, args, autocast_dtype(args))
    if args.compile:
        from extras import compiling

        compiling.compile_layers(model)


def move_to_device(model, args, dtype=None):
    """Bring the weights to the device: all of them, or with --shard this process's share."""
    if args.shard:
        from extras import sharding

        sharding.shard(model, args.device, dtype)
    else:
        model.take_weights(args.device)


def trained_parameters(model):
    """(name, parameter) of all that is trained."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def make_optimizer(model, lr, weight_decay):
    """AdamW (Loshchilov & Hutter 2019), with weight decay on matrices only.

    To pull the weight of a norm towards 0 has no use, and the size of a bias needs no limit.
    """
    matrices, vectors = [], []
    for _, parameter in trained_parameters(model):
        if parameter.ndim >= 2:
            matrices.append(parameter)
        else:
            vectors.append(parameter)
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    # fused: one pass over memory instead of a dozen.
    return torch.optim.AdamW(groups, lr=lr, betas=BETAS, fused=True)


def learning_rate(step, total, peak):
    """Up to the peak during warmup, then down to 0 along half a cosine."""
    warmup = math.ceil(WARMUP * total)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return peak * (0.5 + 0.5 * math.cos(math.pi * progress))


def autocast_dtype(args):
    """The type that --bf16 or --fp16 computes in. None: float32."""
    if args.bf16:
        return torch.bfloat16
    return torch.float16 if args.fp16 else None


# ---------------------------------------------------------------- data: rows -> tokens


def check_files(args):
    """Raises: DataError where a file of rows is not there, or what is read would be moved aside."""
    rows = [*(args.data or []), *(args.eval_data or [])]
    for path in rows:
        on_the_hub, a_pattern = path.startswith("hub:"), "*" in path
        if not on_the_hub and not a_pattern and not Path(path).exists():
            raise DataError(f"{path}: No such file or folder")
    output = Path(args.output).resolve()
    for path in [*rows, args.model, args.base]:
        if path and Path(path).resolve().is_relative_to(output):
            raise DataError(f"--output {args.output}: {path} is read from there; choose another")


class Split:
    """The rows of a run: those to train on, and those that are held out."""

    def __init__(self, args, files):
        self.args, self.files = args, files

    def read(self, files, audit=None):
        """All rows of some files."""
        return read_rows(files, self.args.skip_bad_rows, audit, layout_options(self.args))

    @functools.cached_property
    def held_out_hashes(self):
        """The prompts that are held out. To know them, all rows are read once."""
        rows = self.read(self.files)
        return held_out_prompts(rows, self.args.eval_fraction, self.args.seed)

    def rows(self, held_out, audit=None):
        """The rows of one side, in the order of the files. The audit counts bad rows."""
        if self.args.eval_data:
            yield from self.read(self.args.eval_data if held_out else self.files, audit)
            return
        audit = None if held_out else audit  # a bad row is on no side: count it once
        for row in self.read(self.files, audit):
            is_held_out = prompt_hash(row, self.args.seed) in self.held_out_hashes
            if is_held_out == held_out:
                yield row

    def earlier_run(self):
        """The run folder that --data names, to use its tokens again; None where it names rows."""
        folder = Path(self.files[0])
        return folder if (folder / "tokens").is_dir() else None


def make_tokenizer(args, output, split):
    """From scratch: learn a tokenizer from the rows to train on, and keep it in the run folder."""
    if (output / "tokenizer_config.json").exists():  # of a run that is resumed
        return
    earlier = split.earlier_run()
    if earlier:
        tokenizer = Tokenizer.from_folder(earlier)
    else:
        tokenizer = Tokenizer.train(texts_of(split.rows(held_out=False)), args.vocab_size)
    add_files(output, lambda folder: tokenizer.save(folder, args.max_length or MAX_LENGTH))


def keep_tokenizer(output, folder, chat_template, head_config):
    """Copy the tokenizer of a pretrained model into the run folder, before it is used.

    A run has its own: the chat template may be another one, and the date in it stands still.
    """
    if not (output / "tokenizer_config.json").exists():  # else a run that is resumed
        tokenizer = Tokenizer.from_folder(folder, chat_template, head_config)
        add_files(output, lambda new: tokenizer.save(new, tokenizer.max_length))


def texts_of(rows):
    """What a tokenizer learns from: each message as render writes it, with its spaces."""
    for row in rows:
        for messages in (row.prompt, *row.responses):
            yield from map(turn_text, messages)


def write_data(args, output, split, tokenizer, max_length):
    """Rows -> tokens/ and held_out.jsonl in the run folder, and the audit on the terminal."""
    if split.earlier_run() or (output / "tokens").exists():
        return
    warning = "A run of train_rm.py. tokens/ and held_out.jsonl hold the texts of its data.\n"
    (output / "README.md").write_text(warning, "utf-8")
    with replacing(output / "held_out.jsonl") as path, open(path, "w", encoding="utf-8") as file:
        for row in split.rows(held_out=True):
            file.write(json.dumps(row.raw) + "\n")
    with replacing(output / "tokens") as folder:  # last: where it is, the rest is complete
        folder.mkdir()
        audits = write_both_sides(folder, split, tokenizer, max_length, args.skip_bad_rows)
        (folder / "audit.json").write_text(json.dumps(audits, indent=2) + "\n", "utf-8")


def write_both_sides(folder, split, tokenizer, max_length, skip_bad_rows):
    """The rows to train on and the held-out rows -> tokens. Returns the audits, by side."""
    train, held_out = Audit(), Audit()
    how = (tokenizer, max_length)
    to_train = examples_of(split.rows(False, train), *how, train, skip_bad_rows)
    to_hold_out = examples_of(split.rows(True, held_out), *how, held_out, skip_bad_rows)
    write_tokens(folder, to_train, to_hold_out)  # the rows are read here, and fill the audits
    both = train.prompts & held_out.prompts
    if both:
        say(f"{len(both)} of {len(held_out.prompts)} held-out prompts are also trained on: a model "
            "looks better than it is on prompts that it has seen")
    summaries = {}
    for side, audit in (("train", train), ("held out", held_out)):
        summaries[side] = audit.summary()
        say(describe_audit(side, summaries[side]))
        if not summaries[side]["kept"]:
            raise DataError(f"no pairs left in the {side} data; the audit above says why")
    return summaries


def open_examples(args, output, split, model, tokenizer, max_length):
    """The tokens of this run, or of an earlier one.  Raises: DataError if they do not fit."""
    earlier = split.earlier_run()
    examples = Examples((earlier or output) / "tokens")
    check_ids([examples.ids], model, str(examples.folder))
    if earlier:
        if args.eval_data or len(args.data) > 1:
            raise DataError(f"--data {earlier}: a run has its own held-out rows; give it alone")
        theirs = Tokenizer.from_folder(earlier).backend
        same = theirs.to_str() == tokenizer.backend.to_str()
        if not same or examples.lengths.max() > max_length:
            raise DataError(f"--data {earlier}: other tokenizer or --max-length; give the rows")
        on_first(lambda: check_same_rows(output / "tokens.sha256", examples.folder))
    return examples


def check_same_rows(path, folder):
    """Raises: DataError where an earlier run's tokens are not what they were at the first start."""
    digest = ""
    for name in ("ids.bin", "records.bin"):
        with open(folder / name, "rb") as file:
            digest += hashlib.file_digest(file, "sha256").hexdigest() + "\n"
    if not path.exists():
        with replacing(path) as temporary:
            temporary.write_text(digest)
    elif path.read_text() != digest:
        raise DataError(f"{folder}: other rows than when this run started; start a new run")


# ---------------------------------------------------------------- progress and metrics.jsonl

METRICS = "metrics.jsonl"


class Progress:
    """A bar on a terminal, plain lines elsewhere, and metrics.jsonl."""

    def __init__(self, args, start, total):
        self.start, self.total = start, total
        self.file, self.board = Path(args.output) / METRICS, None
        self.began, self.rows = time.perf_counter(), 0
        hidden = process_number() > 0 or not sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=start, unit="step", disable=hidden)
        if process_number() == 0:
            keep_lines(self.file, until=start)
            if args.tensorboard:
                from extras import tensorboard_log

                self.board = tensorboard_log.Board(args.output, start)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()

    def log_step(self, rows):
        """One more step, of so many rows."""
        self.rows += rows
        self.bar.update()

    def log_means(self, done, epoch, lr, steps):
        """The means over the steps since the last line."""
        line = {"step": done, "epoch": epoch, "lr": lr}
        for name in steps[0]:
            line[name] = sum(step[name] for step in steps) / len(steps)
        if not math.isfinite(line["grad_norm"]):  # float16 overflowed; JSON has no infinity
            line["grad_norm"] = None
        elapsed = time.perf_counter() - self.began
        speed = self.rows / elapsed
        self.write(line | {"rows_per_second": speed})
        status = f"loss {line['loss']:.3f}  acc {line['accuracy']:.3f}  {speed:.0f} rows/s"
        self.bar.set_postfix_str(status)
        if self.bar.disable:
            left = (self.total - done) * elapsed / (done - self.start)
            say(f"step {done}/{self.total}  {status}  {left:.0f} s left")

    def log_evaluation(self, done, figures):
        """The main figures of an evaluation."""
        line = {"step": done}
        for name in ("loss", "accuracy", "accuracy_ci95", "mean_margin"):
            line[f"eval_{name}"] = figures[name]
        self.write(line)
        low, high = figures["accuracy_ci95"]
        loss, accuracy = figures["loss"], figures["accuracy"]
        text = f"held-out loss {loss:.3f}  acc {accuracy:.3f} ± {(high - low) / 2:.3f}"
        if "ceiling_accuracy" in figures:
            text += f" (ceiling {figures['ceiling_accuracy']:.3f})"
        say(f"step {done}/{self.total}  {text}")

    def write(self, line):
        """One more line of metrics.jsonl; with --tensorboard the same numbers there."""
        if process_number() > 0:
            return
        check_claim()
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.board:
            self.board.add(line)


def keep_lines(path, until):
    """Take out the lines of steps that will be done again, and the half line of a killed run."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text("utf-8", "replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if json.loads(line)["step"] <= until:
                kept.append(line + "\n")
    with replacing(path) as temporary:
        temporary.write_text("".join(kept), "utf-8")


# ---------------------------------------------------------------- checkpoints


def save_checkpoint(output, step, model, optimizer, scaler, since_log):
    """One file with all that the next step depends on: checkpoint-STEP.safetensors.

    It holds each trained parameter, AdamW's moments of it, and as metadata the step, the loss
    scale and the means since the last log line. Which rows come next follows from the step.
    """
    tensors = {}
    for name, parameter in trained_parameters(model):
        tensors[name] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"{name}/{key}"] = value
    state = {"step": step, "since_log": since_log, "base": model.base}
    state["scaler"] = scaler.state_dict()
    write_tensors(output / f"checkpoint-{step}.safetensors", tensors, state)
    if process_number() == 0:
        for older in checkpoints(output)[:-1]:
            older.unlink()


def write_tensors(path, tensors, state):
    """Tensors, and as metadata a state. When this returns, all processes can read the file."""
    complete = {}
    for name, tensor in tensors.items():
        tensor = whole(tensor)  # all processes ask: sharded tensors are put together by all
        if process_number() == 0:
            complete[name] = tensor.cpu()
    if process_number() == 0:
        with replacing(path) as temporary:
            text = json.dumps(state)
            metadata = {"state": text, "crc32": str(zlib.crc32(text.encode()))}
            save_file(complete, temporary, metadata)
    if dist.is_initialized():
        dist.barrier()


def load_checkpoint(output, model, optimizer, scaler):
    """Put the newest checkpoint back, if there is one -> its step, and the means since_log."""
    found = checkpoints(output)
    if not found:
        on_first(lambda: remove(output / BEST))  # of a run that was killed: it starts again
        return 0, []
    device = model.score.weight.device
    with safe_open(found[-1], "pt") as tensors, torch.no_grad():
        state = state_in(tensors, found[-1])
        if state["base"] != model.base:
            raise DataError(f"--resume: {model.folder} is another model than at the first start")
        for name, parameter in trained_parameters(model):
            fill(parameter, tensors.get_tensor(name))
            if f"{name}/step" not in tensors.keys():  # no step was taken yet: no moments
                continue
            moments = optimizer.state[parameter]
            moments["step"] = tensors.get_tensor(f"{name}/step").to(device)
            for key in ("exp_avg", "exp_avg_sq"):
                moments[key] = torch.zeros_like(parameter)
                fill(moments[key], tensors.get_tensor(f"{name}/{key}"))
    scaler.load_state_dict(state["scaler"])
    say(f"resumed from {found[-1]}")
    return state["step"], state["since_log"]


def state_in(tensors, path):
    """The state that write_tensors put beside the tensors of a file."""
    metadata = tensors.metadata() or {}
    if "state" not in metadata:
        raise CheckpointError(f"{path}: there is no state of a run in it; was it written again?")
    text = metadata["state"]
    checksum = str(zlib.crc32(text.encode()))
    if metadata.get("crc32", checksum) != checksum:  # runs of earlier versions have none
        raise CheckpointError(f"{path} is damaged; delete it to continue from an earlier state")
    return json.loads(text)


def fill(parameter, value):
    """parameter.copy_(value). A sharded parameter takes its share of the value."""
    if parameter.shape != value.shape:
        raise CheckpointError("a checkpoint does not fit the model: were files of the run changed?")
    value = value.to(parameter.device, parameter.dtype)
    if hasattr(parameter, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = parameter.device_mesh, parameter.placements
        # src_data_rank=None: every process has the whole value, nothing is sent.
        value = distribute_tensor(value, mesh, placements, src_data_rank=None)
    parameter.copy_(value)


def checkpoints(output):
    """The complete checkpoints of a run folder, oldest first."""
    found = [path for path in output.glob("checkpoint-*.safetensors") if step_of(path).isdecimal()]
    return sorted(found, key=lambda path: int(step_of(path)))


def step_of(path):
    """checkpoint-500.safetensors -> "500"."""
    return path.stem.removeprefix("checkpoint-")


# ---------------------------------------------------------------- the best model

# The trained parameters of the lowest held-out loss so far, with their step and that loss. All in
# one file: so a run that is killed, at any moment, never takes one model for another.
BEST = "best.safetensors"


def save_if_best(output, step, loss, model):
    """Write best.safetensors, if the held-out loss is lower than that of the model in it."""
    if on_first(lambda: loss < saved_best(output)["eval_loss"]):  # NaN is not lower
        parameters = {name: p.detach() for name, p in trained_parameters(model)}
        write_tensors(output / BEST, parameters, {"step": step, "eval_loss": loss})


def saved_best(output):
    """Step and held-out loss of the model in best.safetensors."""
    if not (output / BEST).exists():
        return {"step": 0, "eval_loss": math.inf}
    with safe_open(output / BEST, "pt") as tensors:
        return state_in(tensors, output / BEST)


def is_stuck(output, patience):
    """Whether none of the last evaluations, --patience of them, had a lower held-out loss."""
    if not patience:
        return False
    losses = [line["eval_loss"] for line in on_first(lambda: evaluations(output))]
    before, last = losses[:-patience], losses[-patience:]
    return bool(before) and not min(last) < min(before)


def evaluations(output):
    """The lines of metrics.jsonl that have a held-out loss."""
    lines = map(json.loads, (output / METRICS).read_text("utf-8").splitlines())
    return [line for line in lines if "eval_loss" in line]


def choose_model(output, model):
    """Put the best model back, unless the last is better -> the step, and a line about it."""
    best, last = on_first(lambda: (saved_best(output), evaluations(output)[-1]))
    step, loss = last["step"], last["eval_loss"]
    if best["step"] == 0 or loss < best["eval_loss"]:
        return step, f"saved: the model of the last step, {step}, held-out loss {loss:.3f}"
    with safe_open(output / BEST, "pt") as tensors, torch.no_grad():
        for name, parameter in trained_parameters(model):
            fill(parameter, tensors.get_tensor(name))
    return best["step"], (
        f"saved: the model of step {best['step']}, held-out loss {best['eval_loss']:.3f}; "
        f"that of the last step, {step}, had {loss:.3f}"
    )


# ---------------------------------------------------------------- files in the run folder


# From here on: plumbing. To understand training you can stop reading.

# What a start leaves that failed before its data were read.
LEFT_BY_A_FAILED_START = {
    "options.json", "README.md", "toy.jsonl", "tokenizer.json", "tokenizer_config.json",
    "held_out.jsonl", "new", "tokens.sha256",
}


def open_run_folder(args, output):
    """Make the run folder and write options.json. An earlier run there is moved, never lost."""
    if output.name in ("", ".."):  # "." too
        raise DataError(f"--output {output}: give the run folder a name")
    output.mkdir(parents=True, exist_ok=True)
    claim(output)
    there = {path.name for path in output.iterdir() if path.suffix != ".tmp"}
    if there and "options.json" not in there:
        raise DataError(f"--output {output}: holds files that are not a run's; choose a new folder")
    if there - LEFT_BY_A_FAILED_START:
        number = 1
        while output.with_name(f"{output.name}.{number}").exists():
            number += 1
        if output.is_symlink():
            raise DataError(f"--output {output}: a link to an earlier run; name another folder")
        output.rename(output.with_name(f"{output.name}.{number}"))
        say(f"an earlier run was in {output}; it is now in {output}.{number}")
        output.mkdir()
        claim(output)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("numpy", "safetensors", "tokenizers"):
        versions[name] = importlib.metadata.version(name)
    about = {"options": vars(args) | {"device": str(args.device)}, "versions": versions}
    with replacing(output / "options.json") as path:
        path.write_text(json.dumps(about, indent=2) + "\n", "utf-8")


CLAIMED = {}  # run folder -> what holds it, as long as this run goes on


def claim(output):
    """Refuse a run folder that another run is writing into. A killed one leaves no claim."""
    try:
        import fcntl
    except ImportError:  # on Windows nobody is refused
        return
    release()
    CLAIMED[output] = os.open(output, os.O_RDONLY)
    try:
        fcntl.flock(CLAIMED[output], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(f"{output}: another run is writing into it; wait, or stop it") from None
    except OSError:  # a disk without locks
        pass
    check_claim()


def check_claim():
    """Raises: DataError where somebody has moved the run folder. Another run may be there now."""
    for output, handle in CLAIMED.items():
        if not output.exists() or not os.path.samestat(os.stat(output), os.fstat(handle)):
            raise DataError(f"{output} was moved or removed while this run wrote into it")


def release():
    """Others may write into the run folder again."""
    while CLAIMED:
        os.close(CLAIMED.popitem()[1])


def save_model(output, model, tokenizer, max_length, save_dtype):
    """The trained model into the run folder, as an ordinary Hugging Face checkpoint."""
    dtype = getattr(torch, save_dtype)
    state = model.state_dict()  # all processes ask, as above

    def write(folder):
        model.save_pretrained(folder, tokenizer.saved_pad_id, state, dtype)
        tokenizer.save(folder, max_length)

    on_first(lambda: add_files(output, write))


def add_files(output, write):
    """write(folder) makes some files. They are moved into the run folder when all are complete."""
    folder = output / "new"
    remove(folder)  # of a killed run
    folder.mkdir()
    write(folder)
    for file in sorted(folder.iterdir()):  # config.json before the weights
        with replacing(output / file.name) as path:
            file.rename(path)
    folder.rmdir()


@contextlib.contextmanager
def replacing(path):
    """A new file or folder, which takes its name only when it is complete and on the disk."""
    check_claim()
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    remove(temporary)  # of a killed run
    try:
        yield temporary
        for part in (*temporary.rglob("*"), temporary):
            if part.is_file():
                part.chmod(0o644)  # safetensors writes files that only their owner may read
            sync(part)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        remove(temporary)


def sync(path):
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt":
        return  # Windows does not wait for what was opened to be read
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def remove(path):
    """A file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------- processes, and signals to stop


def process_number():
    """The number of this process. The first is 0; torchrun numbers them."""
    return int(os.environ.get("RANK", 0))


def process_count():
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def say(text):
    """Print once for all processes, above a progress bar where there is one."""
    if process_number() > 0:
        return
    try:
        tqdm.write(text)
        sys.stdout.flush()
    except OSError:  # the reader has gone (`| head`): train on, metrics.jsonl has the rest
        sys.stdout = open(os.devnull, "w")


def start_processes(args):
    """Join the process group of torchrun, if there is one."""
    backend, options = "gloo", {}
    if args.device.type == "cuda":
        index = os.environ.get("LOCAL_RANK", args.device.index or 0)
        args.device = torch.device("cuda", int(index))
        torch.cuda.set_device(args.device)
        backend, options = "nccl", {"device_id": args.device}
    if process_count() > 1:
        # Others wait while the first process tokenizes or saves: ten minutes may be too few.
        dist.init_process_group(backend, timeout=datetime.timedelta(hours=2), **options)


def on_first(work):
    """The first process does the work, the others wait. All get its result, or raise its error."""
    outcome = [None, None]
    if process_number() == 0:
        try:
            outcome[0] = work()
        except Exception as e:  # whatever it is: the others must not wait for ever
            outcome[1] = e
    if dist.is_initialized():
        dist.broadcast_object_list(outcome)
    result, error = outcome
    if error:
        raise error
    return result


class Stopped(Exception):
    """A signal asked to stop, and a checkpoint is written."""

    def __init__(self, signal):
        self.signal = signal


@contextlib.contextmanager
def stop_signals():
    """The signals received so far. Ctrl-C, or SIGTERM from a cluster, stops after the step."""
    received = []

    def on_signal(number, frame):
        # A second one stops at once; but torchrun passes on the Ctrl-C that the terminal has sent
        # already, so it counts only after two seconds.
        if received and time.monotonic() - received[0][1] > 2:
            raise KeyboardInterrupt
        received.append((number, time.monotonic()))

    before = {n: signal.signal(n, on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def asked_to_stop(received, device):
    """The signal that any of the processes has received, or 0."""
    number = torch.tensor(received[0][0] if received else 0, device=device)
    if process_count() > 1:
        dist.all_reduce(number, dist.ReduceOp.MAX)
    return int(number)


# ---------------------------------------------------------------- the command line


FLAG = {"action": argparse.BooleanOptionalAction, "default": False}


def parse_options(argv=None):
    """The command line -> options, and those that follow from them."""
    parser = argparse.ArgumentParser(
        usage="train_rm.py [options], --help lists them", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_data_options(parser.add_argument_group("what to learn from").add_argument)
    add_model_options(parser.add_argument_group("a model from scratch").add_argument)
    add_step_options(parser.add_argument_group("how long and how fast").add_argument)
    add_loss_options(parser.add_argument_group("the loss").add_argument)
    add_speed_options(parser.add_argument_group("speed and memory").add_argument)
    add_output_options(parser.add_argument_group("what to keep").add_argument)
    args = parser.parse_args(argv)
    if args.epochs is not None and args.max_steps is not None:
        parser.error("choose one of --epochs and --max-steps")
    if args.resume:
        args = options_of_run(parser, argv, args)
    elif args.config:
        from extras import config_files

        args = parse_over(parser, argv, args, config_files.read(args.config, parser))
    for name, value in defaults_of(args).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    check_options(parser, args)
    if args.tensorboard:
        from extras import tensorboard_log

        tensorboard_log.check()
    return args


def add_data_options(add):
    """Rows, and how to read them."""
    add("--model", help="folder with config.json, tokenizer.json and safetensors, or owner/name on "
        "the hub (default: a small decoder from scratch)")
    add("--base", help="the model that --model, an adapter, changes (default: the one it names)")
    files = {"nargs": "+", "action": "extend", "metavar": "FILE"}
    add("--data", **files, help="rows of prompt, chosen, rejected: .jsonl, .json, .csv, .parquet, "
        "a folder, hub:owner/name/FILE, or an earlier run (default: the toy world)")
    add("--eval-data", **files, help="held-out rows (default: some of --data)")
    add("--eval-fraction", type=float, help="share of prompts to hold out (0.1; toy world 1/6)")
    add("--max-length", type=int, help="tokens of prompt and response (default: at most 1024)")
    add("--skip-bad-rows", **FLAG, help="leave bad rows out and count them")
    for field in ("prompt", "chosen", "rejected"):
        add(f"--{field}-field", metavar="NAME", help=f"the rows' own name for {field!r}")
    add("--margin-from-scores", **FLAG, help="the margin of a pair is the difference of its scores")
    add("--chat-template", metavar="FILE", help="render dialogues with this jinja template")


def add_model_options(add):
    """Used where no --model is given."""
    add("--hidden-size", type=int, default=64, help="width D (64)")
    add("--num-hidden-layers", type=int, default=2, help="depth (2)")
    add("--num-attention-heads", type=int, default=4, help="heads, each D / heads wide (4)")
    add("--vocab-size", type=int, default=4096, help="byte-level BPE tokens, at most (4096)")


def add_step_options(add):
    """Rows of a step, number of steps, AdamW."""
    add("--epochs", type=float, help="passes over the rows (1; toy world 2)")
    add("--max-steps", type=int, help="optimizer steps, instead of --epochs")
    add("--batch-size", type=int, help="rows of a step, over all processes (64; toy world 16)")
    add("--gradient-accumulation-steps", type=int, default=1, help="cut a step into so many "
        "forward passes, to save memory; the step stays the same (1)")
    add("--lr", type=float, help="peak learning rate (1e-5; LoRA 1e-4; from scratch 1e-3)")
    add("--weight-decay", type=float, default=0.01, help="AdamW's, on matrices only (0.01)")
    add("--max-grad-norm", type=float, default=1.0, help="clip the gradient's 2-norm to this (1)")


def add_loss_options(add):
    """The terms of loss.py."""
    add("--label-smoothing", type=float, default=0.0, help="share of labels that are flipped (0)")
    add("--center-rewards-coefficient", type=float, default=0.0, help="penalty on (r_w + r_l)² "
        "that keeps rewards around 0; TRL suggests 0.01 (0)")


def add_speed_options(add):
    """They change the time and memory of a step; some also which weights are trained."""
    add("--pack", **FLAG, help="a prompt once for all its responses, no padding: for real data")
    add("--bf16", **FLAG, help="bfloat16 autocast, float32 weights")
    add("--fp16", **FLAG, help="float16 autocast with loss scaling, float32 weights")
    add("--compile", **FLAG, help="torch.compile the layers; needs a C++ compiler")
    add("--gradient-checkpointing", **FLAG, help="less memory for a third more work, the same step")
    add("--used-rows", **FLAG, help="train only the embeddings of tokens that occur")
    add("--lora-rank", type=int, default=0, help="train two factors beside each matrix instead")
    add("--freeze-layers", type=int, default=0, help="leave the embedding and N layers as they are")
    add("--shard", **FLAG, help="each process keeps a share of the model (FSDP2)")
    add("--device", help="cpu, cuda, cuda:1 … (default: cuda where there is one)")


def add_output_options(add):
    """What a run leaves, and when."""
    add("--output", metavar="RUN", help="run folder (default: runs/toy, or after --data)")
    add("--resume", metavar="RUN", help="continue this run, with its own options")
    add("--config", metavar="FILE", help="take the options in this JSON file, such as another "
        "run's options.json; those on the command line win")
    add("--eval-steps", type=int, help="steps between evaluations (default: three in a run)")
    add("--keep", choices=("best", "last"), default="best", help="which model to save: that of the "
        "evaluation with the lowest held-out loss, or the last (best)")
    add("--patience", type=int, metavar="N", help="end the training after N evaluations without a "
        "lower held-out loss (default: never)")
    add("--tensorboard", **FLAG, help="write what metrics.jsonl gets for TensorBoard too")
    add("--save-steps", type=int, default=500, help="steps between checkpoints (500)")
    add("--save-dtype", choices=("float32", "bfloat16"), default="float32",
        help="of the weights in the saved model; bfloat16 halves the file and rounds (float32)")
    add("--seed", type=int, default=0, help="of weights, held-out split and order of rows (0)")


def defaults_of(args):
    """The defaults that depend on other options."""
    name = "toy"
    if args.data:
        source = Path(args.data[0]).absolute()
        name = f"{source.parent.name}-{source.name.split('.')[0]}"
    lr = 1e-5 if args.model else 1e-3
    return {
        "batch_size": 64 if args.data else 16,
        "epochs": 1.0 if args.data else 2.0,
        "eval_fraction": 0.1 if args.data else 1 / 6,
        "lr": 1e-4 if args.lora_rank else lr,
        "output": f"runs/{name}",
    }


# What says only where and how a run computes. It may be given again with --resume.
MAY_CHANGE_ON_RESUME = {
    "resume", "device", "gradient_accumulation_steps", "gradient_checkpointing", "compile",
    "shard", "pack", "eval_steps", "save_steps", "tensorboard",
}


def parse_over(parser, argv, given, saved):
    """Saved options, and over them those of the command line."""
    # argparse keeps what the namespace has already, unless the option is given. It would put
    # files that are given again after the saved ones.
    start = argparse.Namespace(**saved)
    for name in ("data", "eval_data"):
        if getattr(given, name):
            setattr(start, name, None)
    if given.epochs is not None:  # they are another way to say how long
        start.max_steps = None
    return parser.parse_args(argv, start)


def options_of_run(parser, argv, given):
    """The options of an earlier run, and those of MAY_CHANGE_ON_RESUME that are given again."""
    run = given.resume
    path = Path(run) / "options.json"
    if not path.exists():
        parser.error(f"--resume {run}: no options.json there, so not a run")
    saved = read_json(path).get("options")
    if not isinstance(saved, dict):
        parser.error(f"{path}: no options in it")
    saved["output"] = run
    for option in parser._actions:
        value = saved.get(option.dest)
        if value is not None and not takes(option, value):
            parser.error(f"{path}: {option.dest!r} cannot be {value!r}")
    args = parse_over(parser, argv, given, saved)
    for name, value in saved.items():
        if getattr(args, name) != value and name not in MAY_CHANGE_ON_RESUME:
            option = f"--{name.replace('_', '-')}"
            given_then = value is not None and value is not False
            made = f"with {option} {value}" if given_then else f"without {option}"
            parser.error(f"--resume: the run was made {made}")
    return args


def takes(option, value):
    """Whether an option could have this value from the command line."""
    if option.nargs == "+":
        return isinstance(value, list) and all(isinstance(v, str) for v in value)
    if option.choices:
        return value in option.choices
    if option.type or isinstance(option, argparse.BooleanOptionalAction):
        return isinstance(value, (int, float))  # True and False are whole numbers too
    return isinstance(value, str)


def check_options(parser, args):
    """Stop at options that make no sense, with one line."""
    may_be_0 = ("weight_decay", "label_smoothing", "center_rewards_coefficient", "lora_rank",
                "freeze_layers", "seed")
    for name, value in vars(args).items():
        if value == "":
            parser.error(f"--{name.replace('_', '-')} is empty")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if not (value > 0 or (value == 0 and name in may_be_0)):
                parser.error(f"--{name.replace('_', '-')} {value} is too small")
            if value >= 2**31 and name not in ("max_grad_norm", "seed"):
                parser.error(f"--{name.replace('_', '-')} {value} is too large")
    if args.label_smoothing >= 0.5 or args.eval_fraction >= 1:
        parser.error("--label-smoothing has to be below 0.5, and --eval-fraction below 1")
    if args.hidden_size % (2 * args.num_attention_heads):
        parser.error(f"--hidden-size {args.hidden_size} is not a multiple of twice the heads")
    if args.seed >= 2**63:
        parser.error(f"--seed {args.seed} is larger than PyTorch takes")
    if args.bf16 and args.fp16:
        parser.error("choose one of --bf16 and --fp16")
    if (args.lora_rank or args.freeze_layers) and not args.model:
        parser.error("--lora-rank and --freeze-layers need --model")
    for path in map(Path, [*(args.data or []), *(args.eval_data or [])]):
        if path.exists() and not path.is_file() and not path.is_dir():
            parser.error(f"{path}: a pipe can be read only once; save the rows to a file")
    if (args.chat_template or args.base) and not args.model:
        parser.error("--chat-template and --base need --model")
    if args.eval_data and not args.data:
        parser.error("--eval-data needs --data")


def main(argv=None):
    """The command line; returns the exit status.

    0; 2 for invalid input, a full disk, or a step that is not finite; 130 when stopped by Ctrl-C
    and 143 by SIGTERM, both with a checkpoint.
    """
    try:
        args = parse_options(argv)
        args.device = pick_device(args.device)
        run_together(args)
        return 0
    except Stopped as e:
        say(f"stopped; to continue: python train_rm.py --resume {args.output}")
        return 128 + e.signal  # as shells count it
    except KeyboardInterrupt:
        say("stopped before a checkpoint; --resume RUN starts again where there is a run folder")
        return 130
    except (DataError, CheckpointError, SafetensorError, OSError, ImportError) as e:
        return fail(e)
    except (RuntimeError, MemoryError) as e:
        if is_out_of_memory(e):
            why = first_line(e)
            return fail(f"out of memory ({why}); docs/scaling.md says what to try, in order")
        if "by peer" in str(e):  # "Connection closed by peer"
            return fail(f"another process has died; to continue: torchrun … --resume {args.output}")
        raise


def run_together(args):
    """Run with the other processes of torchrun, if there are any, and leave them in the end."""
    try:
        start_processes(args)
        run(args)
        if process_count() > 1:
            dist.barrier()  # leave together: gloo sometimes aborts a process whose peer has gone
    finally:
        release()
        if dist.is_initialized():
            dist.destroy_process_group()


def fail(error):
    """Say an error in one line. Returns the exit status."""
    if process_number() > 0:
        # Most errors meet all processes, and the first one says them. torchrun ends the others
        # within this time. One that is alone with its error speaks then.
        time.sleep(3)
    print(f"train_rm.py: {first_line(error)}", file=sys.stderr, flush=True)
    return 2


if __name__ == "__main__":
    open_streams()
    sys.exit(main())
