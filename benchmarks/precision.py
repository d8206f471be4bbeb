"""How far a reward moves with its batch, with --pack, and with bfloat16.

    python benchmarks/precision.py RUN PAIRS.jsonl

Scores 2,000 texts one at a time and in batches, in float32 and under bfloat16 autocast, and writes
precision.json.
"""
import json
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from common import how_made, write

import eval as evaluation
from data import Audit, Example, examples_of, read_rows
from eval import Scorer
from model import RewardModel

RESULTS = Path(__file__).with_suffix(".json")
PAIRS = 1000


def read_examples(data: str, scorer: Scorer) -> list[Example]:
    """The first pairs of a file."""
    rows = islice(read_rows([data]), PAIRS)
    return list(examples_of(rows, scorer.tokenizer, scorer.max_length, Audit()))


def measure(run: str, data: str) -> dict:
    """The differences, in nats."""
    model = RewardModel.from_pretrained(run)
    examples = read_examples(data, Scorer(model))
    batched = evaluation.TOKENS_PER_BATCH

    def rewards(tokens_per_batch=batched, pack=False, dtype=None) -> np.ndarray:
        evaluation.TOKENS_PER_BATCH = tokens_per_batch
        return np.concatenate(Scorer(model, pack=pack, dtype=dtype).rewards(examples))

    alone, together = rewards(tokens_per_batch=1), rewards()
    packed = rewards(pack=True)
    alone_bf16 = rewards(tokens_per_batch=1, dtype=torch.bfloat16)
    together_bf16 = rewards(dtype=torch.bfloat16)
    return {
        "texts": len(alone),
        "standard_deviation_of_rewards": float(alone.std()),
        "float32_alone_against_batched_max": largest(together, alone),
        "float32_alone_against_packed_max": largest(packed, alone),
        "bfloat16_against_float32_max": largest(together_bf16, alone),
        "bfloat16_against_float32_median": float(np.median(np.abs(together_bf16 - alone))),
        "bfloat16_alone_against_batched_max": largest(alone_bf16, together_bf16),
        "torch": torch.__version__,
    }


def largest(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of a reward."""
    return float(np.abs(a - b).max())


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    result = measure(*sys.argv[1:]) | how_made()
    write(RESULTS, result)
    print(json.dumps(result, indent=1))
