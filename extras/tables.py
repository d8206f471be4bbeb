"""tables.py: rows from Parquet, CSV and TSV.

    python train_rm.py --data train.parquet         most data sets of the hub are Parquet
    python train_rm.py --data pairs.csv more.tsv.gz

A table has a name for each column; a row of it is the object {column: cell}. An example:

    prompt,chosen,rejected,margin
    "What is 2 + 2?",4.,5.,0.5          -> {"prompt": "What is 2 + 2?", "chosen": "4.",
                                            "rejected": "5.", "margin": 0.5}

Parquet knows numbers, lists and null, so its rows are those that JSON lines would give. It needs
pyarrow (pip install pyarrow), which is imported only here. 256 rows are in memory at a time, and a
large file needs no more memory than a small one: 80 MB for one of 360 MB.

    times, decimals    become text as Python writes them ("2024-06-12T00:00:00", "0.10"). They
                       describe a row, and as floats decimals would change.
    bytes and others   are refused, naming row and column. JSON has no such value, and rows are
                       written as JSON again. (Mostly these are pictures.)

In CSV every cell is text. What is converted, so that the cells mean what they mean in JSON:

    an empty cell      no such field: CSV cannot tell "" from null
    JSON_FIELDS        read as JSON, or refused: these fields are never text
    chat messages      a cell that is JSON for messages (objects with "role" or "from") is read.
                       An answer that is other JSON stays text: somebody asked for JSON.
    NUMBER_FIELDS      numbers, where the cell is one: as text they would order nothing

Anything else stays text, ids and numbers of other names too. A row with more or fewer cells than
the header is refused, and so is an open quote, which would swallow all rows after it.

There is no option: the name of the file decides. Sources: RFC 4180 for CSV, and the documentation
of pyarrow.parquet. tests/extras/test_tables.py shows what each cell becomes.
"""
import csv
import datetime
import decimal
import gzip
import json
import os
import zlib
from typing import Iterator

from data import DataError

PARQUET = (".parquet",)
CSV = (".csv", ".csv.gz", ".tsv", ".tsv.gz")

# pyarrow reads through a buffer of 1 MiB. By itself it would keep a whole row group in memory,
# and that is often the whole file.
STREAM = {"buffer_size": 2**20, "pre_buffer": False}

JSON_FIELDS = {"responses", "scores", "ranks", "messages", "conversations", "tools"}
NUMBER_FIELDS = {
    "margin", "score", "score_chosen", "score_rejected", "gold_chosen", "gold_rejected",
    "rank", "label", "rating", "chosen_score", "rejected_score", "chosen_rating",
    "rejected_rating",
    "helpfulness", "correctness", "coherence", "complexity", "verbosity",  # HelpSteer2
    "labels", "score_A", "score_B",  # SHP
    "score_0", "score_1",  # WebGPT comparisons
    "better_response_id", "safer_response_id",  # PKU-SafeRLHF
    "choice", "preference", "preference_strength", "overall_preference",
}
# How Python, and so pandas.to_csv, spells messages. It is not JSON.
PYTHON_MESSAGES = ("[{'role'", "[{'content'", "[{'from'", "[{'value'")


# ---------------------------------------------------------------- Parquet


def parquet_rows(path: str) -> Iterator[tuple[str, dict]]:
    """("file:number", row) of a Parquet file; rows count from 1.  Raises: DataError."""
    for number, row in enumerate(read_parquet(path), 1):
        where = f"{path}:{number}"
        for column, value in row.items():
            row[column] = json_value(value, where, column)
        yield where, row


def read_parquet(path: str) -> Iterator[dict]:
    """The rows as pyarrow gives them, from one batch after the other.  Raises: DataError."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path}: Parquet needs pyarrow: pip install pyarrow") from None
    try:
        with parquet.ParquetFile(path, **STREAM) as file:
            check_names(file.schema_arrow.names, path)
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except DataError:
        raise
    except OSError as e:
        why = os.strerror(e.errno) if e.errno else first_line(e)
        raise DataError(f"{path}: {why}") from None
    except (pyarrow.ArrowException, ValueError) as e:
        raise DataError(f"{path}: not Parquet that can be read ({first_line(e)})") from None


def json_value(value, where: str, column: str):
    """A value of a table -> one that JSON has.  Raises: DataError naming row and column."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, dict):
        return {str(key): json_value(each, where, column) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(each, where, column) for each in value]
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    kind = type(value).__name__
    raise DataError(
        f"{where}: column {column!r} holds {kind}, which JSON cannot; leave the column out"
    )


