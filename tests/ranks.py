"""ranks.py: what one, two and four processes make of the same steps. test_sharding.py compares.

    python ranks.py FOLDER

prepare_folder fills the folder: tiny (a model), half (the same in bfloat16), rows.jsonl, tokens/.
Torch is imported once, and the processes are forked: torchrun would import it seven times.
"""
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from conftest import ROOT, save_run, tiny_model, tiny_tokenizer, write_rows
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parallel import DistributedDataParallel

import train_rm
from data import Audit, Examples, batch_function, examples_of, read_rows, rows_of_step, write_tokens
from eval import score_examples
from extras import sharding
from model import open_model, whole

SHARD = "--shard"
TWICE = ["--gradient-accumulation-steps", "2"]
LORA = ["--lora-rank", "2", "--freeze-layers", "1"]
# What is trained, and how. One process alone shows what every way below has to give.
KINDS = {
    "all": [],
    "lora": LORA,
    "frozen": ["--freeze-layers", "1"],
    "used rows": ["--used-rows"],
    "half": ["--bf16"],
    "half lora": ["--bf16", "--lora-rank", "2"],
}
# How processes share the work: (kind, more options).
WAYS = {
    "ddp": ("all", []),
    "ddp x2": ("all", TWICE),
    "ddp lora": ("lora", []),
    "ddp used rows": ("used rows", []),
    "fsdp": ("all", [SHARD]),
    "fsdp x2": ("all", [SHARD, *TWICE]),
    "fsdp checkpointing": ("all", [SHARD, *TWICE, "--gradient-checkpointing"]),
    "fsdp pack": ("all", [SHARD, "--pack"]),
    "fsdp lora": ("lora", [SHARD]),
    "fsdp frozen": ("frozen", [SHARD]),
    "fsdp used rows": ("used rows", [SHARD]),
    "fsdp half": ("half", [SHARD]),
    "fsdp half lora": ("half lora", [SHARD]),
}
WAYS_OF_FOUR = ("ddp", "fsdp x2", "fsdp lora")
STEPS = 2
MAX_NORM = 0.5  # smaller than every gradient here, so that clipping is active


# ---------------------------------------------------------------- the folder


def prepare_folder(folder: Path) -> None:
    """17 rows in two steps of 8 and 9, so that two and four processes have unequal shares."""
    tokenizer = tiny_tokenizer()
    for name in ("tiny", "half"):
        model = tiny_model(num_hidden_layers=3)
        save_run(folder / name, model, tokenizer, 256)
    tensors = load_file(folder / "half" / "model.safetensors")
    for name in tensors:
        tensors[name] = tensors[name].bfloat16()
    save_file(tensors, folder / "half" / "model.safetensors")

    rows, held_out = folder / "rows.jsonl", folder / "held_out.jsonl"
    write_rows(rows, map(row, range(17)))
    write_rows(held_out, map(row, range(17, 22)))
    examples = []
    for file in (rows, held_out):
        examples.append(examples_of(read_rows([file]), tokenizer, 256, Audit()))
    (folder / "tokens").mkdir()
    write_tokens(folder / "tokens", *examples)


def row(i: int) -> dict:
    """Rows of different lengths. Some have three responses, some a margin."""
    words = "the cat sat on the mat and the dog did not".split()
    about = " ".join(words[: 3 * i % 11])
    content = {"prompt": f"Where is cat {i}? {about}"}
    if i % 4 == 0:
        content["responses"] = [f"On mat {i}.", "No.", "The dog knows" + " it" * (i % 5)]
        content["scores"] = [3, 1, 2]
    else:
        content["chosen"] = f"On mat {i}" + " sat" * (i % 3)
        content["rejected"] = "not " * (1 + i % 6)
        content["margin"] = 0.5 * (i % 3)
    return content


def options(folder: Path, kind: str, more=()):
    """Options as train_rm.py reads them."""
    base = "half" if "half" in kind else "tiny"
    args = ["--model", str(folder / base), "--data", str(folder / "rows.jsonl")]
    args += ["--batch-size", "9", "--max-grad-norm", str(MAX_NORM)]
    args += ["--center-rewards-coefficient", "0.01"]
    args = train_rm.parse_options(args + KINDS[kind] + list(more))
    args.device = torch.device("cpu")
    return args


