r"""raw_texts.py: rewards of texts that are rendered already, or of token ids.

    {"text": "User: Which colour is grass?\nAssistant: It is green."}
    {"input_ids": [318, 417, 92, 2]}

A row with prompt and response is rendered by data.py in the one way that the model was trained on.
Two kinds of rows are not rendered, because somebody else has done it, for example the program that
generated the response:

    text         encoded as it is. Where the tokenizer writes a BOS and the text has none, it is put
                 before the text. Where the end token is missing, it is put after it. (A chat
                 template that ends in no special token has none.)
    input_ids    taken as they are, with nothing added. The reward is read at the last one,
                 whatever that is.

The trap: the model gives a plausible reward to any text. With two BOS, with the header of another
chat template, or with ids of another tokenizer nothing fails, and the rewards are wrong. Where you
can, give prompt and response instead.

Neither is ever shortened. A prompt that is too long loses its oldest tokens (data.py), but here
nobody knows where the prompt ends. So `start` is 0, and a text that is too long is refused.

It costs nothing. There is no option: `eval.py score`, and score() in Python, read a row with one of
these fields here. tests/extras/test_raw_texts.py shows that a text, its ids, and the prompt and
response that it was rendered from have the same reward.
"""
import numpy as np

from data import DataError, Example, Row, to_messages
from eval import check_ids


def example(scorer, raw, where):
    """A row with `text` or `input_ids` -> one sequence.  scorer: eval.Scorer.

    Raises: DataError naming row and field.
    """
    if "input_ids" in raw:
        sequence = read_ids(raw["input_ids"], scorer.model.config.vocab_size, where)
    else:
        sequence = encode(raw["text"], scorer.tokenizer, where)
        check_ids([sequence], scorer.model, where)
    tokens = len(sequence)
    if tokens > scorer.max_length:
        raise DataError(f"{where}: {tokens} tokens do not fit into {scorer.max_length}")
    row = Row([], [], scores=[], where=where, raw=raw)
    return Example([sequence], scores=[], start=0, row=row)


def read_ids(ids, vocab_size, where):
    """A list of token ids -> (tokens,) int32.  Raises: DataError."""
    known = f"token ids from 0 to {vocab_size - 1}"
    wrong = DataError(f"{where}: field 'input_ids' is not a non-empty list of {known}")
    if not isinstance(ids, list) or not ids:
        raise wrong
    for i in ids:
        is_int = type(i) is int  # isinstance would take True for 1
        if not is_int or not 0 <= i < vocab_size:
            raise wrong
    return np.array(ids, dtype=np.int32)


def encode(text, tokenizer, where):
    """A rendered text -> (tokens,) int32, with BOS and end token.  Raises: DataError."""
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: field 'text' is not a non-empty string")
    to_messages(text, "assistant", where, "text")  # refuses what has no UTF-8
    if not text.startswith(tokenizer.bos):
        text = tokenizer.bos + text
    is_special = tokenizer.special.fullmatch(tokenizer.end_token)
    if is_special and not text.endswith(tokenizer.end_token):
        text += tokenizer.end_token
    return tokenizer.encode([text])[0]
