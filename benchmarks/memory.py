"""Memory of a training step: what fits a card, and the peak beside TRL.

    python benchmarks/memory.py fits       computed: which shape fits 8, 16, 24 and 80 GB
    python benchmarks/memory.py check      measured on this CPU, beside what is computed
    python benchmarks/memory.py trl --data PAIRS.jsonl.gz --trl PYTHON      a 152k vocabulary
    python benchmarks/memory.py --tables   what the docs quote

A step of T tokens needs

    states        16 bytes a trained number: itself, its gradient and two moments, in float32;
                  a frozen one has the type of its file, 2 bytes in bfloat16
    copies        2 bytes a number of each trained matrix of a layer, under --bf16
    activations   T · (what a layer keeps of a token) · (layers that are trained + 1)

The 1 is for gradients in flight. What a layer keeps is not guessed: one layer computes some tokens
here, and the tensors that autograd saves are counted. With --gradient-checkpointing a layer keeps
only its input, and one layer at a time is whole. When the gradients of several micro-batches are
added up, a second gradient of the embedding is there for a moment, when the copies and activations
are gone. So the larger of the two counts. The report at the end of a run opens the saved model in
float32, 4 bytes a number, after the trained one has gone.

A model fits a card where a tenth is left, for CUDA itself and the gaps between tensors. Peaks of
`check` and `trl` are the largest resident memory of a process, in `check` less what Python and
torch take. Results go to memory.json.
"""
import math
import os
import sys
from pathlib import Path

import torch
from common import SHAPES, keep, load_results, new_parser, spawn, table
from step_cost import count, empty_model, options_of

import speed
import train_rm
from extras import lora
from model import PADDED, rotary_tables

HERE = Path(__file__).resolve()
RESULTS = HERE.with_suffix(".json")
STEP_COST = HERE.with_name("step_cost.py")
CARDS = (8, 16, 24, 80)  # GB
LEFT = 0.1  # of a card
MODELS = ("0.5b", "1.5b", "3b", "llama-3-8b")
CHECKPOINTING = "--gradient-checkpointing"
TOKENS = 2048  # of a micro-batch: one pair, padded to 1024
CHECKED = (  # shape, options
    ("0.5b", ["--bf16"]),
    ("0.5b", ["--bf16", CHECKPOINTING]),
    ("0.5b", ["--bf16", "--freeze-layers", "12"]),
    ("1.5b", ["--bf16", "--lora-rank", "16", CHECKPOINTING]),
    ("3b", ["--bf16", "--lora-rank", "16", CHECKPOINTING]),
)

# ---------------------------------------------------------------- computed


def needed(shape: dict, options: list[str], tokens: int) -> dict:
    """Bytes of a step, by the docstring above. The model is made, of weights without memory."""
    args = options_of({"options": options, "pairs": 2, "device": "cpu"})
    model = empty_model(shape, computing_type(args))
    parameters = count(model)
    if args.lora_rank or args.freeze_layers:  # train_rm.prepare, but for the memory
        lora.train_less(model, args.freeze_layers, args.lora_rank)
    trained = frozen = matrices = embedding = 0
    for name, parameter in model.named_parameters():
        numbers = parameter.numel()
        if not parameter.requires_grad:
            frozen += numbers * parameter.element_size()
            continue
        trained += numbers
        if ".layers." in name and parameter.ndim == 2:
            matrices += numbers
        if "embed_tokens" in name:
            embedding += numbers
    states = frozen + 16 * trained
    copies = 2 * matrices if args.bf16 or args.fp16 else 0
    kept = tokens * kept_per_token(shape, options)
    activations = copies + kept
    return {
        "parameters": parameters,
        "states": states,
        "step": states + max(activations, 4 * embedding),
        "report": 4 * parameters,
    }


def computing_type(args) -> torch.dtype:
    """Of frozen weights: that of the file, and files in use have the type one computes in."""
    return train_rm.autocast_dtype(args) or torch.float32


