"""Level 2: model and data. Read model.py and data.py first.

Replace each `raise NotImplementedError` by your answer. Then, from the top folder:

    python -m pytest exercises/ -k gather           the checks of one exercise
    python -m pytest exercises/test_level2.py       those of the level

Shapes: R sequences of a batch, each in a row of its own   T tokens of the longest
"""
import torch

from data import Tokenizer
from model import RewardModel


def last_token(attention_mask: torch.Tensor) -> torch.Tensor:
    """last: the index of the last valid token of each sequence, from the mask alone.

    Args:    attention_mask: (R, T), ones and then zeros.
    Returns: (R,) int64.
    Source:  `Padded.last` in model.py. Why not look for the pad id instead?
    """
    raise NotImplementedError


def rewards(
    model: RewardModel, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """gather: the reward of each sequence, read by hand. Do not call model(…) itself.

    `model.model(input_ids, PADDED)` gives the hidden states, (R, T, D); PADDED is in model.py.
    `model.score` is the value head. What stands at pads must not matter.

    Args:    input_ids, attention_mask: (R, T).
    Returns: (R,) float32.
    Source:  `RewardModel.forward` in model.py.
    """
    raise NotImplementedError


def response_start(tokenizer: Tokenizer, prompt: str, response: str) -> int:
    """start: how many tokens belong to the prompt, so where the response begins.

    These are the leading ids that two texts share: the prompt alone, rendered up to where the
    answer begins, and the whole dialogue. `tokenizer.render(messages, add_generation_prompt=…)`
    makes a text, `tokenizer.encode([text])[0]` its ids. encode() adds an end token to any text.

    Returns: the number of leading ids that are equal.
    Source:  `Tokenizer.encode_row` in data.py.
    """
    raise NotImplementedError


def pairs_and_weights(scores: list[float]) -> list[tuple[int, int, float]]:
    """ranked: a prompt with K scored responses -> all its pairs, and what each weighs.

    A tie is no pair. The pairs of a prompt weigh 1 together, so a prompt with nine responses does
    not count 36 times as much as one with two.

    Args:    scores: K numbers; the higher one is better.
    Returns: (better, worse, weight) of each pair, by index, in any order; [] where all are tied.
    Source:  `Example.pairs` and `pairs_of` in data.py; Ouyang et al. 2022, eq 1.
    """
    raise NotImplementedError


def split(rows: list[dict], fraction: float) -> tuple[list[dict], list[dict]]:
    """split: rows to train on and held-out rows, with no prompt on both sides.

    Hold out round(fraction · number of different prompts) prompts, with all their rows. Which
    ones must not depend on the order of the rows, nor on Python's hash() of a text, which changes
    with every start of Python. Some hash from hashlib, and sorted(), do it.

    Args:    rows: each with a "prompt", a text. A prompt may be in several rows.
    Returns: (to train on, held out), each in the order of the rows.
    Source:  `held_out_prompts` in data.py.
    """
    raise NotImplementedError


def flip_labels(rows: list[dict], share: float, seed: int) -> list[dict]:
    """noise: new rows, where the labels of round(share · rows) randomly chosen ones are flipped.

    Flipped: "chosen" and "rejected" are exchanged, "gold_chosen" and "gold_rejected" too, where
    a row has them. (Gold rewards belong to their response; only the label lies.)

    Args:    rows: left as they are. seed: the same seed flips the same rows.
    Returns: as many rows, in the same order.
    Source:  then train: `python -m exercises.train noise=0.1`.
    """
    raise NotImplementedError


def keep_prompts(rows: list[dict], count: int, seed: int) -> list[dict]:
    """fewer: the rows of `count` randomly chosen prompts, all of them, in their order.

    For a learning curve. A larger count keeps the prompts of a smaller one and adds some, so the
    points of the curve differ in nothing else.

    Args:    rows: each with a "prompt". count: at most the number of different prompts.
    Source:  then train: `python -m exercises.train fewer=30`, 100, 300.
    """
    raise NotImplementedError
