"""loss.py: how a comparison becomes a number to minimise.  Read this file first.

A person saw a prompt x and two responses, and preferred one of them. Bradley and Terry (1952)
explain such choices by one hidden number per response, its reward r. Only differences of rewards
matter (Christiano et al. 2017, eq 1):

    P(y_w beats y_l | x) = σ(r(x, y_w) − r(x, y_l))            σ(z) = 1 / (1 + e^−z)

To learn r, make the choices that were seen as likely as possible. That is logistic regression on
the difference of two rewards (Ouyang et al. 2022, "InstructGPT", eq 1):

    loss = −log σ(Δ)        with  Δ = r_w − r_l
    dloss/dr_w = −σ(−Δ)     and   dloss/dr_l = +σ(−Δ)

Read the gradient as "minus the probability that the model still gives to the wrong answer". A pair
that the model ranks right and with confidence has almost no gradient. A pair that it ranks wrong
with confidence has the full gradient, 1. A model that knows nothing has Δ = 0 and loss
log 2 = 0.693. Adding the same number to every reward changes nothing: a reward has no zero point.

Shapes: B pairs. r_chosen is r_w and r_rejected is r_l, (B,) each. Rewards and losses are in nats,
the unit of natural logarithms: a gap of 1 nat means odds of e : 1, that is P = 0.73.
"""
import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry_loss(
    r_chosen: Tensor,
    r_rejected: Tensor,
    margin: Tensor | None = None,
    label_smoothing: float = 0.0,
    centering: float = 0.0,
) -> Tensor:
    """−log σ(r_w − r_l − m) per pair, with two optional terms, in float32 whatever comes in.

    margin           m, (B,): by how much the chosen response should win, in nats (Llama 2,
                     Touvron et al. 2023, eq 2). In reports "mean margin" is another number:
                     the mean of r_w − r_l, as other trainers call it.
    label_smoothing  ε: the share of labels that are known to be flipped. The loss becomes its
                     expected value, (1−ε)·loss(as labelled) + ε·loss(flipped). Its minimum is at
                     Δ = log((1−ε)/ε) where m = 0: gaps stop growing where the label noise says.
    centering        λ: adds λ·(r_w + r_l)² per pair, as TRL does (Eisenstein et al. 2023, eq 2).
                     It fixes the free constant: the mean reward of every pair is pulled to 0.
                     Rewards of different prompts still cannot be compared: a prompt that has
                     only good responses is pulled to 0 too.

    Args:    r_chosen, r_rejected: (B,) rewards, in nats.
    Returns: (B,) nats. A coin flip costs log 2 = 0.693.
    Raises:  ValueError on unequal shapes, B = 0, ε outside [0, 0.5) or λ below 0.
    """
    check_shapes(r_chosen, r_rejected)
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be a share, 0 <= ε < 0.5, not {label_smoothing}")
    if not centering >= 0:
        raise ValueError(f"centering must be 0 or more, not {centering}")

    # float32, even under autocast: near a reward of 5, bfloat16 moves in steps of 0.03,
    # and small gaps vanish.
    r_chosen, r_rejected = r_chosen.float(), r_rejected.float()
    gap = r_chosen - r_rejected  # (B,)
    if margin is None:
        margin = torch.zeros_like(gap)
    check_shapes(gap, margin)

    # logsigmoid, not log(sigmoid(gap)): below a gap of about -88.7 exp(-gap) overflows float32.
    # The loss is then infinite and its gradient NaN. Above 17 it would be 0 where it is only tiny.
    losses = -F.logsigmoid(gap - margin)  # (B,)
    if label_smoothing > 0:
        # If the label is flipped, it is the rejected response that should win by the margin.
        flipped = -F.logsigmoid(-gap - margin)  # (B,)
        losses = (1 - label_smoothing) * losses + label_smoothing * flipped
    if centering > 0:
        losses = losses + centering * (r_chosen + r_rejected).square()
    return losses


def pairwise_correct(r_chosen: Tensor, r_rejected: Tensor) -> Tensor:
    """1 where the chosen response has the higher reward, 0 where it has the lower, ½ for a tie.

    The mean of this is the accuracy. A tie counts half: a model that gives every text the same
    reward decides nothing and scores 0.5, neither 0 (which `>` would say) nor 1 (`>=`). Many ties
    mean that something is broken: low precision, or a reward read at a token that both share.

    Args:    r_chosen, r_rejected: (B,) rewards.
    Returns: (B,) float32.
    Raises:  ValueError on unequal shapes or B = 0.
    """
    check_shapes(r_chosen, r_rejected)
    return (r_chosen > r_rejected).float() + 0.5 * (r_chosen == r_rejected)


def check_shapes(a: Tensor, b: Tensor) -> None:
    """Raises: ValueError unless both are (B,) with the same B > 0."""
    # The trap: (B,) minus (B, 1) broadcasts to (B, B). Every chosen response is then compared
    # with the rejected responses of all other prompts too. Nothing crashes, and the loss falls.
    if a.ndim != 1 or a.shape != b.shape or a.numel() == 0:
        raise ValueError(
            f"expected two equal, non-empty shapes (B,), not {tuple(a.shape)} and {tuple(b.shape)}"
        )