def kept_per_token(shape: dict, options: list[str]) -> float:
    """Bytes of activations for each token, of the whole model."""
    D = shape["hidden_size"]
    args = options_of({"options": options, "pairs": 2, "device": "cpu"})
    layers = shape["num_hidden_layers"] - args.freeze_layers
    # One layer alone, which is trained, in one piece and line by line.
    options = [*options, "--freeze-layers", "0", "--no-gradient-checkpointing"]
    options += ["--no-shard", "--no-compile"]
    of_layer = (saved_bytes(shape, options, 32) - saved_bytes(shape, options, 16)) / 16
    last_norm = 12 * D
    if args.gradient_checkpointing:
        return layers * 4 * D + 2 * of_layer + last_norm
    return (layers + 1) * of_layer + last_norm


def saved_bytes(shape: dict, options: list[str], tokens: int) -> int:
    """What autograd saves when one layer computes so many tokens, but for the layer's weights."""
    args = options_of({"options": options, "pairs": 2, "device": "cpu"})
    small = shape | {"num_hidden_layers": 1, "vocab_size": 8}
    model = empty_model(small, computing_type(args))
    train_rm.prepare(model, args, None)
    layer = model.model.layers[0]
    weights = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    saved = {}  # address -> memory, which is kept so that no address comes twice

    def note(tensor):
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in weights:
            saved[memory.data_ptr()] = memory
        return tensor

    x = torch.zeros(1, tokens, shape["hidden_size"], requires_grad=True)  # (1, T, D)
    tables = rotary_tables(model.config, torch.arange(tokens))
    dtype = train_rm.autocast_dtype(args)
    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", dtype, enabled=dtype is not None):
        layer(x, *tables, PADDED)
    return sum(memory.nbytes() for memory in saved.values())


def smallest_card(needed_bytes: float) -> str:
    """The smallest of CARDS that it fits."""
    for card in CARDS:
        if needed_bytes <= (1 - LEFT) * card * 1e9:
            return f"{card} GB"
    return "none"


# ---------------------------------------------------------------- the commands