def first_line(error) -> str:
    return (str(error) or repr(error)).splitlines()[0]


# ---------------------------------------------------------------- CSV and TSV


def csv_rows(path: str) -> Iterator[tuple[str, dict]]:
    """("file:line", row) of a CSV or TSV file, plain or gzip.  Raises: DataError.

    The line is the one where the row begins: a quoted cell may hold newlines.
    """
    header = None
    for line, cells in read_csv(path):
        where = f"{path}:{line}"
        if header is None:
            check_header(cells, where)
            header = cells
            continue
        if len(cells) != len(header):
            raise DataError(f"{where}: {len(cells)} cells, but the header has {len(header)}")
        row = {}
        for column, cell in zip(header, cells):
            if cell:
                row[column] = cell_value(cell, where, column)
        yield where, row


def read_csv(path: str) -> Iterator[tuple[int, list[str]]]:
    """The line where a row begins, and its cells. Blank lines are no rows.  Raises: DataError."""
    open_file = gzip.open if path.endswith(".gz") else open
    separator = "\t" if ".tsv" in path[-7:] else ","
    csv.field_size_limit(2**31 - 1)  # of characters; a long dialogue has more than the usual 2**17
    line = 1
    try:
        with open_file(path, "rt", encoding="utf-8-sig", newline="") as file:
            # strict: a quote that is never closed is an error, not one cell up to the end.
            reader = csv.reader(without_nul(file, path), delimiter=separator, strict=True)
            for cells in reader:
                if cells:
                    yield line, cells
                line = reader.line_num + 1
    except csv.Error as e:
        raise DataError(f"{path}:{line}: not CSV ({e})") from None
    except UnicodeDecodeError as e:
        raise DataError(f"{path}: not UTF-8 text ({e.reason})") from None
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"{path}: {getattr(e, 'strerror', None) or e}") from None


def without_nul(lines, path):
    """The lines. Python 3.10 stops at a NUL byte, later ones read it.  Raises: DataError."""
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise DataError(f"{path}:{number}: a NUL byte: this is not text, or it is damaged")
        yield line


def check_header(names: list[str], where: str) -> None:
    """Raises: DataError where the first line cannot be the names of the columns."""
    check_names(names, where)
    [first, *others] = names
    if not others and any(separator in first for separator in ",;\t"):
        raise DataError(f"{where}: cells are separated by a comma in .csv, by a tab in .tsv")


def check_names(names: list[str], where: str) -> None:
    """Raises: DataError where two columns have the same name: one would replace the other."""
    seen = set()
    for name in names:
        if name in seen:
            raise DataError(f"{where}: two columns are named {name!r}")
        seen.add(name)


def cell_value(cell: str, where: str, column: str):
    """The text of a cell, or what it means (see above).  Raises: DataError."""
    text = cell.strip()
    if column in JSON_FIELDS:
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as e:
            raise DataError(f"{where}: field {column!r} is not JSON ({e})") from None
    if column in NUMBER_FIELDS:
        value = json_or_none(text)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return value if is_number else cell
    if text.startswith(("{", "[{")):
        value = json_or_none(text)
        if is_messages(value):
            return value
    if text.startswith(PYTHON_MESSAGES):
        advice = "write the cells with json.dumps"
        raise DataError(f"{where}: field {column!r} is Python, not JSON; {advice}")
    return cell


def json_or_none(text):
    """What the text is as JSON. None where it is not."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def is_messages(value) -> bool:
    """Whether a value is a chat message, or a list of them."""
    messages = value if isinstance(value, list) else [value]
    for message in messages:
        if not isinstance(message, dict) or not message.keys() & {"role", "from"}:
            return False
    return len(messages) > 0
