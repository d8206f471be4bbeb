"""What every training run of speed.py and parity.py starts from: the same weights and pairs."""
import json
import sys
from pathlib import Path

import torch
import common  # noqa: F401  it makes the next two imports possible

from data import Audit, Example, Tokenizer, epoch_order, examples_of, read_rows
from model import RewardModel

NO_LIMIT = 2**31
VOCABULARY = 16384  # tokens that the tokenizer learns, at most


def prepare(folder: Path, shape: dict, data: str, count: int, max_length: int) -> None:
    """Weights, tokenizer and pairs in a folder: as ids for the others, as text for train_rm.py."""
    rows = list(read_rows([data]))
    tokens = min(shape["vocab_size"], VOCABULARY)
    tokenizer = Tokenizer.train(texts_of(rows), tokens)
    held_out = 2  # train_rm.py wants some
    pairs = fitting_pairs(rows, tokenizer, count + held_out, max_length)
    if len(pairs) < count + held_out:
        sys.exit(f"{data}: {len(pairs)} usable pairs, {count + held_out} are needed")

    special = {"eos_token_id": tokenizer.end_id, "bos_token_id": None}
    torch.manual_seed(0)
    model = RewardModel.from_scratch(shape | special)
    (folder / "model").mkdir()
    model.save_pretrained(folder / "model", tokenizer.pad_id, model.state_dict())
    tokenizer.save(folder / "model", max_length)

    ids = []
    for pair in pairs[:count]:
        ids.append([sequence.tolist() for sequence in pair.sequences])
    (folder / "ids.json").write_text(json.dumps(ids))
    # train_rm.py shuffles, the others are told not to. Put the rows where its order of seed 0
    # finds them in the order of ids.json.
    shuffled = [None] * count
    for pair, position in zip(pairs, epoch_order(count, 0, 0)):
        shuffled[position] = pair
    write_rows(folder / "pairs.jsonl", shuffled)
    write_rows(folder / "held_out.jsonl", pairs[count:])


def texts_of(rows: list):
    """What the tokenizer learns from."""
    yield "User: Assistant: System:"
    for row in rows:
        for messages in (row.prompt, *row.responses):
            for message in messages:
                yield message["content"]


def fitting_pairs(rows: list, tokenizer: Tokenizer, count: int, longest: int) -> list[Example]:
    """The first pairs that nothing has to be cut from; the chosen sequence first."""
    pairs = []
    for example in examples_of(rows, tokenizer, NO_LIMIT, Audit()):
        is_pair = example.scores == [1.0, 0.0]
        fits = max(map(len, example.sequences)) <= longest
        if is_pair and fits:
            pairs.append(example)
        if len(pairs) == count:
            break
    return pairs


def write_rows(file: Path, pairs: list[Example]) -> None:
    """Pairs as native rows."""
    lines = []
    for pair in pairs:
        chosen, rejected = pair.row.responses
        row = {"prompt": pair.row.prompt, "chosen": chosen, "rejected": rejected}
        lines.append(json.dumps(row) + "\n")
    file.write_text("".join(lines), "utf-8")
