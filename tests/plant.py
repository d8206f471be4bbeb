"""Plant mistakes in a copy of the code, and see whether their guards notice.

    python tests/plant.py                 every mistake of planted_bugs.py against its guard
    python tests/plant.py margin bias     those with one of these words in their name
    python tests/plant.py --all margin    against all tests, which takes minutes for each

A line says whether the mistake was caught, and with which words. The exit status is 1 where one was
not: then a test is missing, or asserts less than its name says.
"""
import argparse
import concurrent.futures
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from planted_bugs import BUGS

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("zoo", ROOT / "docs" / "zoo.py")
zoo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(zoo)  # it copies the code and plants


FOLDERS = ("extras", "tests", "docs", "benchmarks", "exercises", ".ci")


class Outcome(NamedTuple):
    """What the tests said about a mistake."""

    word: str  # caught, PASSED, or BROKEN: then no test ran
    test: str  # the first one that failed
    message: str  # the first line of it


def try_one(bug, tests) -> Outcome:
    """Run tests in a copy that has the mistake."""
    with tempfile.TemporaryDirectory() as folder:
        zoo.planted(zoo.copied(Path(folder), FOLDERS), bug)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "--tb=short"]
        command += ["-p", "no:cacheprovider", *tests]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        run = subprocess.run(command, cwd=folder, env=one_thread, capture_output=True, text=True)
    failed = re.search(r"^FAILED (\S+)", run.stdout, re.M)
    message = re.search(r"^E +(.*)", run.stdout, re.M)
    if run.returncode == 0:
        return Outcome("PASSED", "", "")
    if run.returncode != 1 or not failed:
        return Outcome("BROKEN", "", run.stdout[-300:])
    return Outcome("caught", failed[1], message[1] if message else "")


def main() -> int:
    """The command line.  Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", help="plant only what has one of these in its name")
    parser.add_argument("--all", action="store_true", help="run all tests, not only the guard")
    args = parser.parse_args()
    chosen = []
    for bug in BUGS:
        if not args.words or any(word in bug.name for word in args.words):
            chosen.append(bug)

    def work(bug):
        return try_one(bug, ["tests"] if args.all else [bug.guard])

    missed = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for bug, outcome in zip(chosen, pool.map(work, chosen)):
            missed += outcome.word != "caught"
            print(f"{outcome.word}  {bug.name}: {outcome.message}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} mistakes caught")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
