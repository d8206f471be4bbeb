"""What one training step costs: seconds, memory, floating-point operations.

A worker of scaling.py, memory.py and gpu.py. Models and pairs are random. Of the N tokens of a
sequence half are prompt: a pair is 2 N tokens in the plain form and 1.5 N with --pack. The steps
are those of train_rm.py, always on the same pairs. The first is not timed, nor are those that
float16 skips until its scale fits; then so many as were asked for, or what fits into 30 s.

The peak is the best of 20 products of two matrices, 8192 x 8192 in bfloat16 (on a CPU 1024 x 1024
in float32). A step of T tokens needs, whatever gradient checkpointing computes again,

    6 · W · T + 12 · layers · heads · head_dim · seen      floating-point operations

W: weights of the layers. seen: (query, key) pairs that the causal mask lets through. Frozen weights
need no gradient: with LoRA the 6 is a 4 (the factors' own work is not counted).
"""
import math
import os
import statistics
import time

import numpy as np
import torch
import torch.distributed as dist
from common import SHAPES, StepClock, asked_to_work, peak_mb

import train_rm
from data import DataError, Example, batch_function
from model import RewardModel, read_config, whole

SECONDS = 30  # after which no further step is timed

# ---------------------------------------------------------------- random pairs, a random model


def random_pairs(count: int, length: int, vocabulary: int) -> list[Example]:
    """Pairs whose two sequences have this length each, half of it their prompt."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, vocabulary, (count, 2, length), dtype=np.int32)
    half = length // 2
    ids[:, 1, :half] = ids[:, 0, :half]
    return [Example(list(sequences), [1.0, 0.0], half) for sequences in ids]


def empty_model(shape: dict, dtype: torch.dtype) -> RewardModel:
    """A model as open_model makes it, of weights that take no memory before they are copied."""
    with torch.device("meta"):
        model = RewardModel(read_config(shape))
    zero = torch.zeros(1, dtype=dtype)
    state = {}
    for name, tensor in model.model.state_dict().items():
        state[name] = zero.expand(tensor.shape)
    model.model.load_state_dict(state, assign=True)
    model.init_head()
    return model


@torch.no_grad()
def draw_weights(model: RewardModel) -> None:
    """Random numbers, made where the weights are; a rank draws for its shard."""
    for parameter in model.parameters():
        if hasattr(parameter, "to_local"):  # a shard
            parameter = parameter.to_local()
        if parameter.ndim > 1:
            parameter.normal_(std=0.02)
        else:
            parameter.fill_(1)  # norms; no shape here has biases
    model.score.bias.zero_()


def flops(model: RewardModel, pairs: list[Example], weights: int, args) -> float:
    """Of one step, forward and backward, as the file's docstring says."""
    tokens = seen = 0
    for pair in pairs:
        prompts = 1 if args.pack else len(pair.sequences)
        tokens += prompts * pair.start
        seen += prompts * triangle(pair.start)
        for sequence in pair.sequences:
            rest = len(sequence) - pair.start
            tokens += rest
            seen += rest * pair.start + triangle(rest)
    c = model.config
    width = c.num_attention_heads * c.head_dim
    attention = 12 * c.num_hidden_layers * width * seen
    passes = 4 if args.lora_rank else 6
    return passes * weights * tokens + attention


def triangle(n: int) -> float:
    """(query, key) pairs of n tokens that see themselves and what is before them."""
    return n * (n + 1) / 2


# ---------------------------------------------------------------- one measurement


