"""policy.py: a small language model that writes responses. extras/policy_gradient.py trains it.

A policy π(y|x) writes a response y to a prompt x, one token after the other:

    prompt  ->  decoder  ->  hidden state of the last token  ->  π of each next token  ->  draw one
       ↑                                                                                    │
       └─────────────────────────────── append it ──────────────────────────────────────────┘

The decoder is that of model.py. A reward model puts one number on its last state. A policy puts V
numbers there, a score for each token of the vocabulary: hidden @ embeddingᵀ. softmax makes them
probabilities. The probability of a response is the product of those of its tokens:

    log π(y|x) = Σ log π(y_t | x, y_1 … y_t−1)

Fine-tuning on demonstrations is gradient descent on −log π(y|x) (Ouyang et al. 2022, §3.5).

Drawing computes the whole text again for each token, because that is easy to read. Programs that
serve models keep keys and values of earlier tokens instead.

tests/extras/test_policy_gradient.py proves that log π is that of the tokens that were drawn.

Shapes: N texts   T tokens   D hidden_size   V vocabulary
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import PADDED, RewardModel

MOST_TOKENS = 32  # of a response. One that has not ended by then stays without its end


class Policy(nn.Module):
    """A decoder, and log π of the next token. The embedding is the output matrix too."""

    def __init__(self, config_json: dict):
        super().__init__()
        self.decoder = RewardModel.from_scratch(config_json).model

    def forward(self, input_ids: Tensor) -> Tensor:
        """log π of the token after each token.  (N, T) -> (N, T, V)"""
        return self.next_token(self.decoder(input_ids, PADDED))

    def next_token(self, hidden: Tensor) -> Tensor:
        """log π of the token after these states.  (…, D) -> (…, V)"""
        embedding = self.decoder.embed_tokens.weight  # (V, D)
        scores = hidden @ embedding.T
        return scores.log_softmax(-1)


class Texts(NamedTuple):
    """Prompts with their responses, or without, padded on the right."""

    input_ids: Tensor  # (N, T)
    attention_mask: Tensor  # (N, T)
    start: Tensor  # (N,) where the response begins


def pad(sequences, starts, pad_id) -> Texts:
    """Lists of ids -> Texts."""
    shape = len(sequences), max(map(len, sequences))  # N, T
    input_ids = torch.full(shape, pad_id)
    mask = torch.zeros_like(input_ids)
    for row, sequence in enumerate(sequences):
        L = len(sequence)
        input_ids[row, :L] = torch.tensor(sequence)
        mask[row, :L] = 1
    return Texts(input_ids, mask, torch.tensor(starts))


@torch.no_grad()
def draw(policy, prompts, end_id) -> Texts:
    """Write a response to each prompt. It ends with the end token, or after MOST_TOKENS."""
    ids = F.pad(prompts.input_ids, (0, MOST_TOKENS))  # (N, T + MOST_TOKENS)
    lengths = prompts.attention_mask.sum(-1)  # (N,)
    is_open = torch.ones_like(lengths)  # (N,) 1 until the end token is there
    for _ in range(MOST_TOKENS):
        written = ids[:, : lengths.max()]  # (N, T)
        token = draw_token(policy, written, lengths)  # (N,)
        rows = is_open.nonzero().squeeze(1)
        column = lengths[rows]
        ids[rows, column] = token[rows]
        lengths = lengths + is_open
        is_open = is_open * (token != end_id)
        if not is_open.any():
            break
    T = int(lengths.max())
    mask = torch.arange(T) < lengths[:, None]  # (N, T)
    return Texts(ids[:, :T], mask.long(), prompts.start)


def draw_token(policy, ids, lengths):
    """The next token of each text.  (N, T), (N,) -> (N,)"""
    hidden = policy.decoder(ids, PADDED)  # (N, T, D)
    # It follows from the state of the last valid token: the gather of the reward, once more.
    last = lengths - 1  # (N,)
    D = hidden.shape[-1]
    index = last[:, None, None].expand(-1, -1, D)  # (N, 1, D)
    last_hidden = torch.gather(hidden, 1, index)  # (N, 1, D)
    log_p = policy.next_token(last_hidden)  # (N, 1, V)
    p = log_p.squeeze(1).exp()  # (N, V)
    return torch.multinomial(p, 1).squeeze(1)


def log_probability(policy, texts) -> Tensor:
    """log π(y|x): the sum over the tokens of the response, its end token too.  -> (N,)"""
    ids, mask, start = texts
    log_p = policy(ids[:, :-1])  # (N, T − 1, V) in column t: of token t + 1
    written = ids[:, 1:, None]  # (N, T − 1, 1)
    of_token = torch.gather(log_p, 2, written).squeeze(2)  # (N, T − 1)
    position = torch.arange(1, ids.shape[1])  # (T − 1,)
    in_response = position >= start[:, None]  # (N, T − 1)
    counted = in_response * mask[:, 1:]
    return (of_token * counted).sum(-1)


def fine_tune(policy, batches, lr):
    """Make demonstrations likely: one step for each batch, with a falling learning rate."""
    optimizer = torch.optim.Adam(policy.parameters())
    for step, texts in enumerate(batches):
        left = 1 - step / len(batches)
        for group in optimizer.param_groups:
            group["lr"] = lr * left
        log_p = log_probability(policy, texts)  # (N,)
        loss = -log_p.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 99:
            print(f"fine-tuning, step {step + 1}: −log π is {loss:.2f} nats a response")
