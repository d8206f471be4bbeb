"""Cost of a training step against model size and sequence length, on a CPU.

    python benchmarks/scaling.py size      pairs of 256 tokens, 1M to 0.5B parameters
    python benchmarks/scaling.py length    the 30m shape at 128 to 2048 tokens
    python benchmarks/scaling.py --tables  what the docs quote

Every measurement is a process of its own (step_cost.py says what it does), so its peak memory is
too: the largest resident set, some 300 MB of it Python and torch. Results are merged into
scaling.json. gpu.py measures the same on a card.
"""
import json
import math
import sys
from pathlib import Path

from common import how_made, load_results, new_parser, spawn, table, write

HERE = Path(__file__).resolve()
RESULTS = HERE.with_suffix(".json")
STEP_COST = HERE.with_name("step_cost.py")
PACK, CHECKPOINTING = ["--pack"], ["--pack", "--gradient-checkpointing"]
LORA = ["--pack", "--lora-rank", "8", "--gradient-checkpointing"]
COLUMNS = {
    "size": ("parameters", "options", "pairs/s", "pairs per step", "steps timed", "peak MB"),
    "length": ("tokens", "options", "pairs/s", "tokens/s", "pairs per step", "peak MB"),
}


def plan(args) -> list[dict]:
    """The settings of each measurement."""
    return plan_size(args) if args.command == "size" else plan_length(args)


def plan_size(args) -> list[dict]:
    """Models of all sizes, and what saves memory in the largest one."""
    found = []
    for shape in ("1m", "10m", "30m", "100m"):
        for options in ([], PACK):
            found.append(settings(args, shape, 256, options, pairs=4))
    for options in ([], PACK, CHECKPOINTING, LORA):
        found.append(settings(args, "0.5b", 256, options, pairs=2))
    return found


def plan_length(args) -> list[dict]:
    """One model, and longer and longer sequences."""
    found = []
    for length in (128, 256, 512, 1024, 2048):
        for options in ([], PACK, CHECKPOINTING):
            found.append(settings(args, "30m", length, options, pairs=4))
    return found


def settings(args, shape: str, length: int, options: list[str], pairs: int) -> dict:
    """What step_cost.py has to know."""
    return {
        "shape": shape,
        "length": length,
        "options": options,
        "pairs": pairs,
        "device": "cpu",
        "steps": args.steps,
    }


def name_of(s: dict) -> str:
    """What tells a measurement from all others."""
    options = " ".join(s["options"]) or "plain"
    return f"{s['shape']}, {s['length']} tokens, {options}, {s['device']}"


def run(args) -> None:
    """One measurement after the other; each is kept as soon as it is there."""
    for asked in plan(args):
        if args.only in name_of(asked):
            found = spawn(sys.executable, STEP_COST, "measure", asked)
            merge(args.results, args.command, asked | found | how_made())


def merge(file: Path, command: str, entry: dict) -> None:
    """Keep a measurement, in place of an earlier one of its name."""
    results = load_results(file)
    rows = results.setdefault(command, [])
    names = [name_of(row) for row in rows]
    if name_of(entry) in names:
        rows[names.index(name_of(entry))] = entry
    else:
        rows.append(entry)
    write(file, results)
    print(json.dumps(entry, indent=1))


def cells(r: dict) -> dict[str, str]:
    """What any of the tables says of a measurement, by column."""
    known = {
        "parameters": r["shape"],
        "shape": r["shape"],
        "tokens": f"{r['length']}",
        "pairs per step": f"{r['pairs']}",
        "options": f"`{' '.join(r['options'])}`" if r["options"] else "",
        "peak MB": r.get("did_not_run", ""),
    }
    if "did_not_run" in r:
        return known
    millions = (r["parameters"] / 1e6, r["weights_of_layers"] / 1e6)
    finite = all(map(math.isfinite, r["losses"]))
    return known | {
        "parameters": "{:,.1f}M, {:,.1f}M of them in layers".format(*millions),
        "pairs/s": f"{r['pairs_per_second']:.3g}",
        "tokens/s": f"{r['tokens_per_second']:,.0f}",
        "steps timed": f"{r['steps']}",
        "peak MB": f"{r['peak_mb']:,.0f}",
        "of the peak": f"{r.get('of_peak', 0):.1%}",
        "losses": "finite" if finite else "not finite",
    }


def tables(file: Path = RESULTS, columns_of: dict = COLUMNS) -> dict[str, str]:
    """What the docs quote, by command, in Markdown."""
    results, found = load_results(file), {}
    for command, columns in columns_of.items():
        rows, made = [], set()
        for r in results.get(command, []):
            row = cells(r)
            rows.append([row.get(column, "") for column in columns])
            made.add(where_made(r))
        if rows:
            found[command] = f"{table(columns, rows)}\n\nMeasured on {'; '.join(sorted(made))}."
    return found


def where_made(r: dict) -> str:
    """Machine and date, and what the machine can do."""
    peak = ""
    if "peak_flops_per_second" in r:
        peak = f", matmul peak {r['peak_flops_per_second'] / 1e12:.3g} TFLOP/s"
    version = f", torch {r['torch']}" if "torch" in r else ""
    return f"{r['machine']}{peak}{version}, {r['date']}"


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("command", nargs="?", choices=COLUMNS)
    add("--results", type=Path, default=RESULTS, metavar="FILE", help="where results are kept")
    add("--only", default="", metavar="TEXT", help="only what has TEXT in its name, '0.5b' say")
    add("--steps", type=int, default=5, help="steps timed, at most")
    args = parser.parse_args(argv)
    if args.tables:
        print("\n\n".join(tables(args.results).values()))
    elif args.command:
        run(args)
    else:
        parser.print_help()


if __name__ == "__main__":
    main()
