"""Processes that train and are killed, or whose disk is full: what test_crash.py looks at.

    python crash.py FOLDER        FOLDER has tiny (a model) and two files of rows

The findings go to FOLDER/PART/found.json. Torch is imported once, and every run is a forked child:
so a start costs little. Nothing here depends on the speed of the machine: a child counts its own
calls and kills itself at one of them.
"""
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import torch
import torch._dynamo  # a meta tensor's normal_ imports it, which takes a second in every child
from conftest import ROOT, save_run, tiny_model, tiny_tokenizer, write_rows
from runs import pairs
from safetensors import SafetensorError
from safetensors.torch import load_file

import train_rm
from data import DataError, Examples, Tokenizer
from model import CheckpointError, RewardModel

# At this learning rate the best model is not the last: it has to survive on the disk.
OPTIONS = ["--batch-size", "4", "--lr", "0.3", "--eval-steps", "1", "--save-steps", "1"]
# Between two of these calls of os, no name on the disk appears, changes or goes.
CALLS = ("replace", "rename", "fsync", "unlink", "rmdir", "mkdir")


# ---------------------------------------------------------------- runs


def attempt(run: Path, steps: int, before=None) -> tuple[int, str]:
    """Train into this folder, or continue there, in a child.

    Args:    before: what the child calls first.
    Returns: exit status (-9 where it was killed), and what it wrote to stderr.
    """
    folder = run.parent
    args = ["--resume", run]
    if not (run / "options.json").exists():
        rows = ["--data", folder / "train.jsonl", "--eval-data", folder / "held_out.jsonl"]
        args = ["--model", folder / "tiny", *rows, *OPTIONS, "--max-steps", steps, "--output", run]
    child = os.fork()
    if child == 0:
        redirect(1, folder / "out")
        redirect(2, folder / "err")
        torch.set_num_threads(1)
        try:
            if before:
                before()
            status = train_rm.main([str(arg) for arg in args])
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, (folder / "err").read_text()


def redirect(number: int, file: Path) -> None:
    """What goes to stdout (1) or stderr (2) goes into a file."""
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)


def kill() -> None:
    """No handler, no finally: as the kernel ends a process, or a machine that loses its power."""
    os.kill(os.getpid(), signal.SIGKILL)


def weights(run: Path) -> str:
    return (run / "model.safetensors").read_bytes().hex()


def kept(run: Path) -> int:
    """The step whose model was saved."""
    return json.loads((run / "report.json").read_text())["step"]


def names(run: Path) -> list[str]:
    """All files of a run folder."""
    return sorted(str(path.relative_to(run)) for path in run.rglob("*"))


def broken(run: Path) -> list[str]:
    """What has the name of something complete, and is not."""
    found = []
    models = [*run.glob("model.safetensors"), *run.glob("best.safetensors")]
    for file in (*train_rm.checkpoints(run), *models):
        try:
            load_file(file)
        except SafetensorError as e:
            found.append(f"{file.name}: {e}")
    for file in run.glob("*.json"):
        try:
            json.loads(file.read_text())
        except ValueError as e:
            found.append(f"{file.name}: {e}")
    if (run / "tokens").exists():
        try:
            examples = Examples(run / "tokens")
            assert len(examples) == 17 + 6, "rows are missing"
        except (DataError, OSError, ValueError, AssertionError) as e:
            found.append(f"tokens: {e}")
    if (run / "report.json").exists():
        try:
            RewardModel.from_pretrained(run)
            Tokenizer.from_folder(run)
        except (DataError, CheckpointError) as e:
            found.append(f"a finished run without a model: {e}")
    return found


# ---------------------------------------------------------------- killed


def count_calls(call_back) -> None:
    """call_back() before every call of a Python function, from the first step of training on."""
    train = train_rm.train

    def counted(*args):
        sys.setprofile(lambda frame, event, argument: call_back() if event == "call" else None)
        try:
            return train(*args)
        finally:
            sys.setprofile(None)

    train_rm.train = counted


