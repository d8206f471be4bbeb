"""--tensorboard: the numbers of metrics.jsonl, step by step. TensorBoard itself is not needed."""
import sys
from types import ModuleType

import pytest
from conftest import command, read_lines
from runs import train
from runs import folder  # pytest finds fixtures by their names here
from test_keep import kill_before

import train_rm


class Writer:
    """Stands in for torch's SummaryWriter: it notes what it is told to draw."""

    made = []

    def __init__(self, folder, purge_step):
        self.folder, self.purge_step, self.points, self.flushed = folder, purge_step, [], 0
        Writer.made.append(self)

    def add_scalar(self, name, value, step):
        self.points.append((name, step, value))

    def flush(self):
        self.flushed = len(self.points)


@pytest.fixture
def writers(monkeypatch):
    """The writers that were made."""
    package = ModuleType("torch.utils.tensorboard")
    package.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", package)
    monkeypatch.setattr(Writer, "made", [])
    return Writer.made


def points_of(lines):
    """What of metrics.jsonl can be drawn."""
    points = []
    for line in lines:
        step = line.pop("step")
        for name, value in line.items():
            if name == "eval_accuracy_ci95":
                points += [(f"{name}/low", step, value[0]), (f"{name}/high", step, value[1])]
            elif value is not None:
                points.append((name, step, value))
    return points


STEPS = ["--max-steps", 6, "--eval-steps", 2, "--save-steps", 3]


def test_tensorboard_gets_every_number_of_metrics_jsonl(folder, tmp_path, monkeypatch, writers):
    monkeypatch.setattr(train_rm, "LOGGING_STEPS", 1)
    run = tmp_path / "run"
    status, _, err = train(folder, *STEPS, "--tensorboard", "--output", run)
    assert status == 0, err
    (writer,) = writers
    assert writer.folder == str(run)
    assert len(writer.points) > 60
    assert writer.points == points_of(read_lines(run / "metrics.jsonl"))
    assert writer.flushed == len(writer.points), "a process that is killed would lose points"


def test_a_number_that_json_cannot_hold_is_no_point(writers):
    from extras import tensorboard_log

    board = tensorboard_log.Board("run", start=0)
    board.add({"step": 4, "grad_norm": None, "loss": 0.5})
    assert writers[0].points == [("loss", 4, 0.5)]


def test_steps_that_are_taken_again_replace_their_points(folder, tmp_path, monkeypatch, writers):
    monkeypatch.setattr(train_rm, "LOGGING_STEPS", 1)
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_before(patch, 5)
        train(folder, *STEPS, "--tensorboard", "--output", run)
    assert command(train_rm.main, "--resume", run)[0] == 0
    first, second = writers
    assert (first.purge_step, second.purge_step) == (1, 4)
    kept = [point for point in first.points if point[1] < second.purge_step]
    assert kept + second.points == points_of(read_lines(run / "metrics.jsonl"))


def test_it_may_begin_when_a_run_is_resumed(folder, tmp_path, monkeypatch, writers):
    with monkeypatch.context() as patch:
        kill_before(patch, 5)
        train(folder, *STEPS, "--output", tmp_path / "run")
    assert writers == []
    assert command(train_rm.main, "--resume", tmp_path / "run", "--tensorboard")[0] == 0
    assert {step for _, step, _ in writers[0].points} == {4, 6}


def test_without_the_package_it_is_one_line_before_any_work(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as if not installed
    status, out, err = train(folder, "--tensorboard", "--output", tmp_path / "run")
    assert status == 2 and out == ""
    message = "--tensorboard needs an optional extra: pip install tensorboard"
    assert err == f"train_rm.py: {message}\n"
    assert not (tmp_path / "run").exists()
