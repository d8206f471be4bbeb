"""The report's figures against computations by hand."""
import math
import re

import numpy as np
import pytest
import torch
from conftest import tiny_model, tiny_tokenizer

from data import Audit, DataError, examples_of, parse_row
from eval import bootstrap_interval, calibration, describe, report, score
from extras import toy_world


def toy_rows(n):
    rows = []
    for row in toy_world.toy_rows(n, seed=3):
        rows.append({field: row[field] for field in ("prompt", "chosen", "rejected")})
    return rows


def examples_from(rows, tokenizer=None, max_length=128):
    parsed = [parse_row(row, f"row {i}") for i, row in enumerate(rows, 1)]
    return list(examples_of(parsed, tokenizer or tiny_tokenizer(), max_length, Audit()))


def accuracy_of(gaps):
    return (gaps > 0) + 0.5 * (gaps == 0)


def test_every_figure_agrees_with_a_computation_by_hand():
    examples = examples_from(toy_rows(20))
    rewards = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    rewards[3] = 0.5  # a tie
    figures = report(list(rewards), examples)
    gaps = rewards[:, 0].astype(np.float64) - rewards[:, 1]
    lengths = np.array([list(map(len, example.sequences)) for example in examples])
    longer = lengths[:, 0] - lengths[:, 1]
    shorter_chosen = accuracy_of(gaps)[longer < 0]
    expected = {
        "pairs": 20,
        "prompts": 3,  # eight rows each
        "accuracy": accuracy_of(gaps).mean(),
        "ties": 1,
        "loss": np.logaddexp(0, -gaps).mean(),
        "longer_wins_accuracy": accuracy_of(longer).mean(),
        "pairs_where_chosen_is_shorter": len(shorter_chosen),
        "accuracy_where_chosen_is_shorter": shorter_chosen.mean(),
        "mean_margin": gaps.mean(),
        "mean_chosen": rewards[:, 0].mean(),
        "mean_rejected": rewards[:, 1].mean(),
        "mean_reward": rewards.mean(),
        "std_reward": rewards.std(),
        "length_correlation": np.corrcoef(rewards.ravel(), lengths.ravel())[0, 1],
    }
    one = examples_from([{"prompt": "q", "chosen": "long " * 9, "rejected": "x"}])
    of_one = report([np.array([1.0, 0.0])], one)
    assert of_one["accuracy"] == 1, "chosen and rejected are swapped in the report"
    assert of_one["longer_wins_accuracy"] == 1, "this baseline counts the shorter response"
    assert of_one["accuracy_where_chosen_is_shorter"] is None, "no such pair: NaN is no JSON"
    assert "gold_correlation" not in figures, "the true rewards of these rows are not known"
    assert figures["calibration"] == calibration(gaps), "it is about r_chosen − r_rejected"
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, rel=1e-5), f"{name}, computed by hand"
    low, high = figures["accuracy_ci95"]
    prompts = np.array([example.prompt for example in examples])
    assert [low, high] == bootstrap_interval(accuracy_of(gaps), prompts)
    text = describe(figures)
    assert f"{low:.3f} to {high:.3f}" in text and re.search(r"prompts +3 ", text)
    for name in ("accuracy", "longer_wins_accuracy", "mean_margin", "length_correlation"):
        assert f"{figures[name]:.3f}" in text, f"{name} is not in the table"


@pytest.mark.parametrize("right, says_so", [(12, True), (20, False)])
def test_the_report_says_where_nothing_shows_that_the_model_learned(right, says_so):
    rows = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(20)]
    rewards = [np.array([1.0, 0.0] if n < right else [0.0, 1.0], np.float32) for n in range(20)]
    text = describe(report(rewards, examples_from(rows)))
    assert ("what a coin gets" in text) == says_so


def test_the_report_says_where_the_loss_is_above_that_of_a_coin():
    for loss, said in ((0.9, True), (0.3, False)):
        figures = {"loss": loss, "accuracy_ci95": [0.6, 0.8], "calibration": {}}
        assert ("The loss is above log 2" in describe(figures)) == said


def test_of_k_responses_every_pair_counts_once_and_every_response_once():
    row = {"prompt": "q", "responses": ["b", "a", "d", "c"], "scores": [0, 1, 0, 0]}
    rewards = np.array([0, 10, 1, 5], dtype=np.float32)
    figures = report([rewards], examples_from([row]))
    assert figures["pairs"] == 3 and figures["accuracy"] == 1
    assert figures["mean_chosen"] == 10 and figures["mean_rejected"] == 2
    assert figures["mean_reward"] == 4, "a response that is in three pairs has one reward"
    assert figures["std_reward"] == pytest.approx(np.std([0, 10, 1, 5]))


def test_calibration_agrees_with_a_computation_by_hand():
    gaps = np.random.default_rng(0).normal(1, 2, size=404)
    gaps[:4] = 0, 0, 30, -30
    result, bins = calibration(gaps), {}
    for gap in gaps:
        confidence = 1 / (1 + math.exp(-abs(gap)))
        number = min(int((confidence - 0.5) * 20), 9)
        bins.setdefault(number, []).append((confidence, accuracy_of(gap)))
    ece = 0
    for line, number in zip(result["table"], sorted(bins)):
        confidence, accuracy = np.mean(bins[number], axis=0)
        assert line["pairs"] == len(bins[number])
        assert line["confidence"] == pytest.approx(confidence)
        assert line["accuracy"] == pytest.approx(accuracy), "is a tie counted as one half?"
        assert line["from"] == pytest.approx(0.5 + number / 20), "a bin has the label of another"
        assert line["to"] == pytest.approx(0.5 + (number + 1) / 20)
        ece += len(bins[number]) / len(gaps) * abs(confidence - accuracy)
    assert len(result["table"]) == len(bins) == 10
    assert result["ece"] == pytest.approx(ece), "a bin weighs as much as it has pairs"