def killed_at_random(folder: Path, kills: int = 20) -> dict:
    """Killed at random places in training, and resumed each time, until 20 kills are done."""
    steps = 12
    assert attempt(folder / "whole", steps)[0] == 0
    calls = calls_of_training(folder, steps)
    found = {"kills": 0, "resumed": 0, "broken": [], "ends": [], "errors": []}
    found["kept"] = kept(folder / "whole")
    generator, run = random.Random(0), folder / "random"
    while found["kills"] < kills:
        place = generator.randrange(calls // 2)
        found["resumed"] += bool(train_rm.checkpoints(run))
        status, error = attempt(run, steps, lambda: kill_at_call(place))
        if status == 0:  # it came to its end before that place
            found["ends"].append(weights(run) == weights(folder / "whole"))
            shutil.rmtree(run)
        elif status == -signal.SIGKILL:
            found["kills"] += 1
            found["broken"] += broken(run)
        else:
            found["errors"].append(error)
            return found
    status, error = attempt(run, steps)
    found["errors"] += [error] if status else []
    found["ends"].append(status == 0 and weights(run) == weights(folder / "whole"))
    return found


def calls_of_training(folder: Path, steps: int) -> int:
    """How many Python functions a whole training calls."""

    def count():
        calls = 0

        def one_more():
            nonlocal calls
            calls += 1
            if calls % 100 == 0:
                (folder / "calls").write_text(str(calls))

        count_calls(one_more)

    assert attempt(folder / "counted", steps, count)[0] == 0
    return int((folder / "calls").read_text())


def kill_at_call(number: int) -> None:
    """Kill this process at this call of a Python function in training."""
    calls = 0

    def one_more():
        nonlocal calls
        calls += 1
        if calls == number:
            kill()

    count_calls(one_more)


def killed_at_every_call(folder: Path) -> dict:
    """Killed at each call that changes the disk, each time at the next one, and then resumed.

    A place is a call with its path and the call before it. A run comes a bit further each time,
    and is killed at the first place where none was killed before it.
    """
    run, places = folder / "calls of one run", folder / "places"
    assert attempt(folder / "short", 2)[0] == 0
    places.write_text("")
    found = {"kept": kept(folder / "short"), "places": [], "broken": [], "errors": []}
    while True:
        status, error = attempt(run, 2, lambda: kill_at_new_place(places))
        found["broken"] += [f"{places.read_text().splitlines()[-1]}: {b}" for b in broken(run)]
        if status != -signal.SIGKILL:
            break
    found["places"] = places.read_text().splitlines()
    found["errors"] = [error] if status else []
    found["end"] = status == 0 and weights(run) == weights(folder / "short")
    found["files"], found["expected_files"] = names(run), names(folder / "short")
    return found


def kill_at_new_place(places: Path) -> None:
    """Kill this process at the first place that is not yet in the file, and write it there."""
    known = set(places.read_text().splitlines())
    before = "start"

    def watched(name, call):
        def watch(path, *args, **settings):
            nonlocal before
            file = Path(os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path)
            place = f"{before}, then {name} {file.name}"
            before = f"{name} {file.name}"
            if place not in known:
                with open(places, "a") as log:
                    log.write(place + "\n")
                kill()
            return call(path, *args, **settings)

        return watch

    for name in CALLS:
        setattr(os, name, watched(name, getattr(os, name)))


# ---------------------------------------------------------------- a full disk


def full_disks(folder: Path) -> dict:
    """The disk is full from a call of a function on: what remains, and can it be continued?"""
    found = {}
    for holder, name, call in [
        (train_rm, "write_tokens", 1),
        (train_rm, "save_file", 3),  # step 1 writes the best model and a checkpoint
        (RewardModel, "save_pretrained", 1),
        (Tokenizer, "save", 2),  # the first call is before there are tokens
    ]:
        run = folder / f"full disk in {name}"
        status, error = attempt(run, 4, lambda: fill_disk(holder, name, call))
        about = {"status": status, "error": error, "broken": broken(run)}
        about["checkpoints"] = [path.name for path in train_rm.checkpoints(run)]
        about["leftovers"] = [path.name for path in run.iterdir() if path.name.endswith(".tmp")]
        about["continued"] = attempt(run, 4)
        found[name] = about
    return found


def fill_disk(holder, name: str, call: int) -> None:
    """From this call of a function on, no file may have more than 100 bytes."""
    function, calls = getattr(holder, name), 0

    def limited(*args, **settings):
        nonlocal calls
        calls += 1
        if calls == call:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        return function(*args, **settings)

    setattr(holder, name, limited)


# ---------------------------------------------------------------- from start to end


def start_in_background(folder: Path) -> subprocess.Popen:
    """Fill the folder, and start this file on it as a process of its own."""
    save_run(folder / "tiny", tiny_model(), tiny_tokenizer(), 256)
    write_rows(folder / "train.jsonl", pairs(17))
    write_rows(folder / "held_out.jsonl", pairs(6, first=17))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, str(folder)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def work(part, folder: Path) -> int:
    """Start one part in a child.  Returns: its process id."""
    mine = folder / part.__name__
    mine.mkdir()
    for name in ("tiny", "train.jsonl", "held_out.jsonl"):
        (mine / name).symlink_to(folder / name)
    child = os.fork()
    if child == 0:
        try:
            (mine / "found.json").write_text(json.dumps(part(mine), indent=1))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


if __name__ == "__main__":
    children = []
    for part in (killed_at_every_call, killed_at_random, full_disks):
        children.append(work(part, Path(sys.argv[1])))
    statuses = [os.waitpid(child, 0)[1] for child in children]
    sys.exit(any(statuses))
