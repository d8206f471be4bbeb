"""What a judge gave to both sides: a check of the label, and a margin on request.

    {"chosen": "good", "rejected": "bad", "score_chosen": 9.0, "score_rejected": 6.5, …}

People or a larger model gave each response a score, and the label was made from the scores. Where
the label says otherwise than the scores, one of them is wrong. The audit counts these rows.

With --margin-from-scores the difference is the margin m of the loss −log σ(r_w − r_l − m): the
better a response was found, the further apart the rewards have to be (Touvron et al. 2023, eq 2).
The margin is in nats, so scores from 1 to 10 make large ones: divide them first.
"""
from data import DataError, to_number

# The names of both scores: UltraFeedback binarized, and Argilla's versions of it.
JUDGES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
)


def judged(row: dict, where: str, notes: list[str], wants_margin: bool) -> dict:
    """Both scores leave the row. With wants_margin their difference is its margin.

    Raises: DataError where a margin is wanted and the row has no two scores, or a margin already.
    """
    row = dict(row)
    scores = None
    for better, worse in JUDGES:
        if row.get(better) is not None and row.get(worse) is not None:
            scores = [to_number(row.pop(field), where, field) for field in (better, worse)]
            if scores[0] < scores[1]:
                notes.append(f"{better} is below {worse}")
    if not wants_margin:
        return row
    if scores is None:
        scores = sorted(two_scores(row, where), reverse=True)
    if row.get("margin") is not None:
        raise DataError(f"{where}: field 'margin' beside --margin-from-scores")
    return row | {"margin": scores[0] - scores[1]}


def two_scores(row: dict, where: str) -> list[float]:
    """The scores of two responses.  Raises: DataError where there are not exactly two."""
    scores = row.get("scores")
    if not isinstance(scores, list) or len(scores) != 2:
        fields = "score_chosen and score_rejected, or two responses and their scores"
        raise DataError(f"{where}: --margin-from-scores needs {fields}")
    return [to_number(score, where, "scores") for score in scores]
