"""eval.py: what a reward model is worth, and how to use one.  Read after data.py.

    python eval.py report RUN --data pairs.jsonl    accuracy with its error bar, loss, what length
                                                    alone would score, calibration
    python eval.py score  RUN < texts.jsonl         a reward for every row
    python eval.py rank   RUN < candidates.jsonl    the responses of every row, best first

RUN is a folder with config.json, tokenizer.json and safetensors, or owner/name on the Hugging Face
hub. In all commands, and in training too, a text becomes a reward in one way: data.py reads,
renders and encodes it, and model.py reads the reward at its end token.

From Python:  model = RewardModel.from_pretrained("runs/toy")
              score(model, [{"prompt": "Which colour is grass?", "response": "It is green."}])

A reward is in nats and has no zero point. Only the difference of two responses to the SAME prompt
means something: the log-odds that the first one is preferred, P = σ(r_1 − r_2).

Shapes: K responses of an example   B pairs   S sequences in all
Exit status: 0; 2 for invalid input, which one line names; 130 after Ctrl-C.
"""
import argparse
import contextlib
import itertools
import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from data import (
    Audit, DataError, Example, Tokenizer, batch_function, describe_audit, examples_of, json_rows,
    parse_lines, parse_row, read_rows,
)
from loss import bradley_terry_loss, pairwise_correct
from model import CheckpointError, RewardModel

TOKENS_PER_BATCH = 8192  # of a forward pass, padding included: what fits into a small GPU

# ---------------------------------------------------------------- examples -> rewards


@torch.no_grad()
def score_examples(model, examples, make_batch, pad_id, dtype=None):
    """The rewards of each example's sequences, (K,) float32 each, in the order given.

    Which sequences share a batch does not change a reward, but for float rounding. Under
    torch.distributed each process computes its share, and all get the result.

    Args:  make_batch: data.batch_function(…).  dtype: of autocast; None computes in float32.
    """
    rank, ranks = 0, 1
    if dist.is_initialized():
        rank, ranks = dist.get_rank(), dist.get_world_size()
    device = model.score.weight.device
    counts = [len(example.sequences) for example in examples]
    rewards = torch.zeros(sum(counts), device=device)  # (S,)
    batches = batches_by_length(examples)
    for turn in range(0, len(batches), ranks):
        # All processes make equally many passes: a sharded model is put together in each of them.
        # Where no batch is left, compute the last one again and drop the result.
        index = min(turn + rank, len(batches) - 1)
        pieces, positions = batches[index]
        batch = make_batch(pieces, pad_id).to(device)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            of_batch = model(**batch.inputs())
        if turn + rank == index:
            rewards[positions] = of_batch
    if ranks > 1:
        dist.all_reduce(rewards)  # every reward is 0 in all processes but one
    return np.split(rewards.cpu().numpy(), np.cumsum(counts)[:-1])


