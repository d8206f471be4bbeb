"""Run train_rm.py, time it, and keep what it reported.

    python benchmarks/run.py NAME [options of train_rm.py]
    python benchmarks/run.py --tables                         what the README quotes

results.json has one entry a name: the command, its report.json, its seconds, the machine. The
README's tables are made from that file, and a test compares them.
"""
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, keep, load_results, short, table

RESULTS = Path(__file__).with_name("results.json")
PRECISION = RESULTS.with_name("precision.json")


def run(name: str, options: list[str]) -> None:
    """One training run in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "run")
        command = ["train_rm.py", *options, "--output", str(output)]
        began = time.perf_counter()
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
        seconds = time.perf_counter() - began
        entry = {
            "command": " ".join(["python train_rm.py", *map(short, options)]),
            "seconds": round(seconds, 1),
            "report": load_results(output / "report.json"),
            "audit": load_results(output / "tokens" / "audit.json"),
            "versions": load_results(output / "options.json")["versions"],
        }
    keep(RESULTS, name, entry)


def toy_table(results: dict) -> str:
    """The runs in the toy world, by seed."""
    rows = []
    for name, entry in results.items():
        if name.startswith("toy"):
            r = entry["report"]
            numbers = (r["accuracy"], r["ceiling_accuracy"], r["gold_correlation"])
            cells = [f"{number:.3f}" for number in numbers]
            rows.append([name[-1], *cells, f"{entry['seconds']:.0f}"])
    columns = ["seed", "held-out accuracy", "the best possible", "gold correlation", "seconds"]
    return table(columns, rows)


def real_table(results: dict) -> str:
    """The runs on human choices."""
    rows = []
    for name, entry in results.items():
        if not name.startswith("toy"):
            r = entry["report"]
            low, high = r["accuracy_ci95"]
            options = entry["command"].split(".jsonl.gz ", 2)[-1]  # without the two files
            rows.append([
                name,
                f"{r['accuracy']:.3f} ({low:.3f} to {high:.3f})",
                f"{r['longer_wins_accuracy']:.3f}",
                f"{r['loss']:.3f}",
                f"{r['pairs']}",
                f"`{options}`",
            ])
    columns = ["data", "held-out accuracy (95% interval)", "the longer one wins", "loss", "pairs",
               "options"]
    return table(columns, rows)


def precision_text() -> str:
    """How exact rewards are."""
    p = load_results(PRECISION)
    return (
        f"Scored alone or in batches, a text's reward differs by at most "
        f"{p['float32_alone_against_batched_max']:.0e} in float32\n(toy model, {p['texts']:,} "
        f"texts, standard deviation {p['standard_deviation_of_rewards']:.1f}; "
        f"`python benchmarks/precision.py`), and\nby "
        f"{p['float32_alone_against_packed_max']:.0e} with `--pack`. Under bfloat16 autocast "
        f"rewards move by "
        f"{p['bfloat16_against_float32_median']:.3f} in the median and\n"
        f"{p['bfloat16_against_float32_max']:.2f} at most, and by "
        f"{p['bfloat16_alone_against_batched_max']:.2f} at most between alone and batched."
    )


def length_text(results: dict) -> str:
    """What an accuracy can hide."""
    r = results["ukp_convincing"]["report"]
    return (
        f"On `ukp_convincing` such a report shows what the accuracy of {r['accuracy']:.3f} hides: "
        f"on the {r['pairs_where_chosen_is_shorter']} pairs\nwhere the chosen argument is the "
        f"shorter one, the model is right on {r['accuracy_where_chosen_is_shorter']:.3f}, and its "
        f"rewards\ncorrelate with length by {r['length_correlation']:.2f}."
    )


def tables() -> dict[str, str]:
    """What the README quotes, by name, in Markdown."""
    results = load_results(RESULTS)
    return {
        "toy": toy_table(results),
        "real": real_table(results),
        "precision": precision_text(),
        "shorter": length_text(results),
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--tables"]:
        print("\n\n".join(tables().values()))
    elif len(sys.argv) > 1:
        run(sys.argv[1], sys.argv[2:])
    else:
        sys.exit(__doc__)
