"""Stage 3: what is drawn is what log π counts, the baseline is right, and the penalty holds."""
import copy
import random

import pytest
import torch
from conftest import command

import train_rm
from data import Tokenizer
from extras import policy_gradient, toy_world
from extras.policy import MOST_TOKENS, Policy, draw, fine_tune, log_probability, pad
from extras.policy_gradient import World, improve, leave_one_out
from model import RewardModel


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A reward model of the toy world that has hardly learned anything."""
    folder = tmp_path_factory.mktemp("policy")
    rows = folder / "rows.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy_world, "ROWS", 400)
        toy_world.write(rows, seed=0)
    sizes = ["--hidden-size", 32, "--num-hidden-layers", 1, "--max-steps", 3]
    status, _, err = command(train_rm.main, "--data", rows, *sizes, "--output", folder / "run")
    assert status == 0, err
    return folder / "run"


@pytest.fixture
def world(run):
    torch.manual_seed(0)
    return World(Tokenizer.from_folder(run), seed=0)


@pytest.fixture
def policy(run):
    torch.manual_seed(0)
    return Policy(RewardModel.from_pretrained(run).config.config_json)


def test_log_probability_is_the_sum_over_the_response_written_plainly(policy, world):
    texts = world.demonstrations(5)
    found = log_probability(policy, texts)
    for row in range(5):
        ids = texts.input_ids[row, : texts.attention_mask[row].sum()]
        log_p = policy(ids[None])[0]  # (T, V)
        plain = 0.0
        for t in range(texts.start[row], len(ids)):
            plain += log_p[t - 1, ids[t]].item()
        message = "is a token of the prompt, or a pad, counted? or each one a column too late?"
        assert found[row].item() == pytest.approx(plain, abs=1e-3), message


def test_a_response_ends_with_the_end_token_or_is_as_long_as_allowed(policy, world):
    policy.decoder.embed_tokens.weight.data[world.end_id] *= 30  # many end early, some late
    prompts, asked = world.prompts(8, 4)
    texts = draw(policy, asked, world.end_id)
    assert torch.equal(texts.input_ids[:, :4], asked.input_ids[:, :4])
    lengths = texts.attention_mask.sum(-1) - texts.start
    for ids, mask, start in zip(*texts):
        response = ids[start : mask.sum()].tolist()
        assert world.end_id not in response[:-1], "it went on after its end"
        assert response[-1] == world.end_id or len(response) == MOST_TOKENS
    assert len(set(lengths.tolist())) > 2, "all have one length: this test sees nothing"
    assert len(world.responses(texts)) == len(prompts) == 32


def test_tokens_are_drawn_with_the_probabilities_that_log_pi_has(policy, world, monkeypatch):
    monkeypatch.setattr("extras.policy.MOST_TOKENS", 1)
    _, asked = world.prompts(1, 4000)
    first = draw(policy, asked, world.end_id).input_ids[:, asked.start[0]]
    share = torch.bincount(first, minlength=policy.decoder.embed_tokens.num_embeddings) / 4000
    ids = asked.input_ids[:1]
    p = policy(ids)[0, -1].exp()
    assert (share - p).abs().max() < 0.02, "is the state of another token read?"


def test_the_baseline_of_a_response_is_the_mean_of_the_others():
    rewards = torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]])
    expected = torch.tensor([[1 - 4.0, 2 - 3.5, 6 - 1.5], [0.0, 0.0, 0.0]])
    assert torch.allclose(leave_one_out(rewards), expected)
    shifted = leave_one_out(rewards + torch.tensor([[100.0], [-7.0]]))
    assert torch.allclose(shifted, expected, atol=1e-4), "a reward has no zero point"


def test_fine_tuning_makes_demonstrations_likely(policy, world, capsys):
    held_out = world.demonstrations(20)
    before = log_probability(policy, held_out).mean().item()
    fine_tune(policy, [world.demonstrations(16) for _ in range(100)], lr=3e-3)
    assert log_probability(policy, held_out).mean().item() > before + 20
    assert "step 100" in capsys.readouterr().out


class LikesEarlyEnds:
    """A reward that is easy to earn: minus the tokens of the text."""

    def __call__(self, input_ids, attention_mask):
        return -attention_mask.sum(-1, keepdim=True).float()


def test_the_learned_reward_rises_and_the_penalty_keeps_the_policy_near_the_reference(
    policy, world, monkeypatch
):
    monkeypatch.setattr(policy_gradient, "P", 6)
    fine_tune(policy, [world.demonstrations(16) for _ in range(60)], lr=3e-3)
    found = {}
    for beta in (0.0, 5.0):
        world.rng = random.Random(0)
        torch.manual_seed(0)
        curve = improve(copy.deepcopy(policy), policy, LikesEarlyEnds(), world, beta, steps=25)
        assert curve[0, 0].abs() < 1e-4, "before the first step both are the same: KL is 0"
        found[beta] = curve[-5:].mean(0).tolist()
    first = curve[0, 1].item()
    (kl, learned, _), (kept_kl, kept_learned, _) = found[0.0], found[5.0]
    assert learned > first + 1, "the reward does not rise: is the sign of the loss right?"
    assert learned > kept_learned and kl > 2 * kept_kl, "β has no effect"


def test_the_true_reward_judges_and_takes_no_part(policy, world, monkeypatch):
    curves = []
    for true in (0.0, 9.0):
        monkeypatch.setattr(policy_gradient, "gold_reward", lambda *_: true)
        world.rng = random.Random(0)
        torch.manual_seed(0)
        curves.append(improve(copy.deepcopy(policy), policy, LikesEarlyEnds(), world, 0.1, 3))
    assert torch.equal(curves[0][:, :2], curves[1][:, :2]), "the policy has seen the true reward"
    assert curves[1][:, 2].tolist() == [9.0, 9.0, 9.0]


def test_the_command_prints_a_table_and_the_same_one_for_the_same_seed(run, monkeypatch):
    monkeypatch.setattr(policy_gradient, "TUNING_STEPS", 5)
    outs = []
    for seed in (0, 0, 1):
        args = [run, "--steps", 2, "--seed", seed]
        status, out, err = command(policy_gradient.main, *args)
        assert status == 0, err
        outs.append(out)
    assert outs[0] == outs[1] != outs[2]
    assert "step | β = 0.3  KL  learned   true | β = 0.0  KL  learned   true" in outs[0]
    assert outs[0].count("true reward") == 6, "two responses of each policy"


def test_all_learned_rewards_are_shifted_by_one_number(run, monkeypatch):
    monkeypatch.setattr(policy_gradient, "TUNING_STEPS", 1)
    curves = [torch.tensor([[0.0, 5.0, 2.0], [1.0, 7.0, 3.0]]), torch.tensor([[0.0, 9.0, 1.0]] * 2)]
    monkeypatch.setattr(policy_gradient, "improve", lambda *_: curves.pop(0))
    status, out, _ = command(policy_gradient.main, run, "--steps", 2)
    assert status == 0
    assert "0.5    +3.00  +2.50 |         0.0    +6.00  +1.00" in out, "two shifts, or none"


def test_a_folder_that_is_no_run_costs_one_line(tmp_path):
    status, _, err = command(policy_gradient.main, tmp_path)
    assert status == 2 and len(err.strip().splitlines()) == 1


def test_pads_are_on_the_right():
    texts = pad([[5, 6, 7], [8]], [2, 1], pad_id=0)
    assert texts.input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert texts.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
