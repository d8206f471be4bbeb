"""Reading and changing the fields of a row."""
from data import Messages, responses_of, to_messages


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
    for field in ("chosen", "rejected", "response", "responses"):
        if field in row:
            return True
    return False


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
