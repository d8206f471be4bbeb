"""packing.py: a prompt is computed once for all its responses, and nothing is padded.

Both responses of a pair answer the same prompt. The padded form computes that prompt twice, and
pads the short rows of a batch to the longest one. A packed batch is a single row without pads, in
which a prompt stands once, and all its responses after it:

    padded    prompt a  chosen a    pad         packed    prompt a  chosen a  rejected a
              prompt a  rejected a  pad                   prompt b  chosen b  rejected b  …
              prompt b  chosen b                          all in one row
              prompt b  rejected b  pad

The rewards do not change, because every sequence gets the attention that it would get alone. A
token sees the prompt and its own response, up to itself, and nothing else:

    a token of …  sees    prompt   chosen   rejected
    prompt                  ◣                                 ■  all
    chosen                  ■        ◣                        ◣  up to itself
    rejected                ■                  ◣

The big matrix products, norms and MLPs look at one token at a time: they never notice how the row
is made. Only attention compares tokens. For its products, queries, keys and values are copied into
rows as the padded form has them, a sequence in each; its results are copied back:

    packed row  ── take(unpack) ──►  a row for each sequence  ── attention ──►  take(pack) ──►  row

Positions belong to sequences, not to the row: those of every response continue where its prompt
ends. The first token of `rejected` has the same position as the first token of `chosen`.

What it saves: with p tokens of prompt and a of each response, a pair is p + 2a tokens and not
2p + 2a and pads. Of K responses, K − 1 copies of the prompt are saved. Most work of a step is in
the products that look at one token. What it costs: attention has as much to do as in the padded
form, and the copies take time and memory.

Source: Wang & Hegde 2024, "Accelerating Direct Preference Optimization with Prefix Sharing", has
this form for pairs, with the picture above as a mask.

Turned on by --pack. tests/extras/test_packing.py shows that rewards and gradients are those of the
padded form.

Shapes: as in model.py. Here R = 1: one row of T tokens, and S sequences in it. L is the number of
        tokens of the longest sequence. K responses of an example.
"""
import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data import Batch, Example, pairs_of
from model import PADDED

# ---------------------------------------------------------------- the batch


@dataclasses.dataclass
class PackedBatch(Batch):
    """A Batch of one row (R = 1) with S sequences in it. Its start is (1, S)."""

    form: "Packed"

    def inputs(self) -> dict:
        """What the model is called with: model(**batch.inputs())."""
        return super().inputs() | {"form": self.form}


def collate(examples: list[Example], pad_id: int, rows_in_step: int = 1) -> PackedBatch:
    """Examples -> one row: [ prompt | response 1 | … | response K ][ next example … ].

    It stands in for data.collate. There is nothing to pad, so pad_id is not used. Two responses
    that begin alike do not share their beginning: start..last has to be the whole response.

    Raises: ValueError where the sequences of an example do not share its prompt, or one is empty.
    """
    sequences = []
    indices = []  # of each sequence: where its tokens are in the row
    starts = []  # of each sequence: where its response begins
    tokens = 0  # in the row so far
    for example in examples:
        check_prompt(example)
        prompt = np.arange(tokens, tokens + example.start)
        tokens += example.start
        for sequence in example.sequences:
            more = len(sequence) - example.start
            response = np.arange(tokens, tokens + more)
            sequences.append(sequence)
            indices.append(np.concatenate((prompt, response)))
            starts.append(tokens)
            tokens += more

    row = np.empty(tokens, np.int64)
    for index, sequence in zip(indices, sequences):
        row[index] = sequence
    input_ids = torch.from_numpy(row)[None]  # (1, T)
    attention_mask = torch.ones_like(input_ids)  # (1, T)
    start = torch.tensor([starts])  # (1, S)
    pairs = pairs_of(examples, rows_in_step)
    return PackedBatch(input_ids, attention_mask, start, **pairs, form=form_of(indices, tokens))


def check_prompt(example: Example) -> None:
    """Raises: ValueError unless all sequences share the prompt, and go on after it."""
    start = example.start
    prompt = example.sequences[0][:start]
    for sequence in example.sequences:
        if not np.array_equal(sequence[:start], prompt):
            raise ValueError(f"sequences differ before start = {start}: not one prompt")
        if len(sequence) <= start:
            raise ValueError("an empty response has no last token to read a reward at")


# ---------------------------------------------------------------- the form


@dataclasses.dataclass
class Packed:
    """How sequences lie in a packed row. It has the three methods of model.Padded."""

    end: Tensor  # (1, S) index of the last token of each sequence
    position_ids: Tensor  # (T,)
    unpack: Tensor  # (S, L) the index in the row of each token of each sequence
    pack: Tensor  # (1, T) and back: an index into the S · L

    def last(self, attention_mask: Tensor) -> Tensor:
        """Index of the last token of each sequence.  (1, T), all ones -> (1, S)"""
        return self.end

    def positions(self, input_ids: Tensor) -> Tensor:
        """The position of each token in its own sequence.  (1, T) -> (T,)"""
        return self.position_ids

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention as in the padded form.  q (1, H, T, P), k and v (1, G, T, P) -> (1, H, T, P)"""
        q = take(q, self.unpack)  # (S, H, L, P)
        k = take(k, self.unpack)  # (S, G, L, P)
        v = take(v, self.unpack)
        mixed = PADDED.attend(q, k, v)  # (S, H, L, P)
        return take(mixed, self.pack)

    def to(self, device) -> "Packed":
        """The same form on a device."""
        return Packed(
            end=self.end.to(device),
            position_ids=self.position_ids.to(device),
            unpack=self.unpack.to(device),
            pack=self.pack.to(device),
        )


def form_of(indices: list[np.ndarray], tokens: int) -> Packed:
    """The form of a row.  indices: where the tokens of each sequence are in it, S arrays."""
    S, L = len(indices), max(map(len, indices))
    unpack = np.zeros((S, L), np.int64)  # a pad takes token 0; nobody reads what it becomes
    pack = np.empty(tokens, np.int64)
    position_ids = np.empty(tokens, np.int64)
    for number, index in enumerate(indices):
        positions = np.arange(len(index))
        unpack[number, : len(index)] = index
        # The copies of a prompt in the rows of its responses are equal: any of them will do.
        pack[index] = number * L + positions
        position_ids[index] = positions
    end = [int(index[-1]) for index in indices]
    return Packed(
        end=torch.tensor([end]),
        position_ids=torch.from_numpy(position_ids),
        unpack=torch.from_numpy(unpack),
        pack=torch.from_numpy(pack)[None],
    )


def take(x: Tensor, index: Tensor) -> Tensor:
    """The vectors of x at some tokens.  (R, H, T, P), (R', T') -> (R', H, T', P)

    An index counts the tokens of all rows of x, one row after the other.
    """
    R, H, T, P = x.shape
    table = x.transpose(1, 2).reshape(R * T, H * P)
    # An embedding looks up rows of a table. Unlike table[index], its gradient adds the copies of a
    # prompt in the same order every time, on a GPU too.
    found = F.embedding(index, table)  # (R', T', H · P)
    return found.view(*index.shape, H, P).transpose(1, 2)
