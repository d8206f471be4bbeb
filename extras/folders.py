"""folders.py: which files of a folder hold rows, and which of them may be read together.

    prefs/pairs.jsonl  more.csv  README.md       two files of rows; README.md is named and left
    prefs/train.jsonl  test.jsonl                refused: choose prefs/train.jsonl or the other
    prefs/train-00000-of-00002.parquet  …        one data set in pieces: prefs/train-0*.parquet
    prefs/pairs.jsonl  more.jsonl.zst            refused: more.jsonl.zst has to be unpacked first

A folder of published data holds more than rows: cards, configurations, licences. They are left
aside by name, and one line on standard error says which. And it often holds two splits. To train
on the test rows is the mistake that no figure shows, so a folder is read only where its names say
that its files belong together:

    a split     a word of the name, as in train.jsonl, pairs_test.csv, prefsTest.json, testset.csv
                or held_out.jsonl; of a file in pieces (NAME-00000-of-00002) the whole name. Two
                splits are refused. Files without such a word go with each other and with train.
    a piece     that is missing is named: part of the data would be gone.
    subfolders  are splits or subsets. A folder that has some with rows in them is refused.
    strangers   a .json beside other data, and no field in common with it, holds no such rows.

To read two splits, or some pieces, name each file. The same rules hold for a folder of the hub,
and only for strangers has it to be fetched first. tests/extras/test_sources.py shows what is read
and what is refused.
"""
import functools
import re
import sys
from pathlib import Path

from data import DataError

# Endings in small letters. B.JSONL is a file of rows too.
LINES = (".jsonl", ".ndjson", ".jsonlines")
PARQUET = (".parquet",)
CSV = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
ENDINGS = (*LINES, ".json", ".jsonl.gz", ".ndjson.gz", ".jsonlines.gz", ".json.gz", ".arrow")
ENDINGS += PARQUET + CSV
PACKED = (".zip", ".zst", ".bz2", ".xz", ".lz4", ".tar", ".tgz", ".tar.gz", ".7z", ".rar")
UNPACK = "a packed file; unpack it (only .gz is read as it is)"
NO_FILES = "no .json, .jsonl, .csv, .tsv or .parquet"
METADATA = {
    "dataset_info.json",  # of `datasets` and of LLaMA-Factory
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "croissant.json",
    "metadata.json",
    "config.json",
}
SPLITS = {
    "train": "train", "training": "train",
    "test": "test", "testing": "test",
    "valid": "validation", "validation": "validation", "val": "validation",
    "dev": "validation",
    "eval": "evaluation", "evaluation": "evaluation",
    "heldout": "held out", "holdout": "held out",
    "benchmark": "benchmark", "bench": "benchmark",
}
# "trainset", "tests", "testdata" are splits; "trainer" and "latest" are other words.
SPLIT = re.compile(f"({'|'.join(SPLITS)})(?:s|sets?|data|splits?)?")
# How `datasets` names the pieces of a file: train-00000-of-00002.parquet, once with a hash.
PIECE = re.compile(r"(.+)-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?(\..+)")


def files_of(path: str, name: str) -> list[str]:
    """The file itself, the data files of a folder, or those that "prefs/*.jsonl" matches.

    Args:   name: what to call the path in errors. (Of the hub, the path is one in the cache.)
    Raises: DataError where there is none, or where they do not belong together.
    """
    folder, pattern = Path(path), "*"
    if not folder.is_dir():
        if "*" not in folder.name or folder.exists():
            return [path]
        folder, pattern = folder.parent, folder.name
        name = name.rpartition("/")[0] or "."
    try:
        entries = sorted(folder.glob(pattern))
    except ValueError as e:  # "**" inside a name
        raise DataError(f"{name}/{pattern}: {e}") from None
    if not entries and pattern != "*":
        raise DataError(f"{name}/{pattern}: no such file")
    files, others = [], []
    for entry in entries:
        if entry.is_dir():
            files += files_below(entry)
        elif is_data_file(entry.name):
            files.append(entry.name)
        else:
            others.append(entry.name)
    if not files:
        raise DataError(f"{name}: {NO_FILES} in this folder (found: {shortened(others)})")
    refuse_mixture(files, name)
    if others:
        say_once(f"{name}: not rows, left aside: {shortened(others)}")
    return [str(folder / file) for file in files]


