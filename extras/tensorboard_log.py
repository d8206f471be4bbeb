"""tensorboard_log.py: watch a run in TensorBoard, a page in the browser with all its curves.

    python train_rm.py --data pairs.jsonl --tensorboard --output runs/a
    tensorboard --logdir runs                                     all runs in runs/, side by side

metrics.jsonl stays the record of a run. Each of its lines goes to TensorBoard too, under the same
keys, at the same step:

    {"step": 10, "loss": 0.66, "lr": 1e-05}     ->   loss: 0.66 at 10    lr: 1e-05 at 10
    {"step": 40, "eval_accuracy_ci95": [a, b]}  ->   eval_accuracy_ci95/low, …/high
    null (grad_norm, where float16 overflowed)  ->   no point

A run that is resumed takes some steps again. TensorBoard is told from which step on, and drops the
points that it has of them (`purge_step` of torch's SummaryWriter).

It needs the package tensorboard, which nothing else here does: pip install tensorboard. Without it,
--tensorboard is one line before any work. It costs importing that package, some seconds at the
start, and a small file events.out.tfevents.… in the run folder for each start of the run.

tests/extras/test_tensorboard_log.py shows that the numbers are those of metrics.jsonl.
"""
from pathlib import Path

from data import DataError


def check() -> None:
    """Raises: DataError where TensorBoard's writer is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: F401
    except ImportError:
        message = "--tensorboard needs an optional extra: pip install tensorboard"
        raise DataError(message) from None


class Board:
    """The run folder as TensorBoard sees it."""

    def __init__(self, run: str | Path, start: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run), purge_step=start + 1)

    def add(self, line: dict) -> None:
        """The numbers of a line of metrics.jsonl."""
        for name, value in line.items():
            if name == "step" or value is None:
                continue
            if isinstance(value, list):
                low, high = value
                self.writer.add_scalar(f"{name}/low", low, line["step"])
                self.writer.add_scalar(f"{name}/high", high, line["step"])
            else:
                self.writer.add_scalar(name, value, line["step"])
        self.writer.flush()  # seen at once, and not lost with a process that is killed
