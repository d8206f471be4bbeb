"""report_details.py: what a long report adds to accuracy and loss.

    python eval.py report RUN --data pairs.jsonl --details
    python eval.py report RUN --data a.jsonl b.jsonl --predictions scored_pairs.jsonl

One accuracy for a whole file hides where a model is good and where it is not. --details prints:

    by confidence       the calibration table of eval.py: accuracy beside confidence σ(|gap|)
    by tokens           accuracy on the shortest quarter of the pairs, the next, …, the longest
    by source, subset   accuracy on the rows that have the same "source" or "subset", and the mean
                        of these lines: leaderboards give every subset the same weight
    best_wins           has the best response of a row the highest reward? If m responses share it,
                        and the best is one of them, that is worth 1/m. A coin scores 1/K there,
                        not 1/2 (RewardBench 2, Malik et al. 2025)
    surest and wrong    the pairs that the model ranks wrong with the largest gaps, as texts. Look
                        at them first: often the label is wrong, and not the model

--predictions FILE keeps a JSON line a pair, to compare two models pair by pair. --plot FILE draws
(extras/plots.py). --output FILE then has all these figures too. Several files of --data are put
beside each other in a last table.

It costs almost nothing next to the forward passes. tests/extras/test_report_details.py compares the
figures with computations by hand.

Shapes: B pairs   N rows   K responses of a row
"""
import json
import os
from pathlib import Path

import numpy as np

from data import DataError
from eval import all_pairs, correlation
from extras import plots
from extras.report_texts import predictions, worst_mistakes


def show(args, scorer, rewards, examples, figures):
    """Print, write and draw what the options ask for, for one file of --data.

    Args:    scorer: eval.Scorer.  rewards: (K,) of each example.  figures: of eval.report.
    Returns: the figures that are added.
    """
    pairs = all_pairs(rewards, examples)
    rows = list(zip(examples, rewards))
    added = more_figures(pairs, rows)
    if args.details:
        print_details(figures | added)
    if args.plot:
        metrics = plots.read_metrics(scorer.model.folder)
        plots.draw(args.plot, pairs, figures, metrics)

    # There is one call for each file of --data. What the calls share lies in args.
    reports = getattr(args, "reports", [])
    if args.predictions:
        mode = "a" if reports else "w"  # a: after the pairs of the files before
        with open(args.predictions, mode, encoding="utf-8") as file:
            for line in predictions(rows, scorer.tokenizer):
                file.write(json.dumps(line) + "\n")
    args.reports = [*reports, figures]
    if len(args.reports) == len(args.data) > 1:
        print_beside_each_other(args.data, args.reports)
    return added


def check_options(args):
    """Better now than after the work.

    Raises: DataError where files would overwrite each other, or nothing can be drawn.
    """
    taken = list(map(os.path.realpath, args.data))
    for path in filter(None, (args.output, args.predictions, args.plot)):
        if not Path(path).absolute().parent.is_dir():
            raise DataError(f"{path}: its folder does not exist")
        taken.append(os.path.realpath(path))
    if len(set(taken)) < len(taken):
        raise DataError("--data, --output, --predictions, --plot: each has to be another file")
    if args.plot:
        plots.check(args.plot)
        if len(args.data) > 1:
            raise DataError("--plot draws one file of --data")


# ---------------------------------------------------------------- figures


def more_figures(pairs, rows):
    """All that is added.

    Args:  pairs: eval.Pairs.  rows: N of (example, its K rewards).
    """
    gaps = pairs.r_chosen - pairs.r_rejected  # (B,)
    longer_by = pairs.tokens_chosen - pairs.tokens_rejected  # (B,)
    wins = best_wins(rows)  # (N,)
    added = {
        "margin_length_correlation": correlation(gaps, longer_by),
        "quantiles": {
            "chosen": quantiles(pairs.r_chosen),
            "rejected": quantiles(pairs.r_rejected),
            "margin": quantiles(gaps),
        },
        "by_length": by_length(pairs),
        "rows_with_a_best": int(np.isfinite(wins).sum()),
        "best_wins": mean(wins),
        "mistakes": worst_mistakes(rows),
    }
    for field in ("source", "subset"):
        names = [str(example.row.raw.get(field) or "") for example, _ in rows]
        parts = by_name(np.array(names), pairs, wins)
        if parts:
            added[f"by_{field}"] = parts
    return added


