"""Level 1: the loss on paper."""
import math

import torch
from torch import Tensor


def gradient(r_chosen: Tensor, r_rejected: Tensor):
    """Minus and plus the probability of the wrong answer, σ(−Δ)."""
    p_wrong = torch.sigmoid(r_rejected - r_chosen)  # (B,) not 1 / (1 + exp(Δ)): it may overflow
    return -p_wrong, p_wrong


def stable_loss(gap: Tensor) -> Tensor:
    """log(1 + e^−Δ) = max(−Δ, 0) + log(1 + e^−|Δ|): the exponent is never positive."""
    largest = torch.maximum(-gap, torch.zeros_like(gap))  # slope ½ at a gap of 0; clamp has 1
    return largest + torch.log1p(torch.exp(-gap.abs()))


def pair_gaps(r_chosen: Tensor, r_rejected: Tensor) -> Tensor:
    """Flatten both first, then compare their lengths: after that nothing can broadcast."""
    r_chosen, r_rejected = r_chosen.flatten(), r_rejected.flatten()  # (B,) each
    if len(r_chosen) != len(r_rejected) or len(r_chosen) == 0:
        raise ValueError(f"{len(r_chosen)} chosen and {len(r_rejected)} rejected rewards")
    return r_chosen - r_rejected


def best_gap(label_smoothing: float) -> float:
    """The derivative is −(1−ε)·σ(−Δ) + ε·σ(Δ). It is 0 where σ(Δ) = 1 − ε."""
    if label_smoothing == 0:
        return math.inf
    return math.log((1 - label_smoothing) / label_smoothing)