def test_the_temperature_has_the_least_loss_on_its_grid_and_undoes_a_scale():
    gaps = np.random.default_rng(1).normal(1, 2, size=500)
    temperature = calibration(gaps)["temperature"]
    losses = {T: np.logaddexp(0, -gaps / T).mean() for T in np.arange(0.5, 9, 0.01)}
    assert temperature == pytest.approx(min(losses, key=losses.get), rel=0.01), (
        "not the T with the least loss of gap / T: is it upside down?"
    )
    assert calibration(3 * gaps)["temperature"] == pytest.approx(3 * temperature, rel=0.011)


@pytest.mark.parametrize("gaps", [[1, 2], [-1], [0, 0], [1, -1], [1, -3]])
def test_where_the_best_temperature_is_beyond_the_grid_there_is_none(gaps):
    assert calibration(np.array(gaps, dtype=float))["temperature"] is None


def test_the_gold_reward_is_calibrated_and_intervals_cover_the_ceiling_19_times_in_20():
    all_gaps, ceilings = [], []
    for seed in range(50):
        rows = list(toy_world.toy_rows(800, seed))
        gold = np.array([(row["gold_chosen"], row["gold_rejected"]) for row in rows])
        all_gaps.append(gold[:, 0] - gold[:, 1])
        ceilings.append(toy_world.ceiling(*gold.T)[0])
    covered = 0
    for gaps in all_gaps:
        low, high = bootstrap_interval(accuracy_of(gaps), np.arange(800) // 8, draws=300)
        covered += low <= np.mean(ceilings) <= high
    assert 44 <= covered <= 50, "the error bars are too short, or too long"
    result = calibration(np.concatenate(all_gaps))
    assert result["ece"] < 0.005 and result["temperature"] == pytest.approx(1, abs=0.03)


def test_the_true_rewards_reach_their_own_ceiling():
    examples = examples_from(toy_world.toy_rows(4000, seed=3))
    gold = [np.array(example.gold) for example in examples]
    figures = report(gold, examples)
    assert figures["gold_correlation"] == pytest.approx(1)
    assert abs(figures["accuracy"] - figures["ceiling_accuracy"]) < 4 * math.sqrt(0.25 / 4000)
    # The loss never sees what a prompt adds to all its responses. Nor does the correlation.
    shifted = [rewards + 100 * (example.prompt % 7) for rewards, example in zip(gold, examples)]
    assert report(shifted, examples)["gold_correlation"] == pytest.approx(1)


def test_no_rows_have_no_rewards_and_no_report():
    assert score(tiny_model(), [], tiny_tokenizer()) == []
    tied = [example._replace(scores=[1, 1]) for example in examples_from(toy_rows(2))]
    for rewards, examples in (([], []), ([np.ones(2)] * 2, tied)):
        with pytest.raises(DataError, match="no pairs"):
            report(rewards, examples)


def test_equal_rewards_everywhere_are_all_ties_and_one_half():
    figures = report([np.ones(2)] * 7, examples_from(toy_rows(7)))
    assert figures["accuracy"] == 0.5 and figures["ties"] == 7
    assert figures["accuracy_ci95"] == [0.5, 0.5]
    assert figures["loss"] == pytest.approx(math.log(2))
    assert figures["length_correlation"] is None, "rewards that do not vary have no correlation"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_a_number_is_refused_and_not_counted_as_wrong(bad):
    rewards = [np.zeros(2), np.array([bad, 0.0]), np.zeros(2)]
    with pytest.raises(DataError, match="row 2: a reward is not a finite number"):
        report(rewards, examples_from(toy_rows(3)))
        pytest.fail("NaN compares as not larger: it was counted as a wrong answer")
    model = tiny_model()
    torch.nn.init.constant_(model.score.weight, bad)
    with pytest.raises(DataError, match="row 1: a reward is not a finite number"):
        score(model, [{"prompt": "q", "response": "a"}], tiny_tokenizer())


def test_the_interval_is_the_binomial_one_and_longer_where_pairs_share_prompts():
    right = (np.random.default_rng(1).random(2000) < 0.7).astype(float)
    low, high = bootstrap_interval(right, np.arange(2000))
    half = 1.96 * math.sqrt(right.mean() * (1 - right.mean()) / 2000)
    assert [low, high] == pytest.approx([right.mean() - half, right.mean() + half], abs=0.004)
    correct = np.repeat(right[:50], 40)  # of each prompt all 40 pairs are right, or none
    low, high = bootstrap_interval(correct, np.arange(2000))
    low_of_prompts, high_of_prompts = bootstrap_interval(correct, np.repeat(np.arange(50), 40))
    wider = (high_of_prompts - low_of_prompts) / (high - low)
    assert wider > 4, "pairs of one prompt are not independent: draw whole prompts"
    prompts = np.repeat(np.arange(40), [9, 1] * 20)  # the long ones are right, the short ones wrong
    low, high = bootstrap_interval((prompts % 2 == 0).astype(float), prompts)
    assert 0.8 < low < 0.9 < high, "a prompt with nine pairs weighs nine times one with one"
