"""cells.py: what a cell of CSV means. In CSV every cell is text.

    prompt,chosen,rejected,margin
    "What is 2 + 2?",4.,5.,0.5          -> {"prompt": "What is 2 + 2?", "chosen": "4.",
                                            "rejected": "5.", "margin": 0.5}

What is converted, so that the cells mean what they mean in JSON:

    an empty cell      no such field: CSV cannot tell "" from null. But an answer that is missing is
                       the empty text (ANSWERS), which the audit counts.
    JSON_FIELDS        read as JSON, or refused: these fields are never text
    history            read where it is a JSON list. (In SHP it is text.)
    chat messages      a cell that is JSON for messages (objects with "role" or "from") is read.
                       An answer that is another JSON object stays text: somebody asked for JSON.
    NUMBER_FIELDS      numbers, where the cell is one: as text they would order nothing

Anything else stays text, ids and numbers of other names too. Two things are refused, because a
model would learn from their quotes and brackets:

    Python             pandas.to_csv writes messages as Python does: [{'role': 'user', …}]. That is
                       not JSON, and numpy's array([{'role': …}]) is neither.
    a list of texts    ["good"] as an answer may be one answer in a list, or an answer that is a
                       list. JSON lines can say which.

There is no option. tests/extras/test_cells.py shows what each cell becomes.
"""
import json
import re

from data import DataError, load_json
from extras.layouts.fields import is_texts

JSON_FIELDS = {
    "responses", "scores", "ranks", "messages", "conversations", "tools", "completions",
}
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
ANSWERS = ("chosen", "rejected", "response")

# How Python, and so pandas.to_csv, spells messages, rounds and lists of texts.
ARRAY = r"(array\()?\s*"
PYTHON_MESSAGES = re.compile(ARRAY + r"[\[(]*\s*\{\s*'(role|content|from|value)'")
PYTHON_ROUNDS = re.compile(ARRAY + r"[\[(]\s*(array\()?[\[(]\s*['\"]")
PYTHON_TEXTS = re.compile(ARRAY + r"\[\s*('.*['\"]|\".*')\s*\](,\s*dtype=object)?\)?", re.DOTALL)


def filled(row: dict, columns: list[str]) -> dict:
    """The row with an empty text for an answer that has a column and no text.

    A row of one response may stand in a table of pairs, and the other way round: then the columns
    of the other kind mean nothing in it.
    """
    pair, single = row.keys() & {"chosen", "rejected"}, row.keys() & {"response", "responses"}
    for column in ANSWERS:
        other_kind = pair if column == "response" else single
        if column in columns and column not in row and not other_kind:
            row[column] = ""
    return row


def read_cell(cell: str, where: str, column: str):
    """The text of a cell, or what it means (see above).  Raises: DataError."""
    text = cell.strip()
    if column in JSON_FIELDS:
        return json_of(text, where, column)
    if column in NUMBER_FIELDS:
        value = json_or_none(text)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return value if is_number else cell
    value = json_or_none(text) if text.startswith(("[", "{")) else None
    if is_messages(value) or column == "history" and isinstance(value, list):
        return json_of(text, where, column)
    refuse_python(text, value, where, column)
    return cell


def refuse_python(text: str, value, where: str, column: str) -> None:
    """Raises: DataError where a cell is a list or messages in the spelling of Python.

    Args:   value: what the text is as JSON; None where it is not.
    """
    is_python = PYTHON_MESSAGES.match(text)
    if column == "history" and value is None:
        is_python = is_python or PYTHON_ROUNDS.match(text)
    if is_python:
        advice = "write the cells with json.dumps"
        raise DataError(f"{where}: field {column!r} is Python, not JSON; {advice}")
    if column in ANSWERS and (is_texts(value) or PYTHON_TEXTS.fullmatch(text)):
        advice = "write one text in the cell, or write JSON lines"
        raise DataError(f"{where}: field {column!r} is a list of texts; {advice}")


def json_of(text: str, where: str, column: str):
    """What a cell is as JSON.  Raises: DataError."""
    try:
        return load_json(text)
    except (ValueError, RecursionError) as e:
        raise DataError(f"{where}: field {column!r} is not JSON ({e})") from None


def json_or_none(text: str):
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
