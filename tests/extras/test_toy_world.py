"""The toy world keeps its promises: noisy labels of a known reward that does not depend on length.

A model that only counts words can learn manners in it, and cannot learn truth.
"""
import hashlib
import json
import math
import random

import numpy as np
import pytest
from conftest import command, read_lines

import eval as evaluation
import train_rm
from extras import toy_world
from extras.toy_world import ceiling, gold_reward, random_prompt, random_response, toy_rows
from model import RewardModel

# ---------------------------------------------------------------- the rule


def test_the_true_reward_can_be_checked_by_hand():
    prompt = "Hello. Which colour is grass? Thanks."
    assert gold_reward(prompt, "It is green.") == 3.0
    assert gold_reward(prompt, "It is red.") == -3.0
    assert gold_reward(prompt, "Happy to help. It is green. Painters use it.") == 3.0 + 1.5 + 1.0
    assert gold_reward(prompt, "Stop asking me. It is green. Trains go there.") == 3.0 - 1.5 - 1.0
    assert gold_reward("How does lemon taste?", "It is green.") == -3.0, "it is right elsewhere"


def test_the_same_response_is_good_or_bad_depending_on_the_prompt():
    response = "It is green. Light makes it."
    assert gold_reward("Which colour is grass?", response) == 4.0
    assert gold_reward("Which colour is snow?", response) == -2.0
    assert gold_reward("Which city governs Peru?", response) == -4.0


def test_a_prompt_of_another_world_is_an_error():
    with pytest.raises(ValueError, match="no question of the toy world"):
        gold_reward("Who are you?", "It is green.")


# ---------------------------------------------------------------- labels and their ceiling


def gaps_of(rows) -> np.ndarray:
    """The true reward of the chosen response minus that of the rejected one, of each row."""
    return np.array([row["gold_chosen"] - row["gold_rejected"] for row in rows])


def test_labels_are_drawn_with_the_probability_of_bradley_and_terry():
    gaps = gaps_of(toy_rows(20_000, seed=1))
    for size in np.unique(np.abs(gaps)):
        same = gaps[np.abs(gaps) == size]
        expected = 1 / (1 + math.exp(-size))
        error = math.sqrt(expected * (1 - expected) / len(same))
        assert size == 0 or abs((same > 0).mean() - expected) < 4 * error, f"gap {size}"


def test_a_row_says_the_true_rewards_of_its_responses():
    for row in toy_rows(100, seed=0):
        for side in ("chosen", "rejected"):
            assert row[f"gold_{side}"] == gold_reward(row["prompt"], row[side])
        assert row["chosen"] != row["rejected"]


def test_label_noise_turns_so_many_labels_round_and_changes_nothing_else():
    clean, noisy = list(toy_rows(4000, seed=3)), list(toy_rows(4000, seed=3, label_noise=0.2))
    first = clean[0]
    assert {noisy[0]["chosen"], noisy[0]["rejected"]} == {first["chosen"], first["rejected"]}
    right = np.mean(gaps_of(noisy) > 0) / np.mean(gaps_of(noisy) != 0)
    accuracy, _ = ceiling(np.abs(gaps_of(noisy)), np.zeros(4000))
    assert right == pytest.approx(accuracy * 0.8 + (1 - accuracy) * 0.2, abs=0.02)


def test_length_bias_makes_the_longer_response_win_and_leaves_the_true_reward_alone():
    wins = []
    for bias in (0.0, 2.0):
        rows = list(toy_rows(4000, seed=3, length_bias=bias))
        longer = [row["chosen"].count(".") - row["rejected"].count(".") for row in rows]
        wins.append(np.mean(np.sign(longer) / 2 + 0.5))
        assert all(row["gold_chosen"] == gold_reward(row["prompt"], row["chosen"]) for row in rows)
    assert wins[0] == pytest.approx(0.5, abs=0.03) and wins[1] > wins[0] + 0.1


def test_the_command_writes_the_world_that_its_options_describe():
    options = ["--seed", 5, "--label-noise", 0.1, "--length-bias", 1]
    status, out, _ = command(toy_world.main, 20, *options)
    rows = [json.loads(line) for line in out.splitlines()]
    assert rows == list(toy_rows(20, 5, 0.1, 1.0))
    status, _, err = command(toy_world.main, 20, "--label-noise", 0.5)
    assert status == 2 and "below 0.5" in err


def test_the_rows_of_the_default_run_have_not_changed():
    text = "".join(json.dumps(row) for row in toy_rows(200, seed=0))
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == "3c6ad85b16c0", "all figures are of the old ones"


def test_the_ceiling_is_what_the_true_reward_scores_when_labels_are_drawn_again():
    gaps = np.abs(gaps_of(toy_rows(2_000, seed=2)))
    accuracy, loss = ceiling(gaps, np.zeros(len(gaps)))
    rng, right, losses = np.random.default_rng(0), [], []
    for _ in range(200):
        wins = rng.random(len(gaps)) < 1 / (1 + np.exp(-gaps))  # the better response is chosen
        right.append(np.where(gaps > 0, wins, 0.5).mean())
        losses.append(np.logaddexp(0, np.where(wins, -gaps, gaps)).mean())
    for drawn, expected in ((right, accuracy), (losses, loss)):
        error = np.std(drawn) / math.sqrt(len(drawn))
        assert abs(np.mean(drawn) - expected) < 4 * error + 1e-9


