"""What students should find: the coursework's worlds and the exercises' runs, with three seeds.

    python benchmarks/teaching.py            all (51 minutes beside other work), teaching.json
    python benchmarks/teaching.py --tables   what docs/teaching.md and exercises/solutions/ quote

A world is what extras/toy_world.py writes with some options. All are trained alike, with OPTIONS.
The exercises' runs are the commands of exercises/README.md, with the solutions.
"""
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, keep, load_results, new_parser, table

RESULTS = Path(__file__).with_suffix(".json")
WORLDS = {
    "8,000 pairs": ["8000"],
    "3,000 pairs": ["3000"],
    "a tenth of the labels turned round": ["8000", "--label-noise", "0.1"],
    "a fifth of the labels turned round": ["8000", "--label-noise", "0.2"],
    "people add 1 nat for each sentence": ["8000", "--length-bias", "1"],
}
EXERCISES = {
    "the plain run": ["train_rm.py"],
    "noise=0.1": ["-m", "exercises.train", "noise=0.1"],
    "noise=0.1, smoothing 0.1": ["-m", "exercises.train", "noise=0.1", "--label-smoothing", "0.1"],
    "fewer=30": ["-m", "exercises.train", "fewer=30", "--max-steps", "600"],
    "fewer=100": ["-m", "exercises.train", "fewer=100", "--max-steps", "600"],
    "fewer=300": ["-m", "exercises.train", "fewer=300", "--max-steps", "600"],
    "rambling": ["-m", "exercises.train", "rambling"],
    "hinge": ["-m", "exercises.train", "hinge"],
    "pooling": ["-m", "exercises.train", "pooling"],
}
OPTIONS = ["--batch-size", "16", "--max-steps", "1500"]
SEEDS = (1, 2, 3)
FIGURES = {
    "accuracy": "accuracy",
    "loss": "loss",
    "gold_correlation": "gold correlation",
    "longer_wins_accuracy": "the longer one wins",
    "accuracy_where_chosen_is_shorter": "accuracy where the chosen one is shorter",
    "ece": "ece",
    "temperature": "temperature",
}


def run_world(world: list[str], seed: int) -> dict:
    """Make a world and train in it."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows.jsonl")
        make = [sys.executable, "extras/toy_world.py", *world, "--seed", str(seed)]
        with open(rows, "w") as file:
            subprocess.run(make, cwd=ROOT, check=True, stdout=file)
        return run(["train_rm.py", "--data", str(rows), *OPTIONS], seed)


def run(command: list[str], seed: int) -> dict:
    """Train, and keep the main figures."""
    solutions = os.environ | {"SOLUTIONS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        train = [sys.executable, *command, "--seed", str(seed), "--output", folder + "/run"]
        began = time.perf_counter()
        subprocess.run(train, cwd=ROOT, check=True, env=solutions)
        seconds = time.perf_counter() - began
        report = load_results(Path(folder, "run", "report.json"))
    figures = report | report["calibration"]
    return {name: figures[name] for name in FIGURES} | {"seconds": round(seconds)}


def rows_of(results: dict, names: list[str], figures: list[str]) -> list[list[str]]:
    """For each name the median of the seeds, and the lowest and highest."""
    rows = []
    for name in names:
        cells = [name]
        for figure in figures:
            low, median, high = sorted(run[figure] for run in results[name]["runs"])
            cells.append(f"{median:.2f} ({low:.2f} to {high:.2f})")
        rows.append(cells)
    return rows


def tables(file: Path = RESULTS) -> dict[str, str]:
    """The worlds without their loss, which says nothing there; the exercises' runs with it."""
    results = load_results(file)
    of_worlds = [figure for figure in FIGURES if figure != "loss"]
    found = {}
    for title, names, figures in (("world", WORLDS, of_worlds), ("run", EXERCISES, list(FIGURES))):
        columns = [title, *(FIGURES[figure] for figure in figures)]
        found[title] = table(columns, rows_of(results, list(names), figures))
    return found


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    args = parser.parse_args(argv)
    if not args.tables:
        for name, world in WORLDS.items():
            runs = [run_world(world, seed) for seed in SEEDS]
            keep(args.results, name, {"world": world, "options": OPTIONS, "runs": runs})
        for name, command in EXERCISES.items():
            runs = [run(command, seed) for seed in SEEDS]
            keep(args.results, name, {"command of the run": command, "runs": runs})
    print("\n\n".join(tables(args.results).values()))


if __name__ == "__main__":
    main()