def accuracy(gaps):
    """How many pairs these are, and the share that is ranked as labelled. A tie is half right."""
    correct = np.sign(gaps) / 2 + 0.5
    return {"pairs": len(correct), "accuracy": float(correct.mean())}


def mean(values):
    """The mean of those that are not NaN, or None."""
    values = np.array(values, dtype=float)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


def quantiles(values):
    """{"p5": …, …, "p95": …}: how far the values are spread, in nats."""
    found = {}
    for percent in (5, 25, 50, 75, 95):
        found[f"p{percent}"] = float(np.percentile(values, percent))
    return found


def best_wins(rows):
    """(N,) 1 where the best response of a row has the highest reward, else 0.

    1/m where m responses share the highest reward. NaN where several responses are best. For a
    pair this is its accuracy.
    """
    wins = np.full(len(rows), np.nan)
    for number, (example, r) in enumerate(rows):
        scores = np.array(example.scores)
        best = scores == scores.max()  # (K,)
        highest = r == r.max()  # (K,)
        if best.sum() == 1:
            wins[number] = highest[best].sum() / highest.sum()
    return wins


def by_length(pairs):
    """Accuracy on four parts of the pairs, the shortest first.

    The longer response of a pair counts, with its prompt. Pairs of one length stay together, so
    the parts are not quite equal.
    """
    tokens = np.maximum(pairs.tokens_chosen, pairs.tokens_rejected).astype(int)  # (B,)
    edges = np.quantile(tokens, [0.25, 0.5, 0.75])
    part_of = np.searchsorted(edges, tokens)  # (B,) 0 to 3
    gaps = pairs.r_chosen - pairs.r_rejected  # (B,)
    parts = []
    for number in np.unique(part_of):
        inside = part_of == number
        shortest, longest = tokens[inside].min(), tokens[inside].max()
        ends = {"from": int(shortest), "to": int(longest)}
        parts.append(ends | accuracy(gaps[inside]))
    return parts


def by_name(names, pairs, wins):
    """Name -> figures of the rows with this name. Rows without a name are in no part.

    Args:  names, wins: (N,).  pairs: eval.Pairs.
    """
    gaps = pairs.r_chosen - pairs.r_rejected  # (B,)
    parts = {}
    for name in sorted(set(names.tolist()) - {""}):
        of_rows = names == name  # (N,)
        of_pairs = of_rows[pairs.row.astype(int)]  # (B,)
        parts[name] = accuracy(gaps[of_pairs])
        parts[name]["best_wins"] = mean(wins[of_rows])
    return parts


# ---------------------------------------------------------------- tables


def print_details(figures):
    """The tables and the mistakes."""
    print_table("by confidence σ(|gap|)", figures["calibration"]["table"])
    print_table("by tokens of the longer response, with its prompt", figures["by_length"])
    for field in ("source", "subset"):
        parts = figures.get(f"by_{field}")
        if parts:
            lines = [part | {field: name} for name, part in parts.items()]
            means = {"pairs": ""}
            for key in ("accuracy", "best_wins"):
                means[key] = mean([line[key] for line in lines])
            print_table(f"by {field}", [*lines, means | {field: "their mean"}])
    all_rows = {"rows": figures["rows_with_a_best"], "best_wins": figures["best_wins"]}
    print_table("rows with one best response", [all_rows])
    for mistake in figures["mistakes"]:
        print("\nsurest and wrong")
        for name, value in mistake.items():
            print(f"  {name:<9} {shown(value)}")


def print_beside_each_other(names, reports):
    """The main figures of several files, a line a file."""
    lines = []
    for name, figures in zip(names, reports):
        line = {key: figures[key] for key in ("pairs", "accuracy")}
        line["from"], line["to"] = figures["accuracy_ci95"]
        line["longer wins"] = figures["longer_wins_accuracy"]
        line["loss"] = figures["loss"]
        line["ece"] = figures["calibration"]["ece"]
        lines.append(line | {"data": name})
    print_table("all files (from, to: 95% interval of the accuracy)", lines)


def print_table(title, lines):
    """Dictionaries with the same keys: a line each, in columns under these keys.

    Texts of any length come last.
    """
    print(f"\n{title}")
    print(*[f"{key:>11}" for key in lines[0]])
    for line in lines:
        print(*[f"{shown(value):>11}" for value in line.values()])


def shown(value):
    """A value as it is printed: three digits after the point, a text in one line."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)[:300]
    if not text.isprintable():  # escape codes would change the terminal
        text = json.dumps(text)
    return text
