"""How a dialogue is written down: lists of texts, other names for the speakers, transcripts."""
import json
import json
import re

from data import DataError
from extras.layouts.fields import change_dialogues, is_texts

# ShareGPT's names for the roles.
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "observation": "tool",
}
# The two names in a transcript.
SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def tools(row: dict, where: str) -> dict:
    """The tools that the assistant may call: a list, or the JSON text of one (LLaMA-Factory).

    {"prompt": "q", "tools": '[{"name": "weather"}]', …}
    -> {"prompt": "q", "tools": [{"name": "weather"}], …}: the chat template writes them down
    """
    if "tools" not in row:
        return row
    row = dict(row)
    value = row.pop("tools")
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else []
        except ValueError:
            raise DataError(f"{where}: field 'tools' is not JSON") from None
    if not value:
        return row
    if not isinstance(value, list):
        raise DataError(f"{where}: field 'tools' is not a list of tools")
    return row | {"tools": value}


def rewardbench(row: dict, where: str) -> dict:
    """allenai/reward-bench-2 (arXiv:2506.01937) and THU-KEG/RM-Bench (arXiv:2410.16184).

    {"prompt": "q", "chosen": ["good"], "rejected": ["bad", "worse"]}
    -> {"prompt": "q", "responses": ["good", "bad", "worse"], "scores": [1, 0, 0]}

    RM-Bench has three of each: short, long, long with Markdown. The order stays.
    """
    if not is_texts(row.get("chosen")) and not is_texts(row.get("rejected")):
        return row
    row = dict(row)
    responses = []
    scores = []
    for field, score in (("chosen", 1), ("rejected", 0)):
        if field not in row:
            found = ", ".join(row)
            raise DataError(f"{where}: no field {field!r} (found: {found})")
        texts = row.pop(field)
        if not is_texts(texts):
            texts = [texts]
        for text in texts:
            responses.append(text)
            scores.append(score)
    row["responses"] = responses
    row["scores"] = scores
    return row


def sharegpt(row: dict, where: str) -> dict:
    """ShareGPT: "from" and "value" for role and content. LLaMA-Factory's ranking data.

    {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}, …}
    -> {"messages": [user q], "chosen": assistant a, …}
    """
    row = dict(row)
    if "conversations" in row and "messages" not in row:
        row["messages"] = row.pop("conversations")
    return change_dialogues(row, with_roles)


def with_roles(value):
    """{"from": "human", "value": "q"} -> {"role": "user", "content": "q"}, in lists too."""
    if isinstance(value, list):
        return [with_roles(item) for item in value]
    if not isinstance(value, dict):
        return value
    message = dict(value)
    if "from" in message:
        message["role"] = message.pop("from")
    if "value" in message:
        message["content"] = message.pop("value")
    for theirs, ours in ROLES.items():
        if message.get("role") == theirs:
            message["role"] = ours
    return message


def human_assistant(row: dict, where: str) -> dict:
    r"""Transcripts, as Anthropic published them.

    {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"}
    -> {"chosen": [user q, assistant good], "rejected": [user q, assistant bad]}

    {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " good", "rejected": " bad"}
    -> {"prompt": [user q], "chosen": "good", "rejected": "bad"}
    """
    row = change_dialogues(row, turns_of_transcript)
    prompt = row.get("prompt")
    empty_answer = {"role": "assistant", "content": ""}
    if isinstance(prompt, list) and prompt[-1:] == [empty_answer]:
        # The space after "Assistant:" is not a part of the answer.
        row = change_dialogues(row, without_outer_space)
        row["prompt"] = prompt[:-1]
    return row


def json_text(row: dict, where: str) -> dict:
    """Messages written as text, as tables of text have them.

    {"prompt": '[{"role": "user", "content": "q"}]', …} -> {"prompt": [user q], …}
    """
    row = dict(row)
    if "conversations" in row:
        row["conversations"] = messages_of_json(row["conversations"])
    return change_dialogues(row, messages_of_json)


def messages_of_json(value):
    """Text that is a JSON list of messages -> that list. Others stay as they are."""
    if not isinstance(value, str) or not value.lstrip().startswith("[{"):
        return value
    try:
        messages = json.loads(value)
    except ValueError:
        return value
    for message in messages:
        if not isinstance(message, dict) or not message.keys() & {"role", "from"}:
            return value
    return messages


def extra_id(row: dict, where: str) -> dict:
    r"""NVIDIA's marks between turns, in HelpSteer2 (Wang et al. 2024). The user begins.

    {"prompt": "q\n<extra_id_1>Assistant\na\n<extra_id_1>User\nand why?", …}
    -> {"prompt": [user q, assistant a, user "and why?"], …}
    """
    prompt = row.get("prompt")
    if not isinstance(prompt, str) or "<extra_id_1>" not in prompt:
        return row
    first, *parts = re.split(r"\n?<extra_id_1>(User|Assistant)\n", prompt)
    messages = [{"role": "user", "content": first}]
    for speaker, text in zip(parts[::2], parts[1::2]):
        messages.append({"role": speaker.lower(), "content": text})
    return row | {"prompt": messages}


def turns_of_transcript(value):
    r"""A text "\n\nHuman: q\n\nAssistant: a" -> [user q, assistant a]. Others stay as they are."""
    if not isinstance(value, str) or not value.lstrip().startswith("Human:"):
        return value
    # "Human:" inside a line is text, not a new turn.
    _, *parts = re.split(r"(?:^|\n\n)(Human|Assistant):", value.strip())
    messages = []
    for speaker, text in zip(parts[::2], parts[1::2]):
        message = {"role": SPEAKERS[speaker], "content": text.strip()}
        messages.append(message)
    return messages


def without_outer_space(value):
    """Text without white space at both ends. Messages stay as they are."""
    if isinstance(value, str):
        return value.strip()
    return value
