"""report_details.py: what a long report adds to accuracy and loss.

    python eval.py report RUN --data pairs.jsonl --details
    python eval.py report RUN --data pairs.jsonl --by language category.topic
    python eval.py report RUN --data a.jsonl b.jsonl --predictions scored_pairs.jsonl

One accuracy for a whole file hides where a model is good and where it is not. --details prints:

    by confidence       the calibration table of eval.py: accuracy beside confidence σ(|gap|)
    by tokens           accuracy on the shortest quarter of the pairs, the next, …, the longest
    by source, subset   accuracy on the rows that have the same "source" or "subset", and the mean
                        of these lines. --by FIELD … splits by other fields of the rows instead
    best_wins           has the best response of a row the highest reward? If m responses share it,
                        and the best is one of them, that is worth 1/m. A coin scores 1/K there,
                        not 1/2
    a benchmark's rule  what its own code gives, where rows are recognised (extras/leaderboards/).
                        For several that is not the mean of the lines above
    surest and wrong    the pairs that the model ranks wrong with the largest gaps, as texts. Look
                        at them first: often the label is wrong, and not the model

--predictions FILE keeps a JSON line a pair, to compare two models pair by pair. --plot FILE draws
(extras/plots.py). --output FILE then has all these figures too. Several files of --data are put
beside each other in a last table. extras/report_tables.py prints.

It costs almost nothing next to the forward passes. tests/extras/test_report_details.py compares the
figures with computations by hand.

Shapes: B pairs   N rows   K responses of a row
"""
import json
import os
from pathlib import Path

import numpy as np

from data import DataError
from eval import all_pairs, check_new, correlation
from extras import leaderboards, plots, report_tables
from extras.report_texts import predictions, worst_mistakes

NO_VALUE = "(none)"


def show(args, scorer, rewards, examples, figures):
    """Print, write and draw what the options ask for, for one file of --data.

    Args:    scorer: eval.Scorer.  rewards: (K,) of each example.  figures: of eval.report.
    Returns: the figures that are added.
    """
    pairs = all_pairs(rewards, examples)
    rows = list(zip(examples, rewards))
    added = more_figures(pairs, rows, args.by)
    if args.details:
        report_tables.print_details(figures | added)
    elif args.by:
        report_tables.print_by(added["by"], added["leaderboards"])
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
        report_tables.print_beside_each_other(args.data, args.reports)
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
    if args.predictions:
        check_new(args.predictions, sign='"scored_tokens"')
    if args.plot:
        plots.check(args.plot)
        if len(args.data) > 1:
            raise DataError("--plot draws one file of --data")


def check_fields(fields, examples):
    """Raises: DataError where a field of --by is in no row."""
    for field in fields:
        if all(value_of(example, field) == NO_VALUE for example in examples):
            file = examples[0].row.where.rpartition(":")[0]
            found = ", ".join(examples[0].row.raw)
            raise DataError(f"{file}: --by {field}: no row has this field (found: {found})")


# ---------------------------------------------------------------- figures


def more_figures(pairs, rows, fields=None):
    """All that is added.

    Args:  pairs: eval.Pairs.  rows: N of (example, its K rewards).  fields: of --by.
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
        "by": {},
        "leaderboards": leaderboards.figures(rows),
    }
    for field in fields or ("source", "subset"):
        names = [value_of(example, field) for example, _ in rows]
        if fields or set(names) != {NO_VALUE}:
            added["by"][field] = by_name(names, pairs, wins)
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


def value_of(example, field):
    """What a row has in a field, as text. "a.b" is field b of the object in field a."""
    value = example.row.raw
    if field in value:
        value = value[field]
    else:
        for name in field.split("."):
            value = value.get(name) if isinstance(value, dict) else None
    if value is None or value == "":
        return NO_VALUE
    return value if isinstance(value, str) else json.dumps(value)


def by_name(names, pairs, wins):
    """Name -> figures of the rows with this name.

    Args:  names, wins: N.  pairs: eval.Pairs.
    """
    gaps = pairs.r_chosen - pairs.r_rejected  # (B,)
    different = sorted(set(names))
    numbers = {name: number for number, name in enumerate(different)}
    number_of_row = np.array([numbers[name] for name in names])  # (N,)
    number_of_pair = number_of_row[pairs.row.astype(int)]  # (B,)
    parts = {}
    for number, name in enumerate(different):
        parts[name] = accuracy(gaps[number_of_pair == number])
        parts[name]["best_wins"] = mean(wins[number_of_row == number])
    return parts
