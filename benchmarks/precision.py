"""How far a reward moves with its batch, and with bfloat16:  python benchmarks/precision.py RUN PAIRS.jsonl

Scores the texts one at a time and in batches, in float32 and under bfloat16 autocast. Writes benchmarks/precision.json.
"""
import json
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data import Tokenizer, encode_preferences, read_preferences
from eval import score_sequences, usable_length
from model import RewardModel


def main(run: str, data: str) -> None:
    model, tokenizer = RewardModel.from_pretrained(run).eval(), Tokenizer.from_folder(run)
    preferences, _ = read_preferences(data)
    pairs, _ = encode_preferences(preferences[:1000], tokenizer, usable_length(model, tokenizer, None))
    sequences = [pairs.sequence(s) for s in range(2 * len(pairs))]

    def rewards(tokens_per_batch, dtype):
        return score_sequences(model, sequences, tokenizer.pad_id, tokens_per_batch, dtype)

    exact = rewards(1, None)
    result = {
        "texts": len(sequences),
        "standard_deviation_of_rewards": float(exact.std()),
        "float32_alone_against_batched_max": float(np.abs(rewards(16384, None) - exact).max()),
        "bfloat16_against_float32_max": float(np.abs(rewards(16384, torch.bfloat16) - exact).max()),
        "bfloat16_against_float32_median": float(np.median(np.abs(rewards(16384, torch.bfloat16) - exact))),
        "bfloat16_alone_against_batched_max": float(
            np.abs(rewards(1, torch.bfloat16) - rewards(16384, torch.bfloat16)).max()),
        "torch": torch.__version__,
    }
    (ROOT / "benchmarks" / "precision.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
