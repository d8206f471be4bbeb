"""train.py: train the toy world with your answer in the trainer. About a minute on two CPU cores.

    python -m exercises.train rambling          the world of your rambling_reward
    python -m exercises.train noise=0.1         your flip_labels, on the rows to train on
    python -m exercises.train fewer=30          your keep_prompts, on the rows to train on
    python -m exercises.train hinge             your hinge_loss instead of Bradley and Terry's
    python -m exercises.train pooling           your MeanPooled instead of the last token

All options of train_rm.py may follow. The run folder is runs/NAME. Each function here puts an
answer in the place of one thing in the five files, which stay as they are. So compare with a plain
`python train_rm.py`. (eval.py alone knows nothing of a run with mean pooling, and would read its
rewards at the last token.)
"""
import sys

import train_rm
from data import Batch, parse_row
from exercises.checking import answers
from extras import toy_world
from model import RewardModel


def rambling(put, _):
    """Another true reward."""
    gold_reward, level3 = toy_world.gold_reward, answers("level3")

    def new_reward(prompt, response):
        return level3.rambling_reward(prompt, response, gold_reward(prompt, response))

    put(toy_world, "gold_reward", new_reward)


def noise(put, share):
    """Other labels."""
    level2 = answers("level2")
    change_rows(put, lambda rows: level2.flip_labels(rows, float(share or 0.1), seed=0))


def fewer(put, count):
    """Fewer prompts."""
    level2 = answers("level2")
    change_rows(put, lambda rows: level2.keep_prompts(rows, int(count or 30), seed=0))


def change_rows(put, change):
    """Change the rows to train on. The held-out rows stay, so that runs can be compared."""
    rows_of_split = train_rm.Split.rows

    def rows(split, held_out, audit=None):
        if held_out:
            yield from rows_of_split(split, held_out, audit)
            return
        raw_rows = [row.raw for row in rows_of_split(split, held_out, audit)]
        for number, raw in enumerate(change(raw_rows), 1):
            yield parse_row(raw, f"row {number}")

    put(train_rm.Split, "rows", rows)


def hinge(put, _):
    """Another loss."""
    plain_objective, level4 = train_rm.objective, answers("level4")

    def objective(rewards, batch, args):
        values = plain_objective(rewards, batch, args)
        values["loss"] = level4.hinge_loss(rewards[batch.chosen], rewards[batch.rejected])
        return values

    put(train_rm, "objective", objective)


def pooling(put, _):
    """Another place to read the reward at. The model has to know where responses begin."""
    plain_inputs, level4 = Batch.inputs, answers("level4")
    put(Batch, "inputs", lambda batch: plain_inputs(batch) | {"start": batch.start})
    put(RewardModel, "forward", level4.MeanPooled.forward)


CHANGES = {"rambling": rambling, "noise": noise, "fewer": fewer, "hinge": hinge, "pooling": pooling}


def main(argv, put=setattr):
    """The command line; returns the exit status."""
    name, _, number = (argv or [""])[0].partition("=")
    if name not in CHANGES:
        print(f"exercises.train: expected one of {', '.join(CHANGES)}", file=sys.stderr)
        return 2
    CHANGES[name](put, number)
    output = f"runs/{name}{number}"
    return train_rm.main(["--output", output, *argv[1:]])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