def prepared_model(folder: Path, args):
    """A model with all that the options ask for, and the examples."""
    torch.manual_seed(0)
    examples = Examples(folder / "tokens")
    model = open_model(args.model)
    train_rm.prepare(model, args, examples)
    return model, examples


# ---------------------------------------------------------------- some steps


def take_steps(folder: Path, kind: str, more=()) -> dict[str, torch.Tensor]:
    """Two steps of plain SGD, by train_rm.py's own functions.

    Not AdamW: it divides by the size of the gradient, and would hide a factor that is missing.
    Returns gradients and norms of each step, the weights and rewards after it, and more.
    """
    args = options(folder, kind, more)
    model, examples = prepared_model(folder, args)
    found = {"share": share(model)}
    parallel = model
    if train_rm.process_count() > 1 and not args.shard:
        parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    numbers = examples.numbers(held_out=False)
    for step in range(STEPS):
        of_step = rows_of_step(numbers, step, args.batch_size, args.seed)
        batches = train_rm.batches_of_step(of_step, examples, 0, args)
        means = train_rm.accumulate_gradients(parallel, batches, args, scaler)
        found[f"loss/{step}"] = torch.tensor(means["loss"])
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                found[f"gradient/{step}/{name}"] = whole(parameter.grad).clone()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        found[f"norm/{step}"] = whole(norm)
        optimizer.step()
        optimizer.zero_grad()
    found["rewards"] = rewards(model, examples, args)
    # All processes ask for the state; the first one gets it.
    for name, tensor in model.state_dict().items():
        found[f"weight/{name}"] = tensor.clone()
    return found


def share(model) -> torch.Tensor:
    """Which share of the model's numbers this process has."""
    here = total = 0
    for parameter in model.parameters():
        total += parameter.numel()
        if isinstance(parameter, DTensor):
            parameter = parameter.to_local()
        here += parameter.numel()
    return torch.tensor(here / total)


def rewards(model, examples: Examples, args) -> torch.Tensor:
    """The rewards of the held-out sequences."""
    numbers = examples.numbers(held_out=True)
    held_out = [examples[number] for number in numbers]
    make_batch, dtype = batch_function(args.pack), train_rm.autocast_dtype(args)
    found = score_examples(model, held_out, make_batch, 0, dtype)
    return torch.cat(list(map(torch.from_numpy, found)))


# ---------------------------------------------------------------- shards in memory and in files


def whole_copies(folder: Path) -> list[int]:
    """While a model is sharded, before each copy from the file: how many whole copies there are."""
    counts, copies = [], []
    take_weights = sharding.take_weights

    def alive():
        return sum(not copy.expired() for copy in copies)

    def watched(module, device, folder):
        counts.append(alive())
        take_weights(module, device, folder)
        for parameter in module.parameters():
            if not isinstance(parameter, DTensor):
                copies.append(StorageWeakRef(parameter.untyped_storage()))

    sharding.take_weights = watched
    prepared_model(folder, options(folder, "half lora", [SHARD]))
    sharding.take_weights = take_weights
    counts.append(alive())
    return counts


def survives_checkpoint(folder: Path, kind: str) -> bool:
    """Whether fill() and whole() give a sharded model's trained parameters and get them back."""
    model, _ = prepared_model(folder, options(folder, kind, [SHARD]))
    random = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            value = torch.randn(parameter.shape, generator=random)
            with torch.no_grad():
                train_rm.fill(parameter, value)
            if not torch.equal(whole(parameter), value):
                return False
    return True


# ---------------------------------------------------------------- whole runs

