"""Level 4: change the trainer. Read train_rm.py first, above all `objective`.

The five files stay as they are: you write losses and subclasses. `python -m exercises.train NAME`
trains the toy world with some of them. Replace each `raise NotImplementedError` by your answer.
Then, from the top folder:

    python -m pytest exercises/ -k hinge            the checks of one exercise
    python -m pytest exercises/test_level4.py       those of the level

Shapes: B pairs   N sequences, each in a row of its own   T tokens of the longest   D hidden_size
"""
import torch

from model import PADDED, Padded, RewardModel


def hinge_loss(r_chosen: torch.Tensor, r_rejected: torch.Tensor) -> torch.Tensor:
    """hinge: max(0, 1 − Δ) for each pair.

    Args:    (B,) each.
    Returns: (B,).
    Source:  the hinge loss of a ranking SVM (Joachims 2002). Then train:
             `python -m exercises.train hinge`. What is `ece` now, and why?
    """
    raise NotImplementedError


def listwise_loss(ranked: torch.Tensor) -> torch.Tensor:
    """listwise: −log P(this order of K responses), by Plackett and Luce.

    The best is chosen among all K with P = softmax, then the next among the K − 1 that are left,
    and so on. With K = 2 it is the loss of loss.py. Rewards may be as large as 200.

    Args:    ranked: (B, K) rewards, those of the best response first.
    Returns: (B,) nats.
    Source:  Plackett 1975; Luce 1959. loss.py compares all pairs instead.
    """
    raise NotImplementedError


def regression_loss(rewards: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """regression: the mean of (reward − score)², over the responses that have a score.

    Graded responses need no pairs. The reward then has a zero point: that of the grades.

    Args:    rewards: (N,). scores: (N,) grades, NaN where nobody gave one; at least one is there.
    Returns: one number. Its gradient must be finite: 0 where there is no grade.
    Source:  regression reward models, for example HelpSteer2's (Wang et al. 2024).
    """
    raise NotImplementedError


class MeanPooled(RewardModel):
    """pooling: the reward is read from the mean of the response's hidden states.

    Write forward(). The response is from `start` to the last valid token, both included. The
    prompt's states are not in the mean, nor are those of pads.

    Source:  `RewardModel.forward` in model.py. Then train: `python -m exercises.train pooling`.
    """

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        start: torch.Tensor,
        form: Padded = PADDED,
    ) -> torch.Tensor:
        """The reward of each sequence.

        Args:    input_ids, attention_mask: (N, T). start: (N, 1) where each response begins.
        Returns: (N,) float32.
        """
        raise NotImplementedError


def length_penalty(
    r_chosen: torch.Tensor,
    r_rejected: torch.Tensor,
    tokens_chosen: torch.Tensor,
    tokens_rejected: torch.Tensor,
) -> float:
    """penalty: the λ for which reward − λ · tokens no longer follows the length.

    Only differences within a prompt mean something. So fit a line through the origin: the
    difference of rewards, against the difference of tokens. λ is its slope by least squares:
    Σ Δr·Δt / Σ Δt².

    Args:    (B,) each; the tokens are integers.
    Returns: λ in nats a token; 0.0 where the two lengths of all pairs are equal.
    Source:  `length_correlation` in eval.py shows what is to be mended.
    """
    raise NotImplementedError


class TwoHeads(RewardModel):
    """lengthhead, part 1: a second head that learns what length alone explains.

    `length_score` is a linear map from D numbers to one, like `score`. Both read the state of the
    last token. Later only `score` is used, and the length is left behind in the other head.

    Source:  after ODIN (Chen et al. 2024). `RewardModel.__init__` and `forward` in model.py.
    """

    def __init__(self, config):
        super().__init__(config)
        raise NotImplementedError

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, form: Padded = PADDED
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns: quality and length reward, (N,) each."""
        raise NotImplementedError


def length_head_loss(
    quality: torch.Tensor,
    length: torch.Tensor,
    tokens: torch.Tensor,
    chosen: torch.Tensor,
    rejected: torch.Tensor,
) -> torch.Tensor:
    """lengthhead, part 2: three terms, added up.

        mean −log σ of the gaps of (quality + length)     together they explain the choices
        |ρ(quality, tokens)|                              quality knows nothing of length
        − ρ(length, tokens)                               the other head knows it all

    ρ is Pearson's correlation over the N sequences of a batch. Gradients flow through it.

    Args:    quality, length, tokens: (N,); tokens are integers.
             chosen, rejected: (B,) which sequences are a pair, as in data.Batch.
    Returns: one number.
    """
    raise NotImplementedError
