"""The checks of level 1: the loss on paper."""
import math

import pytest
import torch

from exercises.checking import answers, assert_close
from loss import bradley_terry_loss

level1 = answers("level1")


def test_gradient_is_that_of_autograd():
    r_chosen = torch.tensor([-2.0, 0.0, 0.5, 3.0], requires_grad=True)
    r_rejected = torch.tensor([2.0, 0.0, 1.5, -1.0], requires_grad=True)
    bradley_terry_loss(r_chosen, r_rejected).sum().backward()
    by_chosen, by_rejected = level1.gradient(r_chosen.detach(), r_rejected.detach())
    hint = "The sign is wrong: a step against the gradient has to raise the chosen reward."
    assert (by_chosen < 0).all() and (by_rejected > 0).all(), hint
    assert not torch.allclose(4 * by_chosen, r_chosen.grad), "Each pair has its own loss: no mean."
    hint = "Is the size the probability of the WRONG answer, σ(−Δ)? It is 0.5 at a gap of 0, and "
    hint += "nearly 0 where the pair is ranked right with confidence."
    assert_close(by_chosen, r_chosen.grad, hint)
    assert_close(by_rejected, r_rejected.grad, hint)


def test_gradient_is_finite_at_large_gaps():
    zero = torch.zeros(2)
    by_chosen, _ = level1.gradient(torch.tensor([200.0, -200.0]), zero)
    hint = "exp(200) is infinite in float32, and inf / inf is NaN. torch.sigmoid is safe."
    assert by_chosen.isfinite().all(), hint
    hint = "At a gap of 200 the pair is right and the gradient 0; at −200 it is wrong, and −1."
    assert_close(by_chosen, [0.0, -1.0], hint)


def test_stable_is_written_out():
    used = {"logsigmoid", "softplus", "logaddexp"} & {*level1.stable_loss.__code__.co_names}
    assert not used, f"{used} has the answer inside. Write down what is in it."
    level1.stable_loss(torch.zeros(1))


def test_stable_agrees_with_the_formula():
    gap = torch.tensor([-4.0, -1.0, -0.1, 0.0, 0.1, 2.0, 4.0])
    expected = torch.log(1 + torch.exp(-gap.double()))
    hint = "This is not log(1 + exp(−Δ)). Split the cases Δ < 0 and Δ > 0 on paper."
    assert_close(level1.stable_loss(gap), expected, hint)


def test_stable_at_both_ends():
    losses = level1.stable_loss(torch.tensor([-120.0, 30.0]))
    hint = "exp(120) overflows float32: the exponent must never be positive."
    assert_close(losses[0], 120.0, hint)
    hint = "At a gap of 30 the loss is 9.4e-14, not 0: 1 + 1e-13 is 1 in float32. Use torch.log1p."
    assert_close(losses[1] * 1e14, math.exp(-30) * 1e14, hint)


def test_stable_has_a_slope_at_both_ends():
    gap = torch.tensor([-120.0, -1.0, 0.0, 1.0, 30.0], requires_grad=True)
    level1.stable_loss(gap).sum().backward()
    expected = -torch.sigmoid(-gap.detach().double())
    hint = "The loss is right, its gradient is not. Is there an infinity or a NaN on the way? "
    hint += "torch.where computes both of its sides."
    assert_close(gap.grad[gap != 0], expected[gap != 0], hint)
    hint = "The slope at a gap of 0 has to be −0.5. There relu has slope 0 and clamp 1; where two "
    hint += "numbers are equal torch.maximum has ½."
    assert_close(gap.grad[gap == 0], [-0.5], hint)


def test_shapes_of_all_kinds_give_the_gap_of_each_pair():
    r_chosen, r_rejected = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 3.0, -1.0])
    expected = torch.tensor([0.5, -1.0, 4.0])
    hint = "(B,) minus (B, 1) broadcasts to (B, B): flatten both before you subtract."
    assert_close(level1.pair_gaps(r_chosen, r_rejected), expected, hint)
    assert_close(level1.pair_gaps(r_chosen[:, None], r_rejected), expected, hint)
    assert_close(level1.pair_gaps(r_chosen, r_rejected[:, None]), expected, hint)
    assert_close(level1.pair_gaps(r_chosen[:, None], r_rejected[:, None]), expected, hint)


def test_shapes_of_a_single_pair_give_one_gap():
    one, column = torch.tensor([3.0]), torch.tensor([[1.0]])
    hint = "One pair is one gap, (1,). squeeze() removes EVERY dimension of size 1: here also that "
    hint += "of the pairs."
    assert_close(level1.pair_gaps(one, column), [2.0], hint)
    assert_close(level1.pair_gaps(column, column), [0.0], hint)
    gaps = level1.pair_gaps(one.requires_grad_(), column)
    assert gaps.requires_grad, "Gradients have to flow through the gaps: nothing could be learned."


def test_shapes_that_do_not_fit_are_refused():
    for chosen, rejected in ((3, 2), (3, 1), (1, 3), (0, 0)):
        try:
            level1.pair_gaps(torch.zeros(chosen), torch.zeros(rejected))
        except ValueError:
            continue
        except NotImplementedError:
            raise
        except RuntimeError as e:
            pytest.fail(f"PyTorch refused {chosen} and {rejected} rewards ({e}). Where one of them "
                        "is 1 it would not: compare the lengths yourself, raise a ValueError.")
        pytest.fail(f"{chosen} chosen and {rejected} rejected rewards were accepted: raise a "
                    "ValueError. (One reward would be compared with all others.)")


def test_flipped_labels_have_a_best_gap():
    gaps = torch.linspace(-5, 5, 10001)
    for share in (0.02, 0.1, 0.3):
        losses = bradley_terry_loss(gaps, torch.zeros_like(gaps), label_smoothing=share)
        hint = f"With ε = {share} the loss is lowest at another gap. Its derivative is 0 where "
        hint += "σ(Δ) = 1 − ε; solve that for Δ."
        assert_close(level1.best_gap(share), gaps[losses.argmin()], hint, tolerance=0.01)


def test_flipped_labels_that_do_not_exist_set_no_limit():
    hint = "Without flipped labels a larger gap is always better: return math.inf."
    assert level1.best_gap(0.0) == math.inf, hint
