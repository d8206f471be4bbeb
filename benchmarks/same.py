"""The plain form and --pack learn the same: three seeds, trained from scratch on real pairs.

    python benchmarks/same.py --data TRAIN --eval-data TEST [options of train_rm.py]
    python benchmarks/same.py --tables           what the README quotes

Held-out accuracy and loss, and the largest difference of a logged loss, go to same.json.
"""
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import (
    ROOT, how_made, largest_difference, load_results, losses_of_run, new_parser, read_json, table,
    write,
)

RESULTS = Path(__file__).with_suffix(".json")
FORMS = {"plain": [], "packed": ["--pack"]}


def train(options: list[str]) -> dict:
    """One run of train_rm.py."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        began = time.perf_counter()
        command = [sys.executable, str(ROOT / "train_rm.py"), *options, "--output", str(run)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        report = read_json(run / "report.json")
        losses = losses_of_run(run)
    return {
        "accuracy": report["accuracy"],
        "loss": report["loss"],
        "seconds": seconds,
        "losses": losses,
    }


def compare(options: list[str], seeds: int) -> dict:
    """Both forms, seed by seed."""
    found = []
    for seed in range(seeds):
        runs = {}
        for form, more in FORMS.items():
            runs[form] = train([*options, *more, "--seed", str(seed)])
        apart = largest_difference(runs["plain"]["losses"], runs["packed"]["losses"])
        found.append(runs | {"largest_difference_of_a_loss": apart})
    return {"seeds": found}


def tables() -> dict[str, str]:
    """What the README quotes, in Markdown."""
    rows = []
    for seed, e in enumerate(load_results(RESULTS).get("seeds", [])):
        row = [str(seed)]
        for number in ("accuracy", "loss"):
            row += [f"{e[form][number]:.4f}" for form in FORMS]
        rows.append([*row, f"{e['largest_difference_of_a_loss']:.0e}"])
    columns = ["seed", "accuracy, plain", "accuracy, packed", "loss, plain", "loss, packed",
               "largest difference of a logged loss"]
    if not rows:
        return {}
    return {"same": table(columns, rows)}


def main() -> None:
    """The command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    args, options = parser.parse_known_args()
    if not args.tables:
        result = compare(options, args.seeds)
        write(RESULTS, result | how_made())
    print("\n".join(tables().values()))


if __name__ == "__main__":
    main()
