"""A whole run on more and more rows: seconds and memory of each of its parts.

    python benchmarks/data_path.py                      10,000 to 1,000,000 rows: twelve minutes
    python benchmarks/data_path.py --rows 1000 10000
    python benchmarks/data_path.py --tables             what the docs quote

Rows of random words, of about 330 characters. `python train_rm.py --data … --max-steps 2` learns a
tokenizer from them, tokenizes them, takes two steps of 64 rows, and reports on the held-out
prompts, a hundredth of them. The model is the small default one. Then batches of 64 rows are made,
as they are and packed. Each size is a process of its own: its peak memory is the largest resident
set, some 240 MB of which are Python and torch. Results go to data_path.json.
"""
import json
import random
import string
import sys
import tempfile
import time
from pathlib import Path

from common import asked_to_work, keep, load_results, new_parser, peak_mb, spawn, table

import train_rm
from data import Examples, batch_function, rows_of_step

HERE = Path(__file__).resolve()
RESULTS = HERE.with_suffix(".json")
BATCH, BATCHES = 64, 300
PARTS = {  # functions of train_rm.py -> what the table calls them
    "make_tokenizer": "learn a tokenizer",
    "write_data": "tokenize",
    "open_examples": "open the tokens",
    "train": "two steps",
    "save_model": "save",
    "final_report": "report",
}


def write_rows(file: Path, count: int) -> None:
    """Rows of random words, each with a prompt of its own."""
    rng, words = random.Random(0), []
    for _ in range(5000):
        length = rng.choice([2, 3, 4, 5, 7])
        letters = rng.choices(string.ascii_lowercase, k=length)
        words.append("".join(letters))
    text = " ".join(rng.choices(words, k=300_000))

    def part(characters: int) -> str:
        start = rng.randrange(len(text) - characters)
        return text[start : start + characters]

    with open(file, "w", encoding="utf-8") as lines:
        for i in range(count):
            row = {"prompt": f"{i} {part(120)}"}
            row["chosen"] = part(rng.randrange(60, 140))
            row["rejected"] = part(rng.randrange(60, 140))
            lines.write(json.dumps(row) + "\n")


def measure(s: dict) -> dict:
    """One size."""
    with tempfile.TemporaryDirectory() as folder:
        output, file = Path(folder, "run"), Path(folder, "rows.jsonl")
        write_rows(file, s["rows"])
        argv = ["--data", str(file), "--eval-fraction", "0.01", "--max-steps", "2"]
        argv += ["--eval-steps", "2", "--output", str(output), "--device", s["device"]]
        before = peak_mb()
        parts = watch_parts(before)
        if train_rm.main(argv):
            sys.exit("train_rm.py failed")
        examples = Examples(output / "tokens")
        return {
            "rows": s["rows"],
            "tokens": len(examples.ids),
            "held_out": len(examples.numbers(held_out=True)),
            "file_mb": file.stat().st_size / 1e6,
            "tokens_mb": folder_size(output / "tokens") / 1e6,
            "peak_mb_before": before,
            "parts": parts,
            "ms_a_batch": 1000 * seconds_a_batch(examples, pack=False),
            "ms_a_packed_batch": 1000 * seconds_a_batch(examples, pack=True),
        }


def watch_parts(peak_before: float) -> dict[str, dict]:
    """Note the seconds of each part of train_rm.run, and the peak memory at its end."""
    parts = {}

    def watched(name, function):
        def call(*args):
            began = time.perf_counter()
            result = function(*args)
            seconds = time.perf_counter() - began
            # The kernel counts memory to a few pages a core: its figure may fall by those.
            earlier = [part["peak_mb"] for part in parts.values()]
            peak = max(peak_before, *earlier, peak_mb())
            parts[name] = {"seconds": seconds, "peak_mb": peak}
            return result

        return call

    for name in PARTS:
        setattr(train_rm, name, watched(name, getattr(train_rm, name)))
    return parts


def folder_size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.stat().st_size for file in folder.iterdir())


def seconds_a_batch(examples: Examples, pack: bool) -> float:
    """The mean over the first steps of an epoch."""
    rows = examples.numbers(held_out=False)
    make_batch = batch_function(pack)
    steps = min(BATCHES, len(rows) // BATCH)
    began = time.perf_counter()
    for step in range(steps):
        of_step = rows_of_step(rows, step, BATCH, seed=0)
        make_batch([examples[n] for n in of_step], 0)
    return (time.perf_counter() - began) / steps


def tables(file: Path = RESULTS) -> dict[str, str]:
    """What the docs quote, in Markdown."""
    columns = ["rows", "tokens", "file MB", "tokens MB"]
    columns += [f"{part}, s" for part in PARTS.values()]
    columns += ["batch, ms", "packed batch, ms", "peak MB"]
    rows = []
    for r in load_results(file).values():
        row = [f"{r['rows']:,}", f"{r['tokens']:,}"]
        row += [f"{r[size]:,.0f}" for size in ("file_mb", "tokens_mb")]
        row += [f"{r['parts'][part]['seconds']:,.1f}" for part in PARTS]
        row += [f"{r['ms_a_batch']:.1f}", f"{r['ms_a_packed_batch']:.1f}"]
        peaks = [part["peak_mb"] for part in r["parts"].values()]
        rows.append([*row, f"{max(peaks):,.0f}"])
    return {"data": table(columns, rows)} if rows else {}


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = new_parser(__doc__)
    sizes = [10_000, 100_000, 1_000_000]
    parser.add_argument("--rows", type=int, nargs="+", default=sizes)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    args = parser.parse_args(argv)
    if not args.tables:
        for count in args.rows:
            settings = {"rows": count, "device": "cpu"}
            result = spawn(sys.executable, HERE, "measure", settings)
            keep(args.results, f"{count} rows", result)
    print("\n".join(tables(args.results).values()))


if __name__ == "__main__":
    if not asked_to_work({"measure": measure}):
        main()
