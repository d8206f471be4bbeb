"""The exercises: unwritten ones are red, solutions are green, and a wrong answer is told why."""
import ast
import importlib
import inspect
import itertools
import json
import math
import os
import random
import re
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from conftest import ROOT, command, read_lines
from runs import SMALL, column, every_step, small_toy  # noqa: F401

from data import Examples
from exercises import train
from extras import toy_world
from model import PADDED, RewardModel

LEVELS = ["level1", "level2", "level3", "level4"]
STUBS = {level: importlib.import_module(f"exercises.{level}") for level in LEVELS}
SOLUTIONS = {level: importlib.import_module(f"exercises.solutions.{level}") for level in LEVELS}
CHECKS = {level: importlib.import_module(f"exercises.test_{level}") for level in LEVELS}
ALL_CHECKS = []
for level, checks in CHECKS.items():
    for name in vars(checks):
        if name.startswith("test_"):
            ALL_CHECKS.append((level, name))
README = (ROOT / "exercises" / "README.md").read_text("utf-8")
FAILURES = (AssertionError, pytest.fail.Exception)


def exercises_of(module):
    """Name of an exercise -> the functions and classes to write: docstrings begin with it."""
    found = {}
    for name, thing in vars(module).items():
        if getattr(thing, "__module__", None) == module.__name__:
            exercise = re.match(r"(\w+)(, part \d)?: ", thing.__doc__)
            assert exercise, f"{name}: the docstring does not begin with the exercise's name"
            found.setdefault(exercise[1], []).append(name)
    return found


EXERCISES = {}  # name -> (level, what to write)
for level in LEVELS:
    for exercise, parts in exercises_of(STUBS[level]).items():
        EXERCISES[exercise] = (level, parts)


def checks_of(exercise):
    """The checks of an exercise, by name."""
    level, _ = EXERCISES[exercise]
    names = [name for where, name in ALL_CHECKS if where == level]
    return [name for name in names if name.startswith(f"test_{exercise}_")]


def is_unwritten(thing):
    """Whether all functions in a stub only raise NotImplementedError."""
    tree = ast.parse(inspect.getsource(thing))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return all(isinstance(function.body[-1], ast.Raise) for function in functions)


# ---------------------------------------------------------------- red before, green after


@pytest.mark.parametrize("level, check", ALL_CHECKS)
def test_a_check_is_red_before_and_green_after(level, check, monkeypatch):
    monkeypatch.setattr(CHECKS[level], level, SOLUTIONS[level])
    getattr(CHECKS[level], check)()
    [exercise] = [name for name in EXERCISES if check in checks_of(name)]
    _, parts = EXERCISES[exercise]
    if not all(is_unwritten(getattr(STUBS[level], part)) for part in parts):
        pytest.skip("somebody has written this exercise")
    monkeypatch.setattr(CHECKS[level], level, STUBS[level])
    with pytest.raises(NotImplementedError):
        getattr(CHECKS[level], check)()


def test_there_are_at_least_fourteen_and_the_handout_lists_them_all():
    line = r"(?m)^\| (\w+) \| ([1-4]) \| .* \| (\d+) \| `(.*)` \|$"
    rows = re.findall(line, README)
    assert len(rows) >= 14
    expected = [(name, level[-1]) for name, (level, _) in EXERCISES.items()]
    assert [(name, level) for name, level, _, _ in rows] == expected
    for name, _, _, check in rows:
        assert check == f"python -m pytest exercises/ -k {name}"
        assert f"**{name}.**" in README, "the table names it, and no text explains it"


@pytest.mark.parametrize("exercise", EXERCISES)
def test_k_with_the_name_of_an_exercise_runs_its_checks_and_no_others(exercise):
    assert checks_of(exercise) != []
    named = [check for _, check in ALL_CHECKS if exercise in check]
    assert named == checks_of(exercise)
    assert not any(exercise in f"exercises/test_{level}.py" for level in LEVELS)


@pytest.mark.parametrize("level", LEVELS)
def test_a_solution_has_the_signature_of_its_stub(level):
    for parts in exercises_of(STUBS[level]).values():
        for part in parts:
            stub, solution = getattr(STUBS[level], part), getattr(SOLUTIONS[level], part)
            if inspect.isclass(stub):
                stub, solution = stub.forward, solution.forward
            assert inspect.signature(stub) == inspect.signature(solution), part


