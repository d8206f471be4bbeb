"""sources.py: where rows may come from, besides a file of JSON lines.

    python train_rm.py --data pairs.json                       one array, or JSON lines
    python train_rm.py --data prefs/                           the data files of a folder
    python train_rm.py --data "prefs/train-*.parquet"          the files that this name matches
    python train_rm.py --data hub:owner/name/train.jsonl       a data set on the Hugging Face hub

data.py reads .jsonl and .jsonl.gz itself: one JSON object a line, in memory one at a time. What is
published often lies elsewhere, and all of it becomes the same thing here, ("file:number", object):

    hub:owner/name/FILE     fetched once by extras/hub.py; then a file or a folder as below
    a folder                its data files (extras/folders.py), sorted by name
    .parquet .csv .tsv      tables, by extras/tables.py
    {…} newline {…}         JSON lines in a file of any other name. The number is that of the line.
    [{…}, {…}]              one array of rows. The number is that of the row: 1, 2, …
    {"train": [{…}, {…}]}   an object that holds the rows. One with two splits is refused: rows to
                            train on and rows to test on must not be mixed.
    { newline "prompt": …   one row over several lines, or several such rows (jq writes them so)

Three traps:

    memory      JSON over several lines is read as a whole: a file of 1 GB needs several GB. JSON
                lines and tables need almost none.
    a row or    {"prompt": […], "chosen": …} is a row, and {"train": […]} holds rows. It holds rows
    rows        if it has no field of a row (ROW_FIELDS), and a list of objects under a name for
                rows (CONTAINERS), or nothing but that list.
    no rows     A file without a row is an error: often a download failed, or a filter kept nothing.

There is no option: the name after --data decides. tests/extras/test_sources.py shows that the same
rows come out of every source.
"""
import gzip
import itertools
import json
import zlib
from pathlib import Path
from typing import Iterator

from data import NATIVE, DataError, parse_lines
from extras import folders, hub, tables

Rows = Iterator[tuple[str, dict]]  # ("file:number", object)

ROW_FIELDS = NATIVE - {"id", "source", "subset"} | {
    "system", "history", "instruction", "input", "question", "messages", "conversations",
    "completions",
}
CONTAINERS = folders.SPLITS.keys() | {"data", "dataset", "rows", "examples", "instances", "items",
                                      "records", "samples", "pairs", "preferences"}
BLANK = "\ufeff \t\r\n"  # Windows puts a byte order mark, U+FEFF, first
PACKED = (".zip", ".zst", ".bz2", ".xz", ".tar", ".tgz", ".tar.gz", ".7z")


def json_rows(path: str) -> Rows:
    """("file:number", object) of each row of a source.  Raises: DataError in one line."""
    name = path.rstrip("/")
    if path.startswith("hub:"):
        path = str(hub.data_file(path))
    for file in folders.files_of(path, name):
        rows = rows_of_file(file)
        first = next(rows, None)
        if first is None:
            raise DataError(f"no rows in {file}")
        yield first
        yield from rows


def rows_of_file(path: str) -> Rows:
    """The rows of one file. Its name tells tables from JSON.  Raises: DataError."""
    refuse_pointer(path)
    if path.endswith(PACKED):
        raise DataError(f"{path}: a packed file; unpack it (only .gz is read as it is)")
    if path.endswith(".arrow"):
        convert = f"datasets.load_dataset('arrow', data_files={path!r})['train']"
        raise DataError(f"{path}: Arrow is not read; convert it: {convert}.to_json('pairs.jsonl')")
    if path.endswith(tables.PARQUET):
        return tables.parquet_rows(path)
    if path.endswith(tables.CSV):
        return tables.csv_rows(path)
    return rows_of_json(path)


def refuse_pointer(path: str) -> None:
    """Raises: DataError where a clone of a repository has only the address of its large file."""
    if not Path(path).is_file():  # a pipe can be read only once; a missing file is named later
        return
    try:
        with open(path, "rb") as file:
            start = file.read(40)
    except OSError:
        return  # it is named where the rows are read
    if start.startswith(b"version https://git-lfs"):
        raise DataError(f"{path}: not the data, but a pointer to it: git lfs pull")


