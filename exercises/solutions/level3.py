"""Level 3: what a number means."""
import numpy as np

from extras import toy_world


def accuracy(r_chosen: np.ndarray, r_rejected: np.ndarray) -> float:
    """np.sign is 1, 0 or −1: right, tied, wrong."""
    if not np.isfinite([r_chosen, r_rejected]).all():
        raise ValueError("a reward is not a finite number")
    return float((0.5 + np.sign(r_chosen - r_rejected) / 2).mean())


def length_figures(
    r_chosen: np.ndarray,
    r_rejected: np.ndarray,
    tokens_chosen: np.ndarray,
    tokens_rejected: np.ndarray,
) -> tuple[float, float | None]:
    """Length is a reward like any other: the number of tokens."""
    longer_wins = accuracy(tokens_chosen, tokens_rejected)
    misled = tokens_chosen < tokens_rejected  # (B,)
    if not misled.any():
        return longer_wins, None
    return longer_wins, accuracy(r_chosen[misled], r_rejected[misled])


def interval(
    correct: np.ndarray, prompt: np.ndarray, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Sums and counts of each prompt are enough: pairs need not be copied."""
    rng = np.random.default_rng(seed)
    prompts = np.unique(prompt)
    right = np.array([correct[prompt == p].sum() for p in prompts])
    count = np.array([(prompt == p).sum() for p in prompts])
    accuracies = []
    for _ in range(draws):
        drawn = rng.integers(len(prompts), size=len(prompts))
        accuracies.append(right[drawn].sum() / count[drawn].sum())
    low, high = np.quantile(accuracies, [0.025, 0.975])
    return float(low), float(high)


def temperature(gaps: np.ndarray) -> float:
    """A grid whose steps are 1%. log(1 + e^−z) as logaddexp(0, −z): no overflow."""
    grid = np.geomspace(0.1, 10, 461)
    losses = [np.logaddexp(0, -gaps / T).mean() for T in grid]
    return float(grid[np.argmin(losses)])


def ceiling(gold_gaps: np.ndarray) -> float:
    """The true rewards are right whenever the better response was chosen."""
    return float((1 / (1 + np.exp(-np.abs(gold_gaps)))).mean())


def rambling_reward(prompt: str, response: str, gold: float) -> float:
    """A sentence off the topic cost 1 and should earn 1: add 2 for each."""
    topic, _ = toy_world.find_question(prompt)
    reward = gold
    for name in toy_world.TOPICS:
        if name != topic:
            for sentence in toy_world.TOPICS[name].additions:
                reward += 2 * toy_world.ADDITION * response.count(sentence)
    return reward
