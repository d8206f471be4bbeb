"""JudgeBench: pairs of one model's answers to hard questions, one right (Tan et al. 2024).

Two traps. The total is over all pairs, and not the mean of the four sources. And the judge says
"A>B" where A has the higher reward, and "B>A" everywhere else: a tie is right where B is labelled
better. Source: run_judge.py, utils/judges.py, utils/metrics.py of ScalerLab/JudgeBench.
"""
import numpy as np

from extras.leaderboards.rows import beginning_with, chosen_is_above, has, raw_of

SOURCES = ("mmlu-pro", "livebench-reasoning", "livebench-math", "livecodebench")


def is_row(example, r):
    """Its names for the fields of a pair."""
    return has(example, "source", "response_A", "response_B", "label") and len(r) == 2


def rule(rows):
    """By source, and over all."""
    parts, problems = {}, []
    for source in SOURCES:
        own = beginning_with(rows, "source", source)
        if own:
            parts[source] = judged(own)
        else:
            problems.append(f"no rows of {source}")
    return {"parts": parts, "total": judged(rows), "problems": problems}


def judged(rows):
    """How many rows, and the share that is judged as labelled."""
    right = []
    for row in rows:
        _, r = row
        if r[0] == r[1]:
            right.append(raw_of(row)["label"] == "B>A")
        else:
            right.append(chosen_is_above(row))
    return {"rows": len(rows), "accuracy": float(np.mean(right))}
