"""Level 2: model and data."""
import hashlib
import random

import torch
from torch import Tensor

from data import Tokenizer
from model import PADDED, RewardModel


def last_token(attention_mask: Tensor) -> Tensor:
    """The pad id would not do: it may be the end token, which is in the prompt too."""
    return attention_mask.sum(-1).long() - 1


def rewards(model: RewardModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The state at each last token, and the head on it."""
    hidden = model.model(input_ids, PADDED)  # (R, T, D)
    row = torch.arange(len(input_ids))
    last_hidden = hidden[row, last_token(attention_mask)]  # (R, D)
    return model.score(last_hidden).squeeze(-1)  # (R,)


def response_start(tokenizer: Tokenizer, prompt: str, response: str) -> int:
    """The end token of the prompt alone differs from what the dialogue has there."""
    question = [{"role": "user", "content": prompt}]
    dialogue = question + [{"role": "assistant", "content": response}]
    before = tokenizer.encode([tokenizer.render(question, add_generation_prompt=True)])[0]
    whole = tokenizer.encode([tokenizer.render(dialogue)])[0]
    start = 0
    while start < len(before) and before[start] == whole[start]:
        start += 1
    return start


def pairs_and_weights(scores: list[float]) -> list[tuple[int, int, float]]:
    """All (i, j) with a higher score at i."""
    pairs = []
    for i in range(len(scores)):
        for j in range(len(scores)):
            if scores[i] > scores[j]:
                pairs.append((i, j))
    return [(better, worse, 1 / len(pairs)) for better, worse in pairs]


def split(rows: list[dict], fraction: float) -> tuple[list[dict], list[dict]]:
    """The prompts with the smallest hashes are held out."""
    prompts = {row["prompt"] for row in rows}
    by_hash = sorted(prompts, key=lambda prompt: hashlib.sha256(prompt.encode()).digest())
    held_out = set(by_hash[: round(fraction * len(prompts))])
    train_rows = [row for row in rows if row["prompt"] not in held_out]
    held_out_rows = [row for row in rows if row["prompt"] in held_out]
    return train_rows, held_out_rows


def flip_labels(rows: list[dict], share: float, seed: int) -> list[dict]:
    """Draw which rows, then exchange the fields by pairs."""
    flipped = set(random.Random(seed).sample(range(len(rows)), round(share * len(rows))))
    new_rows = []
    for number, row in enumerate(rows):
        row = dict(row)
        if number in flipped:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
            if "gold_chosen" in row:
                gold = row["gold_rejected"], row["gold_chosen"]
                row["gold_chosen"], row["gold_rejected"] = gold
        new_rows.append(row)
    return new_rows


def keep_prompts(rows: list[dict], count: int, seed: int) -> list[dict]:
    """One shuffled order for all counts. Sorted first: a set has no order that one can rely on."""
    prompts = sorted({row["prompt"] for row in rows})
    random.Random(seed).shuffle(prompts)
    kept = set(prompts[:count])
    return [row for row in rows if row["prompt"] in kept]
