"""The ranks of test_scaling.py: one process, then four, then two train in every way and write what came out.

    python ranks.py FOLDER        FOLDER holds the model folders "tiny" and "in bf16", and d.jsonl, e.jsonl, bad.jsonl
"""
import contextlib
import io
import json
import os
import sys
import traceback
from pathlib import Path

import torch
import torch._dynamo  # a meta tensor's normal_ imports it, which takes a second in every rank
import torch.distributed as dist
from conftest import tiny_tokenizer
from safetensors.torch import save_file

import train_rm
from data import collate, encode_preferences, read_preferences, step_batches
from eval import score_pairs
from model import RewardModel, whole

LORA = ["--lora-rank", 2, "--freeze-layers", 1]
HALF = ["--lora-rank", 2, "--bf16"]
# How a step of 8 rows is shared out; 17 rows are two steps of 8 and one of a single row, which most ranks have no part in.
WAYS = {"ddp": [], "ddp x2": ["--gradient-accumulation-steps", 2], "ddp tokens": ["--tokens-per-batch", 120], "ddp lora": LORA,
        "fsdp": ["--shard"], "fsdp x2": ["--shard", "--gradient-accumulation-steps", 2], "fsdp lora": ["--shard", *LORA],
        "fsdp tokens": ["--shard", "--tokens-per-batch", 120], "fsdp recomputed": ["--shard", "--gradient-checkpointing"],
        "fsdp plain": ["--shard", "--no-shared-prompts", "--gradient-accumulation-steps", 2], "fsdp half": ["--shard", *HALF]}
FOUR = ("ddp", "fsdp x2")  # of which so many with four ranks
RUN = ["--batch-size", 8, "--max-steps", 5, "--save-steps", 3, "--save-total-limit", 0, "--logging-steps", 1,
       "--eval-steps", 1000, "--lr", 1e-3]


def read_pairs(file):
    return encode_preferences(read_preferences(file)[0], tiny_tokenizer(), 256)[0]


def sgd(folder, *settings, steps=3):
    """{what: tensor} after some steps of plain SGD: the first gradient, weights, losses, held-out rewards, share kept here."""
    base = folder / ("in bf16" if "--bf16" in settings else "tiny")
    args = train_rm.parse_options([str(a) for a in ("--batch-size", 8, "--model", base, *settings,
                                                    "--center-rewards-coefficient", 0.01)])
    args.device, (rank, ranks) = torch.device("cpu"), train_rm.world()
    pairs, scaler = read_pairs(folder / "d.jsonl"), torch.amp.GradScaler("cpu", enabled=False)
    torch.manual_seed(0)
    model = RewardModel.open(base)
    train_rm.to_the_machine(model, args, pairs.used_ids)
    of_rank = sum(getattr(p, "to_local", lambda: p)().numel() for p in model.parameters())
    kept = {"kept/share": torch.tensor(of_rank / sum(p.numel() for p in model.parameters()))}
    parallel = torch.nn.parallel.DistributedDataParallel(model) if ranks > 1 and not args.shard else model
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(steps):
        hands, n = step_batches(pairs, step, 8, args.gradient_accumulation_steps, rank, ranks, 0, args.tokens_per_batch,
                                args.shared_prompts)
        batches = [collate(pairs, hand if len(hand) else [0], 0, args.shared_prompts)._replace(rows=len(hand))
                   for hand in hands]
        sums, _ = train_rm.accumulate_gradients(parallel, batches, n, args, scaler)
        if ranks > 1:
            dist.all_reduce(sums)
        if step == 0:
            kept |= {f"gradient/{n}": whole(p.grad).clone() for n, p in model.named_parameters() if p.grad is not None}
        kept[f"sums/{step}"] = sums
        optimizer.step()
        optimizer.zero_grad()
    kept |= {f"weight/{n}": t.clone() for n, t in model.weights()}
    rewards = score_pairs(model, read_pairs(folder / "e.jsonl"), dtype=train_rm.autocast_dtype(args))
    kept["rewards/held out"] = torch.from_numpy(rewards)
    return kept


def no_number_for(token):
    """A RewardModel.forward that gives NaN to every sequence with this token in it."""
    forward = RewardModel.forward

    def broken(self, input_ids, attention_mask, trees=None):
        hit = input_ids == token
        if trees is None:
            bad = hit.any(1)
        else:  # of each tree its prompt, then the rest of every sequence
            each = zip(hit[0].split([*map(sum, trees.parts)]), trees.parts)
            parts = [[part.any() for part in tree.split(sizes)] for tree, sizes in each]
            bad = torch.stack([prompt | rest for prompt, *rests in parts for rest in rests])
        return torch.where(bad, torch.nan, forward(self, input_ids, attention_mask, trees))

    return broken


def main(folder, *args, data="d.jsonl"):
    """train_rm.py's command line in a process group that is there already: status, stderr."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        base = folder / ("in bf16" if "--bf16" in args else "tiny")
        status = train_rm.main([str(a) for a in ("--model", base, "--data", folder / data, "--eval-data",
                                                 folder / "e.jsonl", *RUN, *args)])
    if dist.is_initialized():
        dist.barrier()
    return status, err.getvalue()


def work(folder, rank, ranks):
    """All that one rank does; one process alone makes what ranks are compared with."""
    if ranks == 1:
        for name, settings in (("one", []), ("one lora", LORA)):
            status, err = main(folder, *settings, "--output", folder / name)
            assert status == 0, err
        return
    dist.init_process_group("gloo", init_method=f"file://{folder / f'meeting of {ranks}'}", rank=rank, world_size=ranks)
    train_rm.start_processes, dist.destroy_process_group, done = lambda args: None, lambda: None, {}
    train_rm.time.sleep = lambda seconds: None  # ranks that wait for torchrun to end them would wait for nothing here
    for way in WAYS if ranks == 2 else FOUR:
        result = sgd(folder, *WAYS[way])
        if rank == 0:
            save_file(result, folder / f"{ranks} {way}.safetensors")
    if ranks == 2:
        at_3 = lambda run: ["--resume", folder / run / "checkpoint-3"]
        done["sharded"] = main(folder, "--shard", "--output", folder / "sharded")
        done["resumed"] = main(folder, "--shard", "--output", folder / "resumed", *at_3("one"))
        done["lora"] = main(folder, "--shard", *LORA, "--output", folder / "lora")
        done["half"] = main(folder, "--shard", *HALF, "--output", folder / "half")
        done["lora resumed"] = main(folder, "--shard", *LORA, "--output", folder / "lora resumed", *at_3("lora"))
        RewardModel.forward = no_number_for(tiny_tokenizer().backend.token_to_id("@"))
        for way, extra in (("ddp", []), ("fsdp", ["--shard"])):
            for choice in ("skip", "stop"):
                args = [*extra, "--on-nan", choice, "--output", folder / f"{choice} {way}"]
                done[f"{choice} {way}"] = main(folder, *args, data="bad.jsonl")
    if rank == 0:
        (folder / f"done {ranks}.json").write_text(json.dumps(done))


def fork(folder, rank, ranks) -> int:
    if pid := os.fork():
        return pid
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    try:
        work(folder, rank, ranks)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    # As torchrun would start them, but with one import of torch for all.
    for ranks in (1, 4, 2):
        children = [fork(Path(sys.argv[1]), rank, ranks) for rank in range(ranks)]
        if any([os.waitpid(child, 0)[1] for child in children]):
            sys.exit(1)