def ways(shape: dict) -> dict[str, list[str]]:
    """What may be trained of a model."""
    half = str(shape["num_hidden_layers"] // 2)
    return {
        "all weights": ["--bf16"],
        "the upper half of the layers": ["--bf16", "--freeze-layers", half],
        "LoRA": ["--bf16", "--lora-rank", "16"],
    }


def command_fits(args) -> None:
    """Every shape, every way, without and with gradient checkpointing."""
    rows = []
    for name in args.shapes:
        for way, options in ways(SHAPES[name]).items():
            plain = needed(SHAPES[name], options, TOKENS)
            less = needed(SHAPES[name], [*options, CHECKPOINTING], TOKENS)
            row = {"shape": name, "way": way, "options": options}
            rows.append(row | plain | {"step_checkpointing": less["step"]})
            print(rows[-1], flush=True)
    keep(args.results, "fits", {"tokens": TOKENS, "rows": rows})


def command_check(args) -> None:
    """Real steps of two micro-batches, each of one pair of 2 × --length tokens."""
    # What is freed goes back to the system at once. Else malloc keeps blocks of up to 32 MB.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**17)
    rows = []
    for name, options in CHECKED:
        if name not in args.shapes:
            continue
        asked = {"shape": name, "length": args.length, "pairs": 2, "device": "cpu", "steps": 1}
        asked["options"] = [*options, "--gradient-accumulation-steps", "2"]
        found = spawn(sys.executable, STEP_COST, "measure", asked)
        row = {"shape": name, "options": options, "tokens": 2 * args.length}
        row["computed_mb"] = needed(SHAPES[name], options, row["tokens"])["step"] / 1e6
        if "did_not_run" not in found:
            row["measured_mb"] = found["peak_mb"] - found["mb_before"]
            row["seconds_per_step"] = found["seconds_per_step"]
        rows.append(row)
        print(row, flush=True)
    keep(args.results, "check", {"rows": rows, "torch": torch.__version__})


def command_trl(args) -> None:
    """The peaks that speed.py measures, on a large vocabulary."""
    what = ["--data", args.data, "--shape", args.shape, "--pack", "--trl", args.trl]
    for dtype in ("float32", "bf16"):
        how = ["--dtype", dtype, "--pairs", "16", "--repeats", "1"]
        speed.main(["train", *what, *how, "--results", str(args.results)])


# ---------------------------------------------------------------- tables


def tables(file: Path = RESULTS) -> dict[str, str]:
    """What the docs quote, in Markdown."""
    results, found = load_results(file), {}
    if "fits" in results:
        found["fits"] = fits_table(results["fits"]["rows"])
    if "check" in results:
        found["check"] = check_table(results["check"]["rows"])
    peaks = {name: r for name, r in results.items() if name.startswith("train ")}
    if peaks:
        found["trl"] = trl_table(peaks)
    return found


def fits_table(rows: list[dict]) -> str:
    """A row for each shape and way."""
    columns = ["model", "trained", "bytes a parameter", "GB", "fits", "GB, checkpointing", "fits",
               "GB, final report"]
    found = []
    for r in rows:
        step, less = r["step"], r["step_checkpointing"]
        found.append([
            f"{r['shape']}, {r['parameters'] / 1e9:.2f} billion",
            f"{r['way']}: `{' '.join(r['options'])}`",
            f"{r['states'] / r['parameters']:.1f}",
            f"{step / 1e9:.1f}",
            smallest_card(step),
            f"{less / 1e9:.1f}",
            smallest_card(less),
            f"{r['report'] / 1e9:.1f}",
        ])
    return table(columns, found)


def check_table(rows: list[dict]) -> str:
    """Computed beside measured."""
    columns = ["model", "options", "tokens", "computed MB", "measured MB", "measured / computed"]
    found = []
    for r in rows:
        measured = r.get("measured_mb", math.nan)
        found.append([
            r["shape"],
            f"`{' '.join(r['options'])}`",
            str(r["tokens"]),
            f"{r['computed_mb']:,.0f}",
            f"{measured:,.0f}",
            f"{measured / r['computed_mb']:.2f}",
        ])
    return table(columns, found)


def trl_table(results: dict) -> str:
    """The peak of each trainer, and its share of TRL's."""
    columns = ["shape, dtype", "trainer", "peak MB", "of TRL's"]
    found = []
    for name, entry in results.items():
        shape_and_dtype = ", ".join(name.split()[1:3])
        for who, e in entry["who"].items():
            share = e["peak_mb"] / entry["who"]["TRL"]["peak_mb"]
            found.append([shape_and_dtype, who, f"{e['peak_mb']:,.0f}", f"{share:.0%}"])
    return table(columns, found)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("command", nargs="?", choices=["fits", "check", "trl"])
    add("--results", type=Path, default=RESULTS, metavar="FILE", help="where results are kept")
    add("--shapes", nargs="+", choices=SHAPES, default=MODELS, help="of fits and check")
    add("--length", type=int, default=256, help="check's tokens of prompt and response")
    add("--shape", choices=SHAPES, default="30m-152k", help="trl's")
    add("--data", help="trl's preference pairs")
    add("--trl", metavar="PYTHON", help="of an environment in which TRL is installed")
    args = parser.parse_args(argv)
    if args.tables:
        print("\n\n".join(tables(args.results).values()))
    elif args.command == "fits":
        command_fits(args)
    elif args.command == "check":
        command_check(args)
    elif args.command == "trl" and args.data and args.trl:
        command_trl(args)
    else:
        parser.error("fits, check, trl with --data and --trl, or --tables")


if __name__ == "__main__":
    main()