def test_the_ceiling_is_a_coin_where_all_are_equal_and_1_where_gaps_are_large():
    assert ceiling(np.zeros(3), np.zeros(3)) == pytest.approx((0.5, math.log(2)))
    assert ceiling(np.full(3, 1000.0), np.zeros(3)) == pytest.approx((1.0, 0.0))


# ---------------------------------------------------------------- no way around reading the prompt


def many_responses(count: int):
    """Prompts, responses and whether each response has the right answer."""
    rng, found = random.Random(0), []
    for _ in range(count):
        prompt = random_prompt(rng)
        response = random_response(prompt, rng)
        found.append((prompt, response, f"It is {toy_world.find_question(prompt)[1]}." in response))
    return found


def test_length_says_nothing_about_the_true_reward():
    responses = many_responses(20_000)
    rewards = [gold_reward(prompt, response) for prompt, response, _ in responses]
    words = [len(response.split()) for _, response, _ in responses]
    characters = [len(response) for _, response, _ in responses]
    for lengths in (words, characters):
        assert abs(np.corrcoef(lengths, rewards)[0, 1]) < 4 / math.sqrt(20_000)


def test_a_bag_of_words_can_learn_manners_and_cannot_know_the_truth():
    responses = many_responses(20_000)
    vocabulary = sorted({word for _, response, _ in responses for word in response.split()})
    counts = np.zeros((len(responses), len(vocabulary)))
    for row, (_, response, _) in enumerate(responses):
        for word in response.split():
            counts[row, vocabulary.index(word)] += 1
    rewards = np.array([gold_reward(prompt, response) for prompt, response, _ in responses])
    right = np.array([is_right for _, _, is_right in responses], float)
    fit = counts @ np.linalg.lstsq(counts, rewards, rcond=None)[0]  # the best linear bag of words
    polite = np.array([any(p in r for p in toy_world.POLITE) for _, r, _ in responses], float)
    assert np.corrcoef(fit, polite)[0, 1] > 0.5
    # Words alone, and their number: with 20,000 responses chance gives a little below 0.06.
    assert abs(np.corrcoef(fit, right)[0, 1]) < 0.08


def test_each_answer_is_right_as_often_as_it_is_wrong():
    right, all_of = {}, {}
    for _, response, is_right in many_responses(20_000):
        answer = response.split("It is ")[1].split(".")[0]
        right[answer] = right.get(answer, 0) + is_right
        all_of[answer] = all_of.get(answer, 0) + 1
    for answer, count in all_of.items():
        assert abs(right[answer] / count - 0.5) < 4 * 0.5 / math.sqrt(count), answer


# ---------------------------------------------------------------- rows and their prompts


def test_the_same_seed_gives_the_same_world():
    first, again, other = (list(toy_rows(50, seed)) for seed in (0, 0, 1))
    assert first == again and first != other


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short training run in a small toy world, and its report."""
    run, rows = tmp_path_factory.mktemp("toy") / "run", toy_world.ROWS
    toy_world.ROWS = 1500
    small = ["--hidden-size", 32, "--num-hidden-layers", 1, "--lr", 3e-3, "--epochs", 2]
    status, out, err = command(train_rm.main, *small, "--output", run)
    toy_world.ROWS = rows
    assert status == 0, err
    return run, out


def test_held_out_prompts_are_new_wordings_of_questions_that_are_trained_on(run):
    held_out = {row["prompt"] for row in read_lines(run[0] / "held_out.jsonl")}
    trained_on = {row["prompt"] for row in read_lines(run[0] / "toy.jsonl")} - held_out
    assert len(held_out) > 10
    for prompt in held_out:
        question = next(q for q in toy_world.QUESTIONS if q in prompt)
        assert any(question in other for other in trained_on), question


def test_a_short_run_learns_manners_first(run):
    model = RewardModel.from_pretrained(run[0])
    rewards = {}
    for manners in (*toy_world.POLITE, *toy_world.RUDE):
        row = {"prompt": "Which colour is grass?", "response": f"{manners} It is green."}
        [rewards[manners]] = evaluation.score(model, [row])
    polite = [rewards[manners] for manners in toy_world.POLITE]
    rude = [rewards[manners] for manners in toy_world.RUDE]
    assert sum(polite) / 3 > sum(rude) / 3 + 0.1, "nats"


def test_a_run_reports_how_far_it_is_from_the_truth(run):
    folder, out = run
    lines = [line for line in read_lines(folder / "metrics.jsonl") if "eval_accuracy" in line]
    report = train_rm.json.loads((folder / "report.json").read_text())
    assert report["accuracy"] == lines[-1]["eval_accuracy"] > 0.53
    assert 0.1 < report["gold_correlation"] < 1
    held_out = read_lines(folder / "held_out.jsonl")
    chosen, rejected = ([row[f"gold_{s}"] for row in held_out] for s in ("chosen", "rejected"))
    assert report["ceiling_accuracy"] == pytest.approx(ceiling(chosen, rejected)[0])
    assert f"(ceiling {report['ceiling_accuracy']:.3f})" in out
    for response in toy_world.showcase()[1]:
        assert response in out, "the table of learned and true rewards"
