"""Cost of a training step against model size and sequence length, and how much of a GPU it uses.

    python benchmarks/scaling.py size      pairs of 256 tokens, 1M to 0.5B parameters, on a CPU
    python benchmarks/scaling.py length    the 30m shape at 128 to 2048 tokens, on a CPU
    python benchmarks/scaling.py gpu --shape qwen3-0.6b    alone, DDP and FSDP2 on one rank
    python benchmarks/scaling.py gpu --shape llama-3-8b    all weights (where they fit), and LoRA
    python benchmarks/scaling.py gpu --shape tiny --device cpu --length 64      to try it anywhere
    python benchmarks/scaling.py --tables                  what the docs quote

Every measurement is a process of its own (step_cost.py says what it does), so its peak memory is
too: the largest resident set on a CPU, some 300 MB of it Python and torch, and
torch.cuda.max_memory_allocated on a GPU. Results are merged into scaling.json.
"""
import json
import math
import sys
from pathlib import Path

from common import how_made, load_results, new_parser, spawn, table, write
from step_cost import ALONE, HOW

HERE = Path(__file__).resolve()
RESULTS = HERE.with_suffix(".json")
STEP_COST = HERE.with_name("step_cost.py")
PACK, CHECKPOINTING = ["--pack"], ["--gradient-checkpointing"]
LORA = ["--lora-rank", "8", "--gradient-checkpointing"]
COLUMNS = {
    "size": ("parameters", "options", "pairs/s", "pairs per step", "steps timed", "peak MB"),
    "length": ("tokens", "options", "pairs/s", "tokens/s", "pairs per step", "peak MB"),
    "gpu": ("shape", "tokens", "options", "processes", "tokens/s", "of the peak",
            "pairs per step", "peak MB", "losses"),
}


def plan(args) -> list[dict]:
    """The settings of each measurement."""
    if args.command == "size":
        return plan_size(args)
    if args.command == "length":
        return plan_length(args)
    return plan_gpu(args)


def plan_size(args) -> list[dict]:
    """Models of all sizes, and what saves memory in the largest one."""
    found = []
    for shape in ("1m", "10m", "30m", "100m"):
        found.append(settings(args, shape, 256, [], pairs=4))
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


def plan_gpu(args) -> list[dict]:
    """All kinds of processes; the plain form and float16 where the model is small."""
    kinds = [PACK]
    if args.shape == "llama-3-8b":
        kinds = [PACK + CHECKPOINTING, PACK + LORA]
    if args.shape == "tiny":
        kinds = [PACK, PACK + LORA]
    given, found = (args.shape, args.length), []
    for options in kinds:
        for how in HOW:
            found.append(settings(args, *given, [*options, "--bf16"], args.pairs, how))
    if args.shape != "llama-3-8b":
        found.append(settings(args, *given, ["--bf16"], args.pairs))
        found.append(settings(args, *given, [*PACK, "--fp16"], args.pairs))
    return found


def settings(args, shape: str, length: int, options: list[str], pairs: int, how=ALONE) -> dict:
    """What step_cost.py has to know."""
    return {
        "shape": shape,
        "length": length,
        "options": options,
        "how": how,
        "pairs": pairs,
        "device": args.device if args.command == "gpu" else "cpu",
        "steps": args.steps,
    }


def name_of(s: dict) -> str:
    """What tells a measurement from all others."""
    options = " ".join(s["options"]) or "plain"
    return f"{s['shape']}, {s['length']} tokens, {options}, {s['how']}, {s['device']}"


def run(args) -> None:
    """One measurement after the other; each is kept as soon as it is there."""
    peak = {}
    if args.command == "gpu":
        peak = spawn(sys.executable, STEP_COST, "matmul", {"device": args.device})
    for asked in plan(args):
        if args.only in name_of(asked):
            found = spawn(sys.executable, STEP_COST, "measure", asked)
            if peak and "flops_per_step" in found:
                speed = found["flops_per_step"] / found["seconds_per_step"]
                found["of_peak"] = speed / peak["peak_flops_per_second"]
            entry = asked | peak | found | how_made()
            merge(args.results, args.command, entry)


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
        "processes": r["how"],
        "options": f"`{' '.join(r['options'])}`" if r["options"] else "",
        "peak MB": "did not fit",
    }
    if "did_not_fit" in r:
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


def tables(file: Path = RESULTS) -> dict[str, str]:
    """What the docs quote, by command, in Markdown."""
    results, found = load_results(file), {}
    for command, columns in COLUMNS.items():
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
    add("command", nargs="?", choices=list(COLUMNS))
    add("--results", type=Path, default=RESULTS, metavar="FILE", help="where results are kept")
    add("--only", default="", metavar="TEXT", help="only what has TEXT in its name, 'FSDP2' say")
    add("--steps", type=int, default=5, help="steps timed, at most")
    add("--shape", choices=["qwen3-0.6b", "llama-3-8b", "tiny"], default="qwen3-0.6b", help="gpu's")
    add("--length", type=int, default=1024, help="gpu's tokens of prompt and response")
    add("--pairs", type=int, default=8, help="gpu's pairs in a step")
    add("--device", default="cuda:0", help="gpu's; size and length are of the CPU")
    args = parser.parse_args(argv)
    if args.tables:
        print("\n\n".join(tables(args.results).values()))
    elif args.command:
        run(args)
    else:
        parser.print_help()


if __name__ == "__main__":
    main()
