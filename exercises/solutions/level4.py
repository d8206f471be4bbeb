"""Level 4: change the trainer."""
import torch
from torch import Tensor, nn

from loss import bradley_terry_loss
from model import PADDED, Padded, RewardModel


def hinge_loss(r_chosen: Tensor, r_rejected: Tensor) -> Tensor:
    """No gradient beyond a gap of 1: gaps stop there, whatever the noise is."""
    return (1 - (r_chosen - r_rejected)).clamp(min=0)


def listwise_loss(ranked: Tensor) -> Tensor:
    """For each place: log Σ exp over those that are left, minus the reward of the one chosen."""
    losses = torch.zeros_like(ranked[:, 0])  # (B,)
    for k in range(ranked.shape[1] - 1):  # the last one is chosen with probability 1
        losses = losses + torch.logsumexp(ranked[:, k:], dim=-1) - ranked[:, k]
    return losses


def regression_loss(rewards: Tensor, scores: Tensor) -> Tensor:
    """Select before the arithmetic: NaN times 0 is NaN, also in a gradient."""
    graded = ~scores.isnan()  # (N,)
    return (rewards[graded] - scores[graded]).square().mean()


class MeanPooled(RewardModel):
    """The reward is read from the mean of the response's hidden states."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        start: Tensor,
        form: Padded = PADDED,
    ) -> Tensor:
        """The reward of each sequence."""
        hidden = self.model(input_ids, form)  # (N, T, D)
        position = torch.arange(input_ids.shape[1], device=input_ids.device)  # (T,)
        in_response = (position >= start) & (attention_mask == 1)  # (N, T)
        weights = in_response[..., None].float()  # (N, T, 1)
        mean = (hidden * weights).sum(1) / weights.sum(1)  # (N, D)
        with torch.autocast(hidden.device.type, enabled=False):
            return self.score(mean.float()).squeeze(-1)


def length_penalty(
    r_chosen: Tensor,
    r_rejected: Tensor,
    tokens_chosen: Tensor,
    tokens_rejected: Tensor,
) -> float:
    """Least squares through the origin: exchanging the two responses of a pair changes nothing."""
    gap = (r_chosen - r_rejected).double()
    difference = (tokens_chosen - tokens_rejected).double()
    if not difference.any():
        return 0.0
    return float((gap * difference).sum() / difference.square().sum())


class TwoHeads(RewardModel):
    """A second head that learns what length alone explains."""

    def __init__(self, config):
        super().__init__(config)
        self.length_score = nn.Linear(config.hidden_size, 1)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, form: Padded = PADDED
    ) -> tuple[Tensor, Tensor]:
        """Both heads read the same state."""
        hidden = self.model(input_ids, form)  # (N, T, D)
        last = form.last(attention_mask).squeeze(-1)  # (N,)
        last_hidden = hidden[torch.arange(len(hidden)), last].float()  # (N, D)
        return self.score(last_hidden).squeeze(-1), self.length_score(last_hidden).squeeze(-1)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's, of two (N,)."""
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / (a.norm() * b.norm())


def length_head_loss(
    quality: Tensor,
    length: Tensor,
    tokens: Tensor,
    chosen: Tensor,
    rejected: Tensor,
) -> Tensor:
    """The choices are explained by both heads, the length by one of them."""
    both, tokens = quality + length, tokens.float()
    choices = bradley_terry_loss(both[chosen], both[rejected]).mean()
    return choices + correlation(quality, tokens).abs() - correlation(length, tokens)
