"""policy_gradient.py: stage 3 of RLHF on one page. A policy is improved against a learned reward.

    python train_rm.py                              stage 2: a reward model of the toy world
    python extras/policy_gradient.py runs/toy       stages 1 and 3: 1.5 minutes on two CPU cores

First a small language model, extras/policy.py, is fine-tuned on responses of the toy world, half of
which are right: the reference π_ref. Then it is improved. For a prompt x draw K responses y from π.
What they earn is the learned reward, minus a penalty for leaving the reference (Ouyang et al. 2022,
equation 2):

    R = r(x, y) − β (log π(y|x) − log π_ref(y|x))

The mean of the second part is the distance KL(π, π_ref), in nats. Take a step against

    loss = − mean of A_k log π(y_k|x)        A_k = R_k − mean of the other K − 1 rewards

This is REINFORCE (Williams 1992) with a leave-one-out baseline (Kool et al. 2019; Ahmadian et al.
2024). The baseline takes noise out of the gradient and does not change its mean. Only differences
between responses to one prompt are left, so it does not matter that a reward has no zero point.

All this is done twice, with the penalty and without. The true reward of the toy world takes no part
in it, and judges. Where the learned reward goes on rising and the true one falls, the policy has
found mistakes of the reward model: over-optimisation (Gao et al. 2023). See docs/results.md.

PPO adds to this page: several steps on the same responses with clipped ratios, a learned baseline,
and a reward for each token.

tests/extras/test_policy_gradient.py proves the baseline, the penalty, and who is judged by what.

Shapes: P prompts   K responses to each   N = P·K
"""
import argparse
import copy
import random
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # as a script: model.py is there

from data import DataError, Tokenizer, parse_row
from extras.policy import Policy, Texts, draw, fine_tune, log_probability, pad
from extras.toy_world import gold_reward, random_prompt, random_response
from model import CheckpointError, RewardModel

P, K = 16, 4
TUNING_STEPS, TUNING_BATCH, TUNING_LR = 400, 32, 3e-3
LR = 1e-3
LINE = 25  # a line of the table is the mean of so many steps

# ---------------------------------------------------------------- the method


def leave_one_out(rewards: Tensor) -> Tensor:
    """Each reward minus the mean of the others of its prompt.  (P, K) -> (P, K)"""
    others = rewards.sum(1, keepdim=True) - rewards
    return rewards - others / (rewards.shape[1] - 1)


def improve(policy, reference, reward_model, world, beta, steps) -> Tensor:
    """Policy gradient, in place.  -> (steps, 3) means of the KL, the learned, the true reward"""
    optimizer = torch.optim.Adam(policy.parameters(), LR)
    lines = []
    for _ in range(steps):
        # 1. Draw responses. What are they worth, and how far are they from the reference?
        prompts, asked = world.prompts(P, K)
        texts = draw(policy, asked, world.end_id)
        log_p = log_probability(policy, texts)  # (N,) with its gradient
        with torch.no_grad():
            log_p_reference = log_probability(reference, texts)  # (N,)
            learned = reward_model(texts.input_ids, texts.attention_mask)  # (N, 1)
        learned = learned.flatten()  # (N,)
        distance = log_p.detach() - log_p_reference  # (N,) its mean is the KL

        # 2. Make likelier what earns more than the others of its prompt.
        earned = learned - beta * distance
        advantage = leave_one_out(earned.view(P, K))  # (P, K)
        products = advantage.flatten() * log_p  # (N,)
        loss = -products.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()

        # 3. The judge. Nothing above has seen this number.
        true = torch.tensor(world.true_rewards(prompts, texts))  # (N,)
        three = torch.stack([distance, learned, true])  # (3, N)
        lines.append(three.mean(1))
    return torch.stack(lines)


# ---------------------------------------------------------------- the toy world, in tokens


class World:
    """Prompts, demonstrations and true rewards, in the tokens of the reward model."""

    def __init__(self, tokenizer, seed):
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)
        self.end_id = tokenizer.backend.token_to_id(tokenizer.end_token)

    def encode(self, prompt, response):
        """The ids of a prompt with its response, and where the response begins."""
        row = parse_row({"prompt": prompt, "response": response})
        [ids], start, _ = self.tokenizer.encode_row(row)
        return ids.tolist(), start

    def demonstrations(self, count) -> Texts:
        """Prompts, each with a response as the toy world makes them."""
        sequences, starts = [], []
        for _ in range(count):
            prompt = random_prompt(self.rng)
            response = random_response(prompt, self.rng)
            ids, start = self.encode(prompt, response)
            sequences.append(ids)
            starts.append(start)
        return pad(sequences, starts, self.tokenizer.pad_id)

    def prompts(self, count, each):
        """Prompts, each of them so many times -> a list, and Texts without responses."""
        prompts, sequences, starts = [], [], []
        for _ in range(count):
            prompt = random_prompt(self.rng)
            ids, start = self.encode(prompt, "It")
            for _ in range(each):
                prompts.append(prompt)
                sequences.append(ids[:start])
                starts.append(start)
        return prompts, pad(sequences, starts, self.tokenizer.pad_id)

    def responses(self, texts) -> list[str]:
        """What stands behind each prompt, in words."""
        found = []
        for ids, mask, start in zip(*texts):
            response = ids[start : mask.sum()].tolist()
            found.append(self.tokenizer.backend.decode(response).strip())
        return found

    def true_rewards(self, prompts, texts) -> list[float]:
        """The true rewards of the responses, in nats."""
        responses = self.responses(texts)
        return list(map(gold_reward, prompts, responses))


