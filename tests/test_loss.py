"""The loss: its value at any gap, what its gradient means, and which mistakes it refuses."""
import math

import numpy as np
import pytest
import torch

from loss import bradley_terry_loss, pairwise_correct

LOG_2 = math.log(2)
BAD_SHAPES = "equal, non-empty shapes"
BROADCAST = "unequal shapes were broadcast: answers to different questions are compared"


def rewards(*values):
    return torch.tensor(values, dtype=torch.float32, requires_grad=True)


def in_float64(gap):
    """−log σ(gap), by another formula and in another precision."""
    return np.logaddexp(0.0, -np.float64(gap))


def assert_equal(losses, expected, message=""):
    """Up to the rounding of float32."""
    losses = losses.detach().numpy()
    np.testing.assert_allclose(losses, expected, rtol=1e-6, atol=1e-38, err_msg=message)


# ---------------------------------------------------------------- the value


def test_equal_rewards_cost_log_2():
    losses = bradley_terry_loss(rewards(5.0), rewards(5.0))
    assert_equal(losses, LOG_2)


def test_a_pair_that_is_ranked_right_costs_less_than_one_that_is_ranked_wrong():
    right = bradley_terry_loss(rewards(1.0), rewards(0.0))
    wrong = bradley_terry_loss(rewards(0.0), rewards(1.0))
    assert right < LOG_2 < wrong, "chosen and rejected are swapped"


@pytest.mark.parametrize("gap", [0, 0.001, 1, 20, 89, 104, 200, 1000])
def test_loss_agrees_with_float64_at_any_gap(gap):
    zero = torch.zeros(1)
    right = bradley_terry_loss(rewards(gap), zero)
    wrong = bradley_terry_loss(rewards(-gap), zero)
    message = "log(sigmoid(gap)) overflows, or is 0 where it should be tiny"
    gap = np.float32(gap)
    assert_equal(right, in_float64(gap), message)
    assert_equal(wrong, in_float64(-gap), message)


def test_loss_of_bfloat16_rewards_is_computed_in_float32():
    r_chosen = torch.tensor([5.0, -300.0], dtype=torch.bfloat16)
    losses = bradley_terry_loss(r_chosen, torch.zeros_like(r_chosen))
    assert losses.dtype == torch.float32, "computed in bfloat16, a small gap is lost"
    assert_equal(losses, in_float64([5, -300]))


def test_each_pair_has_its_own_loss():
    torch.manual_seed(0)
    r_chosen, r_rejected, margin = torch.randn(3, 9)
    options = {"label_smoothing": 0.1, "centering": 0.05}
    losses = bradley_terry_loss(r_chosen, r_rejected, margin, **options)
    assert losses.shape == (9,)
    for i in range(9):
        one = slice(i, i + 1)
        alone = bradley_terry_loss(r_chosen[one], r_rejected[one], margin[one], **options)
        assert_equal(losses[one], alone)


def test_adding_a_number_to_all_rewards_changes_nothing():
    r_chosen = rewards(0.25, -1.5)
    r_rejected = rewards(1.0, 2.0)
    losses = bradley_terry_loss(r_chosen, r_rejected)
    shifted = bradley_terry_loss(r_chosen + 64, r_rejected + 64)
    assert_equal(shifted, losses.detach())


# ---------------------------------------------------------------- which pairs are right


def test_a_tie_counts_half():
    r_chosen = torch.tensor([1.0, 2.0, 0.0])
    r_rejected = torch.tensor([0.0, 2.0, 3.0])
    correct = pairwise_correct(r_chosen, r_rejected)
    assert correct.tolist() == [1.0, 0.5, 0.0], "a tie is neither right (1) nor wrong (0)"


def test_a_model_that_gives_every_text_the_same_reward_scores_one_half():
    correct = pairwise_correct(torch.ones(7), torch.ones(7))
    assert correct.mean() == 0.5


# ---------------------------------------------------------------- the gradient


def test_gradient_is_minus_the_probability_of_the_wrong_answer():
    r_chosen = rewards(-1000, -3, 0, 0.5, 1000)
    r_rejected = rewards(0, 1, 0, 0, 0)
    losses = bradley_terry_loss(r_chosen, r_rejected)
    losses.sum().backward()
    wrong = torch.sigmoid(r_rejected - r_chosen).detach()
    torch.testing.assert_close(r_chosen.grad, -wrong)
    torch.testing.assert_close(r_rejected.grad, wrong)


