"""The loss: what it is worth at any gap, what its gradient means, and which mistakes it refuses."""
import math

import numpy as np
import pytest
import torch

from loss import bradley_terry_loss, pairwise_accuracy


def rewards(*values):
    return torch.tensor(values, dtype=torch.float32, requires_grad=True)


def in_float64(gap: np.ndarray) -> np.ndarray:
    """−log σ(gap), by another formula and in another precision."""
    return np.logaddexp(0.0, -gap.astype(np.float64))


def test_equal_rewards_cost_log_2():
    assert bradley_terry_loss(rewards(0.0, 5.0), rewards(0.0, 5.0)).item() == pytest.approx(math.log(2), rel=1e-6)


def test_loss_agrees_with_float64_at_any_gap():
    gaps = np.array([-1e3, -200, -104, -89, -20, -1, -1e-3, 0, 1e-3, 1, 20, 89, 104, 200, 1e3])
    loss = bradley_terry_loss(torch.tensor(gaps).float(), torch.zeros(len(gaps)), reduction="none")
    np.testing.assert_allclose(loss.numpy(), in_float64(gaps), rtol=1e-6, atol=1e-38)


def test_loss_of_half_precision_rewards_is_computed_in_float32():
    r = torch.tensor([5.0, -300.0], dtype=torch.bfloat16)
    loss = bradley_terry_loss(r, torch.zeros(2, dtype=torch.bfloat16), reduction="none")
    assert loss.dtype == torch.float32
    np.testing.assert_allclose(loss.numpy(), in_float64(np.array([5.0, -300.0])), rtol=1e-6)


def test_gradient_is_minus_the_chance_of_being_wrong():
    r_chosen, r_rejected = rewards(-1e3, -3.0, 0.0, 0.5, 1e3), rewards(0.0, 1.0, 0.0, 0.0, 0.0)
    bradley_terry_loss(r_chosen, r_rejected, reduction="none").sum().backward()
    wrong = torch.sigmoid(-(r_chosen - r_rejected)).detach()
    torch.testing.assert_close(r_chosen.grad, -wrong)
    torch.testing.assert_close(r_rejected.grad, wrong)


def test_adding_a_constant_to_all_rewards_changes_nothing():
    r_chosen, r_rejected = rewards(0.25, -1.5), rewards(1.0, 2.0)
    shifted = bradley_terry_loss(r_chosen + 64, r_rejected + 64)
    torch.testing.assert_close(shifted, bradley_terry_loss(r_chosen, r_rejected))


def test_mean_is_the_mean_of_the_pairs():
    torch.manual_seed(0)
    r_chosen, r_rejected = torch.randn(9), torch.randn(9)
    settings = dict(margin=torch.rand(9), label_smoothing=0.1, centering=0.05)
    each = bradley_terry_loss(r_chosen, r_rejected, **settings, reduction="none")
    assert each.shape == (9,)
    torch.testing.assert_close(each.mean(), bradley_terry_loss(r_chosen, r_rejected, **settings))


def test_k_responses_cost_the_mean_over_their_pairs_so_that_a_prompt_counts_once():
    r = rewards(1.0, 0.2, -0.7)  # of three responses, best first; another prompt has one pair
    better, worse = [0, 0, 1], [1, 2, 2]
    three, one = in_float64((r[better] - r[worse]).detach().numpy()).mean(), in_float64(np.array(0.4))
    weight = torch.tensor([1 / 3] * 3 + [1.0])
    loss = bradley_terry_loss(torch.cat((r[better], rewards(0.4))), torch.cat((r[worse], rewards(0.0))), weight=weight)
    assert loss.item() == pytest.approx((three + one) / 2, rel=1e-6)
    accuracy, ties = pairwise_accuracy(rewards(1, 1, 1, 0), rewards(0, 0, 1, 1), weight)
    assert accuracy.item() == pytest.approx((1 + 1 + 0.5) / 3 / 2) and ties == 1
    with pytest.raises(ValueError):
        bradley_terry_loss(rewards(1.0, 2.0), rewards(0.0, 0.0), weight=torch.ones(2, 1))


def test_margin_is_a_gap_that_has_to_be_won_first():
    loss = bradley_terry_loss(rewards(3.0), rewards(1.0), margin=torch.tensor([2.0]))
    assert loss.item() == pytest.approx(math.log(2), rel=1e-6)


def test_label_smoothing_is_the_expected_loss_over_flipped_labels():
    gap, flip = 1.7, 0.2
    expected = (1 - flip) * in_float64(np.array(gap)) + flip * in_float64(np.array(-gap))
    assert bradley_terry_loss(rewards(gap), rewards(0.0), label_smoothing=flip).item() == pytest.approx(expected, rel=1e-6)


def test_label_smoothing_stops_rewards_at_the_log_odds_of_the_noise():
    r_chosen = rewards(math.log(0.8 / 0.2))
    bradley_terry_loss(r_chosen, torch.zeros(1), label_smoothing=0.2).backward()
    assert abs(r_chosen.grad.item()) < 1e-7


def test_a_flipped_label_with_a_margin_is_lost_by_the_margin():
    loss = bradley_terry_loss(rewards(1.0), rewards(0.0), margin=torch.tensor([0.5]), label_smoothing=0.3)
    expected = 0.7 * in_float64(np.array(1.0 - 0.5)) + 0.3 * in_float64(np.array(-1.0 - 0.5))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_centering_penalises_the_square_of_the_sum():
    plain = bradley_terry_loss(rewards(3.0, 1.0), rewards(1.0, -1.0))
    centered = bradley_terry_loss(rewards(3.0, 1.0), rewards(1.0, -1.0), centering=0.01)
    assert (centered - plain).item() == pytest.approx(0.01 * (16 + 0) / 2, rel=1e-5)


@pytest.mark.parametrize("other", [(3, 1), (1,), (1, 3), (2,)])
def test_unequal_shapes_are_refused_not_broadcast(other):
    with pytest.raises(ValueError, match="shapes"):
        bradley_terry_loss(torch.zeros(3), torch.zeros(other))
    with pytest.raises(ValueError, match="shapes"):
        bradley_terry_loss(torch.zeros(3), torch.zeros(3), margin=torch.zeros(other))
    with pytest.raises(ValueError, match="shapes"):
        pairwise_accuracy(torch.zeros(3), torch.zeros(other))


@pytest.mark.parametrize("bad", [dict(label_smoothing=0.5), dict(label_smoothing=-0.1), dict(centering=-1.0),
                                 dict(centering=math.nan), dict(reduction="sum")])
def test_settings_without_a_meaning_are_refused(bad):
    with pytest.raises(ValueError):
        bradley_terry_loss(torch.zeros(3), torch.zeros(3), **bad)


def test_no_pairs_are_refused():
    with pytest.raises(ValueError):
        bradley_terry_loss(torch.zeros(0), torch.zeros(0))


def test_a_tie_counts_half_and_is_shown():
    accuracy, ties = pairwise_accuracy(torch.tensor([1.0, 2.0, 0.0, 5.0]), torch.tensor([0.0, 2.0, 3.0, 4.0]))
    assert accuracy.item() == (1 + 0.5 + 0 + 1) / 4 and ties.item() == 1


def test_a_model_that_says_the_same_of_everything_scores_one_half():
    accuracy, ties = pairwise_accuracy(torch.ones(7), torch.ones(7))
    assert accuracy.item() == 0.5 and ties.item() == 7
