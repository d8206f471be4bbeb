"""used_rows.py: of the embedding, train only the rows of tokens that occur in the data.

    python train_rm.py --model DIR --data pairs.jsonl --used-rows

The embedding is a table with one row for each of V tokens. A text reads the rows of its own tokens,
so only these rows get a gradient. Qwen's table has 152,000 rows; a small data set uses 5 to 10
thousand of them. The gradient of all others is exactly 0 in every step. And yet it is stored, so
are AdamW's two moments, and every step goes through all of them. Here a second, small table has
the rows that are trained:

    token ids          3             50            7
    row_of[id]         0             −1            1
                       │             │             │
                   weight[0]    frozen[50]     weight[1]

    weight (U, D)      the rows of the U tokens that occur: trained
    frozen (V, D)      the table as it was: never trained. A held-out or later text may have a token
                       that the training data have not. It gets that token's row from here.

What is learned is the same: where all gradients are 0, so are the moments, and AdamW moves nothing
(Kingma & Ba 2015, algorithm 1). Only weight decay makes a difference: in an ordinary table it
shrinks all rows, also those that no text reads.

What it saves: 12 bytes for each number in rows that do not occur (its gradient and two moments, in
float32), and the time to update them. The frozen table keeps the type that it has in its file. What
it costs: every lookup reads two tables, and the rows that are trained are in both.

tests/extras/test_used_rows.py proves that rewards and steps are those of an ordinary table.

Shapes: V tokens of the vocabulary   U of them occur   R rows of a batch   T tokens in a row
        D hidden_size
"""
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from model import whole

CHUNK = 2**24  # so many ids are read at once: 64 MB


def train_only(model, ids):
    """Train only the embeddings of these tokens. A frozen embedding (extras/lora.py) stays frozen.

    To be called before the weights are copied to the device (RewardModel.take_weights).

    Args: model: a RewardModel.
          ids: (tokens,) all token ids of the data, an array in memory or mapped from a file.
    """
    embedding = model.model.embed_tokens
    if embedding.weight.requires_grad:
        used = tokens_that_occur(ids, embedding.num_embeddings)
        model.model.embed_tokens = UsedRows(embedding, used)


def tokens_that_occur(ids, vocab_size):
    """Each token id of ids once, in order.  (tokens,) -> (U,) int64"""
    occurs = np.zeros(vocab_size, dtype=bool)
    # In chunks, because the file of a large data set does not fit into memory.
    for first in range(0, len(ids), CHUNK):
        chunk = ids[first : first + CHUNK]
        occurs[chunk] = True
    used = np.flatnonzero(occurs)
    return torch.from_numpy(used)


class UsedRows(nn.Module):
    """An embedding of which some rows are trained.  (R, T) -> (R, T, D)

    Args: embedding: an nn.Embedding with a table (V, D), which may still be mapped from a file.
          used: (U,) the token ids whose rows are trained.
    """

    def __init__(self, embedding, used):
        super().__init__()
        table = embedding.weight.detach()  # (V, D)
        rows = table[used]  # (U, D) a copy
        self.weight = nn.Parameter(rows)
        # A parameter, not a buffer: take_weights brings parameters to the device. And DDP, left to
        # itself, sends all buffers to all processes in every step.
        self.frozen = nn.Parameter(table, requires_grad=False)

        self.used = used
        self.row_of = torch.full((len(table),), -1)  # (V,) a token's row in weight, or −1
        self.row_of[used] = torch.arange(len(used))
        self.register_state_dict_post_hook(put_together)

    def forward(self, input_ids):
        """(R, T) -> (R, T, D)"""
        # An ordinary tensor: it goes to the device here, in the first call.
        self.row_of = self.row_of.to(input_ids.device)
        row = self.row_of[input_ids]  # (R, T)
        is_trained = row[..., None] >= 0  # (R, T, 1)
        row = row.clamp(min=0)  # −1 is no row of a table; what is read in its place is not used
        trained = F.embedding(row, self.weight)  # (R, T, D)
        frozen = F.embedding(input_ids, self.frozen)  # (R, T, D)
        return torch.where(is_trained, trained, frozen)


def put_together(module, state, prefix, _):
    """Put one ordinary table into a state_dict, in float32, in place of the two.

    torch calls this for a UsedRows when model.state_dict() is called.
    """
    trained = whole(state.pop(prefix + "weight"))  # (U, D)
    frozen = whole(state.pop(prefix + "frozen"))  # (V, D)
    # To the CPU first: there may be no room for another table on the GPU that trains.
    trained = trained.cpu().float()
    frozen = frozen.cpu().float()
    table = frozen.index_copy(0, module.used, trained)
    state[prefix + "weight"] = table
