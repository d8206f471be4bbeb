"""What students should find: the coursework's worlds, each trained with three seeds.

    python benchmarks/teaching.py            all worlds (10 minutes on two cores), teaching.json
    python benchmarks/teaching.py --tables   what docs/teaching.md quotes

A world is what extras/toy_world.py writes with some options. All are trained alike, with OPTIONS.
"""
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
OPTIONS = ["--batch-size", "16", "--max-steps", "1500"]
SEEDS = (1, 2, 3)
FIGURES = ("accuracy", "gold_correlation", "longer_wins_accuracy",
           "accuracy_where_chosen_is_shorter", "ece", "temperature")


def run(world: list[str], seed: int) -> dict:
    """Make a world, train in it, and keep the main figures."""
    with tempfile.TemporaryDirectory() as folder:
        rows, output = Path(folder, "rows.jsonl"), Path(folder, "run")
        make = [sys.executable, "extras/toy_world.py", *world, "--seed", str(seed)]
        with open(rows, "w") as file:
            subprocess.run(make, cwd=ROOT, check=True, stdout=file)
        train = [sys.executable, "train_rm.py", "--data", rows, *OPTIONS, "--seed", str(seed)]
        began = time.perf_counter()
        subprocess.run([*train, "--output", output], cwd=ROOT, check=True)
        seconds = time.perf_counter() - began
        report = load_results(output / "report.json")
    figures = report | report["calibration"]
    return {name: figures[name] for name in FIGURES} | {"seconds": round(seconds)}


def tables(file: Path = RESULTS) -> dict[str, str]:
    """The median of the seeds, and the lowest and highest."""
    rows = []
    for world, entry in load_results(file).items():
        cells = [world]
        for name in FIGURES:
            values = sorted(run[name] for run in entry["runs"])
            cells.append(f"{values[1]:.2f} ({values[0]:.2f} to {values[-1]:.2f})")
        rows.append(cells)
    columns = ["world", "accuracy", "gold correlation", "the longer one wins",
               "accuracy where the chosen one is shorter", "ece", "temperature"]
    return {"teaching": table(columns, rows)}


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    args = parser.parse_args(argv)
    if not args.tables:
        for name, world in WORLDS.items():
            runs = [run(world, seed) for seed in SEEDS]
            keep(args.results, name, {"world": world, "options": OPTIONS, "runs": runs})
    print(tables(args.results)["teaching"])


if __name__ == "__main__":
    main()