def test_a_prompt_counts_once_when_the_weights_of_its_pairs_sum_to_one():
    # One prompt has three responses: three pairs. Another prompt has one pair. The caller gives
    # every pair the weight 1 / (pairs of its prompt × prompts).
    best, middle, worst = 1.0, 0.2, -0.7
    r_chosen = rewards(best, best, middle, 0.4)
    r_rejected = rewards(middle, worst, worst, 0.0)
    weight = torch.tensor([1 / 6, 1 / 6, 1 / 6, 1 / 2])

    losses = bradley_terry_loss(r_chosen, r_rejected)
    three_pairs = in_float64([best - middle, best - worst, middle - worst])
    one_pair = in_float64(0.4)
    loss = (weight * losses).sum()
    assert_equal(loss, (three_pairs.mean() + one_pair) / 2)

    correct = pairwise_correct(rewards(1, 1, 1, 0), rewards(0, 0, 1, 1))
    accuracy = (weight * correct).sum()
    assert_equal(accuracy, ((1 + 1 + 0.5) / 3 + 0) / 2)


# ---------------------------------------------------------------- margin, smoothing, centering


def test_margin_is_a_gap_that_has_to_be_won_first():
    margin = torch.tensor([2.0])
    losses = bradley_terry_loss(rewards(3.0), rewards(1.0), margin)
    assert_equal(losses, LOG_2, "is the margin added where it should be subtracted?")


def test_label_smoothing_is_the_expected_loss_over_flipped_labels():
    losses = bradley_terry_loss(rewards(1.7), rewards(0.0), label_smoothing=0.2)
    as_labelled, flipped = in_float64(1.7), in_float64(-1.7)
    message = "0.2 of the labels are flipped: is the wrong term weighed, or one of them twice?"
    assert_equal(losses, 0.8 * as_labelled + 0.2 * flipped, message)


def test_label_smoothing_stops_rewards_at_the_log_odds_of_the_noise():
    r_chosen = rewards(math.log(0.8 / 0.2))
    losses = bradley_terry_loss(r_chosen, torch.zeros(1), label_smoothing=0.2)
    losses.sum().backward()
    assert r_chosen.grad.abs() < 1e-7


def test_a_flipped_label_with_a_margin_is_lost_by_the_margin():
    margin = torch.tensor([0.5])
    losses = bradley_terry_loss(rewards(1.0), rewards(0.0), margin, label_smoothing=0.3)
    as_labelled, flipped = in_float64(1.0 - 0.5), in_float64(-1.0 - 0.5)
    message = "in a flipped label the other response has to win by the margin"
    assert_equal(losses, 0.7 * as_labelled + 0.3 * flipped, message)


def test_centering_adds_the_square_of_the_sum():
    r_chosen, r_rejected = rewards(3.0), rewards(1.0)
    plain = bradley_terry_loss(r_chosen, r_rejected)
    centered = bradley_terry_loss(r_chosen, r_rejected, centering=0.01)
    message = "centering pulls the SUM of both rewards to 0; their difference is what is learned"
    assert_equal(centered, plain.detach() + 0.01 * 4**2, message)


# ---------------------------------------------------------------- invalid input


@pytest.mark.parametrize("shape", [(3, 1), (1,), (1, 3), (2,)])
def test_unequal_shapes_are_refused_not_broadcast(shape):
    three, other = torch.zeros(3), torch.zeros(shape)
    with pytest.raises(ValueError, match=BAD_SHAPES):
        bradley_terry_loss(three, other)
        pytest.fail(BROADCAST)
    with pytest.raises(ValueError, match=BAD_SHAPES):
        bradley_terry_loss(three, three, margin=other)
        pytest.fail(BROADCAST)
    with pytest.raises(ValueError, match=BAD_SHAPES):
        pairwise_correct(three, other)
        pytest.fail(BROADCAST)


@pytest.mark.parametrize("shape", [(0,), (3, 1), ()])
def test_equal_shapes_that_are_no_list_of_pairs_are_refused(shape):
    rewards_of_no_pairs = torch.zeros(shape)
    with pytest.raises(ValueError, match=BAD_SHAPES):
        bradley_terry_loss(rewards_of_no_pairs, rewards_of_no_pairs)
    with pytest.raises(ValueError, match=BAD_SHAPES):
        pairwise_correct(rewards_of_no_pairs, rewards_of_no_pairs)


@pytest.mark.parametrize("value", [0.5, -0.1, math.nan])
def test_label_smoothing_that_is_no_share_is_refused(value):
    with pytest.raises(ValueError, match="label_smoothing must be a share"):
        bradley_terry_loss(rewards(1.0), rewards(0.0), label_smoothing=value)


@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_centering_below_0_is_refused(value):
    with pytest.raises(ValueError, match="centering must be 0 or more"):
        bradley_terry_loss(rewards(1.0), rewards(0.0), centering=value)
