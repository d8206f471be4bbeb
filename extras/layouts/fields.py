"""Reading and changing the fields of a row."""
from data import DataError, Messages, responses_of, to_messages

RESPONSES = ("chosen", "rejected", "response", "responses")


def is_texts(value) -> bool:
    """Whether this is a list of texts."""
    if not isinstance(value, list) or not value:
        return False
    for text in value:
        if not isinstance(text, str):
            return False
    return True


def has_responses(row: dict) -> bool:
    """Whether there is a field with a response."""
    for field in RESPONSES:
        if field in row:
            return True
    return False


def answers_apart(row: dict, *fields: str) -> bool:
    """Whether the row has all these fields, and no response in one of ours.

    Some publish both their own fields and ours. Then ours count.
    """
    for field in fields:
        if field not in row:
            return False
    return not has_responses(row)


def take(row: dict, field: str, where: str):
    """The value of a field, which leaves the row.  Raises: DataError where there is none."""
    if field not in row:
        raise DataError(f"{where}: no field {field!r} (found: {', '.join(row)})")
    return row.pop(field)


def column(row: dict, field: str, name: str, where: str) -> list:
    """[{"answer": "a", …}, {"answer": "b", …}] -> ["a", "b"]: one value of each object.

    Raises: DataError naming the field and the object that has no such value.
    """
    objects = row[field]
    if not isinstance(objects, list):
        raise DataError(f"{where}: field {field!r} is not a list")
    values = []
    for number, item in enumerate(objects):
        value = item.get(name) if isinstance(item, dict) else None
        if value is None:
            raise DataError(f"{where}: field {field!r}: no {name!r} in {field}[{number}]")
        values.append(value)
    return values


def with_prompt(row: dict, prompt, field: str, where: str) -> dict:
    """The row with the prompt that this field held.  Raises: DataError for a second prompt."""
    if row.get("prompt", prompt) != prompt:
        raise DataError(f"{where}: two prompts, in 'prompt' and in {field!r}")
    return row | {"prompt": prompt}


def renamed(row: dict, names: dict, where: str) -> dict:
    """The row with the fields that the user named under our names.

    {"query": "q", "chosen": "a", "rejected": "b"} with names {"prompt": "query"}
    -> {"prompt": "q", "chosen": "a", "rejected": "b"}

    Raises: DataError for a field that is not there, and where both names are.
    """
    row = dict(row)
    values = {}
    found = ", ".join(row) or "nothing"
    for ours, theirs in names.items():
        if not theirs or theirs == ours:
            continue
        if theirs not in row:
            raise DataError(f"{where}: no field {theirs!r} (found: {found})")
        values[ours] = row[theirs]
    for ours in values:
        row.pop(names[ours], None)
    # All have left the row before the first comes back: 'chosen' and 'rejected' may change places.
    for ours, value in values.items():
        if row.get(ours, value) not in (value, None):
            kind = "prompts" if ours == "prompt" else "responses"
            raise DataError(f"{where}: two {kind}, in {ours!r} and in {names[ours]!r}")
        row[ours] = value
    if names.get("prompt") == "" and row.get("prompt"):
        raise DataError(f"{where}: field 'prompt' is not empty; --prompt-field '' says it is")
    return row


def prompt_of(row: dict, where: str) -> Messages:
    """The prompt as messages; none where there is no such field."""
    prompt = row.get("prompt", "")
    return to_messages(prompt, "user", where, "prompt")


def dialogue_of(row: dict, where: str) -> tuple[Messages, list[Messages]]:
    """Prompt and responses as messages.  Raises: DataError naming a field that is neither."""
    prompt = prompt_of(row, where)
    responses = []
    fields, _ = responses_of(row, where)
    for field, value in fields.items():
        response = to_messages(value, "assistant", where, field)
        responses.append(response)
    return prompt, responses


def with_responses(row: dict, responses: list[Messages], where: str) -> dict:
    """The row with other responses, given in the order of dialogue_of."""
    row = dict(row)
    fields, _ = responses_of(row, where)
    for field, response in zip(fields, responses):
        if field in row:  # chosen, rejected, response
            row[field] = response
        else:  # responses[0], responses[1], …
            row["responses"] = responses
    return row


def change_dialogues(row: dict, change) -> dict:
    """The row with change(value) for prompt, messages and each response."""
    row = dict(row)
    for field in ("prompt", "messages", "chosen", "rejected", "response"):
        if field in row:
            row[field] = change(row[field])
    if isinstance(row.get("responses"), list):
        responses = row["responses"]
        row["responses"] = [change(response) for response in responses]
    return row
