"""Pictures: the numbers that are drawn are those of the report. matplotlib itself is not needed."""
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import write_rows

from data import DataError, Example
from eval import all_pairs, report
from extras import plots

METRICS = [
    {"step": 1, "loss": 0.7},
    {"step": 2, "loss": 0.6},
    {"step": 2, "eval_loss": 0.65},
    {"step": 4, "loss": 0.5},
]


class Canvas:
    """Stands in for matplotlib's figures and axes: it notes what it is told to draw."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def note(*args, **settings):
            self.calls.append((name, args, settings))

        return note

    def drawn(self, name):
        """The arguments of each call of this name."""
        return [args for called, args, _ in self.calls if called == name]

    def settings(self, name):
        """The settings of the first call of this name."""
        return next(settings for called, _, settings in self.calls if called == name)


@pytest.fixture
def canvas(monkeypatch):
    """(figure, six axes) that stand in for what matplotlib makes."""
    figure, axes = Canvas(), [Canvas() for _ in range(6)]

    def subplots(*size, **settings):
        return figure, SimpleNamespace(flat=axes) if size else axes[0]

    monkeypatch.setattr(plots, "pyplot", lambda: SimpleNamespace(subplots=subplots))
    return figure, axes


def scored(gold=True):
    """Pairs with random rewards and lengths, and their report."""
    rng = np.random.default_rng(0)
    examples, rewards = [], []
    for i in range(30):
        lengths = rng.integers(3, 9, size=2)
        sequences = [np.zeros(length, dtype=np.int32) for length in lengths]
        true = rng.normal(size=2).tolist() if gold else []
        examples.append(Example(sequences, [1.0, 0.0], start=0, gold=true, prompt=i // 3))
        rewards.append(rng.normal(size=2).astype(np.float32))
    return all_pairs(rewards, examples), report(rewards, examples)


# ---------------------------------------------------------------- what is drawn


def test_the_panels_draw_the_numbers_of_the_report(canvas):
    pairs, figures = scored()
    figure, (rewards, calibration, length, truth, curve, empty) = canvas
    plots.draw("report.png", pairs, figures, METRICS)

    chosen, rejected = rewards.drawn("hist")
    assert chosen[0].tolist() == pairs.r_chosen.tolist()
    assert rejected[0].tolist() == pairs.r_rejected.tolist()
    assert chosen[1] is rejected[1], "two histograms with other bins cannot be compared"

    table = figures["calibration"]["table"]
    _, this_model = calibration.drawn("plot")
    assert this_model[0] == [part["confidence"] for part in table]
    assert this_model[1] == [part["accuracy"] for part in table]
    numbers = [int(text) for text, _ in calibration.drawn("annotate")]
    assert numbers == [part["pairs"] for part in table]

    chosen, rejected = length.drawn("scatter")
    assert chosen[0].tolist() == pairs.tokens_chosen.tolist()
    assert chosen[1].tolist() == pairs.r_chosen.tolist()
    assert rejected[0].tolist() == pairs.tokens_rejected.tolist()
    assert rejected[1].tolist() == pairs.r_rejected.tolist()
    assert len(length.drawn("errorbar")) == 2, "medians and quartiles, of both sides"

    ((gold, learned),) = truth.drawn("scatter")
    assert gold.tolist() == [*pairs.gold_chosen, *pairs.gold_rejected]
    assert learned.mean() == pytest.approx(gold.mean()), "a reward has no zero point: shift it"
    assert np.diff(learned).tolist() == pytest.approx(
        np.diff([*pairs.r_chosen, *pairs.r_rejected]).tolist()
    )

    training, held_out = curve.drawn("plot")
    assert training[:2] == ([1, 2, 4], [0.7, 0.6, 0.5])
    assert held_out[:2] == ([2], [0.65])
    assert curve.drawn("axhline") == [(math.log(2),), (figures["ceiling_loss"],)]

    assert empty.drawn("set_axis_off"), "an empty panel has no axes"
    assert figure.drawn("savefig") == [("report.png",)]


def test_a_mark_is_the_median_of_its_bin_and_its_bar_the_quartiles():
    x = np.repeat(np.arange(12.0), 5)
    y = np.random.default_rng(0).normal(size=60)
    centers, low, median, high = plots.quartiles(x, y)
    assert centers.tolist() == [0.5, 2.5, 4.5, 6.5, 8.5, 10.5], "six bins of ten points each"
    for number in range(6):
        expected = np.quantile(y[10 * number : 10 * number + 10], [0.25, 0.5, 0.75])
        assert [low[number], median[number], high[number]] == expected.tolist()


def test_equal_lengths_share_a_bin():
    x = np.array([7.0] * 30 + [9.0] * 2)
    centers, *_ = plots.quartiles(x, np.arange(32.0))
    assert centers.tolist() == [7.0, 9.0]


def test_the_plateau_is_named_where_the_toy_world_was_trained_past_it(canvas):
    metrics = [{"step": step, "loss": 0.7} for step in (10, 700)]
    for ceiling, named in ((0.25, 1), (None, 0)):
        axis = Canvas()
        plots.plot_curve(axis, metrics, ceiling)
        assert len(axis.drawn("annotate")) == named


def test_every_panel_says_what_its_axes_are(canvas):
    plots.draw("report.png", *scored(), METRICS)
    for axis in canvas[1][:5]:
        assert {"title", "xlabel", "ylabel"} <= axis.settings("set").keys()
        assert axis.drawn("legend")


def test_without_true_rewards_and_metrics_these_panels_are_left_out(canvas):
    plots.draw("report.png", *scored(gold=False), metrics=[])
    axes = canvas[1]
    assert [bool(axis.drawn("set_axis_off")) for axis in axes] == [False] * 3 + [True] * 3


def test_a_reward_that_does_not_depend_on_length_has_no_correlation_in_the_title(canvas):
    pairs, figures = scored()
    plots.draw("report.png", pairs, figures | {"length_correlation": None}, [])
    assert canvas[1][2].settings("set")["title"] == "Length"


# ---------------------------------------------------------------- the learning curve of a run


def test_the_script_draws_the_curve_of_a_run(tmp_path, canvas, capsys):
    write_rows(tmp_path / "metrics.jsonl", METRICS)
    (tmp_path / "report.json").write_text(json.dumps({"ceiling_loss": 0.25}))
    assert plots.main([str(tmp_path)]) == 0
    figure, (curve, *_) = canvas
    assert curve.drawn("plot")[0][:2] == ([1, 2, 4], [0.7, 0.6, 0.5])
    assert curve.drawn("axhline") == [(math.log(2),), (0.25,)]
    assert figure.drawn("savefig") == [(tmp_path / "curve.png",)]
    assert capsys.readouterr().out == f"{tmp_path / 'curve.png'}\n"


def test_the_saved_step_and_the_last_are_marked_on_the_curve(tmp_path, canvas):
    write_rows(tmp_path / "metrics.jsonl", [*METRICS, {"step": 4, "eval_loss": 0.9}])
    (tmp_path / "report.json").write_text(json.dumps({"step": 2, "loss": 0.65}))
    assert plots.main([str(tmp_path)]) == 0
    training, held_out, last, saved = canvas[1][0].drawn("plot")
    assert last == ([4], [0.9], "s")
    assert saved == ([2], [0.65], "*")
    named = [settings["label"] for name, _, settings in canvas[1][0].calls if name == "plot"]
    assert named[2:] == ["the last", "saved: step 2"]


def test_the_curve_of_a_run_that_is_not_finished_has_no_best_possible_line(tmp_path, canvas):
    write_rows(tmp_path / "metrics.jsonl", METRICS)
    assert plots.main([str(tmp_path)]) == 0
    assert canvas[1][0].drawn("axhline") == [(math.log(2),)]
    assert len(canvas[1][0].drawn("plot")) == 2, "no model is saved yet"


def test_metrics_are_read_as_far_as_they_are_whole(tmp_path):
    assert plots.read_metrics(tmp_path) == []
    text = '{"step": 1, "loss": 0.7}\n{"loss": 2}\n{"step": 2, "loss": 0.6}\n{"step": 3, "lo'
    (tmp_path / "metrics.jsonl").write_text(text)
    assert plots.read_metrics(tmp_path) == [{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.6}]


# ---------------------------------------------------------------- errors in one line


def test_a_folder_that_is_no_run_is_one_line_and_exit_status_2(tmp_path, capsys):
    assert plots.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error == f"plots.py: {tmp_path}: no metrics.jsonl with steps in it, so not a run\n"


def test_without_matplotlib_it_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    with pytest.raises(DataError, match="need matplotlib, an optional extra: pip install"):
        plots.check("report.png")
    write_rows(tmp_path / "metrics.jsonl", METRICS)
    assert plots.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("path, message", [
    ("report.txt", "report.txt: not a picture; its name has to end in .png, .pdf, .svg"),
    ("report", "report: not a picture"),
])
def test_a_picture_that_cannot_be_written_is_one_line(canvas, path, message):
    with pytest.raises(DataError) as caught:
        plots.check(path)
    assert str(caught.value).startswith(message)
