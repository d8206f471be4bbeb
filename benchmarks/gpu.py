"""One command for a card: speed, share of its matrix products, and memory of training steps.

    python benchmarks/gpu.py                        Qwen3-0.6B and Llama-3-8B shapes, on cuda:0
    python benchmarks/gpu.py --only "0.6b"          what has that in its name
    python benchmarks/gpu.py --device cpu --tiny    the same logic with tiny shapes, anywhere
    python benchmarks/gpu.py --tables               what the docs quote

docs/scaling.md says what an H100 showed. Weights and pairs are random. First the card's peak is measured: the best of
20 products of two large matrices in bfloat16. Then come steps of train_rm.py, for all weights and
for LoRA on frozen half-precision weights: plain, --pack, with --compile, with --shard (FSDP2) on
one rank, and --fp16. step_cost.py says how a step is timed, and what its operations are; what
gradient checkpointing computes again is not counted in the share of the peak.

What needs more memory than the card has is not tried: memory.py computes that beforehand. What runs
out of memory all the same, or fails, is a row that says so. Every measurement is a process of its own and is
kept in gpu.json as soon as it is there.
"""
import sys
from pathlib import Path

import scaling
from common import SHAPES, how_made, new_parser, spawn
from memory import CHECKPOINTING, needed
from step_cost import batches_of, options_of, random_pairs

HERE = Path(__file__).resolve()
RESULTS = HERE.with_suffix(".json")
STEP_COST = HERE.with_name("step_cost.py")
COLUMNS = {
    "gpu": ("shape", "tokens", "options", "pairs/s", "tokens/s", "of the peak", "peak MB",
            "losses"),
}
KINDS = (
    ["--bf16"],
    ["--bf16", "--pack"],
    ["--bf16", "--pack", "--compile"],
    ["--bf16", "--pack", "--shard"],
    ["--fp16", "--pack"],
)
LORA = ["--lora-rank", "16"]


def plan(args) -> list[dict]:
    """The settings of each measurement. A large model keeps one layer's activations only."""
    shapes = {"qwen3-0.6b": [], "llama-3-8b": [CHECKPOINTING]}
    if args.tiny:
        shapes = {"tiny": []}
    found = []
    for shape, to_fit in shapes.items():
        for way in ([], LORA):
            for kind in KINDS:
                found.append(settings(args, shape, [*kind, *way, *to_fit]))
    return found


def settings(args, shape: str, options: list[str]) -> dict:
    """What step_cost.py has to know."""
    return {
        "shape": shape,
        "length": 64 if args.tiny else args.length,
        "options": options,
        "pairs": args.pairs,
        "device": args.device,
        "steps": args.steps,
    }


def run(args) -> None:
    """The peak, then one measurement after the other."""
    card = spawn(sys.executable, STEP_COST, "card", {"device": args.device})
    for asked in plan(args):
        if args.only not in scaling.name_of(asked):
            continue
        found = measured(asked, card["memory_bytes"])
        if "flops_per_step" in found:
            speed = found["flops_per_step"] / found["seconds_per_step"]
            found["of_peak"] = speed / card["peak_flops_per_second"]
        scaling.merge(args.results, "gpu", asked | card | found | how_made())


def measured(asked: dict, memory_bytes: int) -> dict:
    """A measurement, or what it would need where that is more than there is."""
    need = needed(SHAPES[asked["shape"]], asked["options"], tokens_of(asked))["step"]
    if need > memory_bytes:
        text = f"not tried: needs {need / 1e9:.0f} of {memory_bytes / 1e9:.0f} GB"
        return {"needed_mb": need / 1e6, "did_not_run": text}
    try:
        found = spawn(sys.executable, STEP_COST, "measure", asked)
    except SystemExit as e:  # a card is lent for minutes: what fails must not end the rest
        print(e, file=sys.stderr)
        reason = str(e).strip().splitlines()[-1]
        found = {"did_not_run": f"failed: {reason}"}
    return {"needed_mb": need / 1e6} | found


def tokens_of(asked: dict) -> int:
    """The tokens of a micro-batch; here that is the whole step."""
    pairs = random_pairs(asked["pairs"], asked["length"], 8)
    args = options_of(asked | {"device": "cpu"})
    return batches_of(pairs, args)[0].input_ids.numel()


def tables(file: Path = RESULTS) -> dict[str, str]:
    """What the docs quote, in Markdown."""
    return scaling.tables(file, COLUMNS)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--results", type=Path, default=RESULTS, metavar="FILE", help="where results are kept")
    add("--device", default="cuda:0")
    add("--tiny", action="store_true", help="tiny shapes, to try the logic anywhere")
    add("--only", default="", metavar="TEXT", help="only what has TEXT in its name, '--shard' say")
    add("--steps", type=int, default=5, help="steps timed, at most")
    add("--length", type=int, default=1024, help="tokens of prompt and response")
    add("--pairs", type=int, default=8, help="pairs in a step")
    args = parser.parse_args(argv)
    if not args.tables:
        run(args)
    print("\n\n".join(tables(args.results).values()))


if __name__ == "__main__":
    main()