def batches_by_length(examples):
    """Batches of examples of similar length, so that there is little padding; the longest first.

    Each comes with the positions of its sequences among all S. An example with too many sequences
    for one batch is cut into several.
    """
    pieces, position = [], 0
    for example in examples:
        longest = max(map(len, example.sequences))
        most = max(1, TOKENS_PER_BATCH // longest)  # sequences
        for first in range(0, len(example.sequences), most):
            part = example.sequences[first : first + most]
            positions = range(position + first, position + first + len(part))
            pieces.append((longest, positions, example._replace(sequences=part, scores=[])))
        position += len(example.sequences)
    pieces.sort(key=lambda piece: -piece[0])

    batches, room = [], 0  # sequences that the last batch still has room for
    for longest, positions, piece in pieces:
        if len(positions) > room:
            batches.append(([], []))
            room = max(1, TOKENS_PER_BATCH // longest)
        batches[-1][0].append(piece)
        batches[-1][1].extend(positions)
        room -= len(positions)
    return batches


# ---------------------------------------------------------------- rewards -> figures


class Pairs(NamedTuple):
    """What the figures are made of: one entry for each pair, (B,) float64 each."""

    r_chosen: np.ndarray
    r_rejected: np.ndarray
    tokens_chosen: np.ndarray
    tokens_rejected: np.ndarray
    gold_chosen: np.ndarray  # the true rewards; NaN where they are not known
    gold_rejected: np.ndarray
    prompt: np.ndarray  # equal numbers: same prompt
    row: np.ndarray  # the index of the example


def all_pairs(rewards, examples):
    """The pairs of all examples. Each counts once, those of a row of K responses too.

    Raises: DataError where a reward is not a finite number: NaN compares as "not larger" and
            would pass for a wrong answer.
    """
    records = []
    for row, (r, example) in enumerate(zip(rewards, examples)):
        if not np.isfinite(r).all():
            where = example.row.where if example.row else f"held-out row {row + 1}"
            raise DataError(f"{where}: a reward is not a finite number")
        tokens = [len(sequence) for sequence in example.sequences]
        gold = example.gold or [math.nan] * len(tokens)
        prompt = example.prompt % 2**53  # as much of the hash as float64 holds
        for i, j in example.pairs():
            records.append((r[i], r[j], tokens[i], tokens[j], gold[i], gold[j], prompt, row))
    if not records:
        raise DataError("no pairs to evaluate")
    return Pairs(*np.array(records, dtype=np.float64).T)


def report(rewards, examples):
    """Every figure of the evaluation, in full precision.  rewards: (K,) of each example."""
    pairs = all_pairs(rewards, examples)
    figures = accuracy_figures(pairs) | reward_figures(pairs, rewards, examples)
    figures["calibration"] = calibration(pairs.r_chosen - pairs.r_rejected)
    if not np.isnan(pairs.gold_chosen).any():
        from extras import toy_world

        figures |= toy_world.figures(pairs)
    return figures


def accuracy_figures(pairs):
    """The share of pairs ranked as labelled, how sure that is, and what length alone would score."""
    r_chosen, r_rejected = torch.tensor(pairs.r_chosen), torch.tensor(pairs.r_rejected)
    correct = pairwise_correct(r_chosen, r_rejected).double().numpy()  # (B,)
    longer = np.sign(pairs.tokens_chosen - pairs.tokens_rejected)  # (B,) 1: chosen is longer
    misled = correct[longer < 0]
    return {
        "pairs": len(correct),
        "prompts": len(np.unique(pairs.prompt)),
        "accuracy": float(correct.mean()),
        "accuracy_ci95": bootstrap_interval(correct, pairs.prompt),
        "longer_wins_accuracy": float((0.5 + longer / 2).mean()),
        "pairs_where_chosen_is_shorter": len(misled),
        "accuracy_where_chosen_is_shorter": float(misled.mean()) if len(misled) else None,
        "ties": int((correct == 0.5).sum()),
        "loss": bradley_terry_loss(r_chosen, r_rejected).double().mean().item(),
        "loss_of_a_coin": math.log(2),
    }


def reward_figures(pairs, rewards, examples):
    """Where the rewards are, in nats. A response that is in several pairs counts once."""
    each = np.concatenate(rewards).astype(np.float64)  # (S,)
    tokens = [len(sequence) for example in examples for sequence in example.sequences]
    return {
        "mean_margin": float((pairs.r_chosen - pairs.r_rejected).mean()),
        "mean_chosen": float(pairs.r_chosen.mean()),
        "mean_rejected": float(pairs.r_rejected.mean()),
        "mean_reward": float(each.mean()),
        "std_reward": float(each.std()),
        "length_correlation": correlation(each, np.array(tokens)),
    }


def correlation(a, b):
    """Pearson's correlation, or None where one of the two does not vary."""
    a, b = a - a.mean(dtype=np.float64), b - b.mean(dtype=np.float64)
    scale = math.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale else None


def bootstrap_interval(correct, prompt, draws=1000):
    """95% interval of the accuracy, by drawing whole prompts with replacement (Efron 1979).

    Pairs of one prompt are not independent. To count them as if they were makes error bars too
    short: with few prompts, by a factor of several.
    """
    _, group = np.unique(prompt, return_inverse=True)
    right, count = np.bincount(group, correct), np.bincount(group)  # of each prompt
    rng = np.random.default_rng(0)
    accuracies = []
    for _ in range(draws):
        drawn = rng.integers(len(count), size=len(count))
        accuracies.append(right[drawn].sum() / count[drawn].sum())
    return np.quantile(accuracies, [0.025, 0.975]).tolist()


def calibration(gaps, bins=10):
    """Is a gap worth what it says? σ(|gap|) is the model's confidence in the response it prefers.

    ece          expected calibration error: Σ_b n_b/n · |accuracy_b − mean confidence_b|, over
                 bins of equal width from ½ to 1 (Guo et al. 2017, eq 3). With few pairs it is
                 above 0 by chance alone.
    temperature  the T for which the mean of −log σ(gap / T) is least on these pairs. Above 1 the
                 model is surer than it is right. None where the best T is not between 0.1 and 10.
    table        for each bin that has pairs: from, to, pairs, confidence, accuracy

    Args:  gaps: (B,) r_w − r_l, in nats.
    """
    confidence = 1 / (1 + np.exp(-np.abs(gaps)))  # (B,)
    correct = np.sign(gaps) / 2 + 0.5  # (B,)
    bin_of = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    table, ece = [], 0.0
    for b in np.unique(bin_of).tolist():
        inside = bin_of == b
        line = {"from": 0.5 + b / bins / 2, "to": 0.5 + (b + 1) / bins / 2}
        line["pairs"] = int(inside.sum())
        line["confidence"] = float(confidence[inside].mean())
        line["accuracy"] = float(correct[inside].mean())
        table.append(line)
        ece += line["pairs"] / len(gaps) * abs(line["accuracy"] - line["confidence"])

    temperatures = np.geomspace(0.1, 10, 461)  # 1% apart
    losses = [np.logaddexp(0, -gaps / T).mean() for T in temperatures]
    best = int(np.argmin(losses))
    inside_range = 0 < best < len(temperatures) - 1
    temperature = float(temperatures[best]) if inside_range else None
    return {"ece": ece, "temperature": temperature, "table": table}


def describe(figures):
    """The report as a table for a terminal."""
    f = figures
    low, high = f["accuracy_ci95"]
    few = " (too few to trust the interval)" if f["prompts"] < 20 else ""
    size = f"{f['pairs']} pairs, {f['prompts']} prompts{few}"
    shorter = f"accuracy on the {f['pairs_where_chosen_is_shorter']} pairs where length misleads"
    sides = f"nats; chosen {f['mean_chosen']:+.3f}, rejected {f['mean_rejected']:+.3f}"
    lines = [
        ("accuracy", ".3f", f["accuracy"], f"95% interval {low:.3f} to {high:.3f}; {size}"),
        ("  ceiling", ".3f", f.get("ceiling_accuracy"), "what the true rewards score"),
        ("  the longer one wins", ".3f", f["longer_wins_accuracy"], "what length alone scores"),
        ("  chosen is shorter", ".3f", f["accuracy_where_chosen_is_shorter"], shorter),
        ("ties", "d", f["ties"], "pairs of equal rewards; many mean that something is broken"),
        ("loss", ".4f", f["loss"], f"nats; a coin has log 2 = {math.log(2):.4f}"),
        ("mean margin", "+.3f", f["mean_margin"], sides),
        ("calibration error", ".3f", f["calibration"]["ece"], "of the confidence σ(|gap|)"),
        ("temperature", ".2f", f["calibration"]["temperature"], "above 1: surer than it is right"),
        ("length correlation", "+.3f", f["length_correlation"], "of rewards with tokens"),
        ("gold correlation", ".3f", f.get("gold_correlation"), "with true rewards, within prompts"),
    ]
    text = ""
    for name, form, value, meaning in lines:
        if value is not None:
            text += f"{name:<22} {format(value, form):>8}   {meaning}\n"
    return text.rstrip()


# ---------------------------------------------------------------- texts -> rewards


class Scorer:
    """A model and all it takes to turn rows into rewards."""

    def __init__(self, model, tokenizer=None, max_length=None, pack=False, dtype=None):
        self.model, self.dtype = model, dtype
        self.tokenizer = tokenizer or Tokenizer.from_folder(model.folder)
        self.max_length = usable_length(model, self.tokenizer, max_length)
        self.make_batch = batch_function(pack)
        self.shortened = 0  # prompts that lost their beginning

    def example(self, raw, where):
        """A row to score or to rank, tokenised: prompt and response, or prompt and responses.

        If one response is too long, the prompt is shortened for all of them: responses can only be
        compared after the same prompt.

        Raises: DataError naming the row where it is malformed or too long.
        """
        if "text" in raw or "input_ids" in raw:
            from extras import raw_texts

            return raw_texts.example(self, raw, where)
        row = parse_row(raw, where)
        for response in row.responses:
            if not response or not response[-1]["content"].strip():
                raise DataError(f"{where}: a response is empty")
        sequences, start = self.tokenizer.encode_row(row)
        fitted = self.tokenizer.shorten(sequences, start, self.max_length)
        if fitted is None:
            longest = max(map(len, sequences))
            raise DataError(f"{where}: {longest} tokens do not fit into {self.max_length}")
        self.shortened += fitted[1] < start
        check_ids(fitted[0], self.model, where)
        return Example(fitted[0], [], fitted[1], row=row)

    def rewards(self, examples):
        """The (K,) rewards of each example."""
        return score_examples(
            self.model, examples, self.make_batch, self.tokenizer.pad_id, self.dtype
        )


def score(model, rows, tokenizer=None):
    """The rewards of some rows of prompt and response, in nats.

    Without a tokenizer, that of the folder is read that the model was loaded from.
    """
    scorer = Scorer(model, tokenizer)
    examples = [scorer.example(row, f"row {i}") for i, row in enumerate(rows, 1)]
    return [float(rewards[0]) for rewards in scorer.rewards(examples)]


def usable_length(model, tokenizer, asked):
    """Tokens of a text: as many as asked for, else what the model was trained on, or takes.

    Raises: DataError where more is asked for than the model takes.
    """
    limit = model.config.max_length
    if asked and asked > limit:
        raise DataError(f"--max-length {asked} is more than the {limit} tokens this model takes")
    return asked or min(limit, tokenizer.max_length)


def check_ids(sequences, model, where):
    """Raises: DataError at a token id that the embedding has no row for."""
    for ids in sequences:
        if len(ids) and ids.max() >= model.config.vocab_size:
            raise DataError(
                f"{where}: token id {ids.max()} is beyond the model's vocabulary of "
                f"{model.config.vocab_size}; do tokenizer.json and config.json belong together?"
            )


# ---------------------------------------------------------------- the commands


def command_report(args, scorer):
    """Preference pairs -> the report on standard output; --output keeps every figure."""
    results = []
    for path in args.data:
        audit = Audit()
        rows = read_rows([path], args.skip_bad_rows, audit)
        options = (scorer.tokenizer, scorer.max_length, audit, args.skip_bad_rows)
        examples = list(examples_of(rows, *options))
        print(describe_audit(path, audit.summary()), file=sys.stderr)
        for example in examples:
            check_ids(example.sequences, scorer.model, path)
        rewards = scorer.rewards(examples)
        figures = report(rewards, examples)
        print(describe(figures))
        if args.details or args.predictions or args.plot:
            from extras import report_details

            figures |= report_details.show(args, scorer, rewards, examples, figures)
        results.append({"data": path, "run": args.run, "audit": audit.summary()} | figures)
    if args.output:
        with replacing(args.output) as file:
            value = results if len(results) > 1 else results[0]
            file.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def command_score(args, scorer):
    """Rows in, the same rows out in the same order, each with its reward."""
    for chunk in chunks(input_rows(args.input)):
        examples = [scorer.example(row, where) for where, row in chunk]
        for (where, row), example, rewards in zip(chunk, examples, scorer.rewards(examples)):
            if len(rewards) > 1 or not np.isfinite(rewards).all():
                raise DataError(f"{where}: the rewards are {rewards}, not one finite number")
            row = row | {"reward": float(rewards[0])}
            if args.show_token:
                ids = example.sequences[0]
                token = scorer.tokenizer.backend.id_to_token(int(ids[-1]))
                row["scored_token"] = {"position": len(ids) - 1, "id": int(ids[-1]), "token": token}
            print(json.dumps(row))


def command_rank(args, scorer):
    """Rows with responses in; the same rows out, the responses best first, or only the best."""
    for chunk in chunks(input_rows(args.input)):
        for where, row in chunk:
            if not isinstance(row.get("responses"), list):
                raise DataError(f"{where}: no list 'responses' (found: {', '.join(row)})")
        examples = [scorer.example(row, where) for where, row in chunk]
        for (where, row), rewards in zip(chunk, scorer.rewards(examples)):
            if not np.isfinite(rewards).all():
                raise DataError(f"{where}: a reward is not a finite number")
            order = np.argsort(-rewards, kind="stable").tolist()  # ties keep their order
            responses = [row["responses"][i] for i in order]
            ranked = rewards[order].tolist()
            if args.best:
                best = {"response": responses[0], "reward": ranked[0], "index": order[0]}
                row = {key: value for key, value in row.items() if key != "responses"} | best
            else:
                row = row | {"responses": responses, "rewards": ranked, "order": order}
            print(json.dumps(row))


def input_rows(path):
    """("file:line", row) of a file or of standard input."""
    return json_rows(path) if path else parse_lines(sys.stdin, "standard input")


def chunks(rows, size=256):
    """Lists of rows: memory holds one of them. A bar on a terminal shows the progress."""
    rows = iter(tqdm(rows, unit=" rows", disable=None))
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


@contextlib.contextmanager
def replacing(path):
    """A new file or folder, which takes its name only when it is complete and on the disk."""
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
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def remove(path):
    """A file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def pick_device(name):
    """The device asked for, else a GPU where there is one.  Raises: DataError."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
        return device
    except (RuntimeError, AssertionError) as e:
        raise DataError(f"--device {name}: {str(e).splitlines()[0]}") from None


def parse_options(argv):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="eval.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = {"action": argparse.BooleanOptionalAction, "default": False}
    commands = parser.add_subparsers(dest="command", required=True, metavar="report | score | rank")
    added = {}
    for name in ("report", "score", "rank"):
        added[name] = commands.add_parser(name, help=globals()[f"command_{name}"].__doc__)
        add = added[name].add_argument
        add("run", metavar="RUN", help="folder of a reward model, or owner/name on the hub")
        add("--max-length", type=int, help="tokens of a text (default: what it was trained on)")
        add("--pack", **flag, help="compute a prompt once for all its responses")
        add("--bf16", **flag, help="bfloat16 autocast: faster on GPUs, less exact")
        add("--device", help="cpu, cuda, cuda:1 … (default: cuda where there is one)")
    add = added["report"].add_argument
    add("--data", required=True, nargs="+", metavar="FILE", help="pairs, in any layout of training")
    add("--output", metavar="FILE", help="write every figure here as JSON")
    add("--details", **flag, help="by confidence, length and source; the worst mistakes")
    add("--predictions", metavar="FILE", help="write the rewards of every pair here")
    add("--plot", metavar="FILE", help="draw rewards, calibration, length (needs matplotlib)")
    add("--skip-bad-rows", **flag, help="leave bad rows out and count them")
    for name in ("score", "rank"):
        add = added[name].add_argument
        add("--input", metavar="FILE", help="JSON lines (default: standard input)")
    added["score"].add_argument("--show-token", **flag, help="add where the reward was read")
    added["rank"].add_argument("--best", **flag, help="best of n: keep only the winner")
    return parser.parse_args(argv)


def main(argv=None):
    """The command line; returns the exit status."""
    args = parse_options(argv)
    try:
        model = RewardModel.from_pretrained(args.run, pick_device(args.device))
        dtype = torch.bfloat16 if args.bf16 else None
        scorer = Scorer(model, None, args.max_length, args.pack, dtype)
        {"report": command_report, "score": command_score, "rank": command_rank}[args.command](
            args, scorer
        )
        if scorer.shortened:
            print(f"{scorer.shortened} prompts were shortened to fit", file=sys.stderr)
        return 0
    except (DataError, CheckpointError, OSError, ImportError) as e:
        print(f"eval.py: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # a σ must not end a long run
    sys.exit(main())
