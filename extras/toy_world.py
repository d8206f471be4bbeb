"""A toy world: preference pairs whose true reward is known.

People never tell us the number behind a choice. In this world we wrote the rule ourselves, so every
response y has a known true ("gold") reward r*(y). What a model learned can be held against it.
`python train_rm.py` without --data trains here: no download, about a minute on two CPU cores.
`python extras/toy_world.py N > pairs.jsonl` writes a world of another size, to be given as --data;
--seed, --label-noise and --length-bias make other worlds (docs/teaching.md).
tests/extras/test_toy_world.py shows that the labels and the ceiling are what this page says.

The rule, in nats: the right answer +3.0, a wrong one -3.0; a polite sentence +1.5, a rude one
-1.5; each added sentence on the topic +1.0, off the topic -1.0 (it rambles).
Which answer is right depends on the prompt. A model that only counts words can learn manners. It
cannot learn truth: each answer is right as often as it is wrong.
Length says nothing: kind and rude sentences are equally long, and so are all added ones.

A label is drawn at random, like the choice of a person who is not always sure:
    P(y_a beats y_b) = sigmoid(r*(y_a) - r*(y_b)) = p
So even the true reward is right only E max(p, 1-p) of the time, on average. This is the ceiling.

Held-out prompts are new wordings of the same questions, for example with another greeting. So the
test shows whether the reward was learned. It does not show whether the model knows new facts.
"""
import argparse
import json
import math
import random
import sys
from pathlib import Path
from typing import Iterator, NamedTuple

import numpy as np


class Topic(NamedTuple):
    question: str  # {} stands for the thing that is asked about
    answers: dict[str, str]  # thing -> right answer
    additions: list[str]  # sentences that are to the point on this topic, and ramble on all others


TOPICS = {
    "colour": Topic(
        "Which colour is {}?",
        {"grass": "green", "snow": "white", "blood": "red", "coal": "black"},
        ["Painters use it.", "Light makes it."],
    ),
    "taste": Topic(
        "How does {} taste?",
        {"sugar": "sweet", "lemon": "sour", "coffee": "bitter", "chili": "hot"},
        ["Cooks know it.", "Tongues feel it."],
    ),
    "month": Topic(
        "Which month follows {}?",
        {"January": "February", "March": "April", "May": "June", "July": "August"},
        ["Calendars show it.", "Weeks fill it."],
    ),
    "capital": Topic(
        "Which city governs {}?",
        {"France": "Paris", "Japan": "Tokyo", "Egypt": "Cairo", "Peru": "Lima"},
        ["Trains go there.", "Many live there."],
    ),
}
POLITE = ["Happy to help.", "Good question.", "Glad you asked."]
RUDE = ["Stop asking me.", "Stupid question.", "Leave me alone."]
OPENERS = ["", "Hello.", "Hi.", "Please.",
           "Good morning.", "Quick question.", "Help me.", "I forgot."]
CLOSERS = ["", "Thanks.", "Please answer.", "Tell me."]

RIGHT = 3.0  # nats, and the next two lines too
MANNERS = 1.5
ADDITION = 1.0
PAIRS_PER_PROMPT = 8


def questions() -> dict[str, tuple[str, str]]:
    """Every question of this world -> (its topic, its right answer)."""
    found = {}
    for name, topic in TOPICS.items():
        for thing, answer in topic.answers.items():
            found[topic.question.format(thing)] = (name, answer)
    return found


QUESTIONS = questions()


def find_question(prompt: str) -> tuple[str, str]:
    """The topic and the right answer of the question that a prompt asks.

    Raises: ValueError where the prompt asks none of them.
    """
    for question, topic_and_answer in QUESTIONS.items():
        if question in prompt:
            return topic_and_answer
    raise ValueError(f"no question of the toy world: {prompt!r}")


def gold_reward(prompt: str, response: str) -> float:
    """The true reward of a response, in nats."""
    topic, answer = find_question(prompt)
    reward = RIGHT if f"It is {answer}." in response else -RIGHT
    if any(sentence in response for sentence in POLITE):
        reward += MANNERS
    if any(sentence in response for sentence in RUDE):
        reward -= MANNERS
    for name in TOPICS:
        sign = 1 if name == topic else -1
        for sentence in TOPICS[name].additions:
            reward += sign * ADDITION * response.count(sentence)
    return reward


def random_prompt(rng: random.Random) -> str:
    """A question, often with a greeting before it and a few words behind it."""
    parts = [rng.choice(OPENERS), rng.choice(list(QUESTIONS)), rng.choice(CLOSERS)]
    return " ".join(filter(None, parts))


def random_topic(topic: str, rng: random.Random) -> str:
    """This topic in half of the cases, otherwise another one."""
    if rng.random() < 0.5:
        return topic
    return rng.choice([name for name in TOPICS if name != topic])


def random_response(prompt: str, rng: random.Random) -> str:
    """A response to a prompt. Half of them are right. Half of what they add is to the point."""
    topic, answer = find_question(prompt)
    if rng.random() < 0.5:  # a wrong one
        others = TOPICS[random_topic(topic, rng)].answers.values()
        answer = rng.choice([other for other in others if other != answer])
    manners = rng.choice([POLITE, RUDE, [""], [""]])
    parts = [rng.choice(manners), f"It is {answer}."]
    for _ in range(rng.randint(0, 2)):
        parts.append(rng.choice(TOPICS[random_topic(topic, rng)].additions))
    return " ".join(filter(None, parts))


