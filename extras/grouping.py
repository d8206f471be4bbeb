"""grouping.py: rows of one answer with a score -> rows of K scored answers to one prompt.

Some projects ask people to grade answers, not to compare them. HelpSteer2 has a row an answer:

    {"prompt": "q", "response": "good", "helpfulness": 4, "verbosity": 1}      f.jsonl:1
    {"prompt": "q", "response": "bad", "helpfulness": 0, "verbosity": 2}       f.jsonl:2

Grades order the answers to the same prompt, and that is all a reward model learns from:

    {"prompt": "q", "responses": ["good", "bad"], "scores": [4, 0], "verbosity": [1, 2]}

    the score    field `score`, else `helpfulness`. HelpSteer2's authors build their pairs from it
                 (Wang et al. 2024, and the card of nvidia/HelpSteer2).
    the prompt   all fields that say what is answered: prompt, system, history, tools, context, …
                 The same question under another system turn, or about another text, is another
                 prompt. Capitals do not matter: Context is context.
    the rest     kept. A field with one value in all rows keeps it; of another the row has a list,
                 one value an answer (null where a row has none). So nothing is lost, and a field
                 that must not differ, such as margin, is refused where it is read.

The same answer twice, with two grades, stays twice. A prompt with a single answer gives a row of
one response, which has no pair: the audit counts it. A group is named by its first row.

Training and report group, and one line on standard error says how many answers became how many
rows. score takes one answer a row anyway. The first row of a file decides, and all others must be
of its kind; there is no option.

Cost: the answers to a prompt may lie anywhere, so the whole file is in memory, as json.load has it.
tests/extras/test_grouping.py shows that the pairs of the groups are those of the graded rows.
"""
import json
from typing import Iterator

from data import DataError, to_number
from extras.folders import say_once

SCORE_FIELDS = ("score", "helpfulness")  # the first one that a row has orders the answers
PROMPT_FIELDS = {
    "prompt", "system", "history", "instruction", "input", "question", "messages", "conversations",
    "tools", "images", "videos", "audios",
    "system_prompt", "context", "contexts", "document", "documents", "passage", "passages",
    "article", "background",
}
OTHER_ANSWERS = {"chosen", "rejected", "responses", "scores", "ranks"}

Rows = Iterator[tuple[str, dict]]  # ("file:line", row)


def is_scored_answer(row: dict) -> bool:
    """Whether a row holds one answer and its grade.

    {"prompt": "q", "response": "a", "score": 3}        yes
    {"prompt": "q", "chosen": "a", "rejected": "b"}     no
    """
    fields = known_fields(row)
    if not {"prompt", "response"} <= fields or fields & OTHER_ANSWERS:
        return False
    return score_field(row) is not None


def group(rows: Rows, skip_bad_rows: bool = False, audit=None) -> Rows:
    """Rows of one answer each -> a row for each prompt, in the order in which prompts appear.

    Raises: DataError at a row of another kind, and at a score that is not a number. With
            skip_bad_rows the audit counts it instead, as data.read_rows does.
    """
    groups = {}  # prompt -> the rows that answer it
    field = None
    count = 0
    for where, row in rows:
        field = field or score_field(row)
        try:
            score = score_of(row, field, where)
        except DataError:
            if not skip_bad_rows:
                raise
            if audit:
                audit.left_out["malformed"] += 1
            continue
        groups.setdefault(prompt_of(row), []).append((where, row, score))
        count += 1
    if count:
        file = where.rpartition(":")[0]
        what = f"{count} answers graded by {field!r}"
        say_once(f"{file}: {what}, grouped by prompt into {len(groups)} rows")
    for answers in groups.values():
        yield grouped(answers, field)


def score_field(row: dict) -> str | None:
    """The name of the field that grades a row."""
    for field in SCORE_FIELDS:
        if row.get(field) is not None:
            return field
    return None


def score_of(row: dict, field: str | None, where: str) -> float:
    """The grade of a row.  Raises: DataError where the row is of another kind, or has no number."""
    if not is_scored_answer(row):
        found = ", ".join(sorted(known_fields(row))) or "nothing"
        kind = "one prompt, response and score a row, as the first row of the file has"
        raise DataError(f"{where}: not {kind} (found: {found})")
    if score_field(row) != field:
        raise DataError(f"{where}: graded by {score_field(row)!r}, the first row by {field!r}")
    return to_number(row[field], where, field)


def prompt_of(row: dict) -> str:
    """What a row answers, as text that is equal for equal prompts."""
    fields = {}
    for field in known_fields(row):
        if field.lower() in PROMPT_FIELDS:
            fields[field] = row[field]
    return json.dumps(fields, sort_keys=True)


def known_fields(row: dict) -> set[str]:
    """The fields of a row. Tables have null where a row has no such field."""
    return {field for field, value in row.items() if value is not None}


def grouped(answers: list[tuple[str, dict, float]], score: str) -> tuple[str, dict]:
    """The (where, row, score) of the answers to one prompt -> one row."""
    where, first, _ = answers[0]
    row = {"prompt": first["prompt"]}
    row["responses"] = [answer["response"] for _, answer, _ in answers]
    row["scores"] = [number for _, _, number in answers]
    fields = {}  # a dict keeps the order in which they appear
    for _, answer, _ in answers:
        fields |= dict.fromkeys(answer)
    for field in fields:
        if field in ("prompt", "response", score):
            continue
        values = [answer.get(field) for _, answer, _ in answers]
        if all(value == values[0] for value in values):
            row[field] = values[0]
        else:
            row[field] = values
    return where, row
