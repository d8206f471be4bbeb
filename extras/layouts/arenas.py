"""Two models answer, and people say which one is better: the votes of arenas.

The winner is named model_a, model_b or a tie. "Both are bad" is a tie too: it orders nothing.
What becomes of a verdict is in verdicts.py.
"""
import json

from data import DataError, to_number
from extras.layouts.fields import answers_apart, is_texts, take
from extras.layouts.notations import with_roles
from extras.layouts.verdicts import FIRST, SECOND, TIE, verdict_of, with_verdict

WINNERS = {
    "model_a": FIRST,
    "model_b": SECOND,
    "tie": TIE,
    "tie (bothbad)": TIE,
    "both_bad": TIE,
}


def ppe_preference(row: dict, where: str) -> dict:
    """lmarena-ai/PPE-Human-Preference-V1 (Frick et al. 2024, arXiv:2410.14872).

    {"prompt": "q", "response_1": "good", "response_2": "bad", "winner": "model_a"}
    -> {"prompt": "q", "chosen": "good", "rejected": "bad"}
    """
    if not answers_apart(row, "response_1", "response_2", "winner"):
        return row
    row = dict(row)
    better = verdict_of(row, "winner", WINNERS, where)
    return with_verdict(row, row.pop("response_1"), row.pop("response_2"), better)


def arena(row: dict, where: str) -> dict:
    """lmsys/chatbot_arena_conversations, lmsys/mt_bench_human_judgments (Zheng et al. 2023,
    arXiv:2306.05685), lmarena-ai/arena-human-preference-100k and -140k.

    {"conversation_a": [user q, assistant good], "conversation_b": [user q, assistant bad],
     "winner": "model_a", "turn": 1}
    -> {"chosen": [user q, assistant good], "rejected": [user q, assistant bad]}

    `turn` says how many rounds people had seen. MT-bench has both rounds in every row, also where
    only the first one was judged.
    """
    if not answers_apart(row, "conversation_a", "conversation_b"):
        return row
    row = dict(row)
    rounds = row.pop("turn", None)
    better = verdict_of(row, "winner", WINNERS, where)
    dialogues = []
    for field in ("conversation_a", "conversation_b"):
        dialogue = with_roles(row.pop(field))
        if rounds is not None:
            dialogue = first_rounds(dialogue, to_number(rounds, where, "turn"), where, field)
        dialogues.append(dialogue)
    return with_verdict(row, *dialogues, better)


def first_rounds(dialogue, rounds, where, field):
    """A dialogue up to the answer of this round."""
    answers = 0
    for position, message in enumerate(dialogue if isinstance(dialogue, list) else []):
        if isinstance(message, dict) and message.get("role") == "assistant":
            answers += 1
            if answers == rounds:
                return dialogue[: position + 1]
    raise DataError(f"{where}: field 'turn' is {rounds:g}, but {field!r} has {answers} answers")


def arena_55k(row: dict, where: str) -> dict:
    """lmsys/arena-human-preference-55k: rounds as JSON lists in a text, the winner as three flags.

    {"prompt": '["q"]', "response_a": '["good"]', "response_b": '["bad"]',
     "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}
    -> {"chosen": [user q, assistant good], "rejected": [user q, assistant bad]}
    """
    if not answers_apart(row, "response_a", "response_b", "winner_model_a", "winner_model_b"):
        return row
    row = dict(row)
    prompts = texts_of_json(row, "prompt", where)
    dialogues = []
    for field in ("response_a", "response_b"):
        answers = texts_of_json(row, field, where)
        if len(answers) != len(prompts):
            counts = f"{len(prompts)} prompts, but {len(answers)} answers in {field!r}"
            raise DataError(f"{where}: {counts}")
        dialogue = []
        for prompt, answer in zip(prompts, answers):
            dialogue.append({"role": "user", "content": prompt})
            dialogue.append({"role": "assistant", "content": answer})
        dialogues.append(dialogue)
    return with_verdict(row, *dialogues, flagged(row, where))


def texts_of_json(row, field, where):
    """A text '["a", null]' -> ["a", ""]. Null is an empty answer there."""
    value = take(row, field, where)
    try:
        texts = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        texts = None
    if isinstance(texts, list):
        texts = ["" if text is None else text for text in texts]
    if not is_texts(texts):
        raise DataError(f"{where}: field {field!r} is not a JSON list of texts")
    return texts


def flagged(row, where):
    """The verdict whose flag is 1."""
    flags = {"winner_model_a": FIRST, "winner_model_b": SECOND, "winner_tie": TIE}
    winners = []
    for field, verdict in flags.items():
        if verdict_of(row, field, {"0": False, "1": True}, where):
            winners.append(verdict)
    if len(winners) != 1:
        raise DataError(f"{where}: {len(winners)} of {', '.join(flags)} are 1, not one")
    return winners[0]
