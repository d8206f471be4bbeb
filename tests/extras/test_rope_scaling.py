"""Rope rules for longer texts: equal to transformers', and never guessed."""
import math

import pytest
from conftest import FIXTURES, TINY
from test_parity import assert_no_parity, assert_parity, assert_saved_again, fixtures_of

from extras import rope_scaling
from model import FAMILIES, ROPE_NUMBERS, ROPE_RULES, CheckpointError, RewardModel
from model import open_model, read_config, read_json, rope_type

CASES = fixtures_of(FAMILIES, rope_scaling.ROPE_RULES)
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0}


@pytest.fixture
def read(monkeypatch):
    """A function config.json -> Config that knows these rules, as model.open_model does."""
    monkeypatch.setattr("model.ROPE_RULES", ROPE_RULES | rope_scaling.ROPE_RULES)
    monkeypatch.setattr("model.ROPE_NUMBERS", ROPE_NUMBERS | rope_scaling.ROPE_NUMBERS)

    def read_filled_in(**settings):
        return read_config(rope_scaling.fill_in(TINY | settings))

    return read_filled_in


# ---------------------------------------------------------------- parity


def test_every_rule_has_a_fixture():
    found = set()
    for case in CASES:
        found.add(rope_type(read_json(FIXTURES / case / "config.json")))
    assert found == set(rope_scaling.ROPE_RULES)


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_and_rewards_equal_those_of_transformers(case):
    assert_parity(case)


@pytest.mark.parametrize("case", CASES)
def test_the_rule_is_part_of_what_a_fixture_proves(case):
    model = RewardModel.from_pretrained(FIXTURES / case)
    rule = model.config.rope["rope_type"]
    model.config.rope["rope_type"] = "default"
    if rule == "dynamic":
        assert_parity(case, model=model)  # the same up to max_position_embeddings
    else:
        assert_no_parity(case, tokens=40, model=model)


@pytest.mark.parametrize("case", CASES)
def test_a_model_can_be_opened_twice(case):
    open_model(FIXTURES / case)
    open_model(FIXTURES / case)


@pytest.mark.parametrize("case", CASES)
def test_it_is_saved_with_the_numbers_that_its_config_left_out(case, tmp_path):
    config_json = read_json(FIXTURES / case / "config.json")
    assert_saved_again(case, tmp_path, rope_scaling.fill_in(config_json))
    assert_parity(case, model=RewardModel.from_pretrained(tmp_path))


# ---------------------------------------------------------------- the rules, by hand


def test_linear_slows_every_frequency_down(read):
    rule = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
    config = read(rope_parameters=rule)
    frequencies, scale = rope_scaling.linear_frequencies(config)
    expected = [1 / 4, 500 ** (-1 / 3) / 4, 500 ** (-2 / 3) / 4]
    assert frequencies.tolist() == pytest.approx(expected)
    assert scale == 1


# 64 numbers are 32 pairs. In 4096 tokens pair i turns 4096 · 500^(−2i/64) / 2π times:
#     pair      0    9   10   21   22   31
#     turns   652  114   93   11    9    2
@pytest.mark.parametrize("beta_slow, last", [(10, 22), (1e-6, 63)])
def test_yarn_keeps_fast_pairs_and_slows_slow_ones_down(read, beta_slow, last):
    rule = {"original_max_position_embeddings": 4096, "beta_fast": 100, "beta_slow": beta_slow}
    config = read(head_dim=64, rope_parameters=YARN | rule)
    frequencies, scale = rope_scaling.yarn_frequencies(config)
    plain, _ = rope_scaling.default_frequencies(config)
    assert scale == pytest.approx(0.1 * math.log(4) + 1), "cos and sin have to grow by 0.1 ln s + 1"
    for i in range(32):
        slowed = (i - 9) / (last - 9)  # a ramp from the last pair of 100 turns
        slowed = min(max(slowed, 0), 1)
        expected = 1 - slowed + slowed / 4
        assert (frequencies[i] / plain[i]).item() == pytest.approx(expected), f"pair {i}"


def test_llama3_has_its_ramp_over_the_turns(read):
    rule = {
        "rope_type": "llama3",
        "rope_theta": 500.0,
        "factor": 4.0,
        "original_max_position_embeddings": 4096,
        "low_freq_factor": 10.0,
        "high_freq_factor": 100.0,
    }
    config = read(head_dim=64, rope_parameters=rule)
    frequencies, scale = rope_scaling.llama3_frequencies(config)
    plain, _ = rope_scaling.default_frequencies(config)
    assert scale == 1
    for i in range(32):
        turns = 4096 * plain[i].item() / (2 * math.pi)
        slowed = (100 - turns) / (100 - 10)
        slowed = min(max(slowed, 0), 1)
        expected = 1 - slowed + slowed / 4
        assert (frequencies[i] / plain[i]).item() == pytest.approx(expected), f"pair {i}"


# ---------------------------------------------------------------- numbers that are not there


def test_yarn_has_the_defaults_of_transformers(read):
    expected = {
        "original_max_position_embeddings": TINY["max_position_embeddings"],
        "beta_fast": 32,
        "beta_slow": 1,
        "attention_factor": pytest.approx(0.1 * math.log(4) + 1),
    }
    assert read(rope_parameters=YARN).rope == YARN | expected


def test_numbers_that_are_given_are_kept_and_null_means_the_default(read):
    rule = YARN | {"beta_fast": 16.5, "beta_slow": 2, "attention_factor": None}
    config = read(rope_parameters=rule)
    assert config.rope["beta_fast"] == 16.5
    assert config.rope["beta_slow"] == 2
    assert config.rope["attention_factor"] > 1


def test_both_spellings_mean_the_same(read):
    rule = {"factor": 4.0, "beta_fast": 20}
    new = read(rope_parameters=rule | {"rope_type": "yarn", "rope_theta": 500.0})
    old = read(rope_scaling=rule | {"rope_type": "yarn"}, rope_theta=500.0)
    older = read(rope_scaling=rule | {"type": "yarn"}, rope_theta=500.0)
    assert new.rope == old.rope == older.rope


def test_the_config_that_was_read_is_not_changed():
    config_json = TINY | {"rope_scaling": dict(YARN)}
    rope_scaling.fill_in(config_json)
    assert config_json["rope_scaling"] == YARN


@pytest.mark.parametrize("rule, message", [
    ({"type": "linear"}, "no factor; refusing to guess"),
    ({"type": "dynamic"}, "no factor; refusing to guess"),
    ({"type": "llama3", "factor": 2.0}, "no original_max_position_embeddings; refusing to guess"),
    ({"type": "yarn"}, "no factor; refusing to guess"),
    ({"type": "yarn", "factor": "4"}, "factor is '4'"),
    ({"type": "yarn", "factor": -2.0}, "factor is -2.0"),
    ({"type": "yarn", "factor": 2.0, "beta_fast": 0}, "beta_fast is 0"),
    ({"type": "yarn", "factor": 2.0, "mscale": 1.0}, "rope setting 'mscale' is not computed here"),
    ({"type": "longrope", "factor": 2.0}, "'longrope'"),
    ("yarn", "rope_scaling is 'yarn', not an object"),
])
def test_what_would_change_the_arithmetic_is_named_and_refused(read, rule, message):
    with pytest.raises(CheckpointError, match=message):
        read(rope_scaling=rule)
