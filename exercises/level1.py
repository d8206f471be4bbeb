"""Level 1: the loss on paper. Read loss.py first.

Replace each `raise NotImplementedError` by your answer. Then, from the top folder:

    python -m pytest exercises/ -k gradient         the checks of one exercise
    python -m pytest exercises/test_level1.py       those of the level

Shapes: B pairs. r_chosen is r_w and r_rejected is r_l; their gap is Δ = r_w − r_l, in nats.
"""
import torch


def gradient(r_chosen: torch.Tensor, r_rejected: torch.Tensor):
    """gradient: the derivatives of −log σ(r_w − r_l), by hand, without autograd.

    Derive them on paper, then write them down. They must be finite at a gap of 200 too.

    Args:    r_chosen, r_rejected: (B,) float32.
    Returns: two tensors, (B,) each: dloss/dr_chosen and dloss/dr_rejected of each pair.
    Source:  the formulas at the top of loss.py; Ouyang et al. 2022, eq 1.
    """
    raise NotImplementedError


def stable_loss(gap: torch.Tensor) -> torch.Tensor:
    """stable: −log σ(Δ) in float32 at any gap, without logsigmoid, softplus or logaddexp.

    −log σ(Δ) = log(1 + e^−Δ). At Δ = −120 the exponential overflows, at Δ = 30 it is lost beside
    the 1. Take the large part out of the logarithm, and use torch.log1p for the rest.

    Args:    gap: (B,) float32, from −120 to 30. Gradients flow through it.
    Returns: (B,) nats.
    Source:  the comment above `F.logsigmoid` in loss.py.
    """
    raise NotImplementedError


def pair_gaps(r_chosen: torch.Tensor, r_rejected: torch.Tensor) -> torch.Tensor:
    """shapes: one gap for each pair, whether rewards come as (B,) or as (B, 1).

    Many models return (B, 1). Then (B,) − (B, 1) is (B, B): it compares each response with the
    rejected ones of all other prompts. Nothing fails, and the loss still goes down.

    Args:    r_chosen, r_rejected: (B,) or (B, 1), each of them.
    Returns: (B,) r_chosen − r_rejected.
    Raises:  ValueError where B is 0, or where the two have a different B.
    Source:  `check_shapes` in loss.py, which refuses what you are to accept.
    """
    raise NotImplementedError


def best_gap(label_smoothing: float) -> float:
    """flipped: the gap at which the smoothed loss is lowest.

    A share ε of all labels is flipped. The loss (1−ε)·(−log σ(Δ)) + ε·(−log σ(−Δ)) has its minimum
    at a finite Δ. Set its derivative to 0 and solve.

    Args:    label_smoothing: ε, 0 <= ε < 0.5.
    Returns: Δ in nats; infinity (math.inf) where ε is 0.
    Source:  `label_smoothing` in loss.py.
    """
    raise NotImplementedError
