"""plots.py: pictures of a report and of a run.

    python eval.py report RUN --data pairs.jsonl --plot report.png     up to five panels
    python extras/plots.py RUN                                         RUN/curve.png

    rewards          two histograms, chosen and rejected. What they share is not all error: rewards
                     of different prompts cannot be compared
    calibration      accuracy against confidence σ(|gap|). Below the diagonal the model is surer
                     than it is right
    length           rewards against tokens. A slope is a taste for long, or short, responses
    truth            learned against true rewards, where they are known (the toy world)
    learning curve   loss by step, in training and held out, between a coin and the best possible.
                     Held-out loss that rises while the other falls: the model learns by heart.
                     A star marks the step whose model was saved, a square the last one

It needs matplotlib, which nothing else here does: pip install matplotlib. Without it, both commands
say so in one line, before any work. The end of the file's name decides the format: .png, .pdf or
.svg. Drawing takes a second or two.

tests/extras/test_plots.py shows that the numbers that are drawn are those of the report.

Shapes: B pairs
"""
import argparse
import contextlib
import json
import math
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # as a script, too, this file finds data.py

from data import DataError

FORMATS = (".png", ".pdf", ".svg")
POINTS = 2000  # pairs in a cloud of points; more would only be black
CHOSEN = {"color": "0.6", "label": "chosen"}
REJECTED = {"color": "black", "label": "rejected"}
DASHED = {"color": "0.6", "linestyle": "dashed"}
BLUE, RED = "#0072B2", "#D55E00"  # told apart by all eyes (Okabe and Ito 2008)


