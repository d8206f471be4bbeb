"""loss.py: how a comparison becomes a number to minimise.  Read this file first.

A person saw a prompt x and two responses and preferred one of them. Bradley and Terry (1952) explain such
choices by one hidden number per response, its reward r, of which only differences matter (so do Christiano et al.
2017, eq 1):

    P(y_w beats y_l | x) = σ(r(x, y_w) − r(x, y_l)),        σ(z) = 1 / (1 + e^−z)

Maximum likelihood over the observed choices is then logistic regression on the reward difference
(Ouyang et al. 2022, "InstructGPT", eq 1):

    loss = −log σ(Δ),   Δ = r_w − r_l                         gradient:  dloss/dr_w = −σ(−Δ),  dloss/dr_l = +σ(−Δ)

Read the gradient as "minus the probability the model still gives to the wrong answer": a pair it ranks with
confidence pulls at nothing, a pair it has backwards pulls with full strength. A model that knows nothing has
Δ = 0 and loss log 2 = 0.693. Adding a constant to every reward changes nothing, so a reward has no zero point.

If K responses to one prompt were compared, the loss of that prompt is the mean over its pairs, so that it counts once
(the 1 / (K choose 2) of InstructGPT's eq 1). That is the `weight` of a pair.

Shapes: B pairs. r_chosen is r_w, r_rejected is r_l, both (B,). Rewards and losses are in nats.
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
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """−log σ(r_w − r_l − m), with two optional terms; computed in float32 whatever comes in.

    margin          m, (B,): by how much the chosen side should win, in nats (Llama 2, Touvron et al. 2023, eq 2).
                    (Reports call the gap that was reached, r_w − r_l, "mean margin", as other trainers do.)
    label_smoothing ε, the known share of labels that are flipped. The loss becomes the expectation over whether
                    this one is: (1−ε)·loss(as labelled) + ε·loss(the other way round). Its minimum lies at
                    Δ = log((1−ε)/ε) where m = 0, so gaps stop growing where the label noise says they should.
    centering       λ: adds λ·(r_w + r_l)² per pair (the definition TRL uses; Eisenstein et al. 2023, eq 2).
                    It fixes the free constant: the mean of every pair is drawn to 0. Rewards of different prompts
                    are still not comparable: a prompt with good responses only is drawn to 0 as well.

    weight          (B,): how much a pair counts in the mean, Σ weight · loss / Σ weight.

    Args:    r_chosen, r_rejected: (B,) rewards, in nats.
    Returns: a scalar for reduction="mean", (B,) for "none", which no weight changes. log 2 = 0.693 is a coin flip.
    Raises:  ValueError on unequal shapes, B = 0, ε outside [0, 0.5) or λ below 0.
    """
    _check_shapes(r_chosen, r_rejected)
    if margin is not None:
        _check_shapes(r_chosen, margin)
        margin = margin.float()
    else:
        margin = torch.zeros_like(r_chosen, dtype=torch.float32)
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is a share of flipped labels, 0 <= ε < 0.5, not {label_smoothing}")
    if not centering >= 0:
        raise ValueError(f"centering must be 0 or more, not {centering}")
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be 'mean' or 'none', not {reduction!r}")

    # float32 even under autocast: near a reward of 5, bfloat16 has steps of 0.03 and small gaps vanish.
    r_chosen, r_rejected = r_chosen.float(), r_rejected.float()
    gap = r_chosen - r_rejected  # (B,)

    # logsigmoid, not log(sigmoid(gap)) and not -log(1 + exp(-gap)): below a gap of about -88.7 exp(-gap) overflows
    # float32 and the loss is infinite, its gradient NaN. It is also exact where the loss is tiny, at gaps above 17.
    loss = -F.logsigmoid(gap - margin)  # (B,)
    if label_smoothing > 0:
        # Were the label flipped, it would be the rejected side that should win by the margin.
        flipped = -F.logsigmoid(-gap - margin)
        loss = (1 - label_smoothing) * loss + label_smoothing * flipped
    if centering > 0:
        loss = loss + centering * (r_chosen + r_rejected).square()
    return loss if reduction == "none" else _mean(loss, weight)


def pairwise_accuracy(r_chosen: Tensor, r_rejected: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Share of pairs ranked as the label says, and how many pairs are ties.

    A tie counts half: a model that gives everything the same reward decides nothing and scores 0.5, neither 0
    (which a plain `>` would say) nor 1 (`>=`). Ties are returned beside it, because many of them mean that
    something is broken: low precision, or a reward read from a token both sides share.

    Args:    r_chosen, r_rejected: (B,) rewards; weight: (B,), as above.
    Returns: accuracy (scalar, 0 to 1), ties (scalar, a number of pairs).
    Raises:  ValueError on unequal shapes or B = 0.
    """
    _check_shapes(r_chosen, r_rejected)
    tied = r_chosen == r_rejected
    right = (r_chosen > r_rejected).double() + 0.5 * tied  # (B,)
    return _mean(right, weight), tied.sum()


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return values.mean()
    _check_shapes(values, weight)
    return (weight * values).sum() / weight.sum()


def _check_shapes(a: Tensor, b: Tensor) -> None:
    # The trap: (B,) minus (B, 1) broadcasts to (B, B) and compares every chosen response with the rejected ones of
    # all other prompts too. Nothing crashes, and the loss goes down.
    if a.ndim != 1 or a.shape != b.shape or a.numel() == 0:
        raise ValueError(f"rewards must be two equal, non-empty shapes (B,), not {tuple(a.shape)} and {tuple(b.shape)}")
