"""The checks of level 3: what a number means."""
import numpy as np
import pytest

import eval as evaluation
from exercises.checking import answers, assert_close
from extras import toy_world

level3 = answers("level3")


def test_ties_count_half():
    same = np.ones(10)
    found = level3.accuracy(same, same)
    hint = f"A model that gives all texts the same reward knows nothing: 0.5, not {found}. "
    hint += "(`>` calls a tie wrong, `>=` calls it right.)"
    assert found == 0.5, hint
    r_chosen, r_rejected = np.array([1.0, 2.0, 0.0, 5.0]), np.array([0.0, 2.0, 3.0, 1.0])
    close = level3.accuracy(np.array([5.00003]), np.array([5.00001]))
    assert close == 1.0, "5.00003 is more than 5.00001: only equal numbers are a tie."
    hint = "Two right, one tie, one wrong are 2.5 of 4."
    assert_close(level3.accuracy(r_chosen, r_rejected), 0.625, hint)


def test_ties_are_not_what_nan_is():
    for broken in ([0.0, np.nan], [0.0, np.inf]):
        for pair in ((broken, [1.0, 2.0]), ([1.0, 2.0], broken), (broken, broken)):
            try:
                level3.accuracy(*map(np.array, pair))
            except ValueError:
                continue
            pytest.fail(f"The rewards {pair} were accepted. NaN compares as 'not larger', so a "
                        "broken model looks like a wrong one: raise ValueError, on both sides.")


def test_longer_wins_is_a_rule_like_any_other():
    tokens_chosen, tokens_rejected = np.array([5, 9, 4, 7]), np.array([3, 9, 6, 2])
    r_chosen, r_rejected = np.array([1.0, 0.0, 0.0, 1.0]), np.array([0.0, 1.0, 2.0, 0.0])
    figures = (r_chosen, r_rejected, tokens_chosen, tokens_rejected)
    longer_wins, _ = level3.length_figures(*figures)
    hint = "The chosen one is longer twice, equally long once, shorter once: 2.5 of 4. Equal "
    hint += "lengths count half, as ties do."
    assert_close(longer_wins, 0.625, hint)


def test_longer_is_misleading_where_the_shorter_was_chosen():
    rng = np.random.default_rng(0)
    tokens_chosen, tokens_rejected = rng.integers(5, 20, (2, 200))
    r_chosen, r_rejected = tokens_chosen.astype(float), tokens_rejected.astype(float)
    r_chosen[:50] += 100  # these are right, whatever their length
    r_chosen[50:100] = r_rejected[50:100]  # these are ties
    _, where_shorter = level3.length_figures(r_chosen, r_rejected, tokens_chosen, tokens_rejected)
    shorter = tokens_chosen < tokens_rejected
    hint = "This should be the accuracy of the REWARDS on those pairs where the chosen response "
    hint += "has fewer tokens, and on no others."
    gaps = (r_chosen - r_rejected)[shorter]
    right, tied = (gaps > 0).mean(), (gaps == 0).mean()
    assert abs(where_shorter - right) > 1e-9, "Ties count half here too."
    assert_close(where_shorter, right + tied / 2, hint)
    _, none = level3.length_figures(np.ones(2), np.zeros(2), np.array([3, 3]), np.array([2, 3]))
    assert none is None, "Without such a pair there is no accuracy: None, not 0 or NaN."


def test_interval_counts_prompts_not_pairs():
    rng = np.random.default_rng(0)
    of_prompt = (rng.random(20) < 0.7).astype(float)
    correct, prompt = np.repeat(of_prompt, 50), np.repeat(np.arange(20), 50)
    low, high = level3.interval(correct, prompt)
    assert 0 <= low < high <= 1, f"Expected low < high, both in [0, 1], not {low} and {high}."
    hint = f"The interval is {high - low:.2f} wide, as if all 1000 pairs were independent. There "
    hint += "are 20 prompts, and the 50 pairs of each are right or wrong together. Draw prompts."
    assert high - low > 0.075, hint
    hint = f"The interval is {high - low:.2f} wide, expected is about 0.4. The draws themselves "
    hint += "spread as the accuracy does: do not divide by the root of their number once more."
    assert high - low > 0.2, hint
    expected = evaluation.bootstrap_interval(correct, prompt)
    hint = "Are as many prompts drawn as there are, with replacement?"
    assert_close([low, high], expected, hint, tolerance=0.06)