def measure(s: dict) -> dict:
    """Seconds a step, peak memory, FLOPs and losses."""
    before = peak_mb()
    torch.manual_seed(0)
    args = options_of(s)
    model = empty_model(SHAPES[s["shape"]], train_rm.autocast_dtype(args) or torch.float32)
    parameters, weights = count(model), count(model.model.layers)
    pairs = random_pairs(s["pairs"], s["length"], model.config.vocab_size)
    train_rm.prepare(model, args, None)  # with --shard it starts a process group of one
    draw_weights(model)
    batches = batches_of(pairs, args)
    clock, losses = steps(model, batches, args, s["steps"])
    if dist.is_initialized():
        dist.destroy_process_group()
    seconds = statistics.median(clock.seconds())
    tokens = sum(batch.input_ids.numel() for batch in batches)
    return {
        "parameters": parameters,
        "weights_of_layers": weights,
        "seconds_per_step": seconds,
        "steps": len(clock.seconds()),
        "pairs_per_second": len(pairs) / seconds,
        "tokens_per_second": tokens / seconds,
        "peak_mb": clock.peak_mb,
        "mb_before": before,
        "losses": losses,
        "skipped": len(losses) - len(clock.ends),
        "flops_per_step": flops(model, pairs, weights, args),
        "torch": torch.__version__,
    }


def options_of(s: dict):
    """The options of train_rm.py."""
    argv = ["--model", "random", "--batch-size", str(s["pairs"]), *s["options"]]
    args = train_rm.parse_options(argv)
    args.device = torch.device(s["device"])
    if args.device.type == "cuda":
        torch.cuda.set_device(args.device)  # what StepClock asks
    return args


def batches_of(pairs: list[Example], args) -> list:
    """The micro-batches of a step."""
    make_batch, batches = batch_function(args.pack), []
    size = math.ceil(len(pairs) / args.gradient_accumulation_steps)
    for first in range(0, len(pairs), size):
        batch = make_batch(pairs[first : first + size], 0, len(pairs))
        batches.append(batch.to(args.device))
    return batches


def count(module: torch.nn.Module) -> int:
    """Numbers in a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def steps(model, batches, args, most: int) -> tuple[StepClock, list[float]]:
    """Steps on the same pairs, as train_rm.train takes them -> clock and losses.

    float16 may skip a step: then there is a loss, and no tick of the clock.
    """
    optimizer = train_rm.make_optimizer(model, args.lr, args.weight_decay)
    scaler = torch.amp.GradScaler(args.device.type, enabled=args.fp16)
    clock, losses = StepClock(), []
    began = time.time()
    while not enough(clock, most, time.time() - began):
        means = train_rm.accumulate_gradients(model, batches, args, scaler)
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        train_rm.update(optimizer, scaler, whole(norm).item())
        optimizer.zero_grad(set_to_none=True)
        losses.append(means["loss"])
        skipped = len(losses) - len(clock.ends)
        if skipped > 20:
            raise ArithmeticError(f"losses {losses}: all steps are skipped")
    return clock, losses


def enough(clock: StepClock, most: int, seconds: float) -> bool:
    """Whether no further step is to be timed."""
    timed = len(clock.ends) - 1
    if timed < 1:
        return False
    return timed >= most or seconds > SECONDS


def card(s: dict) -> dict:
    """What the device can do: FLOPs per second of one large product of two matrices, the best of
    20, and its memory.
    """
    cuda = s["device"].startswith("cuda")
    n, dtype = 1024, torch.float32
    if cuda:
        n, dtype = 8192, torch.bfloat16
    a = torch.randn(n, n, device=s["device"]).to(dtype)
    b, out = torch.randn_like(a), torch.empty_like(a)
    if cuda:
        torch.cuda.set_device(s["device"])
    best = math.inf
    for _ in range(21):  # the first one warms up
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        if cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if cuda:
        memory = torch.cuda.get_device_properties(s["device"]).total_memory
    return {"peak_flops_per_second": 2 * n**3 / best, "memory_bytes": memory}


def measure_or_say(s: dict) -> dict:
    """measure, or a note that there is too little memory, or no compiler."""
    try:
        return measure(s)
    except RuntimeError as e:  # CUDA's, the CPU's, and NCCL's own
        reason = str(e).splitlines()[0]
        if "memory" not in reason.lower():
            raise
        return {"did_not_run": f"out of memory: {reason}"}
    except DataError as e:  # --compile without a compiler
        return {"did_not_run": str(e)}


WORKERS = {"measure": measure_or_say, "card": card}

if __name__ == "__main__":
    asked_to_work(WORKERS)
