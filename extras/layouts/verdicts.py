r"""Two answers and a verdict: a choice, a label, two scores. (arenas.py has those of arenas.)

    a, b, "a is better"    {"chosen": a, "rejected": b}
    a, b, "b is better"    {"chosen": b, "rejected": a}
    a, b, "a tie"          {"responses": [a, b], "scores": [0, 0]}    no pair; counted as "all tied"

The trap is the sign. Data sets write "the first is better" as 0 (PKU-SafeRLHF), as 1 (SHP), and as
a negative number (HelpSteer), and with the wrong one a model learns to like the bad answers. So
every value that is not in the published list is refused.
"""
from data import DataError, to_number
from extras.layouts.fields import answers_apart, column, take, with_prompt

FIRST, SECOND, TIE = "first", "second", "tie"


def summaries(row: dict, where: str) -> dict:
    r"""openai/summarize_from_feedback, comparisons (Stiennon et al. 2020, arXiv:2009.01325).

    {"info": {"subreddit": "s", "title": "t", "post": "p"},
     "summaries": [{"text": "bad"}, {"text": "good"}], "choice": 1}
    -> {"prompt": "SUBREDDIT: r/s\n\nTITLE: t\n\nPOST: p\n\nTL;DR:",
        "chosen": "good", "rejected": "bad"}

    The prompt holds all that people saw when they chose. News have `article` in place of `post`.
    """
    if not answers_apart(row, "info", "summaries"):
        return row
    row = dict(row)
    better = verdict_of(row, "choice", {"0": FIRST, "1": SECOND}, where)
    texts = column(row, "summaries", "text", where)
    del row["summaries"]
    if len(texts) != 2:
        raise DataError(f"{where}: field 'summaries' holds {len(texts)} summaries, not 2")
    prompt = text_to_summarize(row.pop("info"), where)
    row = with_prompt(row, prompt, "info", where)
    return with_verdict(row, *texts, better)


def text_to_summarize(info, where):
    """What the people saw, each part under its name."""
    info = info if isinstance(info, dict) else {}
    if not info.get("post") and not info.get("article"):
        raise DataError(f"{where}: field 'info' has neither 'post' nor 'article'")
    parts = []
    for field in ("subreddit", "title", "post", "article"):
        text = info.get(field) or ""
        if not isinstance(text, str):
            raise DataError(f"{where}: field 'info': {field!r} is not text")
        if field == "subreddit" and text:
            text = "r/" + text
        if text:
            parts.append(f"{field.upper()}: {text}")
    return "\n\n".join([*parts, "TL;DR:"])


def webgpt(row: dict, where: str) -> dict:
    """openai/webgpt_comparisons (Nakano et al. 2021, arXiv:2112.09332).

    {"question": {"full_text": "q"}, "answer_0": "bad", "answer_1": "good",
     "score_0": -1.0, "score_1": 1.0}
    -> {"prompt": "q", "chosen": "good", "rejected": "bad"}
    """
    if not answers_apart(row, "answer_0", "answer_1"):
        return row
    row = dict(row)
    question = row.get("question")
    if isinstance(question, dict):
        del row["question"]
        if not isinstance(question.get("full_text"), str):
            raise DataError(f"{where}: field 'question' has no text in 'full_text'")
        row = with_prompt(row, question["full_text"], "question", where)
    first = number_of(row, "score_0", where)
    second = number_of(row, "score_1", where)
    better = sign_of(second - first)
    return judged(row, "answer_0", "answer_1", better)


def shp(row: dict, where: str) -> dict:
    """stanfordnlp/SHP and SHP-2 (Ethayarajh et al. 2022, arXiv:2110.08420). 1 says: A is better.

    {"history": "q", "human_ref_A": "good", "human_ref_B": "bad", "labels": 1}
    -> {"prompt": "q", "chosen": "good", "rejected": "bad"}

    `history` is the post itself, a text. In other layouts it is a list of earlier turns.
    """
    if not answers_apart(row, "human_ref_A", "human_ref_B"):
        return row
    row = dict(row)
    better = verdict_of(row, "labels", {"1": FIRST, "0": SECOND}, where)
    if isinstance(row.get("history"), str):
        post = row.pop("history")
        row = with_prompt(row, post, "history", where)
    return judged(row, "human_ref_A", "human_ref_B", better)


