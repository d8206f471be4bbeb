"""gemma_attention.py: attention in a window, and with a soft cap (gemma.py).

    seen[q, k]      all         window of 3

                    ■           ■
                    ■ ■         ■ ■
                    ■ ■ ■       ■ ■ ■
                    ■ ■ ■ ■       ■ ■ ■         the fourth token no longer sees the first

A decoder asks the form of a batch for its attention (model.Padded). GemmaForm stands between the
two: it answers itself where there is a cap, or where a text is longer than the window. Otherwise
it passes the question on, and the form's own attention is exact.

What it costs: for a cap, all T · T logits of a head are in memory; no fast kernel knows it. In a
window, what is further away is hidden by a mask, and computed all the same. --pack works with both,
but there T is the length of the packed row: keep it for Gemma 3 with short texts.

tests/extras/test_families.py compares texts longer than the window, and a cap that is reached, with
transformers; test_families_together.py compares packed and padded batches.
"""
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

# transformers' names of the two kinds of layers
WINDOW = "sliding_attention"
ALL = "full_attention"


class Rules(NamedTuple):
    """What Gemma's config says about attention."""

    window: int  # tokens, with the token itself
    scalar: float  # logits are q·k / √scalar
    cap: float | None  # c: they stay within ±c


class GemmaForm:
    """How sequences lie in a batch, with the attention of one kind of layers.

    Args: form: model.Padded or extras/packing.py's.
          seen: (T, T) bool, or None: what the form says, without cap and window.
    """

    def __init__(self, form, rules: Rules, seen):
        self.form = form
        self.rules = rules
        self.seen = seen

    def attend(self, q, k, v):
        """q (R, H, T, P), k and v (R, G, T, P) -> (R, H, T, P)"""
        P = q.shape[-1]
        q = q * math.sqrt(P / self.rules.scalar)  # what follows divides by √P
        if self.seen is None:
            return self.form.attend(q, k, v)
        if self.rules.cap is not None:
            return capped_attention(q, k, v, self.seen, self.rules.cap)
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, self.seen, enable_gqa=grouped)


def capped_attention(q, k, v, seen, cap):
    """softmax(c · tanh(q kᵀ / (√P · c))) v, over the tokens that are seen."""
    P = q.shape[-1]
    group = q.shape[1] // k.shape[1]
    k = k.repeat_interleave(group, dim=1)  # (R, H, T, P) a copy for each query head
    v = v.repeat_interleave(group, dim=1)
    logits = q @ k.transpose(-1, -2)  # (R, H, T, T)
    logits = logits.float() / math.sqrt(P)
    logits = cap * torch.tanh(logits / cap)
    logits = logits.masked_fill(~seen, -math.inf)
    weights = logits.softmax(-1)
    return weights.to(v.dtype) @ v


def what_is_seen(form, positions, rules: Rules) -> tuple:
    """seen[q, k]: does token q see token k, in a layer that sees all, and in one with a window?

    Args:    positions: (T,) of each token in its sequence.
    Returns: (T, T) bool each; None where the form's own attention is exact, and faster.
    """
    too_long = len(positions) > rules.window
    if rules.cap is None and not too_long:
        return None, None
    seen = ask_the_form(form, positions)
    distance = positions[:, None] - positions  # (T, T)
    seen_near = seen & (distance < rules.window)
    if rules.cap is None:
        seen = None
    return seen, seen_near


def ask_the_form(form, positions):
    """seen[q, k], without a window.  (T,) -> (T, T) bool

    Only the form knows how sequences lie in a row. Where all keys are equal, all tokens that are
    seen have the same weight, above 0. With the rows of an identity as values, the output of the
    attention is its weights.
    """
    T = len(positions)
    device = positions.device
    same = torch.zeros(1, 1, T, 8, device=device)
    identity = torch.eye(T, device=device)[None, None]  # (1, 1, T, T)
    weights = form.attend(same, same, identity)
    return weights[0, 0] > 0