# ---------------------------------------------------------------- the command


def run(args):
    """Make the reference, improve it with and without the penalty -> both curves, and a table."""
    torch.manual_seed(args.seed)
    reward_model = RewardModel.from_pretrained(args.run).eval()
    world = World(Tokenizer.from_folder(args.run), args.seed)
    reference = Policy(reward_model.config.config_json)
    batches = [world.demonstrations(TUNING_BATCH) for _ in range(TUNING_STEPS)]
    fine_tune(reference, batches, TUNING_LR)

    policies, curves = {"reference": reference}, {}
    for beta in (args.beta, 0.0):
        name = f"β = {beta}"
        print(f"policy gradient with {name} …", flush=True)
        policy = copy.deepcopy(reference)
        policies[name] = policy
        curves[name] = improve(policy, reference, reward_model, world, beta, args.steps)
    first, *_ = curves.values()
    _, learned, true = first[0].tolist()  # of the reference: no step was taken before
    for curve in curves.values():
        curve[:, 1] += true - learned
    print("\nMean rewards in nats. All learned ones are shifted by the same number, so that "
          "learned and true begin alike.\n")
    print(table_of(curves, args.steps), end="\n\n")
    for name, policy in policies.items():
        show_examples(name, policy, world)
    if args.plot:
        plot(args.plot, curves)
    return curves


def table_of(curves, steps) -> str:
    """Means of LINE steps, with and without the penalty side by side."""
    text = "  step"
    for name in curves:
        text += f" | {name:<8} KL  learned   true"
    for start in range(0, steps, LINE):
        end = min(start + LINE, steps)
        text += f"\n{end:>6}"
        for curve in curves.values():
            means = curve[start:end].mean(0)
            kl, learned, true = means.tolist()
            text += f" | {kl:11.1f} {learned:+8.2f} {true:+6.2f}"
    return text


def show_examples(name, policy, world):
    """Two responses of a policy, with their true rewards."""
    prompts, asked = world.prompts(2, 1)
    texts = draw(policy, asked, world.end_id)
    responses = world.responses(texts)
    rewards = world.true_rewards(prompts, texts)
    for prompt, response, reward in zip(prompts, responses, rewards):
        print(f"{name}: {prompt!r} -> {response!r}, true reward {reward:+.1f}")


def plot(path, curves):
    """By step: learned and true rewards, and the distance from the reference."""
    from extras import plots

    size = {"figsize": (10, 4), "layout": "constrained"}
    figure, (rewards, distance) = plots.pyplot().subplots(1, 2, **size)
    style = {"linestyle": "-"}
    for name, curve in curves.items():
        parts = [part.mean(0) for part in curve.split(LINE)]
        kl, learned, true = torch.stack(parts).T
        steps = torch.arange(1, len(parts) + 1) * LINE
        style["label"] = f"learned, {name}"
        rewards.plot(steps, learned, "o", color=plots.BLUE, **style)
        style["label"] = f"true, {name}"
        rewards.plot(steps, true, "s", color=plots.RED, **style)
        style["label"] = name
        distance.plot(steps, kl, "^", color="black", **style)
        style["linestyle"] = "--"  # without the penalty
    rewards.set(xlabel="step", ylabel="mean reward, nats")
    distance.set(xlabel="step", ylabel="KL from the reference, nats")
    rewards.legend(loc="lower left")
    distance.legend()
    figure.savefig(path, dpi=150)


def main(argv=None):
    """The command line.  Returns the exit status."""
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    add = parser.add_argument
    add("run", metavar="RUN", help="a run folder of train_rm.py, trained on the toy world")
    add("--beta", type=float, default=0.3, help="the penalty (0.3)")
    add("--steps", type=int, default=200, help="of policy gradient (200)")
    add("--seed", type=int, default=0, help="of weights, prompts and draws (0)")
    add("--plot", type=Path, metavar="FILE", help="draw rewards and distance; needs matplotlib")
    args = parser.parse_args(argv)
    try:
        if args.plot:
            from extras import plots

            plots.check(args.plot)
        run(args)
    except (DataError, CheckpointError, OSError) as e:
        print(f"policy_gradient.py: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
