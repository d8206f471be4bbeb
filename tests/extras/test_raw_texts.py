"""Rows to score that are rendered already: a text, or token ids."""
import json
import types

import numpy as np
import pytest
from conftest import command, save_run, tiny_model, tiny_tokenizer

import eval as evaluation
from data import DataError
from eval import Scorer, score
from extras import raw_texts
from model import RewardModel

PROMPT, RESPONSE = "the cat", "sat on the mat"
NOT_IDS = "field 'input_ids' is not a non-empty list of token ids from 0 to 399"
MESSAGES = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": RESPONSE}]


def scorer(bos=True, **settings) -> Scorer:
    return Scorer(tiny_model(**settings), tiny_tokenizer(bos=bos))


@pytest.mark.parametrize("bos", [True, False])
def test_a_text_its_ids_and_prompt_and_response_have_the_same_reward(bos):
    model, tokenizer = tiny_model(), tiny_tokenizer(bos=bos)
    text = tokenizer.render(MESSAGES)
    forms = [
        {"prompt": PROMPT, "response": RESPONSE},
        {"text": text},
        {"text": text.removeprefix("<s>")},
        {"text": text.removesuffix("</s>")},
        {"input_ids": tokenizer.encode([text])[0].tolist()},
    ]
    rewards = score(model, forms, tokenizer)
    np.testing.assert_allclose(rewards, rewards[0], atol=1e-5, err_msg=(
        "the same tokens have other rewards: is the BOS doubled, or the text rendered again?"
    ))


@pytest.mark.parametrize("text, ids", [
    ("<s>cat</s>", [1, "cat", 2]), ("cat</s>", [1, "cat", 2]), ("<s>cat", [1, "cat", 2]),
    ("cat", [1, "cat", 2]),
])
def test_bos_and_end_token_are_there_once(text, ids):
    tokenizer = tiny_tokenizer(bos=True)
    (word,) = tokenizer.backend.encode("cat", add_special_tokens=False).ids
    sequence = raw_texts.example(scorer(), {"text": text}, "row 1").sequences[0]
    assert sequence.tolist() == [word if i == "cat" else i for i in ids], "two BOS, or none?"


def test_without_a_bos_of_the_tokenizer_none_is_added():
    sequence = raw_texts.example(scorer(bos=False), {"text": "cat"}, "row 1").sequences[0]
    assert 1 not in sequence.tolist()


def test_nothing_is_added_to_ids():
    example = raw_texts.example(scorer(), {"input_ids": [7, 9]}, "row 1")
    assert example.sequences[0].tolist() == [7, 9]
    assert (example.start, example.scores) == (0, [])
    assert example.row.where == "row 1"


def test_ids_are_used_where_a_row_has_ids_and_text():
    example = raw_texts.example(scorer(), {"text": "cat", "input_ids": [7]}, "row 1")
    assert example.sequences[0].tolist() == [7]


def test_a_text_as_long_as_the_limit_is_scored_and_a_longer_one_refused():
    longest = scorer(max_position_embeddings=8)
    raw_texts.example(longest, {"input_ids": [7] * 8}, "row 1")
    with pytest.raises(DataError, match="^row 1: 9 tokens do not fit into 8$"):
        raw_texts.example(longest, {"input_ids": [7] * 9}, "row 1")
        pytest.fail("it was cut in silence: its end, where the reward is read, is lost")
    with pytest.raises(DataError, match="^row 1: [0-9]+ tokens do not fit into 8$"):
        raw_texts.example(longest, {"text": "xyz " * 9}, "row 1")


@pytest.mark.parametrize("row, message", [
    ({"text": 3}, "field 'text' is not a non-empty string"),
    ({"text": " \n"}, "field 'text' is not a non-empty string"),
    ({"text": None}, "field 'text' is not a non-empty string"),
    ({"text": "\ud800"}, "field 'text' holds half of a surrogate pair"),
    ({"input_ids": []}, NOT_IDS), ({"input_ids": [1, 400]}, NOT_IDS),
    ({"input_ids": [-1]}, NOT_IDS), ({"input_ids": "12"}, NOT_IDS),
    ({"input_ids": [True]}, NOT_IDS), ({"input_ids": [1.0]}, NOT_IDS),
])
def test_a_bad_row_is_one_line(row, message):
    with pytest.raises(DataError) as caught:
        raw_texts.example(scorer(), row, "f.jsonl:7")
    assert str(caught.value).startswith(f"f.jsonl:7: {message}")
    assert "\n" not in str(caught.value)


def test_a_text_that_the_model_has_no_embedding_for_is_refused():
    small = types.SimpleNamespace(
        model=tiny_model(vocab_size=100), tokenizer=tiny_tokenizer(), max_length=99
    )
    with pytest.raises(DataError, match="beyond the model's vocabulary of 100"):
        raw_texts.example(small, {"text": "the cat sat on the mat"}, "row 1")


def test_the_command_line_scores_texts_and_ids(tmp_path):
    run = save_run(tmp_path / "run", tiny_model(), tiny_tokenizer(bos=True))
    rows = [{"text": "the cat"}, {"input_ids": [5, 9, 2]}]
    stdin = "".join(json.dumps(row) + "\n" for row in rows)
    status, out, err = command(evaluation.main, "score", run, stdin=stdin)
    assert status == 0, err
    scored = [json.loads(line) for line in out.splitlines()]
    exact = score(RewardModel.from_pretrained(run), rows)
    assert [row["reward"] for row in scored] == pytest.approx(exact, abs=1e-5)
    status, out, err = command(evaluation.main, "score", run, stdin='{"text": 3}\n')
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("eval.py: standard input:1: field 'text'")
