"""packing.py: a prompt is computed once for all its responses, and nothing is padded.

Both responses of a pair answer the same prompt. The padded form computes that prompt twice, and
pads the short rows of a batch to the longest one. A packed batch is a single row without pads, in
which a prompt stands once, and all its responses after it:

    padded    prompt a  chosen a    pad         packed    prompt a  chosen a  rejected a
              prompt a  rejected a  pad                   prompt b  chosen b  rejected b  …
              prompt b  chosen b                          all in one row
              prompt b  rejected b  pad

An example is a tree in this row: the prompt is its trunk, the responses are its branches. The
rewards do not change, because every sequence gets the attention that it would get alone. A token
sees the prompt and its own response, up to itself, and nothing else:

    a token of …  sees    prompt   chosen   rejected
    prompt                  ◣                                 ■  all
    chosen                  ■        ◣                        ◣  up to itself
    rejected                ■                  ◣

Positions belong to sequences, not to the row: those of every response continue where its prompt
ends. The first token of `rejected` has the same position as the first token of `chosen`.

What it saves: with p tokens of prompt and a of each response, a pair is p + 2a tokens and not
2p + 2a and pads. Of K responses, K − 1 copies of the prompt are saved. What it costs: attention
is called for each tree or response, not once for a batch, and torch.compile leaves these calls out.
So it gains most where prompts are long or K is large.

Source: Wang & Hegde 2024, "Accelerating Direct Preference Optimization with Prefix Sharing", has
this form for pairs, with the picture above as a mask.

Turned on by --pack. tests/extras/test_packing.py shows that rewards and gradients are those of the
padded form.

Shapes: as in model.py. Here R = 1: one row of T tokens, and S sequences in it. K responses of an
        example.
"""
import dataclasses
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from data import Batch, Example, pairs_of

SMALL_TREE = 128  # tokens; up to here one call with a mask is faster than a call for each response


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
    ids, positions = [], []  # arrays, to be put together
    starts, ends = [], []  # S numbers each
    pieces = []
    tokens = 0  # in the row so far
    for example in examples:
        check_prompt(example)
        first = example.sequences[0]
        prompt = example.start  # its number of tokens
        ids.append(first[:prompt])
        positions.append(np.arange(prompt))
        tokens += prompt
        for sequence in example.sequences:
            starts.append(tokens)
            ids.append(sequence[prompt:])
            positions.append(np.arange(prompt, len(sequence)))
            tokens += len(sequence) - prompt
            ends.append(tokens - 1)
        pieces += pieces_of(example)

    row = np.concatenate(ids).astype(np.int64)
    input_ids = torch.from_numpy(row)[None]  # (1, T)
    attention_mask = torch.ones_like(input_ids)  # (1, T)
    start = torch.tensor([starts])  # (1, S)
    end = torch.tensor([ends])  # (1, S)
    position_ids = torch.from_numpy(np.concatenate(positions))  # (T,)
    form = Packed(end, position_ids, pieces)
    pairs = pairs_of(examples, rows_in_step)
    return PackedBatch(input_ids, attention_mask, start, **pairs, form=form)


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


class Packed:
    """How sequences lie in a packed row. It has the three methods of model.Padded."""

    def __init__(self, end: Tensor, position_ids: Tensor, pieces: list["Piece"]):
        self.end = end  # (1, S) index of the last token of each sequence
        self.position_ids = position_ids  # (T,)
        self.pieces = pieces  # their tokens add up to T

    def last(self, attention_mask: Tensor) -> Tensor:
        """Index of the last token of each sequence.  (1, T), all ones -> (1, S)"""
        return self.end

    def positions(self, input_ids: Tensor) -> Tensor:
        """The position of each token in its own sequence.  (1, T) -> (T,)"""
        return self.position_ids

    # torch.compile has to leave this loop out: its sizes are new in every batch, and it would be
    # compiled again for each of them.
    @torch.compiler.disable
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q kᵀ / √P) v, over the prompt and the own response, up to each token.

        q (1, H, T, P), k and v (1, G, T, P) -> (1, H, T, P)
        """
        tokens = [piece.tokens for piece in self.pieces]
        queries = q.split(tokens, dim=2)  # a view of (1, H, tokens, P) for each piece
        keys = k.split(tokens, dim=2)
        values = v.split(tokens, dim=2)
        mixed = []
        for piece, query, key, value in zip(self.pieces, queries, keys, values):
            if piece.prompt == 0:
                first_key, first_value = key, value
            else:
                key = with_prompt(piece.prompt, first_key, key)
                value = with_prompt(piece.prompt, first_value, value)
            out = attend_piece(query, key, value, piece.mask)  # (1, H, tokens, P)
            mixed.append(out.transpose(1, 2))  # (1, tokens, H, P): so it lies in memory
        return torch.cat(mixed, dim=1).transpose(1, 2)  # (1, H, T, P)

    def to(self, device) -> "Packed":
        """The same form on a device."""
        end = self.end.to(device)
        position_ids = self.position_ids.to(device)
        pieces = []
        for piece in self.pieces:
            if piece.mask is not None:
                mask = piece.mask.to(device)
                piece = piece._replace(mask=mask)
            pieces.append(piece)
        return Packed(end, position_ids, pieces)


def with_prompt(prompt: int, first: Tensor, own: Tensor) -> Tensor:
    """Keys or values of a prompt, from the first piece of its tree, and of a response after it."""
    return torch.cat((first[:, :, :prompt], own), dim=2)


def attend_piece(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """One call of the kernel.  q (1, H, tokens, P), k and v (1, G, seen, P)"""
    if mask is None:
        # The last query sees all keys, the one before it all but the last, and so on. The fast
        # kernels of a GPU have a flag for this.
        mask = causal_lower_right(q.shape[2], k.shape[2])
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)


class Piece(NamedTuple):
    """Tokens that stand side by side in the row, and whose attention is one call."""

    tokens: int
    prompt: int = 0  # tokens of the prompt that it sees too; the last piece with prompt 0 has them
    mask: Tensor | None = None  # (tokens, tokens) bool, of a small tree. None: causal attention


def pieces_of(example: Example) -> list[Piece]:
    """How the attention of one tree is computed.

    The mask of a tree hides most of it from most tokens, and what it hides is computed all the
    same. In a small tree that costs less than more calls do. A large one is computed in pieces:
    the prompt with the first response, which is an ordinary sequence, then each other response.
    """
    prompt = example.start
    responses = []  # tokens of each
    for sequence in example.sequences:
        responses.append(len(sequence) - prompt)

    tokens = prompt + sum(responses)
    if tokens <= SMALL_TREE:
        mask = mask_of_tree(prompt, responses)
        return [Piece(tokens, mask=mask)]
    first, *others = responses
    pieces = [Piece(prompt + first)]
    for response in others:
        pieces.append(Piece(response, prompt))
    return pieces


def mask_of_tree(prompt: int, responses: list[int]) -> Tensor:
    """mask[q, k]: does query q see key k?  (tokens, tokens) bool, the picture above

    Built once with the batch, for all layers.
    """
    sizes = torch.tensor([prompt, *responses])
    branches = torch.arange(len(sizes))  # 0 is the prompt, 1 … K are its responses
    branch = branches.repeat_interleave(sizes)  # (tokens,)
    sees_prompt = branch == 0  # (tokens,) the keys that every query sees
    sees_own = branch[:, None] == branch  # (tokens, tokens)
    return (sees_prompt | sees_own).tril()
