"""The checks of level 4: change the trainer."""
import math

import torch

from exercises.checking import answers, assert_close, small_batch, small_model
from loss import bradley_terry_loss
from model import PADDED, RewardModel

level4 = answers("level4")


def test_hinge_is_zero_beyond_a_gap_of_one():
    r_chosen = torch.tensor([3.0, 1.5, 0.5, 0.0, -2.0], requires_grad=True)
    losses = level4.hinge_loss(r_chosen, torch.zeros(5))
    hint = "max(0, 1 − Δ) for each pair: not below 0, no mean, and Δ is chosen minus rejected."
    assert_close(losses, [0.0, 0.0, 0.5, 1.0, 3.0], hint)
    losses.sum().backward()
    hint = "The gradient is −1 below a gap of 1, and 0 above it. Was the tensor detached?"
    assert_close(r_chosen.grad, [0.0, 0.0, -1.0, -1.0, -1.0], hint)


def test_listwise_of_two_is_bradley_terry():
    ranked = torch.tensor([[2.0, 0.5], [-1.0, 1.0], [200.0, -200.0], [-200.0, 200.0]])
    expected = bradley_terry_loss(ranked[:, 0], ranked[:, 1])
    hint = "With K = 2 this has to be −log σ(best − worst). Infinite or NaN at 200? Use logsumexp."
    assert_close(level4.listwise_loss(ranked), expected, hint)


def test_listwise_multiplies_the_choices():
    ranked = torch.tensor([[0.0, 0.0, 0.0], [2.0, 1.0, 0.0]])
    first, second, third = math.exp(2), math.exp(1), math.exp(0)
    p_first = first / (first + second + third)
    p_second = second / (second + third)
    expected = [math.log(6), -math.log(p_first * p_second)]
    hint = "Three equal rewards: any order has P = 1/3 · 1/2 · 1. When the best is taken, the next "
    hint += "choice is among those that are LEFT."
    assert_close(level4.listwise_loss(ranked), expected, hint)


def test_regression_is_the_mean_over_graded_responses():
    rewards = torch.tensor([1.0, 5.0, -1.0, 7.0], requires_grad=True)
    scores = torch.tensor([2.0, float("nan"), 1.0, float("nan")])
    loss = level4.regression_loss(rewards, scores)
    hint = "NaN means: no grade. The mean of (1−2)² and (−1−1)² is 2.5: divide by the two that are "
    hint += "graded, not by four."
    assert_close(loss, 2.5, hint)
    loss.backward()
    hint = "A response without a grade has gradient 0, not NaN. NaN · 0 is NaN: select the graded "
    hint += "ones before you subtract."
    assert_close(rewards.grad, [-1.0, 0.0, -2.0, 0.0], hint)


def test_pooling_is_the_mean_over_the_response():
    model, batch = small_model(level4.MeanPooled), small_batch()
    found = model(batch.input_ids, batch.attention_mask, batch.start)
    expected = []
    for row, mask, start in zip(batch.input_ids, batch.attention_mask, batch.start):
        hidden = model.model(row[: mask.sum()][None], PADDED)[0]  # (tokens, D)
        expected.append(model.score(hidden[start:].mean(0)).squeeze())
    hint = "Is the mean from `start` to the last valid token, both included, and divided by their "
    hint += "number? Neither the prompt nor pads belong to it."
    assert_close(found, torch.stack(expected), hint)


def test_pooling_does_not_see_pads():
    model, batch = small_model(level4.MeanPooled), small_batch()
    found = model(batch.input_ids, batch.attention_mask, batch.start)
    others = torch.where(batch.attention_mask == 1, batch.input_ids, 7)
    hint = "Rewards changed when other ids stood at the pads: pads are in the mean."
    assert_close(model(others, batch.attention_mask, batch.start), found, hint)
    found.sum().backward()
    hint = "No gradient reaches the decoder: is something detached?"
    assert model.model.embed_tokens.weight.grad.abs().sum() > 0, hint


def test_penalty_removes_the_length_within_prompts():
    torch.manual_seed(0)
    B = 400
    tokens_chosen, tokens_rejected = torch.randint(5, 50, (2, B))
    # Prompts differ in length AND in mean reward. That must not count.
    prompt = torch.arange(B) / 10
    tokens_chosen, tokens_rejected = tokens_chosen + prompt.long(), tokens_rejected + prompt.long()
    r_chosen = 0.08 * tokens_chosen + torch.randn(B) + 5 * prompt
    r_rejected = 0.08 * tokens_rejected + torch.randn(B) + 5 * prompt
    pairs = (r_chosen, r_rejected, tokens_chosen, tokens_rejected)
    gap, difference = r_chosen - r_rejected, (tokens_chosen - tokens_rejected).float()
    expected = (gap * difference).sum() / difference.square().sum()
    hint = "Fit DIFFERENCES of rewards to differences of tokens, through the origin. Rewards of "
    hint += "different prompts cannot be compared: one has longer answers and higher rewards."
    found = level4.length_penalty(*pairs)
    assert_close(found, expected, hint, tolerance=1e-3)
    found = level4.length_penalty(pairs[1], pairs[0], pairs[3], pairs[2])
    assert_close(found, expected, "Exchanging the two responses changes nothing.", tolerance=1e-3)


