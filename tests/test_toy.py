"""The toy world keeps its promises: noisy labels of a known reward that depends on the prompt and not on length."""
import math
import random

import numpy as np

from data import gold_reward, toy_preferences, toy_prompt, toy_response


def test_the_gold_reward_can_be_checked_by_hand():
    prompt = "Hello. Which colour is grass? Thanks."
    assert gold_reward(prompt, "It is green.") == 3.0
    assert gold_reward(prompt, "It is red.") == -3.0
    assert gold_reward(prompt, "I am happy to help. It is green. Painters mix it often.") == 3.0 + 1.5 + 1.0
    assert gold_reward(prompt, "You ask too much. It is green. Many trains go there.") == 3.0 - 1.5 - 1.0
    assert gold_reward("What is the opposite of hot?", "It is green.") == -3.0  # right elsewhere


def test_the_same_response_is_good_or_bad_depending_on_the_prompt():
    response = "It is green. You see it outdoors."
    assert gold_reward("Which colour is grass?", response) > 3 > -3 > gold_reward("What is a young dog called?", response)


def test_labels_are_drawn_with_the_bradley_terry_probability():
    rows = list(toy_preferences(20000, seed=1))
    gaps = np.array([r["gold_chosen"] - r["gold_rejected"] for r in rows])
    for size in np.unique(np.abs(gaps)):
        same = gaps[np.abs(gaps) == size]
        expected = 1 / (1 + math.exp(-size))
        assert size == 0 or abs((same > 0).mean() - expected) < 4 * math.sqrt(expected * (1 - expected) / len(same))


def test_length_says_nothing_about_the_gold_reward():
    rng = random.Random(0)
    lengths, rewards = [], []
    for _ in range(20000):
        prompt, topic, answer = toy_prompt(rng)
        response = toy_response(topic, answer, rng)
        lengths.append((len(response.split()), len(response)))
        rewards.append(gold_reward(prompt, response))
    for kind in zip(*lengths):  # words, characters
        assert abs(np.corrcoef(kind, rewards)[0, 1]) < 4 / math.sqrt(20000)


def test_the_same_seed_gives_the_same_world():
    first, again, other = (list(toy_preferences(50, seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert all(r["chosen"] != r["rejected"] for r in first)
