"""What happens if one optimises against a learned reward (Gao et al. 2023, figure 1).

    python benchmarks/overoptimisation.py               trains five small models
    python benchmarks/overoptimisation.py --tables      what the README quotes
    python benchmarks/overoptimisation.py --plot F.png  draws it (needs matplotlib)

Best of n in the toy world: draw n responses to a prompt, keep the one that the learned reward likes
best, and ask what the true reward thinks of it. Best of n moves the responses away from how they
were drawn by  KL = log n − (n − 1) / n  nats. The learned reward can only go up with n. The true
one goes up too, as long as the two agree, and falls where the search finds what the model got
wrong. The search may find more than was trained on: up to eight sentences beside the answer instead
of three, and several polite ones, as a language model's samples differ from what people compared.

Means over 1,024 draws for each of 60 prompts; for each n the expected best of n of these draws,
without replacement. One training run each, without error bars: read the distance of the curves, not
a tenth of a nat. The result is overoptimisation.json.
"""
import json
import math
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import ROOT, how_made, load_results, new_parser, table, write

from eval import score
from extras.toy_world import (
    POLITE, RUDE, TOPICS, gold_reward, random_prompt, random_response, toy_rows,
)
from model import RewardModel

RESULTS = Path(__file__).with_suffix(".json")
DRAWS, PROMPTS = 1024, 60
SIZES = [2**i for i in range(11)]
STEPS = ["--batch-size", "16", "--max-steps", "2500"]  # about those of the default run
RUNS = {  # name -> training pairs, share of labels that are flipped
    "48,000 pairs": (48000, 0.0),
    "12,000 pairs": (12000, 0.0),
    "3,000 pairs": (3000, 0.0),
    "12,000 pairs, a fifth of the labels flipped": (12000, 0.2),
    "1,000 pairs": (1000, 0.0),
}


def draw(prompt: str, rng: random.Random) -> str:
    """A response of the toy world, with up to six more sentences after it."""
    parts = [random_response(prompt, rng)]
    for _ in range(rng.randrange(7)):
        topic = rng.choice(list(TOPICS))
        more = TOPICS[topic].additions
        kind = rng.random()
        if kind < 0.15:
            more = POLITE
        elif kind < 0.3:
            more = RUDE
        parts.append(rng.choice(more))
    return " ".join(parts)


def best_of_n(learned: np.ndarray, values: np.ndarray, n: int) -> float:
    """The expected value of the best by learned reward of n that are drawn from these N.

    Without replacement, it is the k-th of N in order of reward with probability
    C(k−1, n−1) / C(N, n).
    """
    N = len(learned)
    chance = np.zeros(N)
    chance[N - 1] = n / N
    for k in range(N - 1, n - 1, -1):  # C(k−1, n−1) from C(k, n−1)
        chance[k - 1] = chance[k] * (k - n + 1) / k
    order = np.argsort(learned, kind="stable")
    return float(chance @ values[order])


def curve(learned: np.ndarray, values: np.ndarray) -> list[float]:
    """best_of_n for each n, the mean over prompts.  learned, values: (PROMPTS, DRAWS)"""
    points = []
    for n in SIZES:
        of_prompts = []
        for prompt in range(PROMPTS):
            of_prompts.append(best_of_n(learned[prompt], values[prompt], n))
        points.append(float(np.mean(of_prompts)))
    return points


def write_pairs(file: Path, pairs: int, flipped: float, seed: int) -> None:
    """Rows of the toy world, some of them with the wrong label."""
    rng = random.Random(1)
    with open(file, "w", encoding="utf-8") as lines:
        for row in toy_rows(pairs, seed):
            chosen, rejected = row["chosen"], row["rejected"]
            if rng.random() < flipped:
                chosen, rejected = rejected, chosen
            row = {"prompt": row["prompt"]}
            row |= {"chosen": chosen, "rejected": rejected}
            lines.write(json.dumps(row) + "\n")


