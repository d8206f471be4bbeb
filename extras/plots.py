"""plots.py: pictures of a report and of a run.

    python eval.py report RUN --data pairs.jsonl --plot report.png     up to five panels
    python extras/plots.py RUN                                         RUN/curve.png

    rewards          two histograms, chosen and rejected. What they share is not all error: rewards
                     of different prompts cannot be compared
    calibration      accuracy against confidence σ(|gap|). Below the diagonal the model is surer
                     than it is right
    length           rewards against tokens. A slope is a taste for long, or short, responses
    truth            learned against true rewards, where they are known (the toy world)
                     In both, faint dots are responses. A mark is the median of a sixth of them,
                     its bar goes from the first quartile to the third
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
POINTS = 1000  # pairs in a cloud of points, which is faint: the marks over it are for reading
BINS = 6
BLUE, RED = "#0072B2", "#D55E00"  # told apart by all eyes (Okabe and Ito 2008)
CHOSEN = {"color": BLUE, "label": "chosen"}
REJECTED = {"color": RED, "label": "rejected"}
DASHED = {"color": "0.4", "linestyle": "dashed"}
PLATEAU = "the plateau: manners first,\nthe question comes later"


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
    axis.hist(pairs.r_chosen, edges, alpha=0.6, **CHOSEN)
    axis.hist(pairs.r_rejected, edges, histtype="step", linewidth=2, **REJECTED)
    axis.set(title="Rewards", xlabel="reward, nats", ylabel="responses")
    axis.legend(loc="upper center")


def plot_calibration(axis, pairs, figures):
    """How sure against how often right, with the number of pairs at each point."""
    calibration = figures["calibration"]
    table, error = calibration["table"], calibration["ece"]
    confidence = [part["confidence"] for part in table]
    accuracy = [part["accuracy"] for part in table]
    ends = [0.5, 1]
    axis.plot(ends, ends, **DASHED, label="as sure as it is right")
    axis.plot(confidence, accuracy, "o-", color=BLUE, label="this model")
    for part in table:
        point = part["confidence"], part["accuracy"]
        number = f"  {part['pairs']}"
        axis.annotate(number, point, fontsize=7, va="top")
    title = f"Calibration (error {error:.3f}; numbers: pairs)"
    axis.set(title=title, xlabel="confidence σ(|gap|)", ylabel="accuracy")
    axis.legend()


def plot_length(axis, pairs, figures):
    """Rewards against tokens."""
    plot_cloud(axis, pairs.tokens_chosen, pairs.r_chosen, "o", **CHOSEN)
    plot_cloud(axis, pairs.tokens_rejected, pairs.r_rejected, "s", **REJECTED)
    title, correlation = "Length", figures["length_correlation"]
    if correlation is not None:
        title += f" (correlation {correlation:+.2f})"
    axis.set(title=title, xlabel="tokens", ylabel="reward, nats")
    axis.legend()


def plot_truth(axis, pairs, figures):
    """Learned against true rewards. The learned ones are shifted: a reward has no zero point."""
    gold = np.concatenate((pairs.gold_chosen, pairs.gold_rejected))
    learned = np.concatenate((pairs.r_chosen, pairs.r_rejected))
    shifted = learned - learned.mean() + gold.mean()
    plot_cloud(axis, gold, shifted, "o", color=BLUE, label="learned")
    ends = [gold.min(), gold.max()]
    axis.plot(ends, ends, **DASHED, label="learned = true")
    title = f"Learned and true (within prompts: {figures['gold_correlation']:.3f})"
    axis.set(title=title, xlabel="true reward, nats", ylabel="learned reward, shifted, nats")
    axis.legend()


def plot_cloud(axis, x, y, marker, **style):
    """Some points, faint, and over them the median and the quartiles of each bin of all."""
    few = slice(None, None, math.ceil(len(x) / POINTS))
    color = style["color"]
    axis.scatter(x[few], y[few], s=4, alpha=0.15, color=color)
    centers, low, median, high = quartiles(x, y)
    bars = (median - low, high - median)
    style |= {"marker": marker, "linestyle": "none", "capsize": 3}
    axis.errorbar(centers, median, bars, **style)


def quartiles(x, y):
    """BINS bins of equally many points, by x -> mean x, first quartile, median, third quartile.

    Equal x stay in one bin. So there are fewer bins where x has few values.
    """
    shares = np.arange(1, BINS) / BINS
    edges = np.quantile(x, shares)
    bin_of = np.searchsorted(np.unique(edges), x)
    found = []
    for number in np.unique(bin_of):
        inside = bin_of == number
        center = x[inside].mean()
        three = np.quantile(y[inside], [0.25, 0.5, 0.75])
        found.append([center, *three])
    return np.array(found).T


def plot_curve(axis, metrics, ceiling_loss, saved=None):
    """Loss by step.

    Args:  ceiling_loss: the best possible, where it is known.  saved: step and held-out loss of the
           model that was saved, of a run that has ended.
    """
    steps, losses = logged(metrics, "loss")
    axis.plot(steps, losses, color=BLUE, linewidth=1, label="training")
    if ceiling_loss is not None and steps[-1] > 600:  # the toy world, and it is behind us
        arrow = {"arrowstyle": "->"}
        place = {"xytext": (0.2, 0.8), "textcoords": "axes fraction"}
        axis.annotate(PLATEAU, (150, 0.65), **place, arrowprops=arrow)
    steps, losses = logged(metrics, "eval_loss")
    held_out = {"color": RED}
    axis.plot(steps, losses, "o-", **held_out, label="held out")
    if saved:
        step, loss = saved
        last = steps[-1:], losses[-1:]
        axis.plot(*last, "s", **held_out, markersize=9, label="the last")
        saved_label = f"saved: step {step}"
        axis.plot([step], [loss], "*", **held_out, markersize=15, label=saved_label)
    axis.axhline(math.log(2), linestyle="dotted", color="black", label="a coin, log 2")
    if ceiling_loss is not None:
        axis.axhline(ceiling_loss, **DASHED, label="the best possible")
    axis.set(title="Learning curve", xlabel="step", ylabel="loss, nats")
    axis.legend(loc="center right")


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