def test_the_command_of_the_handout_is_green_with_solutions_and_the_projects_own_leaves_them_out():
    pytest_command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    settings = {"cwd": ROOT, "stdout": subprocess.PIPE, "text": True}
    solutions = os.environ | {"SOLUTIONS": "1", "OMP_NUM_THREADS": "1"}
    solved = subprocess.Popen([*pytest_command, "exercises/"], env=solutions, **settings)
    listing = [*pytest_command, "--collect-only", "--ignore=tests"]
    listed = subprocess.run(listing, check=False, **settings)
    out, _ = solved.communicate(timeout=100)
    assert solved.returncode == 0 and f"{len(ALL_CHECKS)} passed" in out, out
    assert "no tests collected" in listed.stdout, "python -m pytest would run unwritten exercises"


# ---------------------------------------------------------------- wrong answers


def overflowing_gradient(r_chosen, r_rejected):
    odds = (r_rejected - r_chosen).exp()
    p_wrong = odds / (1 + odds)
    return -p_wrong, p_wrong


def lost_beside_1(gap):
    return (-gap).clamp(min=0) + torch.log(1 + torch.exp(-gap.abs()))


def two_cases(gap):
    below, above = torch.log1p(gap.exp()) - gap, torch.log1p((-gap).exp())
    return torch.where(gap < 0, below, above)


def ties_are_pairs(scores):
    every = itertools.permutations(range(len(scores)), 2)
    return [(i, j, 1.0) for i, j in every if scores[i] >= scores[j]]


def ties_have_weight(scores):
    every = list(itertools.permutations(range(len(scores)), 2))
    return [(i, j, 2 / len(every)) for i, j in every if scores[i] > scores[j]]


def pads_with_zeros(r_chosen, r_rejected):
    longest = max(len(r_chosen), len(r_rejected))
    gap = torch.zeros(longest)
    gap[: len(r_chosen)] += r_chosen.flatten()
    gap[: len(r_rejected)] -= r_rejected.flatten()
    return gap


def last_column(model, input_ids, attention_mask):
    return model.score(model.model(input_ids, PADDED)[:, -1]).squeeze(-1)


def forgot_padding(self, input_ids, attention_mask, start, form=PADDED):
    hidden = self.model(input_ids, form)
    return self.score(torch.stack([h[s:].mean(0) for h, s in zip(hidden, start)])).squeeze(-1)


def end_token_counted(tokenizer, prompt, response):
    text = tokenizer.render([{"role": "user", "content": prompt}], add_generation_prompt=True)
    return len(tokenizer.encode([text])[0])


def prompt_length(tokenizer, prompt, response):
    return end_token_counted(tokenizer, prompt, response) - 1


def split_by_hash(rows, fraction):
    prompts = sorted({row["prompt"] for row in rows}, key=hash)
    held_out = prompts[: round(fraction * len(prompts))]
    sides = [], []
    for row in rows:
        sides[row["prompt"] in held_out].append(row)
    return sides


def split_by_rows(rows, fraction):
    cut = len(rows) - round(fraction * len(rows))
    return rows[:cut], rows[cut:]


def over_pairs(correct, prompt, draws=1000, seed=0):
    rng = np.random.default_rng(seed)
    means = [rng.choice(correct, len(correct)).mean() for _ in range(draws)]
    return tuple(np.quantile(means, [0.025, 0.975]))


def ninety_percent(correct, prompt, draws=1000, seed=0):
    rng, prompts, means = np.random.default_rng(seed), np.unique(prompt), []
    for _ in range(draws):
        drawn = rng.choice(prompts, len(prompts))
        means.append(np.concatenate([correct[prompt == p] for p in drawn]).mean())
    return tuple(np.quantile(means, [0.05, 0.95]))


def divided_twice(correct, prompt, draws=1000, seed=0):
    low, high = SOLUTIONS["level3"].interval(correct, prompt, draws, seed)
    half = (high - low) / 2 / math.sqrt(len(np.unique(prompt)))
    return correct.mean() - half, correct.mean() + half


def ungraded_are_zero(rewards, scores):
    return ((rewards - scores.nan_to_num()).square() * ~scores.isnan()).mean()


def nan_in_the_gradient(rewards, scores):
    return (rewards - scores).square().nansum() / (~scores.isnan()).sum()


