"""What every training run of speed.py and parity.py starts from: the same weights and rows.

A row of K responses has the two of a pair, and K − 2 to other prompts. Their order is made up: what
a step costs does not depend on it.
"""
import dataclasses
import json
import sys
from pathlib import Path

import torch
import common  # noqa: F401  it makes the next two imports possible

from data import Audit, Example, Row, Tokenizer, epoch_order, examples_of, read_rows
from model import RewardModel

NO_LIMIT = 2**31
VOCABULARY = 16384  # tokens that the tokenizer learns, at most


def prepare(
    folder: Path, shape: dict, data: str, count: int, max_length: int, responses: int = 2
) -> None:
    """Weights, tokenizer and rows in a folder: as ids for the others, as text for train_rm.py."""
    rows = list(read_rows([data]))
    tokens = min(shape["vocab_size"], VOCABULARY)
    tokenizer = Tokenizer.train(texts_of(rows), tokens)
    held_out = 2  # train_rm.py wants some
    rows = rows_of(responses, rows)
    examples = fitting_examples(rows, tokenizer, count + held_out, max_length)
    if len(examples) < count + held_out:
        sys.exit(f"{data}: {len(examples)} usable rows, {count + held_out} are needed")

    special = {"eos_token_id": tokenizer.end_id, "bos_token_id": None}
    torch.manual_seed(0)
    model = RewardModel.from_scratch(shape | special)
    (folder / "model").mkdir()
    model.save_pretrained(folder / "model", tokenizer.pad_id, model.state_dict())
    tokenizer.save(folder / "model", max_length)

    ids = []
    for example in examples[:count]:
        ids.append([sequence.tolist() for sequence in example.sequences])
    (folder / "ids.json").write_text(json.dumps(ids))
    # train_rm.py shuffles, the others are told not to. Put the rows where its order of seed 0
    # finds them in the order of ids.json.
    shuffled = [None] * count
    for example, position in zip(examples, epoch_order(count, 0, 0)):
        shuffled[position] = example
    write_rows(folder / "rows.jsonl", shuffled)
    write_rows(folder / "held_out.jsonl", examples[count:])


def texts_of(rows: list):
    """What the tokenizer learns from."""
    yield "User: Assistant: System:"
    for row in rows:
        for messages in (row.prompt, *row.responses):
            for message in messages:
                yield message["content"]


def rows_of(K: int, pairs: list[Row]) -> list[Row]:
    """The pairs, with better ones first and worse answers from other rows until there are K."""
    rows = []
    for number, pair in enumerate(pairs):
        if pair.scores != [1.0, 0.0]:
            continue
        responses = list(pair.responses)
        for step in range(1, K - 1):
            other = pairs[(number + 17 * step) % len(pairs)]
            responses.append(other.responses[0])
        scores = [float(K - rank) for rank in range(K)]
        rows.append(dataclasses.replace(pair, responses=responses, scores=scores))
    return rows


def fitting_examples(
    rows: list[Row], tokenizer: Tokenizer, count: int, longest: int
) -> list[Example]:
    """The first rows that nothing has to be cut from; the best sequence first."""
    examples = []
    for example in examples_of(rows, tokenizer, NO_LIMIT, Audit()):
        if max(map(len, example.sequences)) <= longest:
            examples.append(example)
        if len(examples) == count:
            break
    return examples


def write_rows(file: Path, examples: list[Example]) -> None:
    """Native rows of K responses."""
    lines = []
    for example in examples:
        row = example.row
        row = {"prompt": row.prompt, "responses": row.responses, "scores": row.scores}
        lines.append(json.dumps(row) + "\n")
    file.write_text("".join(lines), "utf-8")