def pyplot():
    """matplotlib, drawing to files.  Raises: DataError where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        message = "pictures need matplotlib, an optional extra: pip install matplotlib"
        raise DataError(message) from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def check(path):
    """Raises: DataError where no picture can be drawn here: better now than after the work."""
    pyplot()
    if Path(path).suffix not in FORMATS:
        raise DataError(f"{path}: not a picture; its name has to end in {', '.join(FORMATS)}")


def draw(path, pairs, figures, metrics):
    """A report as pictures, in one file.

    Args:  pairs: eval.Pairs.  figures: of eval.report.  metrics: of read_metrics, or [].
    """
    panels = [plot_rewards, plot_calibration, plot_length]
    if "gold_correlation" in figures:
        panels.append(plot_truth)
    figure, axes = pyplot().subplots(2, 3, figsize=(13.5, 8), layout="constrained")
    axes = list(axes.flat)
    for panel in panels:
        panel(axes.pop(0), pairs, figures)
    if metrics:
        plot_curve(axes.pop(0), metrics, figures.get("ceiling_loss"))
    for axis in axes:
        axis.set_axis_off()
    figure.savefig(path, dpi=150)


def plot_rewards(axis, pairs, figures):
    """Two histograms, chosen and rejected."""
    both = (pairs.r_chosen, pairs.r_rejected)
    edges = np.histogram_bin_edges(both, bins=40)
    axis.hist(pairs.r_chosen, edges, **CHOSEN)
    axis.hist(pairs.r_rejected, edges, histtype="step", **REJECTED)
    axis.set(title="Rewards", xlabel="reward, nats", ylabel="responses")
    axis.legend()


def plot_calibration(axis, pairs, figures):
    """How sure against how often right, with the number of pairs at each point."""
    table, error = figures["calibration"]["table"], figures["calibration"]["ece"]
    confidence = [part["confidence"] for part in table]
    accuracy = [part["accuracy"] for part in table]
    axis.plot([0.5, 1], [0.5, 1], **DASHED, label="as sure as it is right")
    axis.plot(confidence, accuracy, "o-", color="black", label="this model")
    for part in table:
        point = (part["confidence"], part["accuracy"])
        axis.annotate(f"  {part['pairs']}", point, fontsize=7, va="top")
    title = f"Calibration (error {error:.3f}; numbers: pairs)"
    axis.set(title=title, xlabel="confidence σ(|gap|)", ylabel="accuracy")
    axis.legend()


def plot_length(axis, pairs, figures):
    """Rewards against tokens."""
    some = slice(POINTS)
    axis.scatter(pairs.tokens_chosen[some], pairs.r_chosen[some], marker=".", **CHOSEN)
    axis.scatter(pairs.tokens_rejected[some], pairs.r_rejected[some], marker="x", **REJECTED)
    title, correlation = "Length", figures["length_correlation"]
    if correlation is not None:
        title += f" (correlation {correlation:+.2f})"
    axis.set(title=title, xlabel="tokens", ylabel="reward, nats")
    axis.legend()


def plot_truth(axis, pairs, figures):
    """Learned against true rewards. The learned ones are shifted: a reward has no zero point."""
    some = slice(POINTS)
    gold = np.concatenate((pairs.gold_chosen[some], pairs.gold_rejected[some]))
    learned = np.concatenate((pairs.r_chosen[some], pairs.r_rejected[some]))
    shifted = learned - learned.mean() + gold.mean()
    axis.scatter(gold, shifted, s=6, color="black", alpha=0.3)
    ends = [gold.min(), gold.max()]
    axis.plot(ends, ends, **DASHED, label="learned = true")
    title = f"Learned and true (within prompts: {figures['gold_correlation']:.3f})"
    axis.set(title=title, xlabel="true reward, nats", ylabel="learned reward, shifted, nats")
    axis.legend()


def plot_curve(axis, metrics, ceiling_loss, saved=None):
    """Loss by step.

    Args:  ceiling_loss: the best possible, where it is known.  saved: step and held-out loss of the
           model that was saved, of a run that has ended.
    """
    steps, losses = logged(metrics, "loss")
    axis.plot(steps, losses, color="0.6", label="training")
    steps, losses = logged(metrics, "eval_loss")
    axis.plot(steps, losses, "o-", color="black", label="held out")
    if saved:
        step, loss = saved
        axis.plot(steps[-1:], losses[-1:], "s", color="black", markersize=9, label="the last")
        axis.plot([step], [loss], "*", color="black", markersize=15, label=f"saved: step {step}")
    axis.axhline(math.log(2), linestyle="dotted", color="black", label="a coin, log 2")
    if ceiling_loss is not None:
        axis.axhline(ceiling_loss, **DASHED, label="the best possible")
    axis.set(title="Learning curve", xlabel="step", ylabel="loss, nats")
    axis.legend()


def logged(metrics, name):
    """The steps at which a number was logged, and the numbers."""
    steps, values = [], []
    for line in metrics:
        if name in line:
            steps.append(line["step"])
            values.append(line[name])
    return steps, values


def read_metrics(folder):
    """The lines of a run's metrics.jsonl. A killed run leaves half a line, which is left out."""
    path = Path(folder) / "metrics.jsonl"
    if not path.exists():
        return []
    metrics = []
    for text in path.read_text("utf-8").splitlines():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if "step" in line:
                metrics.append(line)
    return metrics


def draw_curve(run):
    """The learning curve of a run folder -> the picture.  Raises: DataError."""
    metrics, ceiling_loss, saved = read_metrics(run), None, None
    if not metrics:
        raise DataError(f"{run}: no metrics.jsonl with steps in it, so not a run")
    if (run / "report.json").exists():
        report = json.loads((run / "report.json").read_text("utf-8"))
        ceiling_loss = report.get("ceiling_loss")
        if "step" in report:
            saved = (report["step"], report["loss"])
    figure, axis = pyplot().subplots(layout="constrained")
    plot_curve(axis, metrics, ceiling_loss, saved)
    figure.savefig(run / "curve.png", dpi=150)
    return run / "curve.png"


def main(argv=None):
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Draw the learning curve of a run.")
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder, with metrics.jsonl")
    args = parser.parse_args(argv)
    try:
        print(draw_curve(args.run))
        return 0
    except (DataError, OSError) as e:
        print(f"plots.py: {e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
