"""Seconds of scoring, and of choosing the best of n responses, beside transformers.

    python benchmarks/scoring.py --data PAIRS.jsonl.gz --transformers PYTHON
    python benchmarks/scoring.py --tables        what the README quotes

PYTHON is the interpreter of an environment with transformers and with what minRM needs. All score
the same token ids with the same weights: the plain form, --pack, and transformers'
AutoModelForSequenceClassification in padded batches of 16. They take turns in one process. Medians
go to scoring.json, and the largest distance of a reward from transformers'.
"""
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import (
    SHAPES, asked_to_work, how_made, load_results, new_parser, read_json, spawn, table, write,
)
from prepare import prepare

from data import Example, pad_right
from eval import Scorer
from model import RewardModel

HERE = Path(__file__).resolve()
RESULTS = HERE.with_suffix(".json")
PROMPT = 400  # tokens
RESPONSE = (30, 51)  # tokens, from and below
BATCH = 16  # of transformers


def responses_to_one_prompt(n: int, vocabulary: int) -> list[Example]:
    """Random tokens: what best of n has to score."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(5, vocabulary, PROMPT, dtype=np.int32)
    sequences = []
    for _ in range(n):
        length = rng.integers(*RESPONSE)
        response = rng.integers(5, vocabulary, length, dtype=np.int32)
        sequences.append(np.concatenate((prompt, response)))
    return [Example(sequences, [], PROMPT)]


def texts(file: Path) -> list[Example]:
    """Both sequences of all pairs, each alone."""
    found = []
    for pair in read_json(file):
        for ids in pair:
            sequence = np.array(ids, dtype=np.int32)
            found.append(Example([sequence], [], 0))
    return found


class Transformers:
    """The same model, opened by transformers."""

    def __init__(self, folder: Path):
        import transformers

        self.version = transformers.__version__
        auto = transformers.AutoModelForSequenceClassification
        self.model = auto.from_pretrained(folder).eval()
        self.pad_id = self.model.config.pad_token_id

    @torch.no_grad()
    def rewards(self, examples: list[Example]) -> list[np.ndarray]:
        """As Scorer.rewards, but batch by batch."""
        sequences, found = [], []
        for example in examples:
            sequences += example.sequences
        for first in range(0, len(sequences), BATCH):
            batch = sequences[first : first + BATCH]
            ids, mask = pad_right(batch, self.pad_id)
            logits = self.model(input_ids=ids, attention_mask=mask).logits  # (R, 1)
            found.append(logits[:, 0].numpy())
        return found


def measure(s: dict) -> dict:
    """Seconds and differences, for each piece of work."""
    folder = Path(s["folder"])
    model = RewardModel.from_pretrained(folder / "model")
    scorers = {"plain": Scorer(model), "packed": Scorer(model, pack=True)}
    versions = {"torch": torch.__version__}
    if s["transformers"]:
        scorers["transformers"] = Transformers(folder / "model")
        versions["transformers"] = scorers["transformers"].version
    found = {}
    vocabulary = model.config.vocab_size
    for n in s["sizes"]:
        examples = responses_to_one_prompt(n, vocabulary)
        found[f"best of {n}"] = time_scorers(scorers, examples, s["repeats"])
    examples = texts(folder / "ids.json")
    found[f"{len(examples)} texts"] = time_scorers(scorers, examples, s["repeats"])
    return {"work": found, "versions": versions}


def time_scorers(scorers: dict, examples: list[Example], repeats: int) -> dict:
    """Median seconds of each, and the largest distance of a reward from the last one's."""
    seconds, rewards = {who: [] for who in scorers}, {}
    for _ in range(repeats + 1):  # the first one warms up
        for who, scorer in scorers.items():
            began = time.perf_counter()
            rewards[who] = np.concatenate(scorer.rewards(examples))
            seconds[who].append(time.perf_counter() - began)
    *_, last = rewards.values()
    medians, apart = {}, 0.0
    for who in scorers:
        medians[who] = statistics.median(seconds[who][1:])
        difference = np.abs(rewards[who] - last).max()
        apart = max(apart, float(difference))
    return {"seconds": medians, "largest_difference": apart}


def tables() -> dict[str, str]:
    """What the README quotes, in Markdown."""
    rows, columns = [], []
    for name, e in load_results(RESULTS).get("work", {}).items():
        columns = ["work", *(f"{who}, seconds" for who in e["seconds"])]
        cells = [f"{value:.2f}" for value in e["seconds"].values()]
        apart = f"{e['largest_difference']:.0e}"
        rows.append([name, *cells, apart])
    if not rows:
        return {}
    return {"score": table([*columns, "largest difference of a reward"], rows)}


def main() -> None:
    """The command line."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--data", help="preference pairs, in any layout that train_rm.py reads")
    add("--transformers", metavar="PYTHON")
    add("--shape", choices=SHAPES, default="30m")
    add("--sizes", type=int, nargs="+", default=[4, 16, 64], help="the n of best of n")
    add("--pairs", type=int, default=32, help="pairs whose texts are scored")
    add("--repeats", type=int, default=3)
    args = parser.parse_args()
    if not args.tables:
        if not args.data:
            parser.error("--data is needed")
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder), SHAPES[args.shape], args.data, args.pairs, 512)
            settings = vars(args) | {"folder": folder, "device": "cpu"}
            python = args.transformers or sys.executable
            result = spawn(python, HERE, "score", settings)
        write(RESULTS, result | how_made())
    print("\n".join(tables().values()))


if __name__ == "__main__":
    if not asked_to_work({"score": measure}):
        main()
