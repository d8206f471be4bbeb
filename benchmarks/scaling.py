"""Cost of a training step against model size and sequence length, and how much of a GPU it uses.

    python benchmarks/scaling.py size      pairs/s and peak memory of 1M to 0.5B parameters, pairs of 256 tokens, CPU
    python benchmarks/scaling.py length    the 30M shape at 128 to 2048 tokens, with and without gradient checkpointing
    python benchmarks/scaling.py data      seconds and memory of the data path for 1,000 to 1,000,000 rows (half an hour)
    python benchmarks/scaling.py gpu --shape qwen3-0.6b    alone, DDP and FSDP2 on one rank, beside the card's peak
    python benchmarks/scaling.py gpu --shape llama-3-8b    all weights (where they fit) and LoRA of rank 8
    python benchmarks/scaling.py gpu --shape tiny --device cpu --length 64    the same code where there is no GPU

Every measurement is a process of its own, so its peak memory is too: the largest resident set on a CPU (some 300 MB of
it Python and torch), torch.cuda.max_memory_allocated on a GPU. Models are random: built without memory, their numbers
drawn on the device. Pairs are random token ids, 16,384 different ones, whose rows of the embedding are trained. Of N
tokens of prompt + response half are prompt, computed once (data.pack): a pair counts N/2 + 2 · N/2 in tokens/s. The
step is train_rm.train's. The first is not timed, nor are those that float16 skips until its scale fits; then --steps,
or what fits into 30 s, at least one. Results are merged into scaling.json;  --tables  prints them in Markdown.

The rows of `data` are random words, whose sides have about 500 tokens each. They are split, tokenised into the cache on
the disk, opened again as another process would, and 300 batches of 64 rows are drawn.

The peak is the best of 20 products of two matrices, 8192 x 8192 in bfloat16 (on a CPU 1024 x 1024 in float32). The
model's FLOPs in a step of T tokens, whatever is computed again by gradient checkpointing:

    6 · (W · T − W_last · (T − S)) + 12 · layers · heads · head_dim · seen

W: weights of the layers, embedding and head not counted; W_last: those of the last layer's o_proj and MLP, which are
applied only where one of the S sequences ends; seen: (query, key) pairs that the causal mask lets through. Frozen
weights need no gradient: with LoRA the first term has 4 for 6 (the factors' own work is not counted), the second stays.
"""
import argparse
import functools
import itertools
import json
import math
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

import speed  # it puts the project's folder on the path
import train_rm
from data import Preferences, Tokenizer, cached_preferences, collate, split_by_prompt, step_batches
from model import FrozenLinear, RewardModel, RowsInUse, read_config

RESULTS = Path(__file__).with_suffix(".json")
SECONDS, USED = 30, 16384  # after which no further step is timed; token ids in use
NAMES = "hidden_size num_hidden_layers intermediate_size num_attention_heads num_key_value_heads head_dim vocab_size".split()
SHAPES = {
    name: speed.LLAMA | dict(zip(NAMES, numbers)) for name, numbers in {
        "1M": (64, 2, 128, 1, 1, 64, USED), "10M": (320, 5, 640, 5, 5, 64, USED), "30M": (512, 8, 1024, 8, 8, 64, USED),
        "100M": (768, 12, 2048, 12, 12, 64, USED), "0.5B": (896, 24, 4864, 14, 2, 64, 151936),
        "tiny": (64, 2, 128, 4, 2, 16, 512), "llama-3-8b": (4096, 32, 14336, 32, 8, 128, 128256)}.items()
} | {"qwen3-0.6b": speed.SHAPES["qwen3-0.6b"]}
CHECKPOINTING, LORA = ["--gradient-checkpointing"], ["--lora-rank", "8", "--gradient-checkpointing"]
ALONE, DDP, FSDP = HOW = ("one process", "DDP, one rank", "FSDP2, one rank")
COLUMNS = {
    "size": ("parameters", "options", "pairs/s", "pairs per step", "steps timed", "peak MB"),
    "length": ("tokens", "options", "pairs/s", "tokens/s", "pairs per step", "peak MB"),
    "data": ("rows", "tokens", "file MB", "cache MB", "seconds to make", "seconds to open", "ms a batch", "peak MB before",
             "peak MB making", "peak MB with batches"),
    "gpu": ("shape", "tokens", "options", "processes", "tokens/s", "of the peak", "pairs per step", "peak MB", "losses"),
}


