"""sources.py: where rows may come from, besides a file of JSON lines.

    python train_rm.py --data pairs.json                       one array, or JSON lines
    python train_rm.py --data prefs/                           all .json and .jsonl of a folder
    python train_rm.py --data hub:owner/name/train.jsonl       a data set on the Hugging Face hub

data.py reads .jsonl and .jsonl.gz itself: one JSON object a line, in memory one at a time. What is
published often lies elsewhere, and all of it becomes the same thing here, ("file:number", object):

    hub:owner/name/FILE    fetched once by extras/hub.py; then a file or a folder as below
    a folder               its files .jsonl, .json, .jsonl.gz and .json.gz, sorted by name
    [{…}, {…}]             one array of rows. The number is that of the row: 1, 2, …
    {…} newline {…}        JSON lines in a file of any other name. The number is that of the line.

Two traps:

    arrays      An array is read into memory as a whole: a file of 1 GB needs several GB. JSON lines
                need almost none, so large data should be JSON lines.
    tables      Parquet and CSV are refused, with a line that says how to convert them. In CSV
                every field is text: a list of responses, or null, would come back as its spelling.

There is no option: the name after --data decides. tests/extras/test_sources.py shows that the same
rows come out of every source.
"""
import gzip
import itertools
import json
import zlib
from pathlib import Path
from typing import Iterator

from data import DataError, json_rows as json_lines, parse_lines
from extras import hub

ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
TABLES = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".tsv": "csv"}


def json_rows(path: str) -> Iterator[tuple[str, dict]]:
    """("file:number", object) of each row of a source.  Raises: DataError in one line."""
    if path.startswith("hub:"):
        path = str(hub.data_file(path))
    for file in files_of(path):
        if file.endswith((".jsonl", ".jsonl.gz")):
            yield from json_lines(file)
        else:
            yield from rows_of_file(file)


def files_of(path: str) -> list[str]:
    """The file itself, or the JSON files of a folder.  Raises: DataError."""
    if not Path(path).is_dir():
        refuse_table(path)
        return [path]
    files = []
    for file in sorted(Path(path).iterdir()):
        if file.name.endswith(ENDINGS):
            files.append(str(file))
    if not files:
        raise DataError(f"{path}: no .json, .jsonl, .json.gz or .jsonl.gz in this folder")
    return files


def refuse_table(path: str) -> None:
    """Raises: DataError for files that hold tables, with the line that converts them."""
    kind = TABLES.get(Path(path).suffix)
    if kind:
        convert = f"datasets.load_dataset({kind!r}, data_files={path!r})['train']"
        raise DataError(f"{path}: not JSON; convert it: {convert}.to_json('pairs.jsonl')")


def rows_of_file(path: str) -> Iterator[tuple[str, dict]]:
    """The rows of a file that may hold an array or JSON lines.  Raises: DataError."""
    open_file = gzip.open if path.endswith(".gz") else open
    try:
        with open_file(path, "rt", encoding="utf-8-sig", newline="\n") as lines:
            # Nothing is read twice, so that a pipe can be read too. The first line with text
            # decides: no JSON object begins with a bracket.
            start = []
            for line in lines:
                start.append(line)
                if line.strip():
                    break
            if start and start[-1].lstrip().startswith("["):
                yield from parse_array("".join(start) + lines.read(), path)
            else:
                yield from parse_lines(itertools.chain(start, lines), path)
    except UnicodeDecodeError as e:
        raise DataError(f"{path}: not UTF-8 text ({e.reason})") from None
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"{path}: {getattr(e, 'strerror', None) or e}") from None


def parse_array(text: str, name: str) -> Iterator[tuple[str, dict]]:
    """One JSON array of objects -> ("name:1", object), ("name:2", object), …  Raises: DataError."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as e:
        raise DataError(f"{name}:{e.lineno}: not JSON ({e.msg}, column {e.colno})") from None
    except (ValueError, RecursionError) as e:  # a number of thousands of digits, endless brackets
        raise DataError(f"{name}: not JSON that can be read ({e})") from None
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise DataError(f"{name}:{number}: not a JSON object")
        yield f"{name}:{number}", value
