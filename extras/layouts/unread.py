"""What no layout reads: pictures, and texts under names that nobody knows.

    images, videos, audios      refused: the answers are about something that is not read here
    context, document, …        refused: they belong to the prompt, and nobody says how
    text, and no prompt         refused: it may be the prompt under another name
    anything else               stays in the row; data.py lists its fields once
"""
import re

from data import DataError
from extras.layouts.fields import dialogue_of, has_responses

MEDIA = ("images", "image", "videos", "video", "audios", "audio")

# Fields of the native row, and what says something about it. Their texts are no prompt.
KNOWN = {"prompt", "chosen", "rejected", "response", "responses", "scores", "ranks", "margin",
         "tools", "gold_chosen", "gold_rejected"}
# The last word of a name: "id" stands for question_id too.
ABOUT = {"id", "source", "subset", "split", "model", "models", "language", "category", "dataset",
         "license", "url", "date", "time", "timestamp"}

# Names of prompts: also a single word in them is text.
ASKED = {"query", "ask", "request", "problem", "user", "human", "q"}
# What no layout has read by the time that this is looked at.
MEANINGFUL = {
    "context", "conversation", "previous_messages", "document", "passage", "article",
    "background", "image_url", "image_path",
}

LETTER = re.compile(r"[^\W\d_]")
# Chinese, Japanese and Thai put no space between words: four letters in a row are text too.
NO_SPACES = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]{4}")


def media(row: dict, where: str) -> dict:
    """Empty fields for pictures, sound and film leave the row.

    {"prompt": "q", "images": [], …} -> {"prompt": "q", …}

    Raises: DataError where there is something in one.
    """
    kept = {}
    for field, value in row.items():
        if field.lower() not in MEDIA:
            kept[field] = value
        elif value:
            raise DataError(f"{where}: field {field!r}: only text is read here")
    return kept


def refuse_meaningful(row: dict, where: str) -> None:
    """Raises: DataError for fields whose names say that they belong to the dialogue."""
    for field, value in row.items():
        if field.lower() in MEANINGFUL and value and not isinstance(value, (bool, int, float)):
            advice = "put it into the prompt, or take it out of the row"
            raise DataError(f"{where}: field {field!r} may belong to the prompt: {advice}")


def refuse_unread_text(row: dict, where: str) -> None:
    """Raises: DataError for a native row without a prompt that has text in fields nobody read."""
    if not has_responses(row) or somebody_asks(row, where):
        return
    fields = []
    for field, value in row.items():
        about = field.lower().split("_")[-1] in ABOUT
        named = field.lower() in ASKED and isinstance(value, str) and value.strip()
        if field not in KNOWN and not about and (named or is_text(value)):
            fields.append(repr(field))
    if fields:
        advice = "name the prompt with --prompt-field, or --prompt-field '' where there is none"
        raise DataError(f"{where}: no prompt, and text in {', '.join(fields)}: {advice}")


def somebody_asks(row, where):
    """Whether there is a turn that the responses answer. A system turn alone is none."""
    prompt, responses = dialogue_of(row, where)
    for turn in prompt + responses[0]:
        if turn["role"] not in ("system", "assistant", "tool"):
            return True
    return False


def is_text(value) -> bool:
    """Whether this may be a prompt: text of two words or more, a message, or a list of such."""
    if isinstance(value, str):
        words = filter(LETTER.search, value.split())  # "2023-05-01 10:00" has none
        return len(list(words)) >= 2 or bool(NO_SPACES.search(value))
    if isinstance(value, dict):
        return "role" in value and "content" in value or "from" in value and "value" in value
    if isinstance(value, list):
        return any(map(is_text, value))
    return False