def over_responses(r_chosen, r_rejected, tokens_chosen, tokens_rejected):
    r, tokens = torch.cat([r_chosen, r_rejected]), torch.cat([tokens_chosen, tokens_rejected])
    return torch.cov(torch.stack([r, tokens.float()]))[0, 1] / tokens.float().var()


def with_intercept(r_chosen, r_rejected, tokens_chosen, tokens_rejected):
    gap, difference = r_chosen - r_rejected, (tokens_chosen - tokens_rejected).float()
    if (difference == 0).all():
        return 0.0
    return torch.cov(torch.stack([gap, difference]))[0, 1] / difference.var()


def signs_dropped(quality, length, tokens, chosen, rejected):
    solution = SOLUTIONS["level4"]
    loss = solution.length_head_loss(quality, length, tokens, chosen, rejected)
    rho = solution.correlation(quality, tokens.float())
    return loss - rho.abs() + rho


def flips_the_input(rows, share, seed):
    rows[0]["chosen"], rows[0]["rejected"] = rows[0]["rejected"], rows[0]["chosen"]
    return rows


def relu_at_0(gap):
    return torch.relu(-gap) + torch.log1p(torch.exp(-gap.abs()))


def mean_gradient(r_chosen, r_rejected):
    p_wrong = torch.sigmoid(r_rejected - r_chosen) / len(r_chosen)
    return -p_wrong, p_wrong


def equal_anywhere(tokenizer, prompt, response):
    question = [{"role": "user", "content": prompt}]
    dialogue = [*question, {"role": "assistant", "content": response}]
    [before] = tokenizer.encode([tokenizer.render(question, add_generation_prompt=True)])
    [whole] = tokenizer.encode([tokenizer.render(dialogue)])
    return sum(a == b for a, b in zip(before, whole))


def with_replacement(rows, share, seed):
    rng = random.Random(seed)
    chosen = [rng.randrange(len(rows)) for _ in range(round(share * len(rows)))]
    swapped = list(rows)
    for n in chosen:
        swapped[n] = rows[n] | {"chosen": rows[n]["rejected"], "rejected": rows[n]["chosen"]}
    return swapped


def sampled(rows, count, seed):
    kept = random.Random(seed).sample(sorted({row["prompt"] for row in rows}), count)
    return [row for row in rows if row["prompt"] in kept]


def mean_confidence(gaps):
    accuracy = (gaps > 0).mean()
    grid = np.geomspace(0.1, 10, 461)
    means = np.array([(1 / (1 + np.exp(-np.abs(gaps) / T))).mean() for T in grid])
    return grid[np.abs(means - accuracy).argmin()]


def overflowing_ceiling(gaps):
    with np.errstate(all="ignore"):
        return (np.exp(np.abs(gaps)) / (1 + np.exp(np.abs(gaps)))).mean()


def flips_too_few(rows, share, seed):
    return SOLUTIONS["level2"].flip_labels(rows, int(share * len(rows)) / len(rows), seed)


def split_rounded_down(rows, fraction):
    prompts = len({row["prompt"] for row in rows})
    return SOLUTIONS["level2"].split(rows, math.floor(fraction * prompts) / prompts)


def order_of_a_set(rows, count, seed):
    prompts = list({row["prompt"] for row in rows})
    random.Random(seed).shuffle(prompts)
    return [row for row in rows if row["prompt"] in prompts[:count]]


def one_side_is_looked_at(r_chosen, r_rejected):
    if np.isnan(r_chosen).any() or np.isinf(r_chosen).any():
        raise ValueError
    return (0.5 + np.sign(r_chosen - r_rejected) / 2).mean()


def ties_are_wrong_there(r_chosen, r_rejected, tokens_chosen, tokens_rejected):
    longer_wins, _ = SOLUTIONS["level3"].length_figures(
        r_chosen, r_rejected, tokens_chosen, tokens_rejected
    )
    shorter = tokens_chosen < tokens_rejected
    return longer_wins, (r_chosen > r_rejected)[shorter].mean() if shorter.any() else None


def without_seed(correct, prompt, draws=1000, seed=0):
    return SOLUTIONS["level3"].interval(correct, prompt, draws, seed=None)