def test_penalty_has_no_intercept():
    torch.manual_seed(0)
    tokens_chosen, tokens_rejected = torch.randint(5, 50, (2, 400))
    tokens_chosen += 10  # the chosen responses are longer, and better for other reasons too
    r_chosen, r_rejected = 2 + 0.08 * tokens_chosen, 0.08 * tokens_rejected
    found = level4.length_penalty(r_chosen, r_rejected, tokens_chosen, tokens_rejected)
    gap, difference = r_chosen - r_rejected, (tokens_chosen - tokens_rejected).float()
    expected = (gap * difference).sum() / difference.square().sum()
    hint = "The line does not go through the origin: no mean is subtracted. Two equally long "
    hint += "responses tell nothing about length, whichever is called chosen."
    assert_close(found, expected, hint, tolerance=1e-3)


def test_penalty_of_equal_lengths_is_zero():
    same = torch.tensor([5, 9])
    found = level4.length_penalty(torch.ones(2), torch.zeros(2), same, same)
    assert_close(found, 0.0, "Nothing to fit where all lengths are equal: 0, not 0 / 0.")


def test_lengthhead_has_two_heads_on_one_state():
    model, batch = small_model(level4.TwoHeads), small_batch()
    quality, length = model(**batch.inputs())
    hint = "`quality` has to be the ordinary reward: `score` on the state of the last valid token."
    assert_close(quality, RewardModel.forward(model, **batch.inputs()), hint)
    last = batch.attention_mask.sum(-1) - 1
    hidden = model.model(batch.input_ids, PADDED)[torch.arange(len(last)), last]
    hint = "The second head is `length_score`, on the same state, with a bias too, as (N,)."
    assert_close(length, model.length_score(hidden).squeeze(-1), hint)


def length_head_terms():
    """A batch of 6 sequences and the three terms there, by torch.corrcoef."""
    torch.manual_seed(0)
    quality, length = torch.randn(2, 6, requires_grad=True)
    tokens = torch.tensor([5, 9, 7, 12, 6, 8])
    chosen, rejected = torch.tensor([0, 2, 4]), torch.tensor([1, 3, 5])
    both = quality + length
    of_quality = torch.corrcoef(torch.stack([quality, tokens.float()]))[0, 1]
    of_length = torch.corrcoef(torch.stack([length, tokens.float()]))[0, 1]
    choices = bradley_terry_loss(both[chosen], both[rejected]).mean()
    return (quality, length, tokens, chosen, rejected), choices, of_quality, of_length


def test_lengthhead_loss_has_three_terms():
    inputs, choices, of_quality, of_length = length_head_terms()
    expected = choices + of_quality.abs() - of_length
    for name, quality, length in (("quality", -1, 1), ("length", 1, -1)):
        changed = (quality * inputs[0], length * inputs[1], *inputs[2:])
        both = changed[0] + changed[1]
        other = bradley_terry_loss(both[inputs[3]], both[inputs[4]]).mean()
        other = other + of_quality.abs() - length * of_length
        hint = f"Turning the sign of `{name}` changes the loss in another way than it should: the "
        hint += "correlation of quality counts without its sign, that of length with it."
        assert_close(level4.length_head_loss(*changed), other, hint)
    hint = "Is it the MEAN loss of the pairs (both heads added up), plus |ρ| of quality, minus ρ of "
    hint += "length?"
    assert_close(level4.length_head_loss(*inputs), expected, hint)


def test_lengthhead_loss_leaves_the_length_to_its_head():
    (_, _, tokens, chosen, rejected), *_ = length_head_terms()
    quality = (tokens.float() + torch.tensor([2.0, 0.0, 0.0, 1.0, 0.0, 0.0])).requires_grad_()
    length = torch.randn(6).requires_grad_()
    optimizer = torch.optim.Adam([quality, length], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        level4.length_head_loss(quality, length, tokens, chosen, rejected).backward()
        optimizer.step()
    of_quality = torch.corrcoef(torch.stack([quality, tokens.float()]))[0, 1].item()
    of_length = torch.corrcoef(torch.stack([length, tokens.float()]))[0, 1].item()
    hint = f"After 100 steps ρ(quality, tokens) is {of_quality:.2f} and ρ(length, tokens) is "
    hint += f"{of_length:.2f}; expected are about 0 and 1. Does the gradient flow through ρ?"
    assert abs(of_quality) < 0.2 and of_length > 0.7, hint
