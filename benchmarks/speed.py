"""Seconds of an optimizer step, beside other trainers on the same weights and token ids.

    python benchmarks/speed.py train --data PAIRS.jsonl.gz --trl PYTHON --llamafactory PYTHON
    python benchmarks/speed.py train --data … --responses 7 --batch 1 --rows 24 --dtype bf16
    python benchmarks/speed.py train --data … --shape qwen3-0.6b --dtype bf16 --device cuda
    python benchmarks/speed.py start        from `python train_rm.py` to the end of its first step
    python benchmarks/speed.py --tables     what the docs quote

The plain form takes part, --pack, --pack --compile and --pack --used-rows; --who names others.
PYTHON is the interpreter of an environment in which that trainer is installed. A row is a pair, or
with --responses K one prompt and K responses; the other trainers get its K (K − 1) / 2 pairs, in
one forward pass where ours gets the row.

Every measurement is a process of its own. They take turns, ABC ABC ABC, so that a machine that
drifts does not decide. All take the same steps: the run fails where the token ids differ, or, in
float32, where a loss differs by more than 1e-4. Medians of the turns go to speed.json.
"""
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from common import (
    ROOT, SHAPES, StepClock, asked_to_work, keep, largest_difference, load_results, new_parser,
    spawn, table,
)
from prepare import prepare

import train_rm

HERE = Path(__file__).resolve()
RESULTS = HERE.with_suffix(".json")
TRAINERS = HERE.with_name("trainers.py")
FLOOR = HERE.with_name("floor.py")
TOLERANCE = 1e-4  # of a step's loss in float32, in nats

# ---------------------------------------------------------------- the command train


class Contestant(NamedTuple):
    """What takes part."""

    name: str
    trainer: str  # of trainers.py
    python: str = sys.executable
    options: tuple = ()  # of train_rm.py


OURS = {
    "padded": (),
    "packed": ("--pack",),
    "packed, compiled": ("--pack", "--compile"),
    "packed, used rows": ("--pack", "--used-rows"),
}


def contestants(args) -> list[Contestant]:
    """Who takes part, in the order of a turn."""
    found = []
    for name in args.who:
        found.append(Contestant(name, "ours", options=OURS[name]))
    if args.trl:
        found.append(Contestant("TRL", "trl", args.trl))
    if args.llamafactory:
        found.append(Contestant("LLaMA-Factory", "llamafactory", args.llamafactory))
    return found


