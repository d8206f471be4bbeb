"""Step 0: a reward model in fifty lines, without a language model.

    python docs/step0.py        a few seconds

The reward of a response is the sum of the rewards of its words: a bag of words. The loss is the
real one. It learns manners, because "Happy to help." is good in every answer. It cannot learn what is true:
"green" is right for grass and wrong for snow, and this model never sees the question. For that, a
model has to read the prompt and the response together: model.py.
"""
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the five files

from extras.toy_world import ceiling, toy_rows
from loss import bradley_terry_loss, pairwise_correct


def all_words(rows: list[dict]) -> list[str]:
    """Every word of a chosen response."""
    words = set()
    for row in rows:
        words.update(row["chosen"].split())
    return sorted(words)


def count_words(rows: list[dict], side: str, words: list[str]) -> torch.Tensor:
    """How often each of the W words occurs in the texts of one side.  -> (B, W)"""
    table = torch.zeros(len(rows), len(words))
    for number, row in enumerate(rows):
        for word in row[side].split():
            if word in words:
                table[number, words.index(word)] += 1
    return table


def best_accuracy(rows: list[dict]) -> float:
    """What the true rewards would score on average."""
    gold_chosen = np.array([row["gold_chosen"] for row in rows])
    gold_rejected = np.array([row["gold_rejected"] for row in rows])
    accuracy, _ = ceiling(gold_chosen, gold_rejected)
    return accuracy


def main() -> dict:
    """Train on 4,000 pairs, look at 1,000 others, and say what was learned."""
    rows = list(toy_rows(4000, seed=0))
    new_rows = list(toy_rows(1000, seed=1))
    words = all_words(rows)
    chosen = count_words(rows, "chosen", words)  # (B, W)
    rejected = count_words(rows, "rejected", words)

    reward = torch.nn.Linear(len(words), 1, bias=False)  # one number for each word
    torch.nn.init.zeros_(reward.weight)
    optimizer = torch.optim.Adam(reward.parameters(), lr=0.05)
    for step in range(200):
        r_chosen = reward(chosen).flatten()  # (B,)
        r_rejected = reward(rejected).flatten()
        loss = bradley_terry_loss(r_chosen, r_rejected).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    r_chosen = reward(count_words(new_rows, "chosen", words)).flatten()
    r_rejected = reward(count_words(new_rows, "rejected", words)).flatten()
    accuracy = pairwise_correct(r_chosen, r_rejected).mean().item()
    best = best_accuracy(new_rows)
    print(f"loss {loss.item():.3f}")
    print(f"accuracy {accuracy:.3f} on new pairs, where {best:.3f} is possible")

    learned = {}
    for sentence in ("Happy to help.", "Stop asking me.", "It is green.", "It is white."):
        counts = count_words([{"text": sentence}], "text", words)
        learned[sentence] = reward(counts).item()
        print(f"{sentence:<16} {learned[sentence]:+.2f}")
    return {"accuracy": accuracy, "ceiling": best, "learned": learned}


if __name__ == "__main__":
    main()
