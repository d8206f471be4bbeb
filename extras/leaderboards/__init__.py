"""leaderboards/: what a benchmark's own code gives for the same rewards.

    python eval.py report RUN --data reward-bench-2.jsonl --details

A figure under a benchmark's name can be compared with a leaderboard only if it is computed as
there. The rules differ, and the mean accuracy of the subsets is rarely the one:

    benchmark              when is a row right?                      the total
    RewardBench 1          chosen above rejected; a tie is wrong     mean of four weighted sections
    RewardBench 2          right one highest; shared by m: 1/m       mean of six subsets
      its subset Ties      60% accuracy, 40% margins
    RM-Bench               3 × 3 comparisons; a tie is wrong         mean of four domains
    JudgeBench             as labelled; a tie is read as "B>A"       over all pairs
    PPE human preference   as labelled; a tie is half right          over all pairs
    PPE best of K          the score of the response that is picked, and accuracy on its pairs

Rows are recognised by their fields. Where rows of a part are missing there is no total, and a line
says what is missing. A row that was left out when the file was read is missing as well: the audit
counts them, and the number of rows is shown beside the published one.

Each benchmark has a file in this folder. RewardBench, RM-Bench and JudgeBench were compared with
their published code; the code of PPE could not be had, so its figures are named as what they are.
It costs nothing next to the forward passes. tests/extras/test_leaderboards.py has the comparison.

Shapes: N rows   K responses of a row
"""
from typing import Callable, NamedTuple

import numpy as np

from extras.leaderboards import judgebench, ppe, rewardbench, rm_bench


class Benchmark(NamedTuple):
    """How its rows look, and what is computed of them."""

    recognises: Callable  # (example, rewards) -> whether it is a row of this benchmark
    rule: Callable  # its rows -> {"parts": …, "total": …, "problems": …}
    rows: str  # how many it has
    whose: str = "its own rule"


BENCHMARKS = {
    "RewardBench 1": Benchmark(
        rewardbench.is_version_1,
        rewardbench.version_1,
        "2985",
    ),
    "RewardBench 2": Benchmark(
        rewardbench.is_version_2,
        rewardbench.version_2,
        "1865",
    ),
    "RM-Bench": Benchmark(
        rm_bench.is_row,
        rm_bench.rule,
        "1327",
    ),
    "JudgeBench": Benchmark(
        judgebench.is_row,
        judgebench.rule,
        "two files, of 350 and 270",
    ),
    "PPE human preference": Benchmark(
        ppe.is_preference,
        ppe.preference,
        "16038 with ties",
        "a plain rule, not compared with its code",
    ),
    "PPE best of K": Benchmark(
        ppe.is_best_of_k,
        ppe.best_of_k,
        "2555 in five files",
        "a plain rule, not compared with its code",
    ),
}


def figures(rows):
    """{benchmark: its figures} of those that some rows belong to.

    Args:  rows: N of (example, its K rewards).
    """
    found = {}
    for name, own in recognise(rows).items():
        benchmark = BENCHMARKS[name]
        result = benchmark.rule(own)
        if result["problems"]:
            result["total"] = None
        about = {
            "by": benchmark.whose,
            "rows": len(own),
            "rows_published": benchmark.rows,
            "other_rows": len(rows) - len(own),
        }
        found[name] = about | result
    return found


def recognise(rows):
    """{benchmark: its rows}."""
    found = {}
    for example, r in rows:
        for name, benchmark in BENCHMARKS.items():
            if benchmark.recognises(example, r):
                row = (example, r.astype(np.float64))
                found.setdefault(name, []).append(row)
    return found
