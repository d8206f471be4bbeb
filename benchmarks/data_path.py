"""From a file of preference data to batches: seconds and memory for more and more rows.

    python benchmarks/data_path.py                      1,000 to 1,000,000 rows (half an hour)
    python benchmarks/data_path.py --rows 1000 10000
    python benchmarks/data_path.py --tables             what the docs quote

Rows of random words, whose two sequences have about 500 tokens each, half of them prompt. They are
split by prompt, tokenized into a folder as train_rm.py does it, opened again as --resume does, and
batches of 64 rows are made, as they are and packed. Each size is a process of its own: its peak
memory is the largest resident set, some 250 MB of which are Python and torch. Results go to
data_path.json.
"""
import itertools
import json
import random
import string
import sys
import tempfile
import time
from pathlib import Path

from common import asked_to_work, keep, load_results, new_parser, peak_mb, spawn, table

import train_rm
from data import Examples, Tokenizer, batch_function, read_rows, rows_of_step

HERE = Path(__file__).resolve()
RESULTS = HERE.with_suffix(".json")
BATCH, MAX_LENGTH, STEPS = 64, 1024, 300
COLUMNS = {  # of the table -> key of a result, decimals
    "rows": ("rows", 0),
    "tokens": ("tokens", 0),
    "file MB": ("file_mb", 0),
    "tokens on the disk, MB": ("tokens_mb", 0),
    "seconds to make": ("seconds_to_make", 0),
    "seconds to open": ("seconds_to_open", 2),
    "ms a batch": ("ms_a_batch", 0),
    "ms a packed batch": ("ms_a_packed_batch", 0),
    "peak MB before": ("peak_mb_before", 0),
    "peak MB making": ("peak_mb_making", 0),
    "peak MB with batches": ("peak_mb_with_batches", 0),
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
            row = {"id": i, "prompt": f"{i} {part(420)}"}
            row["chosen"] = part(rng.randrange(220, 420))
            row["rejected"] = part(rng.randrange(220, 420))
            lines.write(json.dumps(row) + "\n")


def learn_tokenizer(file: Path) -> Tokenizer:
    """Byte-level, nearly: a text of n characters has about n tokens."""
    texts = []
    for row in itertools.islice(read_rows([file]), 500):
        texts.append(row.prompt[0]["content"])
    return Tokenizer.train(texts, 512)


def measure(s: dict) -> dict:
    """One size."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "run")
        output.mkdir()
        file = Path(folder, "rows.jsonl")
        write_rows(file, s["rows"])
        tokenizer = learn_tokenizer(file)
        before = peak_mb()
        args = train_rm.parse_options(["--data", str(file), "--eval-fraction", "0.01"])
        began = time.perf_counter()
        split = train_rm.Split(args, args.data)
        train_rm.write_data(args, output, split, tokenizer, MAX_LENGTH)
        made, peak_making = time.perf_counter(), peak_mb()
        examples = Examples(output / "tokens")
        opened = time.perf_counter()
        result = {
            "rows": s["rows"],
            "tokens": len(examples.ids),
            "file_mb": file.stat().st_size / 1e6,
            "tokens_mb": folder_size(output / "tokens") / 1e6,
            "seconds_to_make": made - began,
            "seconds_to_open": opened - made,
            "ms_a_batch": 1000 * seconds_a_batch(examples, pack=False),
            "ms_a_packed_batch": 1000 * seconds_a_batch(examples, pack=True),
            "peak_mb_before": before,
            "peak_mb_making": peak_making,
        }
    return result | {"peak_mb_with_batches": peak_mb()}


def folder_size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.stat().st_size for file in folder.iterdir())


def seconds_a_batch(examples: Examples, pack: bool) -> float:
    """The mean over the first steps of an epoch."""
    rows = examples.numbers(held_out=False)
    make_batch = batch_function(pack)
    steps = min(STEPS, len(rows) // BATCH)
    began = time.perf_counter()
    for step in range(steps):
        of_step = rows_of_step(rows, step, BATCH, seed=0)
        make_batch([examples[n] for n in of_step], 0)
    return (time.perf_counter() - began) / steps


def tables(file: Path = RESULTS) -> dict[str, str]:
    """What the docs quote, in Markdown."""
    rows = []
    for result in load_results(file).values():
        cells = []
        for key, decimals in COLUMNS.values():
            cells.append(f"{result[key]:,.{decimals}f}")
        rows.append(cells)
    if not rows:
        return {}
    return {"data": table(list(COLUMNS), rows)}


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = new_parser(__doc__)
    sizes = [1_000, 10_000, 100_000, 1_000_000]
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