SOFTPLUS = torch.nn.functional.softplus
# Exercise, what is written, a plausible mistake, words of the sentence that names it.
WRONG = [
    ("gradient", "gradient", lambda w, l: (torch.sigmoid(l - w), -torch.sigmoid(l - w)), "sign"),
    ("gradient", "gradient", lambda w, l: (-torch.sigmoid(w - l), torch.sigmoid(w - l)), "WRONG"),
    ("gradient", "gradient", overflowing_gradient, "inf / inf"),
    ("gradient", "gradient", lambda w, l: (-torch.sigmoid(w - l), torch.sigmoid(w - l)), "at −200"),
    ("stable", "stable_loss", lambda gap: torch.nn.functional.softplus(-gap), "has the answer"),
    ("gradient", "gradient", mean_gradient, "no mean"),
    ("stable", "stable_loss", relu_at_0, "slope at a gap of 0"),
    ("stable", "stable_loss", lambda gap: -torch.log(torch.sigmoid(gap)), "overflows"),
    ("stable", "stable_loss", lost_beside_1, "log1p"),
    ("stable", "stable_loss", two_cases, "gradient is not"),
    ("shapes", "pair_gaps", lambda w, l: w - l, "broadcasts"),
    ("shapes", "pair_gaps", lambda w, l: w.flatten() - l.flatten(), "PyTorch refused"),
    ("shapes", "pair_gaps", pads_with_zeros, "accepted"),
    ("shapes", "pair_gaps", lambda w, l: w.squeeze() - l.squeeze(), "EVERY"),
    ("flipped", "best_gap", lambda e: math.log((1 - e) / e) / 2 if e else math.inf, "σ(Δ) = 1 − ε"),
    ("flipped", "best_gap", lambda e: math.log((1 - e) / max(e, 1e-9)), "math.inf"),
    ("last", "last_token", lambda mask: torch.full((len(mask),), mask.shape[1] - 1), "last column"),
    ("last", "last_token", lambda mask: mask.sum(-1) - 1, "integer"),
    ("last", "last_token", lambda mask: mask.sum(-1), "counts from 0"),
    ("last", "last_token", lambda mask: mask.argmin(-1) - 1, "full row"),
    ("gather", "rewards", last_column, "column −1"),
    ("gather", "rewards", lambda m, i, a: m(i, a) - m.score.bias, "bias"),
    ("start", "response_start", end_token_counted, "end token"),
    ("start", "response_start", lambda t, p, r: 5, "add_generation_prompt"),
    ("start", "response_start", prompt_length, "id by id"),
    ("start", "response_start", equal_anywhere, "first difference"),
    ("ranked", "pairs_and_weights", ties_are_pairs, "tie"),
    ("ranked", "pairs_and_weights", ties_have_weight, "add up to 1"),
    ("split", "split", split_by_rows, "both sides"),
    ("split", "split", split_by_hash, "every start"),
    ("split", "split", split_rounded_down, "round()"),
    ("noise", "flip_labels", flips_the_input, "copy"),
    ("noise", "flip_labels", flips_too_few, "so 7"),
    ("noise", "flip_labels", with_replacement, "without replacement"),
    ("fewer", "keep_prompts", sampled, "draws others"),
    ("fewer", "keep_prompts", lambda rows, count, seed: rows[:count], "lost some rows"),
    ("fewer", "keep_prompts", order_of_a_set, "ort the prompts first"),
    ("ties", "accuracy", lambda w, l: (w > l).mean(), "knows nothing"),
    ("ties", "accuracy", one_side_is_looked_at, "on both sides"),
    ("ties", "accuracy", lambda w, l: (0.5 + np.sign(w - l) / 2).mean(), "NaN compares"),
    ("longer", "length_figures", lambda w, l, tw, tl: ((tw > tl).mean(), 0.0), "count half"),
    ("longer", "length_figures", ties_are_wrong_there, "half here too"),
    ("interval", "interval", without_seed, "default_rng"),
    ("interval", "interval", over_pairs, "20 prompts"),
    ("interval", "interval", ninety_percent, "interval of 90%"),
    ("interval", "interval", divided_twice, "once more"),
    ("temperature", "temperature", lambda gaps: 1.0, "divided by T"),
    ("temperature", "temperature", mean_confidence, "Another T"),
    ("ceiling", "ceiling", lambda gaps: 1.0, "only as often"),
    ("ceiling", "ceiling", overflowing_ceiling, "infinite"),
    ("ceiling", "ceiling", lambda gaps: (1 / (1 + np.exp(-gaps))).mean(), "negative gap"),
    ("rambling", "rambling_reward", lambda p, r, gold: abs(gold), "EACH added"),
    ("hinge", "hinge_loss", lambda w, l: (1 - w + l).clamp(min=0).mean(), "no mean"),
    ("hinge", "hinge_loss", lambda w, l: (1 - l + w).clamp(min=0), "chosen minus rejected"),
    ("listwise", "listwise_loss", lambda r: (r[:, 1] - r[:, 0]).exp().log1p(), "logsumexp"),
    ("listwise", "listwise_loss", lambda r: SOFTPLUS(r[:, 1:] - r[:, :-1]).sum(-1), "LEFT"),
    ("regression", "regression_loss", ungraded_are_zero, "not by four"),
    ("regression", "regression_loss", nan_in_the_gradient, "select the graded"),
    ("pooling", "MeanPooled", type("P", (RewardModel,), {"forward": forgot_padding}), "pads"),
    ("penalty", "length_penalty", over_responses, "DIFFERENCES"),
    ("penalty", "length_penalty", with_intercept, "through the origin: no mean"),
    ("lengthhead", "length_head_loss", signs_dropped, "without its sign"),
]


