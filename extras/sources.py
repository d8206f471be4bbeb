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
    any other name          JSON: lines, an array, or an object that holds rows
                            (extras/json_files.py)

Two traps:

    no rows     A file without a row is an error: often a download failed, or a filter kept nothing.
    the name    A file may hold something else than its name says: a web page that asks to log in,
                the address that git keeps of a large file, bytes of gzip. The first bytes tell, and
                the error says what it is.

There is no option: the name after --data decides. tests/extras/test_sources.py shows that the same
rows come out of every source.
"""
from pathlib import Path
from typing import Iterator

from data import DataError
from extras import folders, hub, json_files, tables

Rows = Iterator[tuple[str, dict]]  # ("file:number", object)

# First bytes -> what a file is, and what to do about it.
STARTS = {
    b"version https://git-lfs": "not the data, but a pointer to it: git lfs pull",
    b"<!doctype html": "a web page, not the data: the download failed, or needs a login",
    b"<html": "a web page, not the data: the download failed, or needs a login",
    b"\x1f\x8b": "gzip: give it a name that ends in .gz",
    b"PAR1": "Parquet: give it a name that ends in .parquet",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
    b"PK\x03\x04": folders.UNPACK,
    b"\x28\xb5\x2f\xfd": folders.UNPACK,  # zstd
}


def json_rows(path: str) -> Rows:
    """("file:number", object) of each row of a source.  Raises: DataError in one line."""
    name = path.rstrip("/")
    if path.startswith("hub:"):
        path = str(hub.data_file(path))
    files = folders.files_of(path, name)
    if len(files) > 1:
        folders.refuse_strangers(files, fields_of)
    for file in files:
        rows = rows_of_file(file)
        first = next(rows, None)
        if first is None:
            raise DataError(f"no rows in {file}")
        yield first
        yield from rows


def fields_of(file: str) -> set[str]:
    """The fields of the first row of a file."""
    for _, row in rows_of_file(file):
        return set(row)
    raise DataError(f"no rows in {file}")


def rows_of_file(path: str) -> Rows:
    """The rows of one file. Its name tells tables from JSON.  Raises: DataError."""
    name = path.lower()
    if name.endswith(folders.PACKED):
        raise DataError(f"{path}: {folders.UNPACK}")
    if name.endswith(".arrow"):
        convert = f"datasets.load_dataset('arrow', data_files={path!r})['train']"
        raise DataError(f"{path}: Arrow is not read; convert it: {convert}.to_json('pairs.jsonl')")
    refuse_other_content(path)
    if name.endswith(folders.PARQUET):
        return tables.parquet_rows(path)
    if name.endswith(folders.CSV):
        return tables.csv_rows(path)
    return json_files.rows_of_json(path)


def refuse_other_content(path: str) -> None:
    """Raises: DataError where the first bytes show that a file is not what its name says."""
    if not Path(path).is_file():  # a pipe can be read only once; a missing file is named later
        return
    try:
        with open(path, "rb") as file:
            start = file.read(100)
    except OSError:
        return  # it is named where the rows are read
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginning, what in STARTS.items():
        by_name = what.split()[-1]  # .gz or .parquet
        if path.lower().endswith(by_name):
            continue
        if start.startswith(beginning) or text.startswith(beginning):
            raise DataError(f"{path}: {what}")