@torch.no_grad()
def draw(model: RewardModel, device) -> None:
    """In place of RewardModel.load: random numbers, made on the device, of which a rank keeps its shard."""
    model.to_empty(device=device)
    for p in model.parameters():
        here = p.to_local() if hasattr(p, "to_local") else p
        here.normal_(std=0.02) if p.ndim > 1 else here.fill_(1)  # norms; no shape here has biases
    for module in model.modules():
        if isinstance(module, RowsInUse):
            module.fill(torch.empty_like(module.frozen).normal_(std=0.02))
        elif isinstance(module, FrozenLinear) and module.lora_A is not None:
            module.start_lora()
    model.init_head()


def model_flops(model: RewardModel, trees, weights: int, lora: bool) -> float:
    """Of one step, forward and backward, as the docstring says."""
    c, tokens = model.config, len(trees.position_ids)
    last = c.hidden_size * (c.num_attention_heads * c.head_dim + 3 * c.intermediate_size)
    triangle = lambda n: n * (n + 1) / 2
    seen = sum(triangle(prompt) + sum(rest * prompt + triangle(rest) for rest in rests) for prompt, *rests in trees.parts)
    of_weights = weights * tokens - last * (tokens - len(trees.last))
    return (4 if lora else 6) * of_weights + 12 * c.num_hidden_layers * c.num_attention_heads * c.head_dim * seen


def measure(s: dict) -> dict:
    """Seconds a step, peak memory, FLOPs and losses of one shape, length, set of options and kind of process."""
    torch.manual_seed(0)
    args = train_rm.parse_options(["--model", "random", "--lr", "1e-5", "--batch-size", str(s["pairs"]), *s["options"]])
    args.device, args.shard = torch.device(s["device"]), s["how"] == FSDP
    with torch.device("meta"):
        model = RewardModel(read_config(SHAPES[s["shape"]]))
    model.load, model.tensors = functools.partial(draw, model), {"random": {}}  # an opened model, as if of a folder
    parameters, weights = (sum(p.numel() for p in part.parameters()) for part in (model, model.model.layers))
    used = np.arange(min(USED, model.config.vocab_size))
    if s["how"] != ALONE:
        train_rm.start_processes(args)
    train_rm.to_the_machine(model, args, used)
    parallel = torch.nn.parallel.DistributedDataParallel(model, forward_sync_buffers=False) if s["how"] == DDP else model
    optimizer, scaler = train_rm.make_optimizer(model, args), torch.amp.GradScaler(args.device.type, enabled=args.fp16)
    batch = collate(speed.random_pairs(s["pairs"], s["length"], len(used)), np.arange(s["pairs"]), 0, True).to(args.device)
    clock, losses, skipped = speed.Clock(time.time()), [], 0
    while len(clock.ends) < 2 or (len(clock.ends) <= s["steps"] and clock.ends[-1] - clock.ends[0] < SECONDS):
        sums, _ = train_rm.accumulate_gradients(parallel, [batch], batch.rows, args, scaler)
        scaler.unscale_(optimizer)
        norm = train_rm.whole(torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)).item()
        losses.append(sums[0].item() / batch.rows)
        if math.isfinite(losses[-1]) and math.isfinite(norm):
            scaler.step(optimizer)
            scaler.update()
        else:  # float16 overflowed, which is what the scale is for
            scaler.update(scaler.get_scale() / 2 if args.fp16 else None)
            skipped += 1
        optimizer.zero_grad(set_to_none=True)
        if skipped > (20 if args.fp16 else 0):
            raise ArithmeticError(f"losses {losses}, {skipped} steps skipped: the loss or the gradient is not finite")
    if dist.is_initialized():
        dist.destroy_process_group()
    steps, tokens = clock.result(losses, [])["step_seconds"], len(batch.trees.position_ids)
    seconds = statistics.median(steps)
    return {"parameters": parameters, "weights_of_layers": weights, "seconds_per_step": seconds, "steps": len(steps),
            "pairs_per_second": s["pairs"] / seconds, "tokens_per_second": tokens / seconds, "peak_mb": clock.peak_mb,
            "losses": losses, "skipped": skipped,
            "flops_per_step": model_flops(model, batch.trees, weights, bool(args.lora_rank))}