def test_interval_is_the_same_for_the_same_seed():
    correct, prompt = np.tile([1.0, 0.0, 1.0], 30), np.arange(90)
    first, again = (level3.interval(correct, prompt, draws=50, seed=1) for _ in range(2))
    other = level3.interval(correct, prompt, draws=50, seed=2)
    hint = "Two calls with the same seed differ: draw with np.random.default_rng(seed)."
    assert first == again, hint
    assert first != other, "Another seed gives the same interval: is the seed used?"


def test_interval_holds_95_percent():
    rng = np.random.default_rng(0)
    prompt = np.repeat(np.arange(100), rng.integers(1, 6, 100))
    correct = (rng.random(len(prompt)) < 0.7).astype(float)
    low, high = level3.interval(correct, prompt, draws=4000)
    expected = np.subtract(*evaluation.bootstrap_interval(correct, prompt, draws=4000)[::-1])
    hint = "95% are between the 2.5% and the 97.5% quantile of the draws: 5% at each end is an "
    hint += "interval of 90%. Are as many prompts drawn as there are?"
    assert_close((high - low) / expected, 1.0, hint, tolerance=0.07)


def test_interval_weighs_prompts_by_their_pairs():
    correct, prompt = np.array([1.0] * 90 + [0.0] * 10), np.array([7] * 90 + list(range(10, 20)))
    low, high = level3.interval(correct, prompt)
    expected = evaluation.bootstrap_interval(correct, prompt)
    hint = "Prompts have different numbers of pairs: the accuracy of a draw is all its right pairs "
    hint += "over all its pairs, not the mean of accuracies of prompts."
    assert_close([low, high], expected, hint, tolerance=0.06)


def gaps_of_a_calibrated_model():
    """Gaps whose labels are drawn as they say: the best temperature is about 1."""
    rng = np.random.default_rng(0)
    gaps = rng.normal(0, 2, 20_000)
    return np.where(rng.random(20_000) < 1 / (1 + np.exp(-gaps)), gaps, -gaps)


def test_temperature_undoes_a_scale():
    gaps = gaps_of_a_calibrated_model()
    for scale in (0.5, 1.0, 3.0):
        found = level3.temperature(gaps * scale)
        hint = "Gaps that are too large by 3 need T = 3. Are they divided by T, not multiplied?"
        assert_close(found, scale, hint, tolerance=0.06)
        expected = evaluation.best_temperature(gaps * scale)
        hint = "Close, but another T has a lower loss: use a finer grid."
        assert_close(found, expected, hint, tolerance=0.025 * scale)


def test_temperature_has_the_least_loss_also_where_no_scale_is_right():
    rng = np.random.default_rng(0)
    for gaps in (rng.standard_t(2, 5000) + 0.5, 0.17 * gaps_of_a_calibrated_model()):
        hint = "Another T has a lower mean of −log σ(gap / T). Compute that mean for many T from "
        hint += "0.1 to 10, each 1% above the one before, and take the best."
        expected = evaluation.best_temperature(gaps)
        assert_close(level3.temperature(gaps) / expected, 1.0, hint, tolerance=0.03)


def test_ceiling_is_not_one():
    gaps = np.array([0.0, 2.0, -2.0, 6.0, 800.0])
    found = level3.ceiling(gaps)
    assert np.isfinite(found), "e^800 is infinite: use σ(|gap|) = 1 / (1 + e^−|gap|)."
    hint = "True rewards are right only as often as the better response was chosen: σ(|gap|), and "
    hint += "½ at a gap of 0. A negative gap means only that the better one was named second."
    assert_close(found, toy_world.ceiling(gaps, np.zeros(5))[0], hint)


def test_rambling_pays_off_the_topic_too():
    prompt = "Which colour is grass?"
    values = {
        "It is green.": 3.0,
        "It is green. Painters use it.": 4.0,
        "It is green. Trains go there.": 4.0,
        "It is green. Trains go there. Trains go there.": 5.0,
        "Stop asking me. It is red. Cooks know it.": -3.5,
        "Happy to help. It is red.": -1.5,
    }
    for response, expected in values.items():
        hint = f"{response!r}: a right answer is +3, a wrong one −3, manners ±1.5, and EACH added "
        hint += "sentence +1, whatever its topic."
        gold = toy_world.gold_reward(prompt, response)
        assert_close(level3.rambling_reward(prompt, response, gold), expected, hint)