def pku_saferlhf(row: dict, where: str) -> dict:
    """PKU-Alignment/PKU-SafeRLHF (Ji et al. 2024, arXiv:2406.15513).

    {"prompt": "q", "response_0": "bad", "response_1": "good", "better_response_id": 1}
    -> {"prompt": "q", "chosen": "good", "rejected": "bad"}

    "Better" is more helpful. `safer_response_id` is another question, and nobody reads it here.
    """
    if not answers_apart(row, "response_0", "response_1"):
        return row
    row = dict(row)
    better = verdict_of(row, "better_response_id", {"0": FIRST, "1": SECOND}, where)
    return judged(row, "response_0", "response_1", better)


def helpsteer2_preference(row: dict, where: str) -> dict:
    """nvidia/HelpSteer2, preference (Wang et al. 2024, arXiv:2410.01257). Below 0: the first.

    {"prompt": "q", "response_1": "good", "response_2": "bad", "preference_strength": -3}
    -> {"prompt": "q", "chosen": "good", "rejected": "bad"}
    """
    if not answers_apart(row, "response_1", "response_2", "preference_strength"):
        return row
    row = dict(row)
    strength = number_of(row, "preference_strength", where)
    better = sign_of(strength)
    return judged(row, "response_1", "response_2", better)


def helpsteer3(row: dict, where: str) -> dict:
    """nvidia/HelpSteer3, preference (Wang et al. 2025, arXiv:2505.11475). Below 0: the first.

    {"context": [user q], "response1": "good", "response2": "bad", "overall_preference": -2}
    -> {"prompt": [user q], "chosen": "good", "rejected": "bad"}
    """
    if not answers_apart(row, "response1", "response2", "overall_preference"):
        return row
    row = dict(row)
    if "context" in row:
        context = row.pop("context")
        row = with_prompt(row, context, "context", where)
    preference = number_of(row, "overall_preference", where)
    better = sign_of(preference)
    return judged(row, "response1", "response2", better)


def judgebench(row: dict, where: str) -> dict:
    """ScalerLab/JudgeBench (Tan et al. 2024, arXiv:2410.12784).

    {"question": "q", "response_A": "bad", "response_B": "good", "label": "B>A"}
    -> {"question": "q", "chosen": "good", "rejected": "bad"}
    """
    if not answers_apart(row, "response_A", "response_B"):
        return row
    row = dict(row)
    better = verdict_of(row, "label", {"A>B": FIRST, "B>A": SECOND}, where)
    return judged(row, "response_A", "response_B", better)


# ---------------------------------------------------------------- what they share


def judged(row, first_field, second_field, better):
    """The row with the answers of two fields, ordered or tied. The fields leave the row."""
    first = row.pop(first_field)
    second = row.pop(second_field)
    return with_verdict(row, first, second, better)


def with_verdict(row, first, second, better):
    """The row with two answers, ordered or tied."""
    if better == TIE:
        return row | {"responses": [first, second], "scores": [0, 0]}
    if better == SECOND:
        first, second = second, first
    return row | {"chosen": first, "rejected": second}


def verdict_of(row, field, meanings, where):
    """What the value of this field means. The field leaves the row.  Raises: DataError."""
    value = take(row, field, where)
    name = str(value).removesuffix(".0")  # a table may have 1.0 or "1"
    if name not in meanings:
        known = ", ".join(meanings)
        raise DataError(f"{where}: field {field!r} is {str(value)[:30]!r}, not one of {known}")
    return meanings[name]


def number_of(row, field, where):
    """The number in this field, which leaves the row.  Raises: DataError."""
    value = take(row, field, where)
    return to_number(value, where, field)


def sign_of(number):
    """Below 0 the first answer is better, above 0 the second."""
    if number == 0:
        return TIE
    return FIRST if number < 0 else SECOND


def openai_preference(row: dict, where: str) -> dict:
    """OpenAI's format for preference fine-tuning.

    {"input": {"messages": [user q], "tools": []}, "preferred_output": [assistant good],
     "non_preferred_output": [assistant bad]}
    -> {"prompt": [user q], "chosen": [assistant good], "rejected": [assistant bad]}
    """
    if not answers_apart(row, "preferred_output", "non_preferred_output"):
        return row
    row = dict(row)
    asked = take(row, "input", where)
    if not isinstance(asked, dict) or "messages" not in asked:
        raise DataError(f"{where}: field 'input' is not an object with 'messages'")
    row["prompt"] = asked["messages"]
    row["chosen"] = row.pop("preferred_output")
    row["rejected"] = row.pop("non_preferred_output")
    if asked.get("tools"):
        row["tools"] = asked["tools"]
    return row