def write_rows(n: int, path: Path) -> None:
    """n rows of random words whose sides are of about 500 byte-level tokens, half of them prompt."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.choice([2, 3, 4, 5, 7]))) for _ in range(5000)]
    many = " ".join(rng.choices(words, k=300_000))

    def text(characters: int) -> str:
        start = rng.randrange(len(many) - characters)
        return many[start : start + characters]

    length = lambda: rng.randrange(220, 420)
    with open(path, "w", encoding="utf-8") as file:
        for i in range(n):
            row = {"id": i, "prompt": f"{i} {text(420)}", "chosen": text(length()), "rejected": text(length())}
            file.write(json.dumps(row) + "\n")


def data_path(s: dict) -> dict:
    """The data path for so many rows, as the docstring says."""
    n = s["rows"]
    peak_mb = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    with tempfile.TemporaryDirectory() as folder:
        rows, cache = Path(folder, "rows.jsonl"), Path(folder, "cache")
        write_rows(n, rows)
        sample = [p.prompt[0]["content"] for p in itertools.islice(Preferences([rows]), 500)]
        tokenizer, before = Tokenizer.train(sample, 512), peak_mb()
        began = time.perf_counter()
        train, _ = split_by_prompt(Preferences([rows]), 0.01, seed=0)
        pairs, audit = cached_preferences(cache, train, tokenizer, 1024)
        made, after = time.perf_counter(), peak_mb()
        opened, _ = cached_preferences(cache, train, tokenizer, 1024)
        found = time.perf_counter()
        steps = min(300, pairs.rows // 64)
        for step in range(steps):
            collate(opened, step_batches(opened, step, 64)[0][0], tokenizer.pad_id, shared_prompts=True)
            opened.release()
        drawn = time.perf_counter()
        return {"tokens": len(pairs.ids), "tokens_a_side": len(pairs.ids) / audit["kept"] / 2,
                "file_mb": rows.stat().st_size / 1e6,
                "cache_mb": sum(f.stat().st_size for f in cache.iterdir()) / 1e6, "seconds": made - began,
                "seconds_found": found - made,
                "ms_a_batch": (drawn - found) / steps * 1000, "peak_mb": after, "peak_mb_before": before,
                "peak_mb_with_batches": peak_mb()}


def matmul(s: dict) -> dict:
    """FLOPs per second of one large product of two matrices, the best of 20."""
    cuda, best = s["device"].startswith("cuda"), math.inf
    n, dtype, wait = (8192, torch.bfloat16, torch.cuda.synchronize) if cuda else (1024, torch.float32, lambda: None)
    a, b, out = (torch.randn(n, n, device=s["device"]).to(dtype) for _ in range(3))
    for _ in range(21):  # the first one warms up
        wait()
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        wait()
        best = min(best, time.perf_counter() - began)
    return {"peak_flops_per_second": 2 * n**3 / best}


def worker(name: str, settings: dict) -> dict:
    """The result of a measurement, or that it did not fit into the memory; and where and when it was made."""
    try:
        result = {"measure": measure, "matmul": matmul, "data": data_path}[name](settings)
    except RuntimeError as e:  # CUDA's, the CPU's, and NCCL's own
        if not re.search("out of memory|allocate memory", str(e), re.I):
            raise
        result = {"did_not_fit": str(e).splitlines()[0]}
    return result | {"machine": speed.machine(), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}


def spawn(name: str, settings: dict) -> dict:
    """Run `worker` in a fresh process. Without a GPU where the measurement is of the CPU."""
    unseen = {"CUDA_VISIBLE_DEVICES": ""} if settings["device"] == "cpu" else {}
    command = [sys.executable, __file__, "worker", name, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | unseen)
    if done.returncode not in (0, -9):
        sys.exit(f"{settings}: failed\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    if done.returncode:  # -9: what Linux does to a process when there is no memory left
        return {"did_not_fit": "killed"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def plan(args) -> list[dict]:
    """The settings of every measurement of a subcommand."""
    if args.command == "data":
        return [{"rows": n, "device": "cpu"} for n in (1_000, 10_000, 100_000, 1_000_000)]
    if args.command == "size":
        rows = [(shape, 256, [], ALONE, 4) for shape in ("1M", "10M", "30M", "100M")]
        rows += [("0.5B", 256, options, ALONE, 2) for options in ([], CHECKPOINTING, LORA)]  # --bf16: only on GPUs
    elif args.command == "length":
        rows = [("30M", n, options, ALONE, 4) for n in (128, 256, 512, 1024, 2048) for options in ([], CHECKPOINTING)]
    else:
        kinds = {"qwen3-0.6b": [[]], "llama-3-8b": [CHECKPOINTING, LORA], "tiny": [[], LORA]}[args.shape]
        rows = [(args.shape, args.length, [*options, "--bf16"], how, args.pairs) for options in kinds for how in HOW]
        if args.shape != "llama-3-8b":
            rows.append((args.shape, args.length, ["--fp16"], ALONE, args.pairs))
    names, device = ("shape", "length", "options", "how", "pairs"), args.device if args.command == "gpu" else "cpu"
    return [dict(zip(names, row)) | {"device": device, "steps": args.steps} for row in rows]


def name_of(row: dict) -> str:
    """What a measurement is told apart by."""
    if "rows" in row:
        return f"{row['rows']} rows"
    return f"{row['shape']}, {row['length']} tokens, {' '.join(row['options']) or 'plain'}, {row['how']}, {row['device']}"


def run(args) -> None:
    """Measure one thing after the other; each is kept as soon as it is there, in place of an earlier one of its name."""
    gpu = spawn("matmul", {"device": args.device}) if args.command == "gpu" else {}
    of_shape = lambda r: (list(SHAPES).index(r["shape"]), r["length"], r["options"], HOW.index(r["how"]))
    place = lambda r: r["rows"] if "rows" in r else of_shape(r)
    for settings in (s for s in plan(args) if args.only in name_of(s)):
        row = gpu | settings | spawn("data" if args.command == "data" else "measure", settings)
        if gpu and "did_not_fit" not in row:
            row["of_peak"] = row["flops_per_step"] / row["seconds_per_step"] / row["peak_flops_per_second"]
        results = json.loads(args.results.read_text()) if args.results.exists() else {}
        others = [r for r in results.get(args.command, []) if name_of(r) != name_of(row)]
        args.results.write_text(json.dumps(results | {args.command: sorted([*others, row], key=place)}, indent=1) + "\n")
        print(name_of(row), row.get("did_not_fit") or "done", sep=": ", file=sys.stderr)


def cells(r: dict) -> dict[str, str]:
    """What any of the tables says of a measurement, by column."""
    if "rows" in r:
        numbers = ("rows", "tokens", "file_mb", "cache_mb", "seconds", "seconds_found", "ms_a_batch", "peak_mb_before", "peak_mb",
                   "peak_mb_with_batches")
        return {column: f"{r[name]:,.{2 if name == 'seconds_found' else 0}f}" for column, name in zip(COLUMNS["data"], numbers)}
    known = {"parameters": r["shape"], "shape": r["shape"], "tokens": f"{r['length']}", "pairs per step": f"{r['pairs']}",
             "processes": r["how"], "options": r["options"] and f"`{' '.join(r['options'])}`" or "", "peak MB": "did not fit"}
    return known if "did_not_fit" in r else known | {
        "parameters": f"{r['parameters'] / 1e6:,.1f}M, {r['weights_of_layers'] / 1e6:,.1f}M of them in layers",
        "pairs/s": f"{r['pairs_per_second']:.3g}", "tokens/s": f"{r['tokens_per_second']:,.0f}",
        "steps timed": f"{r['steps']}", "peak MB": f"{r['peak_mb']:,.0f}", "of the peak": f"{r.get('of_peak', 0):.1%}",
        "losses": "finite" if all(map(math.isfinite, r["losses"])) else "not finite"}


def tables(file: Path = RESULTS) -> dict[str, str]:
    """What the README quotes, by name, in Markdown: of every subcommand that has results."""
    results, found = json.loads(file.read_text()) if file.exists() else {}, {}
    for name in filter(results.get, COLUMNS):
        lines = [COLUMNS[name], ["---"] * len(COLUMNS[name])]
        lines += [[cells(r).get(column, "") for column in COLUMNS[name]] for r in results[name]]
        peak = lambda r: f", matmul peak {r['peak_flops_per_second'] / 1e12:.3g} TFLOP/s" if name == "gpu" else ""
        made = {f"{r['machine']}{peak(r)}, torch {r['torch']}, {r['date']}" for r in results[name] if "machine" in r}
        found[name] = "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\nMeasured on {'; '.join(sorted(made))}."
    return found


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("command", nargs="?", choices=list(COLUMNS))
    add("--tables", action="store_true", help="print the tables of the README")
    add("--results", type=Path, default=RESULTS, metavar="FILE", help="where results are merged into")
    add("--only", default="", metavar="TEXT", help="only what has TEXT in its name, 'FSDP2' say")
    add("--steps", type=int, default=5, help="steps timed, at most")
    add("--shape", choices=["qwen3-0.6b", "llama-3-8b", "tiny"], default="qwen3-0.6b", help="gpu's")
    add("--length", type=int, default=1024, help="gpu's tokens of prompt + response")
    add("--pairs", type=int, default=8, help="gpu's pairs in a step")
    add("--device", default="cuda:0", help="gpu's; size and length are of the CPU")
    args = parser.parse_args(argv)
    if not args.tables:
        return run(args) if args.command else parser.print_help()
    print("\n\n".join(tables(args.results).values()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        print(json.dumps(worker(sys.argv[2], json.loads(sys.argv[3]))))
    else:
        main()