def toy_rows(n: int, seed: int, label_noise=0.0, length_bias=0.0) -> Iterator[dict]:
    """Yield n rows: a prompt, two responses with their gold rewards (nats), the label drawn.

    Args:  label_noise: a share of the labels is turned round, whatever the rewards are.
           length_bias: nats that people add, in their choice, for each sentence of a response.
    """
    rng = random.Random(seed)
    for i in range(n):
        if i % PAIRS_PER_PROMPT == 0:
            prompt = random_prompt(rng)
        a = b = random_response(prompt, rng)
        while b == a:
            b = random_response(prompt, rng)
        gold_a, gold_b = gold_reward(prompt, a), gold_reward(prompt, b)
        bias = length_bias * (a.count(".") - b.count("."))
        p = 1 / (1 + math.exp(gold_b - gold_a - bias))  # a beats b so often
        b_wins = rng.random() > p
        if label_noise and rng.random() < label_noise:
            b_wins = not b_wins
        if b_wins:
            a, b, gold_a, gold_b = b, a, gold_b, gold_a
        row = {"prompt": prompt, "chosen": a, "rejected": b}
        yield row | {"gold_chosen": gold_a, "gold_rejected": gold_b}


def ceiling(gold_chosen: np.ndarray, gold_rejected: np.ndarray) -> tuple[float, float]:
    """The best that any reward can score on average.

    Args:    the gold rewards of B pairs in nats, (B,) each.
    Returns: accuracy E max(p, 1-p), and loss E H(p) in nats, with p = sigmoid(gap).
    """
    gap = np.abs(np.asarray(gold_chosen, np.float64) - gold_rejected)  # (B,) p >= 1/2 from here on
    log_p = -np.log1p(np.exp(-gap))  # (B,) log sigmoid(gap); exp of no positive number: no overflow
    p = np.exp(log_p)
    entropy = -log_p + (1 - p) * gap  # log(1-p) is log p - gap
    return float(p.mean()), float(entropy.mean())


def showcase() -> tuple[str, list[str]]:
    """A prompt and responses that show each part of the rule, for a table of learned and true."""
    return "Which colour is grass?", [
        "Happy to help. It is green. Painters use it.",
        "It is green.",
        "Stop asking me. It is green.",
        "It is green. Trains go there. Calendars show it.",
        "It is red.",
        "Stop asking me. It is red.",
    ]


# ---------------------------------------------------------------- what train_rm.py and eval.py use

ROWS = 24_000  # of the default run, held-out rows included


def write(path: Path, seed: int) -> None:
    """The rows of the default run, as a file of preference data like any other."""
    with open(path, "w", encoding="utf-8") as file:
        for row in toy_rows(ROWS, seed):
            file.write(json.dumps(row) + "\n")


def figures(pairs) -> dict:
    """What a report can say where the true rewards are known.  pairs: eval.Pairs."""
    from eval import correlation

    accuracy, loss = ceiling(pairs.gold_chosen, pairs.gold_rejected)
    learned = without_prompt_means(pairs.r_chosen, pairs.r_rejected, pairs.prompt)
    gold = without_prompt_means(pairs.gold_chosen, pairs.gold_rejected, pairs.prompt)
    return {
        "ceiling_accuracy": accuracy,
        "ceiling_loss": loss,
        "gold_correlation": correlation(learned, gold),
    }


def without_prompt_means(chosen: np.ndarray, rejected: np.ndarray, prompt: np.ndarray):
    """(2B,) rewards minus the mean of their prompt: the loss never sees that mean."""
    values = np.concatenate([chosen, rejected])
    _, group = np.unique(np.concatenate([prompt, prompt]), return_inverse=True)
    means = np.bincount(group, values) / np.bincount(group)
    return values - means[group]


def summary(score) -> str:
    """A table of learned and true rewards.  score: rows -> rewards, in nats."""
    prompt, responses = showcase()
    learned = score([{"prompt": prompt, "response": response} for response in responses])
    gold = [gold_reward(prompt, response) for response in responses]
    shift = sum(learned) / len(learned) - sum(gold) / len(gold)  # a reward has no zero point
    text = f"{prompt:<54} learned   true   (nats, learned ones shifted by {-shift:+.2f})\n"
    for response, reward, truth in zip(responses, learned, gold):
        text += f"  {response:<52} {reward - shift:+7.2f} {truth:+6.1f}\n"
    return text


def main(argv=None):
    """Write rows of a world of one's own to standard output."""
    parser = argparse.ArgumentParser(description="Write preference pairs of the toy world.")
    add = parser.add_argument
    add("pairs", type=int, metavar="N", help="how many")
    add("--seed", type=int, default=0, help="other prompts, responses and labels (0)")
    add("--label-noise", type=float, default=0.0, metavar="P", help="turn so many labels round (0)")
    add("--length-bias", type=float, default=0.0, metavar="B", help="nats that people add for each "
        "sentence when they choose; the true reward does not know them (0)")
    args = parser.parse_args(argv)
    if args.pairs < 1 or not 0 <= args.label_noise < 0.5 or not math.isfinite(args.length_bias):
        parser.error("N has to be 1 or more, P from 0 to below 0.5, B a number")
    for row in toy_rows(args.pairs, args.seed, args.label_noise, args.length_bias):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