RUN = ["--batch-size", "8", "--max-steps", "5", "--save-steps", "3", "--eval-steps", "3"]
RUN += ["--lr", "1e-3", "--center-rewards-coefficient", "0.01"]
# A learning rate at which the model of step 2 is the best, and training ends after step 4.
BEST = ["--eval-steps", "1", "--lr", "0.1", "--patience", "2"]
# Runs of one process, and of two: (base model, options).
RUNS_OF_ONE = {
    "one": ("tiny", [SHARD]),
    "one lora": ("tiny", LORA),
    "one best": ("tiny", BEST),
    "one lora best": ("tiny", [*BEST, *LORA]),
}
RUNS_OF_TWO = {
    "two": ("tiny", [SHARD]),
    "two lora": ("tiny", [SHARD, *LORA]),
    "two half lora": ("half", [SHARD, "--bf16", *LORA]),
    "two best": ("tiny", [SHARD, *BEST]),
    "two copies best": ("tiny", BEST),
    "two lora best": ("tiny", [SHARD, *BEST, *LORA]),
}


def train(folder: Path, output: str, base: str, more: list[str]) -> None:
    """python train_rm.py on the rows of the folder."""
    run = ["--model", str(folder / base), "--output", str(folder / output)]
    run += ["--data", str(folder / "rows.jsonl")]
    run += ["--eval-data", str(folder / "held_out.jsonl")]
    run_quietly(run + RUN + more)


def resume(folder: Path, run: str, output: str) -> None:
    """python train_rm.py --resume, on a copy of a run as it was after its checkpoint at step 3."""
    if train_rm.process_number() == 0:
        unfinished = shutil.ignore_patterns("report.json")
        shutil.copytree(folder / run, folder / output, ignore=unfinished)
    if dist.is_initialized():
        dist.barrier()
    run_quietly(["--resume", str(folder / output)])


def run_quietly(args: list[str]) -> None:
    """train_rm.main.  Raises: RuntimeError with what it says, unless it ends well."""
    output, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        status = train_rm.main(args)
    if status:
        raise RuntimeError(error.getvalue())


# ---------------------------------------------------------------- processes


def work_alone(folder: Path) -> None:
    """What one process does: the results that more processes have to give."""
    for kind in KINDS:
        save_file(take_steps(folder, kind), folder / f"1 {kind}.safetensors")
    for output, (base, more) in RUNS_OF_ONE.items():
        train(folder, output, base, more)


def work(folder: Path, rank: int, ranks: int) -> None:
    """What each of several processes does."""
    meeting = f"file://{folder / f'meeting of {ranks}'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    for way in WAYS if ranks == 2 else WAYS_OF_FOUR:
        found = take_steps(folder, *WAYS[way])
        if rank == 0:
            save_file(found, folder / f"{ranks} {way}.safetensors")
    notes = {"copies": whole_copies(folder)}
    for kind in ("all", "lora"):
        notes[f"{kind} survives"] = survives_checkpoint(folder, kind)
    if rank == 0:
        (folder / f"notes of {ranks}.json").write_text(json.dumps(notes))
    if ranks == 2:
        # The process group is there already, and is needed for the next run.
        train_rm.start_processes = dist.destroy_process_group = lambda *args: None
        for output, (base, more) in RUNS_OF_TWO.items():
            train(folder, output, base, more)
        resume(folder, "one", "one, then two")
        resume(folder, "two lora", "two lora, then two")
    dist.barrier()


def fork(folder: Path, rank: int, ranks: int) -> int:
    """Start one process.  Returns: its id."""
    child = os.fork()
    if child:
        return child
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
    os.environ["WORLD_SIZE"] = str(ranks)
    try:
        if ranks == 1:
            work_alone(folder)
        else:
            work(folder, rank, ranks)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def start_in_background(folder: Path) -> subprocess.Popen:
    """This file as a process of its own."""
    environment = dict(os.environ)
    environment["OMP_NUM_THREADS"] = "1"
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, __file__, str(folder)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def main(folder: Path) -> int:
    """Returns: the exit status."""
    for ranks in (1, 2, 4):
        children = []
        for rank in range(ranks):
            children.append(fork(folder, rank, ranks))
        failed = 0
        for child in children:
            _, status = os.waitpid(child, 0)
            failed += status != 0
        if failed:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
