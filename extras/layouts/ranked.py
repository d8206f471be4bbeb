"""The better answer under a name of its own, and several answers that are ranked or scored.

    one is better      {"chosen": "good", "rejected": "bad"}
    K with numbers     {"responses": ["good", "bad", "fair"], "scores": [2, 0, 1]}    or "ranks"

All pairs of a row that are not tied are compared. They weigh as much as one pair together.
"""
from data import DataError, to_messages
from extras.layouts.fields import answers_apart, column, is_texts, take, with_prompt


def stack_exchange(row: dict, where: str) -> dict:
    """lvwerra/stack-exchange-paired: the answer j has more votes than the answer k.

    {"question": "q", "response_j": "good", "response_k": "bad"}
    -> {"question": "q", "chosen": "good", "rejected": "bad"}
    """
    if not answers_apart(row, "response_j", "response_k"):
        return row
    row = dict(row)
    row["chosen"] = row.pop("response_j")
    row["rejected"] = row.pop("response_k")
    return row


def ms_swift(row: dict, where: str) -> dict:
    """ms-swift's data for reward models: the dialogue ends with the chosen answer.

    {"messages": [user q, assistant good], "rejected_response": "bad"}
    -> {"messages": [user q], "chosen": [assistant good], "rejected": "bad"}

    {"messages": [user q, assistant good], "rejected_messages": [user q, assistant bad]}
    -> {"chosen": [user q, assistant good], "rejected": [user q, assistant bad]}

    {"query": "q", "response": "good", "rejected_response": ["bad", "worse"]}
    -> {"prompt": "q", "responses": ["good", "bad", "worse"], "scores": [1, 0, 0]}
    """
    if row.keys() & {"chosen", "rejected", "responses"}:
        return row
    row = dict(row)
    if "messages" in row and "rejected_messages" in row:
        row["chosen"] = row.pop("messages")
        row["rejected"] = row.pop("rejected_messages")
        return row
    if "rejected_response" not in row or not row.keys() & {"messages", "response"}:
        return row
    rejected = row.pop("rejected_response")
    if rejected == []:
        raise DataError(f"{where}: field 'rejected_response' is empty")
    if "query" in row:
        row = with_prompt(row, row.pop("query"), "query", where)
    chosen = row.pop("response", None)
    if chosen is None:
        turns = to_messages(row["messages"], "user", where, "messages")
        if not turns or turns[-1]["role"] != "assistant":
            raise DataError(f"{where}: field 'messages' does not end with a turn of the assistant")
        row["messages"], chosen = turns[:-1], turns[-1:]
    if is_texts(rejected):  # several, all of them worse than the one
        scores = [1] + [0] * len(rejected)
        return row | {"responses": [chosen, *rejected], "scores": scores}
    return row | {"chosen": chosen, "rejected": rejected}


def nectar(row: dict, where: str) -> dict:
    """berkeley-nest/Nectar (Zhu et al. 2023): seven answers; rank 1 is the best.

    {"prompt": "q", "answers": [{"answer": "good", "rank": 1.0}, {"answer": "bad", "rank": 2.0}]}
    -> {"prompt": "q", "responses": ["good", "bad"], "ranks": [1.0, 2.0]}
    """
    if not answers_apart(row, "answers") or not is_records(row["answers"], "answer"):
        return row
    row = dict(row)
    row["responses"] = column(row, "answers", "answer", where)
    row["ranks"] = column(row, "answers", "rank", where)
    del row["answers"]
    return row


def ultrafeedback(row: dict, where: str) -> dict:
    """openbmb/UltraFeedback (Cui et al. 2023, arXiv:2310.01377).

    {"instruction": "q", "completions": [{"response": "good", "fine-grained_score": 4.5},
                                         {"response": "bad", "fine-grained_score": 2.0}]}
    -> {"instruction": "q", "responses": ["good", "bad"], "scores": [4.5, 2.0]}

    The fine-grained score is the mean of four ratings. `overall_score`, which a critique gave, is
    read where the other one is missing: copies of 2023 have 10 where the critique said 1.
    """
    if not answers_apart(row, "completions") or not is_records(row["completions"], "response"):
        return row
    row = dict(row)
    row["responses"] = column(row, "completions", "response", where)
    field = "fine-grained_score"
    for completion in row["completions"]:
        if completion.get(field) is None:
            field = "overall_score"  # of all: the two have different scales
            break
    row["scores"] = column(row, "completions", field, where)
    del row["completions"]
    return row


def ppe_best_of_k(row: dict, where: str) -> dict:
    """lmarena-ai/PPE-MATH-Best-of-K and the like (Frick et al. 2024): which answers are correct.

    {"prompt": "q", "response_1": "good", "response_2": "bad", "scores": [true, false]}
    -> {"prompt": "q", "responses": ["good", "bad"], "scores": [1, 0]}
    """
    if not answers_apart(row, "response_1", "scores") or not isinstance(row["scores"], list):
        return row
    row = dict(row)
    responses, scores = [], []
    for number, score in enumerate(row["scores"], 1):
        response = take(row, f"response_{number}", where)
        responses.append(response)
        if isinstance(score, bool):
            score = int(score)
        scores.append(score)
    more = f"response_{len(scores) + 1}"
    if more in row:
        raise DataError(f"{where}: field {more!r}: only {len(scores)} scores")
    row["responses"] = responses
    row["scores"] = scores
    return row


def is_records(value, name):
    """Whether this is a list of objects that have a field of this name."""
    if not isinstance(value, list) or not value:
        return False
    return isinstance(value[0], dict) and name in value[0]
