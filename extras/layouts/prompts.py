"""Where the prompt is: in fields of other names, or at the start of each response."""
from data import DataError, Messages, responses_of, to_messages
from extras.layouts.fields import dialogue_of, has_responses, prompt_of, with_responses


def question(row: dict, where: str) -> dict:
    """LLaMA-Factory's alpaca layout; the `question` of Intel/orca_dpo_pairs and of others too.

    {"instruction": "q", "input": "text", "chosen": "good", "rejected": "bad"}
    -> {"prompt": "q\\ntext", "chosen": "good", "rejected": "bad"}
    """
    row = dict(row)
    texts = []
    for field in ("instruction", "question", "input"):
        text = row.pop(field, "")
        if not isinstance(text, str):
            raise DataError(f"{where}: field {field!r} is not text")
        if text:
            texts.append(text)
    if not texts:
        return row
    prompt = "\n".join(texts)
    if row.get("prompt") not in (None, "", prompt):
        raise DataError(f"{where}: two prompts, in 'prompt' and in 'instruction' or 'input'")
    return row | {"prompt": prompt}


def messages(row: dict, where: str) -> dict:
    """A dialogue to score, or the prompt of some responses.

    {"messages": [user q, assistant good]} -> {"response": [user q, assistant good]}

    {"messages": [user q], "responses": ["good", "bad"]}
    -> {"prompt": [user q], "responses": ["good", "bad"]}
    """
    if "messages" not in row:
        return row
    row = dict(row)
    messages = to_messages(row.pop("messages"), "user", where, "messages")
    if not has_responses(row):
        if not ends_with_answer(messages):
            raise DataError(f"{where}: field 'messages' does not end with a turn of the assistant")
        return row | {"response": messages}
    prompt, responses = dialogue_of(row, where)
    for response in responses:
        if messages in (response, prompt + response):
            return row  # UltraFeedback repeats the chosen dialogue
    if prompt:
        raise DataError(f"{where}: two prompts, in 'prompt' and in 'messages'")
    if ends_with_answer(messages) and opened_by_assistant(responses[0]):
        raise DataError(f"{where}: field 'messages' already ends with a turn of the assistant")
    return row | {"prompt": messages}


def history(row: dict, where: str) -> dict:
    """Earlier turns beside the prompt.

    {"history": [["a", "b"]], "prompt": "q", …} -> {"prompt": [user a, assistant b, user q], …}
    """
    row = dict(row)
    turns = row.pop("history", []) or []
    if not isinstance(turns, list):
        raise DataError(f"{where}: field 'history' is not a list of [question, answer]")
    earlier = []
    for turn in turns:
        if not isinstance(turn, list) or len(turn) != 2:
            raise DataError(f"{where}: field 'history' is not a list of [question, answer]")
        asked, answered = turn
        earlier += to_messages(asked, "user", where, "history")
        earlier += to_messages(answered, "assistant", where, "history")
    if not earlier:
        return row
    prompt = prompt_of(row, where)
    if prompt and prompt[0]["role"] == "system":
        return row | {"prompt": prompt[:1] + earlier + prompt[1:]}
    return row | {"prompt": earlier + prompt}


def whole_dialogues(row: dict, where: str) -> dict:
    """TRL's implicit prompt: what the dialogues share. UltraFeedback repeats it in `prompt`.

    {"chosen": [user q, assistant good], "rejected": [user q, assistant bad]}
    -> {"prompt": [user q], "chosen": [assistant good], "rejected": [assistant bad]}

    {"response": [user q, assistant good]} -> {"prompt": [user q], "response": [assistant good]}

    {"chosen": "a", "rejected": "b"} -> {"prompt": [], …}: texts that answer nothing share none
    """
    if not has_responses(row):
        return row
    prompt, responses = dialogue_of(row, where)
    spoken = [response for response in responses if response]
    if not spoken:
        return row | {"prompt": prompt}

    whole = [is_whole(response, prompt) for response in spoken]
    if any(whole) and not all(whole):
        refuse_some_whole(row, where)
    if any(whole):
        check_repeated(prompt, spoken[0], where)
        prompt = []
    else:
        check_openings(row, where)
        if prompt and opened_by_assistant(spoken[0]):
            return row  # ordinary answers

    shared = shared_turns(spoken)
    prompt = prompt + spoken[0][:shared]
    answers = [response[shared:] for response in responses]
    if any(whole) and not all(map(opened_by_assistant, filter(None, answers))):
        raise DataError(f"{where}: the responses answer different prompts")
    return with_responses(row, answers, where) | {"prompt": prompt}


def refuse_some_whole(row: dict, where: str):
    """Raises: DataError for responses of two kinds."""
    if "rejected" in row:
        kinds = "one of 'chosen' and 'rejected' holds the whole dialogue, the other only an answer"
    else:
        kinds = "some responses hold the whole dialogue, others only an answer"
    raise DataError(f"{where}: {kinds}")


def check_openings(row: dict, where: str) -> None:
    """Raises: DataError for a response that the user begins, beside one of the assistant."""
    _, responses = dialogue_of(row, where)
    if not any(map(opened_by_assistant, responses)):
        return
    fields, _ = responses_of(row, where)
    for field, response in zip(fields, responses):
        if response and not opened_by_assistant(response):
            speaker = response[0]["role"]
            raise DataError(f"{where}: field {field!r} begins with a turn of {speaker!r}")


def is_whole(response: Messages, prompt: Messages) -> bool:
    """Whether a response holds the dialogue from its beginning."""
    if len(response) < 2 or opened_by_assistant(response):
        return False
    if not prompt or prompt[-1]["role"] == "user":
        return True
    # After an answer, or after a system turn, the user may say more.
    return response[: len(prompt)] == prompt


def check_repeated(prompt: Messages, dialogue: Messages, where: str) -> None:
    """Raises: DataError where a turn of the prompt is not in the dialogue that should repeat it."""
    said = [turn.get("content") or "" for turn in dialogue[:-1]]  # a call of a tool may have none
    for turn in prompt:
        content = turn.get("content") or ""
        if content.strip() not in "\n".join(said):
            raise DataError(f"{where}: field 'prompt' is not in the dialogues of the responses")


def shared_turns(responses: list[Messages]) -> int:
    """How many turns they have in common at the beginning. Each keeps its last turn."""
    shortest = min(map(len, responses))
    for shared in range(shortest - 1):
        for response in responses:
            if response[shared] != responses[0][shared]:
                return shared
    return shortest - 1


def system(row: dict, where: str) -> dict:
    """A system turn beside the prompt.

    {"system": "s", "prompt": "q", …} -> {"prompt": [system s, user q], …}
    """
    row = dict(row)
    if "system" not in row:
        row["system"] = row.pop("system_prompt", None) or ""
    turns = to_messages(row.pop("system"), "system", where, "system")
    prompt = prompt_of(row, where)
    if not turns or prompt[:1] == turns:
        return row
    if prompt and prompt[0]["role"] == "system":
        raise DataError(f"{where}: two system turns, in 'system' and in the prompt")
    return row | {"prompt": turns + prompt}


def ends_with_answer(messages: Messages) -> bool:
    """Whether the assistant said the last turn."""
    return messages != [] and messages[-1]["role"] == "assistant"


def opened_by_assistant(messages: Messages) -> bool:
    """Whether the first turn is an answer, or what a tool said on the way to it."""
    return messages != [] and messages[0]["role"] in ("assistant", "tool")
