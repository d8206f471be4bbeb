"""template_changes.py: does the text of a row have everything that the row says?

    {"role": "assistant", "content": "<think>I guess.</think>Mercury is."}
    ->  <|im_start|>assistant
        Mercury is.<|im_end|>              the thoughts are gone: the template changed the response

A chat template is free to drop and to rewrite. Some delete thoughts, do not write tool calls, or
skip a turn whose role they do not know. Then people compared other answers than the model sees. So
we look for every piece that a row says in its text, and the audit counts the rows where one is
missing.

Three traps:

    inside another   A system turn "rhyme" is found in the question "What is a rhyme?", although the
                     template dropped it. So each piece has a place of its own.
    an echo          An answer "Paris" is found in the prompt. So a response is looked for after the
                     last words of its prompt.
    white space      Templates may write it in their own way. That alone is no change.

Who speaks is not checked, and neither is the order of the turns of a prompt.

It costs some 20 microseconds a row. It is used where a chat template is (extras/chat_template.py).
tests/extras/test_chat_template.py shows what is noticed, and that plain dialogues are not.
"""
import json
import os

from data import UNREAD, Messages, Row

THOUGHTS = ("reasoning_content", "thinking", "reasoning")  # three names for the same
SAID = {"content", "tool_calls", *THOUGHTS}  # fields of a message that a template has to write
NOT_SAID = {"role", "type", "id", "tool_call_id"}  # fields that it need not write


def notes(row: Row, prompt_text: str, texts: list[str]) -> list[str]:
    """Notes for the audit on what is not in the texts as the row has it."""
    changed = {"prompt": False, "response": False}
    unread = set()
    for response, text in zip(row.responses, texts):
        if not stands_in(text, said_in(row.prompt)) or not stands_in(text, row.tools):
            changed["prompt"] = True
        if not stands_in(after_prompt(row, prompt_text, text), said_in(response)):
            changed["response"] = True
        unread |= unread_fields(text, row.prompt + response)
    parts = [part for part in changed if changed[part]]
    found = [f"the template changed the {part}, or left some of it out" for part in parts]
    return found + [UNREAD + field for field in sorted(unread)]


def after_prompt(row: Row, prompt_text: str, text: str) -> str:
    """The part of a text in which a response has to stand: what follows the prompt's last words.

    Not what follows the text of the prompt: that may end with <think>, as the response begins.
    """
    last = row.prompt[-1]["content"].strip() if row.prompt else ""
    if not last:
        return text
    shared = os.path.commonprefix([prompt_text, text])
    found = shared.rfind(last)
    return text[len(shared) if found < 0 else found + len(last) :]


def said_in(messages: Messages) -> list:
    """What is said in these messages: contents, calls of tools, thoughts."""
    said = []
    for message in messages:
        for field in message:
            if field in SAID:
                said.append(message[field])
    return said


def unread_fields(text: str, messages: Messages) -> set[str]:
    """Fields of messages whose meaning is not known here, and which are not in the text."""
    unread = set()
    for message in messages:
        for field in message.keys() - SAID - NOT_SAID:
            if not stands_in(text, message[field]):
                unread.add(field)
    return unread


def stands_in(text: str, value) -> bool:
    """Whether a text has all the texts in a value: a list of contents, of calls, of tools.

    Each has a place of its own: a system turn "rhyme" is not found in "What is a rhyme?".
    """
    rest = text
    for said in sorted(texts_in(value), key=len, reverse=True):
        escaped = json.dumps(said, ensure_ascii=False)[1:-1]  # as templates write tool calls
        for written in (said.strip(), escaped):
            if written in rest:
                rest = rest.replace(written, "\0", 1)
                break
        else:
            # Templates may write white space in their own way: <think>\nSo.\n</think>\n\nYes.
            if "".join(said.split()) not in "".join(rest.split()):
                return False
    return True


def texts_in(value):
    """Every text in a value that came from JSON, but no types and ids."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield json.dumps(value)
    elif isinstance(value, list):
        for item in value:
            yield from texts_in(item)
    elif isinstance(value, dict):
        for field, item in value.items():
            if field not in NOT_SAID:
                yield from texts_in(item)
