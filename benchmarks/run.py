"""Run train_rm.py, time it, and keep what it reported:  python benchmarks/run.py NAME [options of train_rm.py]

Writes benchmarks/results.json, one entry a name: the command, its report.json, seconds, machine. The README's tables are made from
that file:  python benchmarks/run.py --tables  prints them, and a test compares.
"""
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results.json"


def run(name: str, options: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        subprocess.run([sys.executable, "train_rm.py", *options, "--output", f"{folder}/run"], cwd=ROOT, check=True)
        seconds = time.perf_counter() - began
        report, saved = (json.loads(Path(folder, "run", file).read_text()) for file in ("report.json", "options.json"))
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[name] = {
        "command": " ".join(["python train_rm.py", *options]), "seconds": round(seconds, 1), "report": report,
        "audit": saved["audit"], "versions": saved["versions"], "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")


def tables() -> dict[str, str]:
    """What the README quotes, by name, in Markdown."""
    results = json.loads(RESULTS.read_text())
    toy = ["| seed | held-out accuracy | the best possible | gold correlation | seconds |", "|---|---|---|---|---|"]
    real = ["| data | held-out accuracy (95% interval) | the longer one wins | loss | pairs | command |", "|---|---|---|---|---|---|"]
    for name, entry in results.items():
        r = entry["report"]
        if name.startswith("toy"):
            toy.append(f"| {name[-1]} | {r['accuracy']:.3f} | {r['ceiling_accuracy']:.3f} | {r['gold_correlation']:.3f} | "
                       f"{entry['seconds']:.0f} |")
        else:
            low, high = r["accuracy_ci95"]
            options = entry["command"].split(".jsonl.gz ", 2)[-1]
            real.append(f"| {name} | {r['accuracy']:.3f} ({low:.3f} to {high:.3f}) | {r['longer_wins_accuracy']:.3f} | {r['loss']:.3f} | "
                        f"{r['pairs']} | `{options}` |")
    p = json.loads((ROOT / "benchmarks" / "precision.json").read_text())
    precision = (
        f"Scored alone or in batches, a text's reward differs by at most {p['float32_alone_against_batched_max']:.0e} in float32 (toy model, "
        f"{p['texts']:,} texts,\nstandard deviation {p['standard_deviation_of_rewards']:.1f}; `python benchmarks/precision.py`). Under bfloat16 "
        f"autocast rewards move by {p['bfloat16_against_float32_median']:.3f} in\nthe median and {p['bfloat16_against_float32_max']:.2f} at most, "
        f"and by {p['bfloat16_alone_against_batched_max']:.2f} at most between alone and batched."
    )
    r = results["ukp_convincing"]["report"]
    shorter = (f"On `ukp_convincing` such a report shows what the accuracy of {r['accuracy']:.3f} hides: on the "
               f"{r['pairs_where_chosen_is_shorter']} pairs where the chosen argument is the shorter one,\nthe model is right on "
               f"{r['accuracy_where_chosen_is_shorter']:.3f}, and its rewards correlate with length by {r['length_correlation']:.2f}.")
    return {"toy": "\n".join(toy), "real": "\n".join(real), "precision": precision, "shorter": shorter}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--tables"]:
        print("\n\n".join(tables().values()))
    elif len(sys.argv) > 1:
        run(sys.argv[1], sys.argv[2:])
    else:
        sys.exit(__doc__)
