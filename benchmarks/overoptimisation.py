"""What happens if one optimises against a learned reward: best of n in the toy world (Gao et al. 2023, figure 1).

    python benchmarks/overoptimisation.py               trains five small models, about ten minutes on two CPU cores
    python benchmarks/overoptimisation.py --tables      prints what the README quotes
    python benchmarks/overoptimisation.py --plot F.png  draws it (needs matplotlib)

Draw n responses to a prompt, keep the one the learned reward likes best, and ask what the true reward thinks of it. Best
of n moves the responses away from how they were drawn by  KL = log n − (n − 1) / n  nats. The learned reward can only go
up with n. The true one goes up too, as long as the two agree, and falls where what the search finds is what the model got
wrong. (What the search may find here is more than what was trained on: up to eight sentences behind the answer instead of
two, and several courtesies, as a language model's samples differ from those that people compared.)

Means over 1,024 draws for each of 60 prompts; for each n the expected best of n of these draws, without replacement. One
training run each, with no error bar: read the distance of the curves, not a tenth of a nat.
"""
import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "overoptimisation.json"
sys.path.insert(0, str(ROOT))

from data import POLITE, RUDE, TOPICS, gold_reward, toy_prompt, toy_response
from eval import score
from model import RewardModel

DRAWS, PROMPTS = 1024, 60
SIZES = [2**i for i in range(11)]
# Training pairs, and the share of their labels that is flipped.
RUNS = {"48,000 pairs": (48000, 0.0), "12,000 pairs": (12000, 0.0), "3,000 pairs": (3000, 0.0),
        "12,000 pairs, a fifth of the labels flipped": (12000, 0.2), "1,000 pairs": (1000, 0.0)}


def draw(topic: str, answer: str, rng: random.Random) -> str:
    """A response as toy_response makes them, with up to six more sentences around it."""
    parts = [toy_response(topic, answer, rng)]
    for _ in range(rng.randrange(7)):
        kind = rng.random()
        more = POLITE if kind < 0.15 else RUDE if kind < 0.3 else TOPICS[rng.choice(list(TOPICS))][2]
        parts.append(rng.choice(more))
    return " ".join(parts)


def best_of_n(proxy: np.ndarray, values: np.ndarray, n: int) -> float:
    """Expected value of the one with the highest proxy among n drawn without replacement from these N.

    It is the k-th of N in order of proxy with probability C(k−1, n−1) / C(N, n).
    """
    order, N = np.argsort(proxy, kind="stable"), len(proxy)
    chance = np.zeros(N)
    chance[N - 1] = n / N
    for k in range(N - 1, n - 1, -1):  # C(k−1, n−1) from C(k, n−1)
        chance[k - 1] = chance[k] * (k - n + 1) / k
    return float(chance @ values[order])


def train(folder: Path, pairs: int, flipped: float) -> RewardModel:
    """A model of the default size, trained on so many pairs of the toy world for as many steps as the default run."""
    from data import toy_preferences

    rng, rows = random.Random(1), list(toy_preferences(pairs, 0))
    for row in rows:
        row.pop("gold_chosen"), row.pop("gold_rejected")
        if rng.random() < flipped:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "others.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy_preferences(64, 3)), "utf-8")
    subprocess.run([sys.executable, "train_rm.py", "--data", folder / "pairs.jsonl", "--eval-data", folder / "others.jsonl",
                    "--output", folder / "run", "--max-steps", "600"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return RewardModel.from_pretrained(folder / "run").eval()


def measure() -> dict:
    rng, curves = random.Random(2), {}
    prompts = [toy_prompt(rng) for _ in range(PROMPTS)]
    drawn = [[draw(topic, answer, rng) for _ in range(DRAWS)] for _, topic, answer in prompts]
    gold = np.array([[gold_reward(p, r) for r in responses] for (p, _, _), responses in zip(prompts, drawn)])
    rows = [{"prompt": p, "response": r} for (p, _, _), responses in zip(prompts, drawn) for r in responses]
    mean_of = lambda proxy, values: [float(np.mean([best_of_n(a, b, n) for a, b in zip(proxy, values)])) for n in SIZES]
    for name, (pairs, flipped) in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            proxy = np.array(score(train(Path(folder), pairs, flipped), rows)).reshape(gold.shape)
        proxy += gold.mean() - proxy.mean()  # a reward has no zero point
        curves[name] = {"learned": mean_of(proxy, proxy), "true": mean_of(proxy, gold)}
        print(name, json.dumps(curves[name]), file=sys.stderr)
    kl = [float(np.log(n) - (n - 1) / n) for n in SIZES]
    return {"n": SIZES, "kl": kl, "curves": curves, "best_possible": mean_of(gold, gold), "draws": DRAWS, "prompts": PROMPTS}


def tables() -> dict[str, str]:
    """What the README quotes."""
    r = json.loads(RESULTS.read_text("utf-8"))
    shown = [r["n"].index(n) for n in (1, 4, 16, 64, 256, 1024)]
    lines = ["| best of n, nats: learned / true | " + " | ".join(f"n = {r['n'][i]}" for i in shown) + " |",
             "|---|" + "---|" * len(shown), "| KL | " + " | ".join(f"{r['kl'][i]:.1f}" for i in shown) + " |"]
    for name, c in r["curves"].items():
        lines.append(f"| {name} | " + " | ".join(f"{c['learned'][i]:.1f} / {c['true'][i]:.1f}" for i in shown) + " |")
    lines.append("| choosing by the true reward | " + " | ".join(f"{r['best_possible'][i]:.1f}" for i in shown) + " |")
    few, at = r["curves"]["3,000 pairs"], r["n"].index
    promise = (f"With 3,000 the learned reward promises {few['learned'][at(1024)]:.1f} at n = 1024 where the truth is "
               f"{few['true'][at(1024)]:.1f}\n(and {few['true'][at(256)]:.1f} at n = 256).")
    return {"overoptimisation": "\n".join(lines), "promise": promise}


def plot(file: str) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    r = json.loads(RESULTS.read_text("utf-8"))
    figure, axes = pyplot.subplots(figsize=(7, 5), layout="constrained")
    for (name, curve), marker in zip(r["curves"].items(), "osD^v"):
        line, = axes.plot(r["kl"], curve["true"], marker=marker, label=f"{name}: true")
        axes.plot(r["kl"], curve["learned"], marker=marker, fillstyle="none", linestyle="dashed", color=line.get_color())
    axes.plot(r["kl"], r["best_possible"], color="black", label="choosing by the true reward")
    axes.set(xlabel="KL = log n − (n − 1) / n, nats", ylabel="mean reward of the best of n, nats (dashed: learned)")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="print what the README quotes")
    parser.add_argument("--plot", metavar="FILE", help="draw benchmarks/overoptimisation.json")
    args = parser.parse_args()
    if not args.tables and not args.plot:
        RESULTS.write_text(json.dumps(measure(), indent=1) + "\n")
    if args.plot:
        plot(args.plot)
    print("\n".join(tables().values()))


if __name__ == "__main__":
    main()
