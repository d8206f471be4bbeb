"""The driver of test_scaling.py's crash tests: children forked from one process that has imported everything, so that a
start costs little, run train_rm.py's main and are killed, or see a disk run full.

    python crash.py FOLDER        FOLDER holds tiny, a run folder, d.jsonl and e.jsonl; the findings go to FOLDER/crash.json
"""
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
import torch._dynamo  # a meta tensor's normal_ imports it, which takes a second in every child

import train_rm
from data import Tokenizer
from model import RewardModel

FOLDER = Path(sys.argv[1])
ARGS = ["--model", FOLDER / "tiny", "--data", FOLDER / "d.jsonl", "--eval-data", FOLDER / "e.jsonl", "--batch-size", 4,
        "--lr", 1e-3, "--logging-steps", 1, "--eval-steps", 1000]
CALLS = ("replace", "rename", "fsync", "unlink", "rmdir")  # of os; between two of them the disk does not change its mind


def attempt(run: Path, *args, before=lambda: None, kill_after: float | None = None) -> tuple[int, str]:
    """Exit status (-9 for a killed one) and stderr of a child that trains into this folder, resuming where it can."""
    resume = ["--resume"] if train_rm.checkpoints(run) else []
    wait, begun = os.pipe() if kill_after is not None else (None, None)
    if not (pid := os.fork()):
        for number, file in ((1, "out"), (2, "err")):
            os.dup2(os.open(FOLDER / file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        torch.set_num_threads(1)
        before()
        if kill_after is not None:
            tell_when_training(begun)
        status = train_rm.main([str(a) for a in (*ARGS, *args, *resume, "--output", run)])
        sys.stdout.flush()
        os._exit(status)
    if kill_after is not None:
        os.close(begun)
        os.read(wait, 1)  # until it trains, or is at its end
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
        os.close(wait)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), (FOLDER / "err").read_text()


def tell_when_training(pipe: int):
    train = train_rm.train
    train_rm.train = lambda *args: (os.write(pipe, b"!"), train(*args))[1]


def broken(run: Path) -> list[str]:
    """What is called a checkpoint and is none."""
    found = []
    for checkpoint in run.glob("checkpoint-*[0-9]"):
        try:
            RewardModel.from_pretrained(checkpoint)
            Tokenizer.from_folder(checkpoint)
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (ValueError, OSError) as e:
            found.append(str(e))
    return found


def weights(run: Path) -> str:
    return (run / "model.safetensors").read_bytes().hex()


def killed_at_random(kills: int = 20) -> dict:
    """Killed so often, and resumed each time; where a run gets to its end before, another one begins."""
    run, args, found = FOLDER / "random", ["--max-steps", 40, "--save-steps", 1], {"resumed": 0, "broken": [], "ends": []}
    assert attempt(FOLDER / "whole", *args)[0] == 0
    generator = random.Random(0)
    while kills:
        status, err = attempt(run, *args, kill_after=generator.uniform(0, 0.25))
        if status == 0:
            found["ends"].append(weights(run) == weights(FOLDER / "whole"))
            shutil.rmtree(run)
            continue
        assert status == -signal.SIGKILL, err
        kills -= 1
        found["broken"] += broken(run)
        found["resumed"] += bool(train_rm.checkpoints(run))
    assert attempt(run, *args)[0] == 0
    found["ends"].append(weights(run) == weights(FOLDER / "whole"))
    return found


def dies_at(k: int):
    """Kill this process as it makes its k-th call of CALLS."""
    made = [0]

    def counted(call):
        def count(*args, **settings):
            made[0] += 1
            if made[0] == k:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **settings)
        return count

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))


def killed_at_every_call() -> dict:
    """Killed at each of a run's first calls, and at each from the first checkpoint until the model is half saved; and resumed."""
    args, found, one = ["--max-steps", 3, "--save-steps", 1], {"kills": 0, "broken": [], "ends": []}, FOLDER / "one"
    assert attempt(FOLDER / "short", *args)[0] == 0
    after_a_save = lambda output, limit: os.kill(os.getpid(), signal.SIGKILL)
    attempt(one, *args, before=lambda: setattr(train_rm, "drop_old_checkpoints", after_a_save))
    for start, calls in ((None, range(1, 5)), (one, range(1, 27))):
        for k in calls:
            run = FOLDER / f"{start and start.name} {k}"
            if start:
                shutil.copytree(start, run)
            status, err = attempt(run, *args, before=lambda: dies_at(k))
            if status == 0:
                break
            assert status == -signal.SIGKILL, err
            found["kills"] += 1
            found["broken"] += [f"call {k}: {what}" for what in broken(run)]
            status, err = attempt(run, *args)
            found["ends"].append(err or weights(run) == weights(FOLDER / "short"))
    return found


def full_disk(holder, name: str):
    """From the second call of this function on, no file may grow beyond 100 bytes."""
    function, calls = getattr(holder, name), []

    def limited(*args, **settings):
        calls.append(1)
        if len(calls) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        return function(*args, **settings)

    setattr(holder, name, limited)


def disks() -> dict:
    """The disk runs full as a run writes its second checkpoint."""
    found = {}
    for holder, name in ((RewardModel, "save_pretrained"), (Tokenizer, "save"), (train_rm, "save_file")):
        run = FOLDER / f"full {name}"
        status, err = attempt(run, "--max-steps", 4, "--save-steps", 1, before=lambda: full_disk(holder, name))
        left = sorted(p.name for p in run.glob("checkpoint*") if not broken(run))
        again, _ = attempt(run, "--max-steps", 4, "--save-steps", 1)
        found[name] = {"status": status, "err": err, "left": left, "resumed": again}
    return found


def asked_to_stop() -> dict:
    """A signal in the third step of six."""
    found, args = {}, ["--max-steps", 6]
    assert attempt(FOLDER / "six", *args)[0] == 0
    for number in (signal.SIGTERM, signal.SIGINT):
        run, loss, calls = FOLDER / number.name, train_rm.bradley_terry_loss, []

        def signalled(*inputs):
            calls.append(1)
            if len(calls) == 3:
                os.kill(os.getpid(), number)
            return loss(*inputs)

        status, err = attempt(run, *args, before=lambda: setattr(train_rm, "bradley_terry_loss", signalled))
        left = sorted(p.name for p in run.glob("checkpoint*") if not broken(run))
        resumed = attempt(run, *args)[0] == 0 and weights(run) == weights(FOLDER / "six")
        found[number.name] = {"status": status, "err": err, "left": left, "resumed": resumed}
    return found


if __name__ == "__main__":
    found = {}
    for part in (killed_at_random, killed_at_every_call, disks, asked_to_stop):
        found[part.__name__] = part()
    (FOLDER / "crash.json").write_text(json.dumps(found, indent=1))
