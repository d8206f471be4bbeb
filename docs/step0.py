"""step0.py: a reward model in forty lines of code. Read it before loss.py, run it with

    python docs/step0.py

The loss and the accuracy are the real ones, from loss.py. The model is the smallest there is: every
word has one weight, and the reward of a response is the sum of the weights of its words.

It learns manners: polite words get a high weight, rude words a low one. It cannot learn truth:
"green." is right after one prompt and wrong after another, and this model never sees the prompt.
(Counting the words of the prompt too would change nothing. Both responses follow the same prompt.
Its words add the same number to both rewards, and only the difference counts.)
So a model has to read the prompt and the response together: that is why there is model.py.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # loss.py and extras/ are there

import torch

from extras.toy_world import ceiling, toy_rows
from loss import bradley_terry_loss, pairwise_correct


def count_words(rows, side, words):
    """How often each word is in each response: (B pairs, V words)."""
    counts = torch.zeros(len(rows), len(words))
    for i, row in enumerate(rows):
        for word in row[side].split():
            counts[i, words.index(word)] += 1
    return counts


# 1. Pairs to learn from, and new pairs to test on. In the toy world we know the true rewards.
train_rows = list(toy_rows(2000, seed=0))
test_rows = list(toy_rows(2000, seed=1))
text = " ".join(row["chosen"] + " " + row["rejected"] for row in train_rows)
words = sorted(set(text.split()))
chosen = count_words(train_rows, "chosen", words)
rejected = count_words(train_rows, "rejected", words)
new_chosen = count_words(test_rows, "chosen", words)
new_rejected = count_words(test_rows, "rejected", words)

# 2. The model: one weight for each word. All are 0 at first: equal rewards, a loss of log 2.
weights = torch.zeros(len(words), requires_grad=True)
optimizer = torch.optim.Adam([weights], lr=0.05)

# 3. Learning: one hundred times, move all weights a little, so that the mean loss falls.
for step in range(101):
    loss = bradley_terry_loss(chosen @ weights, rejected @ weights).mean()
    accuracy = pairwise_correct(new_chosen @ weights, new_rejected @ weights).mean().item()
    if step % 25 == 0:
        print(f"step {step:3}  loss {loss.item():.3f}  accuracy on new pairs {accuracy:.3f}")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# 4. How good can any reward be? People are not always sure, so even the true one is not at 1.
gold_chosen = [row["gold_chosen"] for row in test_rows]
gold_rejected = [row["gold_rejected"] for row in test_rows]
best_accuracy, _ = ceiling(gold_chosen, gold_rejected)
print(f"what the true rewards score (the ceiling): {best_accuracy:.3f}")

# 5. What was learned: the reward of a sentence is the sum of the weights of its words.
weight_of = dict(zip(words, weights.tolist()))
for sentence in ("Happy to help.", "Good question.", "Stupid question.", "Stop asking me."):
    parts = [weight_of[word] for word in sentence.split()]
    sum_of = "  ".join(f"{part:+.2f}" for part in parts)
    print(f"{sentence:<17} {sum(parts):+.2f}  =  {sum_of}")
for word in ("green.", "red.", "sweet.", "Paris."):
    print(f"{word:<17} {weight_of[word]:+.2f}")