def files_below(folder: Path) -> list[str]:
    """The data files of a subfolder, as "train/0.parquet"."""
    if folder.name.startswith("."):
        return []
    files = []
    for file in sorted(folder.rglob("*")):
        if is_data_file(file.name):
            files.append(file.relative_to(folder.parent).as_posix())
    return files


def is_data_file(name: str) -> bool:
    """Whether a file may hold rows, by its name. Of a packed one nobody knows."""
    if name in METADATA or name.startswith("."):
        return False
    return name.lower().endswith(ENDINGS + PACKED)


def refuse_packed(files: list[str], folder: str) -> None:
    """Raises: DataError where a file has to be unpacked before it can be read."""
    for file in files:
        if file.lower().endswith(PACKED):
            raise DataError(f"{folder}/{file}: {UNPACK}, or name the files to read")


def refuse_mixture(files: list[str], folder: str) -> None:
    """Raises: DataError where data files must not be read together, with what to choose from.

    Args:  files: names relative to the folder; those of subfolders have a slash.
    """
    tops = dict.fromkeys(file.partition("/")[0] for file in files)  # each once, in order
    splits = {split_of(top) for top in tops}
    if any("/" in file for file in files):
        why = "rows in subfolders"
    elif len(splits) > 1 and splits != {None, "train"}:
        why = "several splits"
    else:
        refuse_packed(files, folder)
        refuse_missing_pieces(files, folder)
        return
    choices = [f"{folder}/{choice}" for choice in in_one_piece(list(tops))]
    raise DataError(f"{folder}: {why}; choose: {shortened(choices)}")


def split_of(name: str) -> str | None:
    """The split that the name of a file names: "pairs_val.jsonl" -> "validation"."""
    piece = PIECE.fullmatch(name)
    if piece:
        return SPLITS.get(piece[1].lower(), piece[1])
    splits = set()
    for word in words_of(name):
        match = SPLIT.fullmatch(word)
        if match:
            splits.add(SPLITS[match[1]])
    return " and ".join(sorted(splits)) or None


def words_of(name: str) -> list[str]:
    """"prefsHeld_out.json" -> "prefs", "held", "out", "json", and two in a row: "heldout", …"""
    words = re.split("[^a-z]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).lower())
    together = [first + second for first, second in zip(words, words[1:])]
    return words + together


def refuse_missing_pieces(files: list[str], folder: str) -> None:
    """Raises: DataError where a file in pieces is not whole, naming what is missing."""
    found = {}  # (name, how many there should be, ending) -> the numbers of those that are there
    for file in files:
        piece = PIECE.fullmatch(file)
        if piece:
            name, number, count, ending = piece.groups()
            found.setdefault((name, count, ending), set()).add(int(number))
    for (name, count, ending), numbers in found.items():
        missing = sorted(set(range(int(count))) - numbers)
        if missing:
            names = shortened(f"{name}-{number:05}-of-{count}{ending}" for number in missing)
            advice = "to read only some pieces, name each"
            raise DataError(f"{folder}: not all pieces are here, missing: {names}; {advice}")


def refuse_strangers(files: list[str], fields_of) -> None:
    """Raises: DataError for a .json that holds no such rows as the other files: statistics, say.

    Args:   fields_of: path -> the fields of its first row.
    """
    others = [file for file in files if not file.lower().endswith((".json", ".json.gz"))]
    if not others:
        return
    fields = fields_of(others[0])
    for file in files:
        if file not in others and not fields_of(file) & fields:
            advice = "move it, or name the files to read"
            raise DataError(f"{file}: no field in common with {others[0]}; {advice}")


def in_one_piece(names: list[str]) -> dict[str, list[str]]:
    """Names -> what to call each file: all pieces of one have a common name with a *."""
    wholes = {}
    for name in names:
        piece = PIECE.fullmatch(name)
        whole = f"{piece[1]}-0*{piece[4]}" if piece else name
        wholes.setdefault(whole, []).append(name)
    return wholes


def shortened(names) -> str:
    """The first ten names, and how many more there are."""
    names = list(names)
    shown = ", ".join(names[:10]) or "nothing"
    return f"{shown} and {len(names) - 10} more" if len(names) > 10 else shown


@functools.cache
def say_once(line: str) -> None:
    """Print a line on standard error, once: training reads its files several times."""
    print(line, file=sys.stderr)
