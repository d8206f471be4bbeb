"""Stage 3 against two reward models of the toy world: one of many pairs, and one of few.

    python benchmarks/policy.py            12 minutes on two cores, policy.json
    python benchmarks/policy.py --tables   what the docs quote

extras/policy_gradient.py does the work, with three seeds each.
"""
import statistics
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

from common import ROOT, keep, load_results, new_parser, table

from extras import policy_gradient

RESULTS = Path(__file__).with_suffix(".json")
MODELS = {
    "20,000 pairs": [],
    "3,000 pairs": ["--data", "few.jsonl", "--epochs", "12", "--batch-size", "16"],
}
SEEDS = (0, 1, 2)
BETA, STEPS = 0.3, 200
SHOWN = (25, 50, 100, 200)


def train(options: list[str], folder: str) -> str:
    """A reward model, in a folder that is thrown away."""
    with open(Path(folder, "few.jsonl"), "w") as file:
        make = [sys.executable, ROOT / "extras" / "toy_world.py", "3000"]
        subprocess.run(make, check=True, stdout=file)
    command = [sys.executable, ROOT / "train_rm.py", *options, "--output", "run"]
    subprocess.run(command, check=True, cwd=folder)
    return str(Path(folder, "run"))


def measure(run: str, seed: int) -> dict:
    """KL, learned and true reward: means of LINE steps, with and without the penalty."""
    asked = Namespace(run=run, beta=BETA, steps=STEPS, seed=seed, plot=None)
    curves = {}
    for name, curve in policy_gradient.run(asked).items():
        parts = curve.split(policy_gradient.LINE)
        curves[name] = [part.mean(0).tolist() for part in parts]
    return curves


def tables(file: Path = RESULTS) -> dict[str, str]:
    """Medians of the seeds: KL, and learned / true rewards."""
    rows = []
    for model, entry in load_results(file).items():
        for name in entry["runs"][0]:
            cells = [model, name]
            for step in SHOWN:
                part = step // policy_gradient.LINE - 1
                of_seeds = [run[name][part] for run in entry["runs"]]
                kl, learned, true = map(statistics.median, zip(*of_seeds))
                cells.append(f"{kl:.0f}: {learned:.1f} / {true:.1f}")
            rows.append(cells)
    columns = ["reward model of", "penalty", *(f"steps {s - 24} to {s}" for s in SHOWN)]
    return {"policy": table(columns, rows)}


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    args = parser.parse_args(argv)
    if not args.tables:
        for model, options in MODELS.items():
            with tempfile.TemporaryDirectory() as folder:
                run = train(options, folder)
                report = load_results(Path(run, "report.json"))
                runs = [measure(run, seed) for seed in SEEDS]
            figures = {name: report[name] for name in ("accuracy", "gold_correlation")}
            keep(args.results, model, {"options": options, "report": figures, "runs": runs})
    print(tables(args.results)["policy"])


if __name__ == "__main__":
    main()