def settings_of(args) -> dict:
    """What every trainer has to know."""
    K = args.responses
    settings = {"weight_decay": 0.01, "betas": train_rm.BETAS, "pairs_of_row": K * (K - 1) // 2}
    for name in ("batch", "accumulation", "dtype", "device", "max_length", "lr"):
        settings[name] = getattr(args, name)
    return settings


def command_train(args) -> None:
    """All contestants in turns, --repeats times."""
    settings = settings_of(args)
    with tempfile.TemporaryDirectory() as folder:
        shape, K = SHAPES[args.shape], args.responses
        prepare(Path(folder), shape, args.data, args.rows, args.max_length, K)
        runs, floors = take_turns(args, settings | {"folder": folder})
    check_equal(runs, args.dtype)
    who = {}
    for name, turns in runs.items():
        who[name] = summary(turns, args)
    seconds = [turn["seconds_per_row"] for turn in floors]
    first, *_ = runs.values()
    entry = {
        "who": who,
        "floor_rows_per_second": 1 / statistics.median(seconds),
        "tokens_per_row_each_once": floors[0]["tokens_per_row"],
        "steps_timed": len(first[0]["step_seconds"]),
        "settings": settings,
    }
    rows = "pairs" if K == 2 else f"K = {K}"
    name = f"train: {args.shape}, {rows}, {args.dtype}, {args.device}"
    keep(args.results, name, entry)
    print(train_table({name: entry}))


def take_turns(args, settings: dict) -> tuple[dict[str, list], list]:
    """The runs of each contestant, and the floor in each turn."""
    runs, floors = {}, []
    for turn in range(args.repeats):
        for c in contestants(args):
            given = settings | {"options": c.options}
            run = spawn(c.python, TRAINERS, c.trainer, given, ROOT)
            runs.setdefault(c.name, []).append(run)
            print(f"turn {turn + 1}  {c.name:<18} {speed_of(run, args):.2f} rows/s", flush=True)
        floors.append(spawn(sys.executable, FLOOR, "floor", settings))
    return runs, floors


def speed_of(run: dict, args) -> float:
    """Rows per second of a run."""
    rows = args.batch * args.accumulation
    return rows / statistics.mean(run["step_seconds"])


def check_equal(runs: dict[str, list], dtype: str) -> None:
    """Stop where two runs did not do the same."""
    expected = next(iter(runs.values()))[0]
    for name, turns in runs.items():
        for run in turns:
            if run["tokens"] != expected["tokens"]:
                sys.exit(f"{name} did not get the same token ids; nothing is kept")
            apart = largest_difference(run["losses"], expected["losses"])
            if dtype == "float32" and apart > TOLERANCE and name != "LLaMA-Factory":
                sys.exit(f"{name}: a loss differs by {apart:.1e}; nothing is kept")


def summary(turns: list[dict], args) -> dict:
    """What is kept of the runs of one contestant."""
    speeds = [speed_of(run, args) for run in turns]
    memory = [run["peak_mb"] for run in turns]
    return {
        "rows_per_second": statistics.median(speeds),
        "turns": speeds,
        "peak_mb": statistics.median(memory),
        "losses": turns[0]["losses"],
        "versions": turns[0]["versions"],
    }


# ---------------------------------------------------------------- the command start


def command_start(args) -> None:
    """Seconds until the first optimizer step of the default run is done."""
    seconds = []
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            settings = {"output": f"{folder}/run", "device": "cpu"}
            run = spawn(sys.executable, HERE, "start", settings)
            seconds.append(run["seconds"])
    entry = {"seconds_to_first_step": statistics.median(seconds)}
    keep(args.results, "start", entry)


def start(s: dict) -> dict:
    """One step of the default run."""
    clock = StepClock()
    argv = ["--max-steps", "1", "--output", s["output"], "--device", s["device"]]
    if train_rm.main(argv):
        sys.exit("train_rm.py failed")
    return {"seconds": clock.ends[0] - s["spawned"]}


# ---------------------------------------------------------------- tables


def train_table(results: dict) -> str:
    """A row for each contestant of each shape and dtype."""
    columns = ["shape, rows, dtype, device", "trainer", "rows/s", "times TRL", "of the floor", "peak MB",
               "largest difference of a loss"]
    rows = []
    for name, entry in results.items():
        for who in entry["who"]:
            rows.append([name.removeprefix("train: "), who, *cells(entry, who)])
    return table(columns, rows)


def cells(entry: dict, who: str) -> list[str]:
    """One row. The losses of the first contestant are those that others are compared with."""
    e, first = entry["who"][who], next(iter(entry["who"].values()))
    times = apart = ""
    if "TRL" in entry["who"]:
        ratios = []  # turn by turn
        for speed, of_trl in zip(e["turns"], entry["who"]["TRL"]["turns"]):
            ratios.append(speed / of_trl)
        times = f"{statistics.median(ratios):.1f}"
    if e is not first and who != "LLaMA-Factory":  # that one makes a value head of its own
        apart = f"{largest_difference(e['losses'], first['losses']):.0e}"
    speed = e["rows_per_second"]
    share = ""
    if "floor_rows_per_second" in entry:
        share = f"{speed / entry['floor_rows_per_second']:.0%}"
    return [f"{speed:.2f}", times, share, f"{e['peak_mb']:,.0f}", apart]


def tables(file: Path = RESULTS) -> dict[str, str]:
    """What the docs quote, by name."""
    results, found, trained = load_results(file), {}, {}
    for name, entry in results.items():
        if name.startswith("train: "):
            trained[name] = entry
    if trained:
        found["train"] = train_table(trained)
    seconds = results.get("start", {}).get("seconds_to_first_step")
    if seconds:
        found["start"] = (f"From `python train_rm.py` to the end of its first step: {seconds:.1f} s "
                          "(`python benchmarks/speed.py start`).")
    return found


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("command", nargs="?", choices=["train", "start"])
    add("--results", type=Path, default=RESULTS, metavar="FILE", help="where results are kept")
    add("--repeats", type=int, default=3, help="turns of each; the median is kept")
    add("--data", help="preference pairs, in any layout that train_rm.py reads")
    add("--shape", choices=SHAPES, default="30m")
    add("--dtype", choices=["float32", "bf16"], default="float32")
    add("--device", default="cpu")
    add("--who", nargs="+", choices=OURS, default=list(OURS), help="which of our forms")
    add("--trl", metavar="PYTHON")
    add("--llamafactory", metavar="PYTHON")
    add("--responses", type=int, default=2, metavar="K", help="of a row (2)")
    add("--rows", type=int, default=64)
    add("--batch", type=int, default=4, help="rows in a forward pass")
    add("--accumulation", type=int, default=2, help="forward passes in a step")
    add("--max-length", type=int, default=512)
    add("--lr", type=float, default=1e-5)
    args = parser.parse_args(argv)
    if args.tables:
        print("\n\n".join(tables(args.results).values()))
    elif args.command == "train" and args.data:
        command_train(args)
    elif args.command == "start":
        command_start(args)
    else:
        parser.error("train with --data, start, or --tables")


if __name__ == "__main__":
    if not asked_to_work({"start": start}):
        main()
