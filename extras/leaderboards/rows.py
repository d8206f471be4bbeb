"""What the rules share: which rows, and what is said of them. A row is (example, its K rewards)."""
import numpy as np


class CannotCompute(Exception):
    """Something that a rule needs is not in the rows. The text says what."""


def raw_of(row):
    """The row as it was published."""
    example, _ = row
    return example.row.raw


def beginning_with(rows, field, name):
    """The rows whose text in a field begins so."""
    return [row for row in rows if str(raw_of(row)[field]).startswith(name)]


def has(example, *fields):
    """Whether a row has all these fields."""
    return example.row.raw.keys() >= set(fields)


def is_list(value, count):
    """Whether something is a list of so many."""
    return isinstance(value, list) and len(value) == count


def chosen_is_above(row):
    """Whether the chosen response of a pair has the higher reward. A tie is wrong."""
    example, r = row
    better, worse = example.pairs()[0]
    return bool(r[better] > r[worse])


def mean_of(parts):
    """The mean of each figure over the parts, which weigh the same; the sum of their rows."""
    if not parts:
        return None
    total = {}
    for part in parts.values():
        for key, value in part.items():
            total.setdefault(key, []).append(value)
    rows = sum(total.pop("rows"))
    means = {key: float(np.mean(values)) for key, values in total.items()}
    return {"rows": rows} | means
