"""json_files.py: rows from JSON that is not one object a line.

    {…} newline {…}         JSON lines in a file of any other name. The number is that of the line.
    [{…}, {…}]              one array of rows. The number is that of the row: 1, 2, …
    {"train": [{…}, {…}]}   an object that holds the rows. One with two lists is refused: rows to
                            train on and rows to test on must not be mixed, and none may be lost.
    { newline "prompt": …   one row over several lines, or several such rows (jq writes them so)

Four traps:

    memory      JSON over several lines is read as a whole: a file of 1 GB needs several GB. JSON
                lines need almost none.
    a row or    {"prompt": […], "chosen": …} is a row, and {"train": […]} holds rows. It holds rows
    rows        if it has no field of a row (ROW_FIELDS), and a list of objects under a name for
                rows (CONTAINERS), or nothing but that list.
    a key       {"chosen": "a", "chosen": "b"}: Python's json keeps the last and says nothing.
    twice       Here it is an error, and so is NaN, which JSON does not have.
    waiting     A program that writes a row into a pipe may wait for its reward before it writes
                the next. So a row that cannot hold rows is passed on at once.

extras/sources.py says which files come here. tests/extras/test_json_files.py shows what each text
becomes.
"""
import gzip
import itertools
import json
import zlib
from typing import Iterator

from data import NATIVE, STRICT, DataError, parse_lines, up_to_text
from extras import folders, hub

Rows = Iterator[tuple[str, dict]]  # ("file:number", object)

ROW_FIELDS = NATIVE - {"id", "source", "subset"} | {
    "system", "history", "instruction", "input", "question", "messages", "conversations",
    "completions",
}
CONTAINERS = folders.SPLITS.keys() | {"data", "dataset", "rows", "examples", "instances", "items",
                                      "records", "samples", "pairs", "preferences"}
BLANK = "\ufeff \t\r\n"  # Windows puts a byte order mark, U+FEFF, first


def rows_of_json(path: str) -> Rows:
    """The rows of a file of JSON lines, or of JSON over several lines.  Raises: DataError."""
    open_file = gzip.open if path.lower().endswith(".gz") else open
    try:
        with open_file(path, "rt", encoding="utf-8-sig", newline="\n") as lines:
            start = up_to_text(lines)
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
    decoder finds nothing wrong up to the end of this one. Old Macs end lines with \\r alone:
    then the whole file looks like one line, and is read as values one after the other.
    """
    if "\r" in line:
        return False
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
    if first is None:
        return
    where, value = first
    if rows_in(value) or holds_objects(value):
        second = next(rows, None)
        if second is None:
            yield from unpack(value, where, name)
            return
        rows = itertools.chain([second], rows)
    yield first
    yield from rows


def parse_document(text: str, name: str) -> Rows:
    """JSON over several lines -> ("name:1", object), ("name:2", object), …  Raises: DataError."""
    text = text.rstrip(BLANK)
    start = text.lstrip(BLANK)
    if start and not start.startswith(("[", "{")):
        line = start.splitlines()[0]
        advice = "tables are known by .csv, .tsv, .parquet"
        for ending, separator in ((".csv", ","), (".tsv", "\t")):
            if set(line.split(separator)) & ROW_FIELDS:
                advice = f"it looks like a table: name it {ending}"
        raise DataError(f"{name}: not JSON: it begins with {start[:20]!r} ({advice})")
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
    decoder = json.JSONDecoder(**STRICT)
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
        raise DataError(f"{name}: several lists of rows ({names}); write each to its own file")
    if holders:
        [key] = holders
        yield from objects(value[key], name)
        return
    if holds_objects(value):
        found = folders.shortened(value)
        raise DataError(f"{name}: an object of objects ({found}), not a list of rows")
    yield where, value


def holds_objects(value: dict) -> bool:
    """Whether an object holds several objects and nothing else: columns, or rows by their ids."""
    return len(value) > 1 and all(isinstance(each, dict) for each in value.values())


def rows_in(value: dict) -> list[str]:
    """The keys under which an object holds lists of rows. A row holds none."""
    if value.keys() & ROW_FIELDS:
        return []
    lists = []
    for key, rows in value.items():
        is_holder = key.lower() in CONTAINERS or len(value) == 1
        if isinstance(rows, list) and (is_holder and not rows or any_object(rows)):
            lists.append(key)
    if any(key.lower() in CONTAINERS for key in lists) or len(value) == 1:
        return lists
    return []  # a row with lists of objects under names of its own


def any_object(values: list) -> bool:
    return any(isinstance(value, dict) for value in values)
