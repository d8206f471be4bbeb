"""Level 3: what a number means. Read eval.py first, and extras/toy_world.py for the last two.

Replace each `raise NotImplementedError` by your answer. Then, from the top folder:

    python -m pytest exercises/ -k interval         the checks of one exercise
    python -m pytest exercises/test_level3.py       those of the level

Shapes: B pairs; all arrays are NumPy's. Rewards and gaps are in nats.
"""
import numpy as np


def accuracy(r_chosen: np.ndarray, r_rejected: np.ndarray) -> float:
    """ties: the share of pairs that are ranked as labelled; a tie counts half.

    A model that gives every text the same reward knows nothing, so it should get 0.5. A NaN is no
    wrong answer: it is a broken model.

    Args:    (B,) each.
    Raises:  ValueError where a reward is not finite.
    Source:  `pairwise_correct` in loss.py, `check_rewards` in eval.py.
    """
    raise NotImplementedError


def length_figures(
    r_chosen: np.ndarray,
    r_rejected: np.ndarray,
    tokens_chosen: np.ndarray,
    tokens_rejected: np.ndarray,
) -> tuple[float, float | None]:
    """longer: what length alone would score, and the accuracy where length misleads.

    Args:    (B,) each; tokens are the lengths of the responses.
    Returns: the accuracy of the rule "the longer one wins" (equal lengths count half), and the
             accuracy of the rewards on the pairs whose chosen response is shorter (None where
             there is no such pair).
    Source:  `accuracy_figures` in eval.py.
    """
    raise NotImplementedError


def interval(
    correct: np.ndarray, prompt: np.ndarray, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """interval: the 95% interval of an accuracy, by a bootstrap over PROMPTS.

    Pairs of the same prompt are right or wrong together. So draw whole prompts with replacement,
    as many as there are; compute the accuracy over all their pairs; do that `draws` times; take
    the 2.5% and 97.5% quantiles.

    Args:    correct: (B,) 1, ½ or 0. prompt: (B,) equal numbers mean the same prompt.
    Source:  `bootstrap_interval` in eval.py; Efron 1979.
    """
    raise NotImplementedError


def temperature(gaps: np.ndarray) -> float:
    """temperature: the T between 0.1 and 10 for which the mean of −log σ(gap / T) is lowest.

    Above 1, the model is surer than it is right. To within 2% is enough: try many T.

    Args:    gaps: (B,) r_chosen − r_rejected; some are negative.
    Source:  `best_temperature` in eval.py; Guo et al. 2017.
    """
    raise NotImplementedError


def ceiling(gold_gaps: np.ndarray) -> float:
    """ceiling: the accuracy that the TRUE rewards reach on average.

    Labels are drawn: the response with the higher true reward is chosen with P = σ(|gap|) only.

    Args:    gold_gaps: (B,) differences of true rewards, of either sign.
    Returns: the expected share of pairs that they rank as labelled.
    Source:  `ceiling` in extras/toy_world.py.
    """
    raise NotImplementedError


def rambling_reward(prompt: str, response: str, gold: float) -> float:
    """rambling: the true reward of a world where longer is better.

    In the toy world an added sentence counts +1 on the topic and −1 off it. Here it counts +1 in
    both cases, also off the topic. Nothing else changes.

    Args:    gold: what `gold_reward` in extras/toy_world.py says of the response.
    Source:  `TOPICS` and `find_question` there. A sentence may be in a response twice. Then train:
             `python -m exercises.train rambling`.
    """
    raise NotImplementedError