def rows_of_json(path: str) -> Rows:
    """The rows of a file of JSON lines, or of JSON over several lines.  Raises: DataError."""
    open_file = gzip.open if path.endswith(".gz") else open
    try:
        with open_file(path, "rt", encoding="utf-8-sig", newline="\n") as lines:
            # Nothing is read twice, so that a pipe can be read too. The first line with text
            # decides.
            start = []
            for line in lines:
                start.append(line)
                if line.strip():
                    break
            first = "".join(start[-1:]).strip(BLANK)
            if not is_one_object(first):
                yield from parse_document("".join(start) + lines.read(), path)
                return
            rows = parse_lines(itertools.chain(start, lines), path)
            yield from unpack_single(rows, path)
    except UnicodeDecodeError as e:
        raise DataError(f"{path}: not UTF-8 text ({e.reason})") from None
    except FileNotFoundError as e:
        raise DataError(f"{path}: {e.strerror}{hub.advice(path)}") from None
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"{path}: {getattr(e, 'strerror', None) or e}") from None


def is_one_object(line: str) -> bool:
    """Whether a line is an object of its own: then the file holds JSON lines.

    A broken line is one too, to be named at once. Where an object goes on in the next line, the
    decoder finds nothing wrong up to the end of this one.
    """
    try:
        json.loads(line)
    except json.JSONDecodeError as e:
        return line.startswith("{") and e.pos < len(line)
    except (ValueError, RecursionError):  # a number of thousands of digits, endless brackets
        pass
    return line.startswith("{")


def unpack_single(rows: Rows, name: str) -> Rows:
    """Rows -> the same rows; or what a single object holds, where it holds rows."""
    first = next(rows, None)
    second = next(rows, None)
    if first and not second:
        yield from unpack(first[1], first[0], name)
        return
    for row in (first, second):
        if row:
            yield row
    yield from rows


def parse_document(text: str, name: str) -> Rows:
    """JSON over several lines -> ("name:1", object), ("name:2", object), …  Raises: DataError."""
    text = text.rstrip(BLANK)
    start = text.lstrip(BLANK)[:20]
    if start and not start.startswith(("[", "{")):
        advice = "tables are known by .csv, .tsv, .parquet"
        raise DataError(f"{name}: not JSON: it begins with {start!r} ({advice})")
    try:
        values = list(json_values(text))
    except json.JSONDecodeError as e:
        raise DataError(f"{name}:{e.lineno}: not JSON ({e.msg}, column {e.colno})") from None
    except (ValueError, RecursionError) as e:  # a number of thousands of digits, endless brackets
        raise DataError(f"{name}: not JSON that can be read ({e})") from None
    if len(values) == 1:
        [value] = values
        if isinstance(value, dict):
            yield from unpack(value, f"{name}:1", name)
            return
        values = value
    yield from objects(values, name)


def json_values(text: str) -> Iterator:
    """The values of a text: one array, or one object after the other."""
    decoder = json.JSONDecoder()
    position = 0
    opening = None  # the bracket that begins the first value
    while position < len(text):
        while text[position] in BLANK:
            position += 1
        if opening == "[" or opening and text[position] != "{":
            raise json.JSONDecodeError("Extra data", text, position)
        opening = text[position]
        value, position = decoder.raw_decode(text, position)
        yield value


def objects(values: list, name: str) -> Rows:
    """A list of rows -> each with its number.  Raises: DataError where one is no object."""
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise DataError(f"{name}:{number}: not a JSON object")
        yield f"{name}:{number}", value


def unpack(value: dict, where: str, name: str) -> Rows:
    """An object that is alone in its file: a row, or what holds the rows.  Raises: DataError."""
    holders = rows_in(value)
    if len(holders) > 1:
        names = ", ".join(holders)
        raise DataError(f"{name}: rows of several splits ({names}); write each to its own file")
    if holders:
        [key] = holders
        yield from objects(value[key], name)
        return
    if len(value) > 1 and all(isinstance(each, dict) for each in value.values()):
        found = folders.shortened(value)
        raise DataError(f"{name}: an object of objects ({found}); write a list of rows")
    yield where, value


def rows_in(value: dict) -> list[str]:
    """The keys under which an object holds lists of rows. A row holds none."""
    if value.keys() & ROW_FIELDS:
        return []
    keys = []
    for key, rows in value.items():
        is_list = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
        if is_list and (key.lower() in CONTAINERS or len(value) == 1):
            keys.append(key)
    return keys
