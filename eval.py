"""eval.py: what a reward model is worth, and how to use one.  Read after data.py.

    python eval.py report RUN --data pairs.jsonl    accuracy with its error bar, loss, what length
                                                    alone would score, calibration
    python eval.py score  RUN < texts.jsonl         a reward for every row
    python eval.py rank   RUN < candidates.jsonl    the responses of every row, best first

RUN is a folder with config.json, tokenizer.json and safetensors, or owner/name on the Hugging Face
hub. In all commands, and in training too, a text becomes a reward in one way: data.py reads,
renders and encodes it, and model.py reads the reward at its last token.

From Python:  model = RewardModel.from_pretrained("runs/toy")
              score(model, [{"prompt": "Which colour is grass?", "response": "It is green."}])

A reward is in nats and has no zero point. Only the difference of two responses to the SAME prompt
means something: the log-odds that the first one is preferred, P = σ(r_1 − r_2).

Shapes: K responses of an example   B pairs   N sequences in all
Exit status: 0; 2 for invalid input, which one line names; 130 after Ctrl-C.
"""
import argparse
import collections
import json
import math
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from data import (
    Audit, DataError, Example, LeftOut, Tokenizer, batch_function, describe_audit, examples_of,
    json_rows, layout_options, note_lines, parse_lines, parse_row, read_rows, tokenize,
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
    process, processes = 0, 1
    if dist.is_initialized():
        process, processes = dist.get_rank(), dist.get_world_size()
    device = model.score.weight.device
    counts = [len(example.sequences) for example in examples]
    rewards = torch.zeros(sum(counts), device=device)  # (N,)
    batches = batches_by_length(examples)
    for mine in range(process, process + len(batches), processes):
        # All processes make equally many passes: a sharded model is put together in each of them.
        # A process that has no batch left computes the last one again, and drops the result.
        is_spare = mine >= len(batches)
        part = batches[-1] if is_spare else batches[mine]
        batch = make_batch(part.examples, pad_id).to(device)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            batch_rewards = model(**batch.inputs())
        if not is_spare:
            rewards[part.indices] = batch_rewards
    if processes > 1:
        dist.all_reduce(rewards)  # every reward is 0 in all processes but one
    return np.split(rewards.cpu().numpy(), np.cumsum(counts))[:-1]


class ScoringBatch(NamedTuple):
    """What one forward pass scores."""

    examples: list[Example]  # or parts of them: a row of many responses may be cut
    indices: list[int]  # where the rewards of their sequences belong among all N


def batches_by_length(examples):
    """Batches of sequences of similar length, so that there is little padding; the longest first.

    This cuts only the forward passes. All sequences of an example still have the same prompt.
    """
    numbered, index = [], 0  # of the example's first sequence among all N
    for example in examples:
        numbered.append((index, example))
        index += len(example.sequences)
    numbered.sort(key=lambda item: longest_sequence(item[1]), reverse=True)

    batches, room = [], 0  # sequences that the last batch still has room for
    for index, example in numbered:
        waiting = example.sequences
        while waiting:
            if room == 0:
                batches.append(ScoringBatch([], []))
                room = max(1, TOKENS_PER_BATCH // longest_sequence(example))
            part, waiting = waiting[:room], waiting[room:]
            # No scores: nothing is compared here, and a part may hold one half of a pair.
            batches[-1].examples.append(example._replace(sequences=part, scores=[]))
            batches[-1].indices.extend(range(index, index + len(part)))
            index += len(part)
            room -= len(part)
    return batches


def longest_sequence(example):
    """The tokens of the longest sequence of an example."""
    return max(map(len, example.sequences))


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

    Raises: DataError where there is none.
    """
    records = []
    for row, (r, example) in enumerate(zip(rewards, examples)):
        tokens = [len(sequence) for sequence in example.sequences]
        gold = example.gold or [math.nan] * len(tokens)
        prompt = example.prompt % 2**53  # as much of the hash as float64 holds
        for i, j in example.pairs():
            records.append((r[i], r[j], tokens[i], tokens[j], gold[i], gold[j], prompt, row))
    if not records:
        raise DataError("no pairs to evaluate")
    return Pairs(*np.array(records, dtype=np.float64).T)


def check_rewards(rewards, examples):
    """Raises: DataError where a reward is not a finite number.

    NaN compares as "not larger", and would pass for a wrong answer.
    """
    for number, (r, example) in enumerate(zip(rewards, examples), 1):
        if not np.isfinite(r).all():
            where = example.row.where if example.row else f"held-out row {number}"
            raise DataError(f"{where}: a reward is not a finite number")


def report(rewards, examples):
    """Every figure of the evaluation, in full precision.  rewards: (K,) of each example."""
    check_rewards(rewards, examples)
    pairs = all_pairs(rewards, examples)
    gaps = pairs.r_chosen - pairs.r_rejected
    figures = accuracy_figures(pairs) | reward_figures(pairs, rewards, examples)
    figures["calibration"] = calibration(gaps)
    if not np.isnan(pairs.gold_chosen).any():
        from extras import toy_world

        figures |= toy_world.figures(pairs)
    return figures


def accuracy_figures(pairs):
    """The share of pairs ranked as labelled, how sure that is, and what length alone scores."""
    r_chosen = torch.tensor(pairs.r_chosen)
    r_rejected = torch.tensor(pairs.r_rejected)
    losses = bradley_terry_loss(r_chosen, r_rejected)
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
        "loss": losses.double().mean().item(),
    }


def reward_figures(pairs, rewards, examples):
    """Where the rewards are, in nats. A response that is in several pairs counts once."""
    each = np.concatenate(rewards).astype(np.float64)  # (N,)
    tokens = []
    for example in examples:
        tokens += map(len, example.sequences)
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
    a = a - a.mean()
    b = b - b.mean()
    scale = math.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale else None


def bootstrap_interval(correct, prompt, draws=1000):
    """95% interval of the accuracy, by drawing whole prompts with replacement (Efron 1979).

    Pairs of one prompt are not independent. To count them as if they were makes error bars too
    short: with few prompts, by a factor of several.
    """
    _, group = np.unique(prompt, return_inverse=True)
    right = np.bincount(group, correct)  # of each prompt
    count = np.bincount(group)
    rng = np.random.default_rng(0)
    accuracies = []
    for _ in range(draws):
        drawn = rng.integers(len(count), size=len(count))
        accuracies.append(right[drawn].sum() / count[drawn].sum())
    return np.quantile(accuracies, [0.025, 0.975]).tolist()


def calibration(gaps, bins=10):
    """Is a gap worth what it says? σ(|gap|) is the model's confidence in the response it prefers.

    ece     expected calibration error: Σ_b n_b/n · |accuracy_b − mean confidence_b|, over bins of
            equal width from ½ to 1 (Guo et al. 2017, eq 3). With few pairs it is above 0 by chance.
    table   for each bin that has pairs: from, to, pairs, confidence, accuracy
    temperature: see best_temperature

    Args:  gaps: (B,) r_w − r_l, in nats.
    """
    confidence = 1 / (1 + np.exp(-np.abs(gaps)))  # (B,)
    correct = np.sign(gaps) / 2 + 0.5  # (B,)
    edges = np.linspace(0.5, 1, bins + 1)
    bin_of = np.digitize(confidence, edges[1:-1])  # (B,) 0 to bins − 1
    table, ece = [], 0.0
    for b in np.unique(bin_of):
        inside = bin_of == b
        line = {
            "from": float(edges[b]),
            "to": float(edges[b + 1]),
            "pairs": int(inside.sum()),
            "confidence": float(confidence[inside].mean()),
            "accuracy": float(correct[inside].mean()),
        }
        table.append(line)
        ece += inside.mean() * abs(line["accuracy"] - line["confidence"])
    return {"ece": float(ece), "temperature": best_temperature(gaps), "table": table}


def best_temperature(gaps):
    """The T for which the mean of −log σ(gap / T) is least (Guo et al. 2017, §4.2).

    Above 1 the model is surer than it is right. None where the best T is not between 0.1 and 10.
    """
    temperatures = np.geomspace(0.1, 10, 461)  # 1% apart
    losses = []
    for T in temperatures:
        losses.append(np.logaddexp(0, -gaps / T).mean())
    best = np.argmin(losses)
    if best in (0, len(losses) - 1):
        return None
    return float(temperatures[best])


MEANINGS = {
    "pairs": "a row of K responses has several",
    "prompts": "fewer than 20 are too few to trust the interval",
    "accuracy": "share of pairs that are ranked as labelled; a tie counts half",
    "accuracy_ci95": "95% interval of the accuracy",
    "ceiling_accuracy": "what the true rewards score",
    "longer_wins_accuracy": "what length alone scores",
    "accuracy_where_chosen_is_shorter": "accuracy on the pairs where length misleads",
    "ties": "pairs of equal rewards; many mean that something is broken",
    "loss": "nats; a coin has log 2 = 0.693",
    "mean_margin": "nats; the mean of r_w - r_l",
    "ece": "calibration error of the confidence σ(|gap|)",
    "temperature": "above 1: surer than it is right",
    "length_correlation": "of rewards with tokens",
    "gold_correlation": "with true rewards, within prompts",
}


def describe(figures):
    """The report as a table for a terminal, under the names that --output has."""
    figures = figures | figures["calibration"]
    text = ""
    for name, meaning in MEANINGS.items():
        value = figures.get(name)
        if isinstance(value, list):
            value = f"{value[0]:.3f} to {value[1]:.3f}"
        elif isinstance(value, float):
            value = f"{value:.3f}"
        if value is not None:
            text += f"{name:<32} {value:>14}   {meaning}\n"
    lowest, highest = figures["accuracy_ci95"]
    if lowest <= 0.5 <= highest:
        text += "The interval holds 0.5, what a coin gets: nothing shows that the model learned.\n"
    if figures["loss"] > math.log(2):
        text += "The loss is above log 2, that of a coin: the model is sure where it is wrong.\n"
    return text.rstrip()


# ---------------------------------------------------------------- texts -> rewards


# Rows with one of these fields are rendered. Others may have a text that is rendered already.
ANSWERED = {"prompt", "response", "responses", "chosen", "messages", "conversations"}


class Scorer:
    """A model and all it takes to turn rows into rewards."""

    def __init__(
        self, model, tokenizer=None, max_length=None, pack=False, dtype=None, layout=None
    ):
        self.model = model
        if tokenizer is None:
            config = model.config.config_json
            tokenizer = Tokenizer.from_folder(model.folder, head_config=config)
        self.tokenizer = tokenizer
        self.max_length = usable_length(model, self.tokenizer, max_length)
        self.make_batch = batch_function(pack)
        self.dtype = dtype
        self.layout = layout  # data.layout_options(…)
        self.notes = collections.Counter()  # rows by what happened to them

    def read_row(self, raw, where):
        """A row to score or to rank, tokenized: prompt and response, or prompt and responses.

        If one response is too long, the prompt is shortened for all of them: responses can only be
        compared after the same prompt.

        Raises: DataError naming the row where it is malformed or too long.
        """
        if not isinstance(raw, dict):
            raise DataError(f"{where}: not an object such as {{'prompt': …, 'response': …}}")
        if raw.keys() & {"text", "input_ids"} and not raw.keys() & ANSWERED:
            from extras import raw_texts

            return raw_texts.example(self, raw, where)
        try:
            row = parse_row(raw, where, self.layout)
            example = tokenize(row, self.tokenizer, self.max_length)
        except LeftOut as reason:
            raise DataError(f"{where}: {reason} (--max-length {self.max_length})") from None
        self.notes.update(example.notes)
        if example.shortened:
            self.notes["the prompt was shortened to fit"] += 1
        check_ids(example.sequences, self.model, where)
        return example

    def read_text(self, raw, where):
        """A row to score: it has one response."""
        example = self.read_row(raw, where)
        if len(example.sequences) > 1:
            advice = "give one `response`, or use rank, report"
            raise DataError(f"{where}: several responses; {advice}")
        return example

    # What training and `score` read. `rank` looks at the prompt and at `responses` only.
    NOT_RANKED = {"response", "chosen", "rejected", "scores", "ranks", "text", "input_ids"}

    def read_candidates(self, raw, where):
        """A row to rank: one with `responses`, or a row of training in any layout."""
        if "responses" not in raw:
            try:
                example = self.read_row(raw, where)
            except DataError as e:
                raise DataError(f"{e}; to rank, give a list 'responses'") from None
            if len(example.sequences) < 2:
                raise DataError(f"{where}: no list 'responses' (found: {', '.join(raw)})")
            return example
        asked = {field: raw[field] for field in raw if field not in self.NOT_RANKED}
        return self.read_row(asked, where)

    def rewards(self, examples):
        """The (K,) rewards of each example.  Raises: DataError where one is not a number."""
        pad_id = self.tokenizer.pad_id
        rewards = score_examples(self.model, examples, self.make_batch, pad_id, self.dtype)
        check_rewards(rewards, examples)
        return rewards


def score(model, rows, tokenizer=None):
    """The rewards of some rows of prompt and response, in nats.

    Without a tokenizer, that of the folder is read that the model was loaded from.
    """
    scorer = Scorer(model, tokenizer)
    examples = []
    for number, row in enumerate(rows, 1):
        examples.append(scorer.read_row(row, f"row {number}"))
    return [float(rewards[0]) for rewards in scorer.rewards(examples)]


def usable_length(model, tokenizer, asked):
    """Tokens of a text: as many as asked for, else the smaller limit of model and tokenizer.

    Raises: DataError where the model does not take so many.
    """
    limit = model.config.max_length
    if asked is None:
        return min(limit, tokenizer.max_length)
    if not 0 < asked <= limit:
        raise DataError(f"--max-length {asked}: this model takes 1 to {limit} tokens")
    return asked


def check_ids(sequences, model, where):
    """Raises: DataError at a token id that the embedding has no row for."""
    for ids in sequences:
        if len(ids) and not 0 <= ids.min() <= ids.max() < model.config.vocab_size:
            raise DataError(
                f"{where}: token id {ids.max()} is beyond the model's vocabulary of "
                f"{model.config.vocab_size}; do tokenizer.json and config.json belong together?"
            )


# ---------------------------------------------------------------- the commands


def command_report(args, scorer):
    """Preference pairs -> the report on standard output; --output keeps every figure."""
    wants_details = args.details or args.by or args.predictions or args.plot
    if wants_details:
        from extras import report_details

        report_details.check_options(args)  # better now than after the work
    if args.output:
        check_new(args.output, sign='"accuracy"')
    results = []
    for path in args.data:
        audit = Audit()
        examples = examples_of_file(path, scorer, audit, args.skip_bad_rows)
        if args.by:
            report_details.check_fields(args.by, examples)
        rewards = scorer.rewards(examples)
        figures = report(rewards, examples)
        print(describe(figures))
        if wants_details:
            figures |= report_details.show(args, scorer, rewards, examples, figures)
        about = {"data": path, "run": args.run, "audit": audit.summary()}
        results.append(about | figures)
    if args.output:
        value = results if len(results) > 1 else results[0]
        text = json.dumps(value, indent=2) + "\n"
        Path(args.output).write_text(text, "utf-8")


def check_new(path, sign):
    """Raises: DataError where a file would be lost. What an earlier report wrote has the sign."""
    if not os.path.isfile(path):  # /dev/stdout is none
        return
    with open(path, "rb") as file:
        is_ours = sign.encode() in file.read(10_000)
    if not is_ours:
        raise DataError(f"{path} is there, and no earlier report wrote it; choose another name")


def examples_of_file(path, scorer, audit, skip_bad_rows):
    """The rows of a file, tokenized, and the audit on the terminal.  Raises: DataError."""
    rows = read_rows([path], skip_bad_rows, audit, scorer.layout)
    examples = examples_of(rows, scorer.tokenizer, scorer.max_length, audit, skip_bad_rows)
    examples = list(examples)  # the rows are read here, and fill the audit
    warn(describe_audit(path, audit.summary()))
    if not examples:
        raise DataError(f"{path}: no pairs to evaluate")
    for example in examples:
        check_ids(example.sequences, scorer.model, path)
    return examples


def command_score(args, scorer):
    """Rows in, the same rows out in the same order, each with its reward."""
    for scored in scored_rows(args, scorer, scorer.read_text):
        if scored.problem:
            write_row(scored.row, {"reward": None, "reason": scored.problem}, scorer)
            continue
        added = {"reward": float(scored.rewards[0])}
        if args.show_token:
            ids = scored.example.sequences[0]
            last = int(ids[-1])
            token = scorer.tokenizer.backend.id_to_token(last)
            added["scored_token"] = {"position": len(ids) - 1, "id": last, "token": token}
        write_row(scored.row, added, scorer)


def command_rank(args, scorer):
    """Rows with responses in; the same rows out, the responses best first, or only the best."""
    for scored in scored_rows(args, scorer, scorer.read_candidates):
        row = scored.row
        if scored.problem:
            write_row(row, {"rewards": None, "reason": scored.problem}, scorer)
            continue
        order = np.argsort(-scored.rewards, kind="stable").tolist()  # ties keep their order
        candidates = row.get("responses") or list(map(plain, scored.example.row.responses))
        responses = [candidates[i] for i in order]
        rewards = scored.rewards[order].tolist()
        for field in ("scores", "ranks"):  # they follow their responses
            if isinstance(row.get(field), list) and len(row[field]) == len(order):
                row[field] = [row[field][i] for i in order]
        row.pop("responses", None)
        if args.best:
            added = {"response": responses[0], "reward": rewards[0], "index": order[0]}
        else:
            added = {"responses": responses, "rewards": rewards, "order": order}
        write_row(row, added, scorer)


def plain(response):
    """A response of one turn as text; of several turns as messages."""
    return response[0]["content"] if len(response) == 1 else response


def write_row(row, added, scorer):
    """A row on standard output, at once: the other end of a pipe may wait for it."""
    for field in added.keys() & row.keys():
        scorer.notes[f"its own field {field!r} was replaced"] += 1
    print(json.dumps(row | added), flush=True)


class Scored(NamedTuple):
    """A row of `score` or `rank`, and its rewards. With --skip-bad-rows: or why it has none."""

    row: dict  # as it was read
    example: Example | None = None
    rewards: np.ndarray | None = None  # (K,)
    problem: str = ""


def scored_rows(args, scorer, read):
    """Each row of a file, or of standard input, with its rewards.

    Args:   read: (row, where) -> example.
    Raises: DataError at a bad row; with skip_bad_rows that row has a problem and no rewards.
    """
    rows = json_rows(args.input) if args.input else parse_lines(sys.stdin, "standard input")
    rows = tqdm(rows, unit=" rows", disable=None)  # a bar on a terminal
    for chunk in chunks_of(rows):
        results, error = [], None
        for where, row in chunk:
            try:
                results.append(Scored(row, read(row, where)))
            except DataError as e:
                if not args.skip_bad_rows:
                    error = e  # after the rewards of the rows before it
                    break
                scorer.notes["no reward, for the reason beside it"] += 1
                results.append(Scored(row, problem=str(e)))
        good = [result.example for result in results if result.example]
        rewards = iter(scorer.rewards(good))
        for result in results:
            yield result._replace(rewards=next(rewards)) if result.example else result
        if error:
            raise error


CHUNK = 256  # rows in memory
PATIENCE = 0.2  # seconds
END = object()  # of the rows


def chunks_of(rows):
    """Lists of up to CHUNK rows. A list ends, too, when nothing has come for a moment.

    A program that writes one row into a pipe, and waits for its reward, would wait for ever
    otherwise.
    """
    arrived = queue.Queue(CHUNK)
    threading.Thread(target=pour, args=(rows, arrived), daemon=True).start()
    chunk, item = [], None
    while item is not END:
        try:
            item = arrived.get(timeout=PATIENCE if chunk else None)
        except queue.Empty:
            item = None
        if isinstance(item, tuple):
            chunk.append(item)
        if chunk and (len(chunk) == CHUNK or not isinstance(item, tuple)):
            yield chunk
            chunk = []
        if isinstance(item, Exception):
            raise item


def pour(rows, arrived):
    """Read rows into a queue, and then END. An error belongs to the main thread."""
    try:
        for row in rows:
            arrived.put(row)
        arrived.put(END)
    except Exception as e:
        arrived.put(e)


def pick_device(name):
    """The device asked for, else a GPU where there is one.  Raises: DataError."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).item()
        return device
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise DataError(f"--device {name}: {first_line(e)[:200]}") from None


def parse_options(argv):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="eval.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = {"action": argparse.BooleanOptionalAction, "default": False}
    commands = parser.add_subparsers(dest="command", required=True, metavar="report | score | rank")
    adds = {}
    for name, command in COMMANDS.items():
        adds[name] = add = commands.add_parser(name, help=command.__doc__).add_argument
        add("run", metavar="RUN", help="folder of a reward model, or owner/name on the hub")
        add("--max-length", type=int, help="tokens of a text (default: what it was trained on)")
        add("--pack", **flag, help="compute a prompt once for all its responses")
        add("--bf16", **flag, help="bfloat16 autocast: faster on GPUs, less exact")
        add("--base", help="the model that RUN, an adapter, changes (default: the one it names)")
        add("--device", help="cpu, cuda, cuda:1 … (default: cuda where there is one)")
        add("--skip-bad-rows", **flag, help="leave bad rows out and count them")
        for field in ("prompt", "chosen", "rejected"):
            add(f"--{field}-field", metavar="NAME", help=f"the rows' own name for {field!r}")
        if name != "report":
            add("--input", metavar="FILE", help="rows (default: JSON lines on standard input)")
    add = adds["report"]
    add("--data", required=True, nargs="+", action="extend", metavar="FILE",
        help="pairs, in any layout of training")
    add("--output", metavar="FILE", help="write every figure here as JSON")
    add("--details", **flag, help="by confidence, length and source; the worst mistakes")
    add("--by", nargs="+", metavar="FIELD", help="accuracy by the values of these fields")
    add("--predictions", metavar="FILE", help="write the rewards of every pair here")
    add("--plot", metavar="FILE", help="draw rewards, calibration, length (needs matplotlib)")
    adds["score"]("--show-token", **flag, help="add where the reward was read")
    adds["rank"]("--best", **flag, help="best of n: keep only the winner")
    return parser.parse_args(argv)


COMMANDS = {"report": command_report, "score": command_score, "rank": command_rank}


def warn(text):
    """A line for people, beside the rows or the report on standard output."""
    print(text, file=sys.stderr)


def main(argv=None):
    """The command line; returns the exit status."""
    args = parse_options(argv)
    dtype = torch.bfloat16 if args.bf16 else None
    try:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise DataError("one process reads all rows: start eval.py without torchrun")
        check_finished(Path(args.run))
        model = RewardModel.from_pretrained(args.run, pick_device(args.device), args.base)
        scorer = Scorer(
            model,
            max_length=args.max_length,
            pack=args.pack,
            dtype=dtype,
            layout=layout_options(args),
        )
        COMMANDS[args.command](args, scorer)
        tokenizer = scorer.tokenizer
        warn(f"texts were rendered {tokenizer.rendering}; end token {tokenizer.end_token!r}")
        for line in note_lines(scorer.notes):
            warn(line)
        return 0
    except (DataError, CheckpointError, OSError, ImportError) as e:
        warn(f"eval.py: {e}")
        return 2
    except (RuntimeError, MemoryError) as e:
        if not is_out_of_memory(e):
            raise
        warn(f"eval.py: out of memory ({first_line(e)}); --bf16 and a lower --max-length need less")
        return 2
    except KeyboardInterrupt:
        return 130


def open_streams():
    """A stream that is closed (<&-, >&-) becomes an empty one. All are UTF-8."""
    sys.stdin = sys.stdin or open(os.devnull)
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # a bad byte: a bad row
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # a σ must not end a long run


def check_finished(run):
    """Raises: DataError where a run was stopped: its folder has no model yet."""
    if (run / "options.json").exists() and not (run / "config.json").exists():
        raise DataError(f"{run}: no model yet; end the run: python train_rm.py --resume {run}")


def is_out_of_memory(error):
    """Of Python, of an accelerator, or of PyTorch on the CPU, which raises a plain RuntimeError."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or "can't allocate memory" in str(error)


def first_line(error):
    """What an error says, without what PyTorch adds below."""
    return str(error).partition("\n")[0]


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # not on Windows
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `… | head` ends this program silently
    open_streams()
    sys.exit(main())