def train(folder: Path, pairs: int, flipped: float) -> RewardModel:
    """A model of the default size, trained for about as many steps as the default run."""
    train_file, held_out = folder / "pairs.jsonl", folder / "held_out.jsonl"
    write_pairs(train_file, pairs, flipped, seed=0)
    write_pairs(held_out, 64, 0.0, seed=3)
    options = ["--data", train_file, "--eval-data", held_out, *STEPS]
    subprocess.run(
        [sys.executable, "train_rm.py", *options, "--output", folder / "run"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return RewardModel.from_pretrained(folder / "run")


def measure() -> dict:
    """All curves."""
    rows = draw_rows(random.Random(2))
    gold = [gold_reward(row["prompt"], row["response"]) for row in rows]
    gold = np.array(gold).reshape(PROMPTS, DRAWS)
    curves = {}
    for name, (pairs, flipped) in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            model = train(Path(folder), pairs, flipped)
            learned = np.array(score(model, rows))
        learned = learned.reshape(PROMPTS, DRAWS)
        learned += gold.mean() - learned.mean()  # a reward has no zero point
        curves[name] = {
            "learned": curve(learned, learned),
            "true": curve(learned, gold),
        }
        print(name, curves[name], file=sys.stderr)
    return {
        "n": SIZES,
        "kl": [math.log(n) - (n - 1) / n for n in SIZES],
        "curves": curves,
        "best_possible": curve(gold, gold),
        "draws": DRAWS,
        "prompts": PROMPTS,
    }


def draw_rows(rng: random.Random) -> list[dict]:
    """All responses to all prompts."""
    prompts = [random_prompt(rng) for _ in range(PROMPTS)]
    rows = []
    for prompt in prompts:
        for _ in range(DRAWS):
            rows.append({"prompt": prompt, "response": draw(prompt, rng)})
    return rows


def tables() -> dict[str, str]:
    """What the README quotes."""
    r = load_results(RESULTS)
    shown = (1, 4, 16, 64, 256, 1024)
    columns = ["best of n, nats: learned / true"]
    columns += [f"n = {n}" for n in shown]
    at = [r["n"].index(n) for n in shown]
    rows = [["KL", *numbers(r["kl"], at)]]
    for name, c in r["curves"].items():
        both = zip(numbers(c["learned"], at), numbers(c["true"], at))
        rows.append([name, *map(" / ".join, both)])
    rows.append(["choosing by the true reward", *numbers(r["best_possible"], at)])
    few = r["curves"]["3,000 pairs"]
    before, last = numbers(few["true"], at[-2:])
    promise = (
        f"With 3,000 the learned reward promises {few['learned'][-1]:.1f} at n = 1024 where the "
        f"truth is {last}\n(and {before} at n = 256)."
    )
    return {"overoptimisation": table(columns, rows), "promise": promise}


def numbers(values: list[float], at: list[int]) -> list[str]:
    """Some of these values, for a table."""
    return [f"{values[i]:.1f}" for i in at]


def plot(file: str) -> None:
    """Both rewards against KL, a colour for each run."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    r = load_results(RESULTS)
    kl = r["kl"]
    figure, axes = pyplot.subplots(figsize=(7, 5), layout="constrained")
    for (name, c), marker in zip(r["curves"].items(), "osD^v"):
        true = axes.plot(kl, c["true"], marker=marker, label=f"{name}: true")[0]
        learned = axes.plot(kl, c["learned"], marker=marker)[0]
        learned.set(linestyle="dashed", fillstyle="none", color=true.get_color())
    axes.plot(kl, r["best_possible"], color="black", label="choosing by the true reward")
    axes.set_xlabel("KL = log n − (n − 1) / n, nats")
    axes.set_ylabel("mean reward of the best of n, nats (dashed: learned)")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(file, dpi=150)


def main() -> None:
    """The command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--plot", metavar="FILE", help="draw overoptimisation.json")
    args = parser.parse_args()
    if not args.tables and not args.plot:
        write(RESULTS, measure() | how_made())
    if args.plot:
        plot(args.plot)
    print("\n".join(tables().values()))


if __name__ == "__main__":
    main()
