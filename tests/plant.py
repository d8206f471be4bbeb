"""plant.py: plant each bug of planted_bugs.py. The test that guards this place has to fail.

    python tests/plant.py                          every bug against its guard: a few minutes
    python tests/plant.py "no clipping at all"     only the bugs of these names
    python tests/plant.py --whole                  where the guard is green: all tests (slow)

A line for each bug: caught, and what the failing test says; PASSED; or broken, where the test could
not run, which proves nothing. The exit status is 1 unless all are caught.

Each bug is planted in a copy of the project. torch is imported once, and a process forked for each
bug: to start Python anew would take longer than most guards.
"""
import argparse
import importlib.util
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two bugs at a time

# What the tests need and what does not change. torch._dynamo: the first optimizer imports it.
import huggingface_hub
import jinja2
import pytest
import tokenizers
import torch._dynamo
import torch.distributed.fsdp
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 300  # seconds; with --whole ten times as many
# These tests look at the text of the code, or need folders that are not copied.
NOT_COPIED = ("benchmarks", "docs", "exercises", "five_files", "lesson", "planted_bugs", "step0",
              "zoo")
# Errors of a change that is badly written: no test has found anything.
BADLY_WRITTEN = re.compile(r"\b(Syntax|Indentation|Import|ModuleNotFound|Name|Attribute)Error\b")


def module_at(path: Path):
    """A module from a file, wherever it is."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


zoo = module_at(ROOT / "docs" / "zoo.py")
BUGS = zoo.BUGS + module_at(ROOT / "tests" / "planted_bugs.py").BUGS


class Result(NamedTuple):
    """What became of a bug."""

    outcome: str  # caught, PASSED or broken
    seconds: float
    message: str
    test: str = ""  # the one that failed


def try_bug(bug, whole: bool = False) -> Result:
    """Plant it in a copy of the project, and run its guard there; or with whole, all tests."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            zoo.planted(zoo.copied(Path(folder)), bug)
        except ValueError as e:
            return Result("broken", 0.0, str(e))
        tests = [bug.guard]
        if whole:
            tests = ["tests", *(f"--ignore=tests/test_{name}.py" for name in NOT_COPIED)]
        fork = multiprocessing.get_context("fork")
        process = fork.Process(target=run_tests, args=(folder, tests))
        process.start()
        process.join(10 * TIMEOUT if whole else TIMEOUT)
        process.kill()
        process.join()
        found = Path(folder) / "found.json"
        seconds = time.perf_counter() - began
        if not found.exists():
            return Result("broken", seconds, "the tests did not end")
        return judged(seconds, **json.loads(found.read_text("utf-8")))


def judged(seconds: float, failed: str, message: str, status: int) -> Result:
    """The result, from what pytest found."""
    if status == 0:
        return Result("PASSED", seconds, "the guard does not notice")
    if status != 1 or not failed or BADLY_WRITTEN.search(message):
        return Result("broken", seconds, first_line(message) or f"pytest ended with {status}")
    return Result("caught", seconds, first_line(message), failed)


def first_line(message: str) -> str:
    """What a failing test says first. numpy has two lines before it."""
    for line in message.splitlines():
        for kind in ("AssertionError", ":", "Failed:"):
            line = line.removeprefix(kind).strip()
        if line and not line.startswith("Not equal to tolerance"):
            return line
    return ""


class Recorder:
    """A plugin of pytest: the first test that fails, and its message."""

    def __init__(self):
        self.failed, self.message = "", ""

    def pytest_runtest_logreport(self, report):
        if report.failed and not self.message:
            self.failed, self.message = report.nodeid, message_of(report)

    def pytest_collectreport(self, report):
        if report.failed and not self.message:
            self.message = message_of(report)


def message_of(report) -> str:
    """The message of the error, without the lines of the code."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return crash.message if crash else str(report.longrepr)


def run_tests(folder: str, tests: list[str]) -> None:
    """In a process of its own: run pytest in the folder and write found.json there."""
    os.setsid()
    os.chdir(folder)
    sys.path[0] = folder  # it was the folder of this script
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    recorder = Recorder()
    options = ["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={folder}/temporary"]
    status = pytest.main([*options, *tests], plugins=[recorder])
    found = vars(recorder) | {"status": int(status)}
    Path(folder, "found.json").write_text(json.dumps(found), "utf-8")


def main(argv=None) -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="bugs (default: all)")
    parser.add_argument("--whole", action="store_true", help="all tests where a guard is green")
    parser.add_argument("--at-once", type=int, default=2, help="bugs that are tried at a time (2)")
    args = parser.parse_args(argv)
    unknown = set(args.names) - {bug.name for bug in BUGS}
    if unknown:
        parser.error(f"no bug is called {min(unknown)!r}")
    bugs = [bug for bug in BUGS if not args.names or bug.name in args.names]

    def tried(bug):
        result = try_bug(bug)
        if args.whole and result.outcome == "PASSED":
            result = try_bug(bug, whole=True)
        return result

    began, counts = time.perf_counter(), dict.fromkeys(("caught", "PASSED", "broken"), 0)
    with ThreadPoolExecutor(args.at_once) as pool:
        for bug, result in zip(bugs, pool.map(tried, bugs)):
            counts[result.outcome] += 1
            by = ""
            if result.test and not result.test.startswith(bug.guard):
                by = f" (not by its guard, by {result.test})"
            said = f"{result.outcome:<6} {result.seconds:5.1f} s  {bug.name}{by}: {result.message}"
            print(said, flush=True)
    seconds = time.perf_counter() - began
    print(f"{len(bugs)} bugs in {seconds:.0f} s: {counts['caught']} caught, {counts['PASSED']} "
          f"PASSED, {counts['broken']} broken")
    return 0 if counts["caught"] == len(bugs) else 1


if __name__ == "__main__":
    sys.exit(main())
