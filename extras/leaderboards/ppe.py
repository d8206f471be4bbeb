"""PPE, Preference Proxy Evaluations: people's choices, and answers that a program can check.

Its two kinds of data set (Frick et al. 2024, the data sets lmarena-ai/PPE-… on the hub):

    human preference   two answers, and which one a person chose. Ties are left out
    best of K          32 answers of one model to one question, each right or wrong. The best of K
                       is the one with the highest reward: is it a right one?

Their code could not be compared with this, so the figures have plain names and not theirs. What
they make of many models (correlations, separability) needs the models' names and is not here.
"""
import numpy as np

from extras.leaderboards.rows import has, is_list


PREFERENCE_FIELDS = (
    "question_id",
    "winner",
    "model_a",
    "model_b",
    "response_1",
    "response_2",
)


def is_preference(example, r):
    """Its names for the fields of a pair."""
    return has(example, *PREFERENCE_FIELDS) and len(r) == 2


def preference(rows):
    """Accuracy on the pairs. Equal rewards are half right."""
    right = []
    for example, r in rows:
        better, worse = example.pairs()[0]
        right.append(agreement(r[better], r[worse]))
    total = {"rows": len(rows), "accuracy": mean(right)}
    return {"parts": {}, "total": total, "problems": []}


def is_best_of_k(example, r):
    """K responses to one prompt, and pairs of a right and a wrong one by their indices."""
    if not has(example, "response_1", "response_2", "sampled_conflict_pairs"):
        return False
    pairs = example.row.raw["sampled_conflict_pairs"]
    if not isinstance(pairs, list):
        return False
    return all(is_pair(pair, len(r)) for pair in pairs)


def is_pair(pair, K):
    """Whether something is a list of two indices of K responses."""
    if not is_list(pair, 2):
        return False
    for index in pair:
        if not isinstance(index, int):
            return False
    return 0 <= min(pair) and max(pair) < K


def best_of_k(rows):
    """Accuracy on the listed pairs, and the mean score of the best of K.

    pairs, accuracy   equal rewards are half right
    picked            mean score of the response with the highest reward; where several share it,
                      their mean
    random, best      what a random pick gives, and the best possible one
    A question whose answers are all right, or all wrong, has no pairs. It is left out when the
    file is read, while it belongs to a mean over all questions.
    """
    right, picked, random, best = [], [], [], []
    for example, r in rows:
        scores = np.array(example.scores)  # (K,)
        for i, j in example.row.raw["sampled_conflict_pairs"]:
            if scores[i] > scores[j]:
                right.append(agreement(r[i], r[j]))
            elif scores[i] < scores[j]:
                right.append(agreement(r[j], r[i]))
        highest = r == r.max()
        picked.append(scores[highest].mean())
        random.append(scores.mean())
        best.append(scores.max())
    total = {
        "rows": len(rows),
        "pairs": len(right),
        "accuracy": mean(right),
        "picked": mean(picked),
        "random": mean(random),
        "best": mean(best),
    }
    return {"parts": {}, "total": total, "problems": []}


def mean(values):
    """The mean, or None of nothing."""
    return float(np.mean(values)) if values else None


def agreement(r_better, r_worse):
    """1 where the better response has the higher reward, ½ at a tie, else 0."""
    return float(np.sign(r_better - r_worse)) / 2 + 0.5
