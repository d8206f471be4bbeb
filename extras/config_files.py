"""config_files.py: the options of a run in a file, instead of on the command line.

    python train_rm.py --config runs/a/options.json --output runs/b           the same run again
    python train_rm.py --config runs/a/options.json --lr 5e-6 --output runs/c    with one change

Every run writes options.json: all its options, those that had their default too. So this file is
what to keep, to send, and to start from. It is a JSON object with a key "options"; an object that
has the options themselves is read as well:

    {"model": "DIR", "data": ["pairs.jsonl"], "lr": 1e-5, "pack": true}

A key is the name of an option with _ for -. Options that are not in the file have their default,
and an option on the command line wins; --epochs there wins over max_steps in the file. `resume`,
`config` and `output` of the file are not read: they say how that run was started, and where it is.

Nothing is guessed. A key that is no option, a value of another type ("1e-5" is a text and not a
number) and one that is no choice of its option cost one line that names file and key.

tests/extras/test_config_files.py proves that a run's options.json gives the same run.
"""
import argparse
import json
from pathlib import Path

from data import DataError, load_json

NOT_READ = ("resume", "config", "output", "help")


def read(path: str, parser: argparse.ArgumentParser) -> dict:
    """The options in a file, checked.  Raises: DataError naming file and key."""
    known = {option.dest: option for option in parser._actions}
    found = {}
    for key, value in load(path).items():
        if key in NOT_READ:
            continue
        if key not in known:
            raise DataError(f"{path}: {key!r} is no option; train_rm.py --help lists them")
        found[key] = checked(value, known[key], f"{path}: {key!r}")
    return found


def load(path: str) -> dict:
    """The object of options in a JSON file."""
    try:
        content = load_json(Path(path).read_text("utf-8"))  # it refuses a key that is there twice
    except OSError as e:
        raise DataError(f"{path}: {e.strerror}") from None
    except ValueError as e:
        raise DataError(f"{path}: not JSON: {e}") from None
    if isinstance(content, dict):
        content = content.get("options", content)
    if not isinstance(content, dict):
        raise DataError(f"{path}: not an object of options, as options.json has it")
    return content


def checked(value, option: argparse.Action, where: str):
    """The value that the option would have from the command line."""
    if value is None and option.default is None:
        return None  # not given
    if isinstance(option, argparse.BooleanOptionalAction):
        expected, fits = "true or false", isinstance(value, bool)
    elif option.nargs == "+":
        expected, fits = "a list of texts", is_list_of_texts(value)
    elif option.type in (int, float):
        expected, fits = "a number", is_number(value)
        if option.type is int:
            expected, fits = "a whole number", fits and isinstance(value, int)
        elif fits:
            value = float(value)
    else:
        expected, fits = "a text", isinstance(value, str)
    if not fits:
        raise DataError(f"{where} has to be {expected}, and is {json.dumps(value)}")
    if option.choices and value not in option.choices:
        choices = ", ".join(option.choices)
        raise DataError(f"{where} has to be one of {choices}, and is {json.dumps(value)}")
    return value


def is_list_of_texts(value) -> bool:
    """As --data has it: at least one."""
    return isinstance(value, list) and value != [] and all(isinstance(v, str) for v in value)


def is_number(value) -> bool:
    """bool is a kind of int in Python, and is no number here."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