@pytest.mark.parametrize("exercise, written, wrong, words", WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(exercise, written, wrong, words, monkeypatch):
    level, _ = EXERCISES[exercise]
    answers = types.SimpleNamespace(**{**vars(SOLUTIONS[level]), written: wrong})
    monkeypatch.setattr(CHECKS[level], level, answers)
    said = []
    for check in checks_of(exercise):
        try:
            getattr(CHECKS[level], check)()
        except FAILURES as e:
            said.append(str(e))
    assert said, "this wrong answer passes all checks"
    assert words in " ".join(said)


def test_every_exercise_has_a_wrong_answer_that_is_caught():
    assert {exercise for exercise, *_ in WRONG} == set(EXERCISES)


# ---------------------------------------------------------------- exercises.train


@pytest.fixture
def train_with(small_toy, every_step, tmp_path, monkeypatch):  # noqa: F811
    """python -m exercises.train NAME with the solutions, two small steps -> the run folder."""
    monkeypatch.setenv("SOLUTIONS", "1")

    def run(name):
        output = tmp_path / "run"
        args = [*SMALL, "--batch-size", 16, "--max-steps", 2, "--output", output]
        status, _, err = command(lambda argv: train.main(argv, monkeypatch.setattr), name, *args)
        assert status == 0, err
        return output

    return run


def test_train_with_rambling_makes_the_rows_of_the_other_world(train_with):
    plain = toy_world.gold_reward
    for row in read_lines(train_with("rambling") / "toy.jsonl"):
        prompt, response = row["prompt"], row["chosen"]
        gold = plain(prompt, response)
        expected = SOLUTIONS["level3"].rambling_reward(prompt, response, gold)
        assert row["gold_chosen"] == expected


def test_train_with_noise_flips_the_training_rows_only(train_with):
    examples = Examples(train_with("noise=1.0") / "tokens")
    for held_out in (False, True):
        gold = np.array([examples[n].gold for n in examples.numbers(held_out)])  # (rows, 2)
        better_is_chosen = (gold[:, 0] > gold[:, 1]).mean()
        assert better_is_chosen > 0.6 if held_out else better_is_chosen < 0.4


def test_train_with_fewer_prompts_has_so_many(train_with):
    audits = json.loads((train_with("fewer=3") / "tokens" / "audit.json").read_text())
    assert audits["train"]["prompts"] == 3


@pytest.mark.parametrize("name, low, high", [("hinge", 0.9, 1.3), ("pooling", 0.5, 0.9)])
def test_train_with_another_loss_or_place_computes_it(name, low, high, train_with, monkeypatch):
    called, solution = [], SOLUTIONS["level4"]
    plain_loss, plain_forward = solution.hinge_loss, solution.MeanPooled.forward

    def hinge_loss(*args):
        called.append("hinge")
        return plain_loss(*args)

    def forward(*args, **inputs):
        called.append("pooling")
        return plain_forward(*args, **inputs)

    monkeypatch.setattr(solution, "hinge_loss", hinge_loss)
    monkeypatch.setattr(solution.MeanPooled, "forward", forward)
    first_loss = column(train_with(name), "loss")[0]
    assert low < first_loss < high
    assert set(called) == {name}


def test_train_with_an_unknown_name_says_which_there_are():
    status, _, err = command(train.main, "hinges")
    assert status == 2 and "hinge, pooling" in err
