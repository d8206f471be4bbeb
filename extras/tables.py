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
                       describe a row, and as floats decimals would change. Only in NUMBER_FIELDS,
                       scores and ranks is a decimal a number: there it orders answers.
    bytes and others   are refused, naming row and column. JSON has no such value, and rows are
                       written as JSON again. (Mostly these are pictures.)

In CSV every cell is text; extras/cells.py says what is read from it. A row with more or fewer cells
than the header is refused, and so is an open quote, which would swallow all rows after it.

    no header          The first line is taken for the names of the columns. If it has no usual
                       name, one line on standard error says so: is it a row, are they capitals, is
                       the separator another one?
    a nameless column  is "column 1", by its position: pandas writes its row numbers so.
    sep=,              as a first line is for Excel, and is refused.

There is no option: the name of the file decides. Sources: RFC 4180 for CSV, and the documentation
of pyarrow.parquet. tests/extras/test_tables.py shows what each cell becomes.
"""
import csv
import datetime
import decimal
import gzip
import os
import zlib
from typing import Iterator

from data import DataError
from extras.cells import NUMBER_FIELDS, filled, read_cell
from extras.folders import say_once, shortened
from extras.json_files import ROW_FIELDS

# pyarrow reads through a buffer of 1 MiB. By itself it would keep a whole row group in memory,
# and that is often the whole file.
STREAM = {"buffer_size": 2**20, "pre_buffer": False}

# What published tables call their columns, besides the fields of our rows: see extras/layouts/.
USUAL = ROW_FIELDS | NUMBER_FIELDS | {
    "answer", "answers", "context", "conversation_a", "full_text", "info", "post", "query",
    "rejected_response", "response_a", "response_j", "summaries", "text", "winner",
}


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
        if column in NUMBER_FIELDS or column in ("scores", "ranks"):
            return float(value)
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
            header = header_of(cells, where)
            continue
        if len(cells) != len(header):
            raise DataError(f"{where}: {len(cells)} cells, but the header has {len(header)}")
        row = {}
        for column, cell in zip(header, cells):
            if cell:
                row[column] = read_cell(cell, where, column)
        yield where, filled(row, header)


def read_csv(path: str) -> Iterator[tuple[int, list[str]]]:
    """The line where a row begins, and its cells. Blank lines are no rows.  Raises: DataError."""
    open_file = gzip.open if path.lower().endswith(".gz") else open
    separator = "\t" if ".tsv" in path.lower()[-7:] else ","
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


def header_of(cells: list[str], where: str) -> list[str]:
    """The names of the columns.  Raises: DataError where the first line cannot be these."""
    [first, *others] = cells
    if first.lower().startswith("sep="):
        raise DataError(f"{where}: {first!r} is a line for Excel: delete it")
    if not others and any(separator in first for separator in ",;\t|"):
        raise DataError(f"{where}: cells are separated by a comma in .csv, by a tab in .tsv")
    names = []
    for number, name in enumerate(cells, 1):
        names.append(name or f"column {number}")
    check_names(names, where)
    if not USUAL & set(names):
        found = shortened(repr(name[:30]) for name in names)
        what = "is the first line a header, and the separator a comma (a tab in .tsv)?"
        say_once(f"{where}: no column has a usual name, such as 'prompt': {found}; {what}")
    return names


def check_names(names: list[str], where: str) -> None:
    """Raises: DataError where two columns have the same name: one would replace the other."""
    seen = set()
    for name in names:
        if name in seen:
            raise DataError(f"{where}: two columns are named {name!r}")
        seen.add(name)
