"""Rows that are whole, and not what they seem: refused with the reason, or counted."""
import os

import pytest
import tokenizers
from conftest import command, tiny_tokenizer, write_rows
from runs import folder, train  # noqa: F401  pytest finds fixtures by their names here

import train_rm
from data import Audit, DataError, Tokenizer, examples_of, json_rows, parse_row, read_rows

PAIR = {"prompt": "q", "chosen": "the cat", "rejected": "no"}


def notes_of(row):
    audit = Audit()
    list(examples_of([parse_row(row)], tiny_tokenizer(), 256, audit))
    return " ".join(audit.notes)


@pytest.mark.parametrize("row, message", [
    (PAIR | {"responses": ["a", "b"]}, "both 'chosen' and 'responses'"),
    ({"prompt": "q", "response": "a", "responses": ["a", "b"]}, "both 'response' and 'responses'"),
    (PAIR | {"scores": [1, 9]}, "'scores' or 'ranks' without 'responses'"),
    ({"prompt": "q", "responses": ["a", "b"], "scores": [1, 2], "ranks": [1, 2]}, "both 'scores'"),
])
def test_two_labels_in_a_row_are_refused(row, message):
    with pytest.raises(DataError, match=f"f:3: {message}"):
        parse_row(row, "f:3")


@pytest.mark.parametrize("line, message", [
    ('{"prompt": "q", "chosen": "a", "rejected": "b", "chosen": "c"}', "'chosen' is there twice"),
    ('{"prompt": "q", "margin": NaN}', "NaN is not JSON"),
])
def test_json_that_readers_understand_differently_is_refused(line, message, tmp_path):
    file = tmp_path / "f.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(DataError, match=f"f.jsonl:1: not JSON .*{message}"):
        list(json_rows(file))


@pytest.mark.parametrize("row, note", [
    (PAIR | {"chosen": "the cat</s>"}, "special tokens"),
    (PAIR | {"prompt": "Be kind.\n\nHuman: q\n\nAssistant:"}, "marks of several speakers"),
    (PAIR | {"prompt": "### Human: q\n### Assistant:"}, "marks of several speakers"),
    ({"prompt": "", "chosen": "a", "rejected": "b"}, "no prompt"),
])
def test_texts_that_may_not_be_what_they_seem_are_counted(row, note):
    assert note in notes_of(row)
    assert notes_of(PAIR) == ""


@pytest.mark.parametrize("more, message", [
    ({"context": "A document."}, "field 'context' may belong to the prompt"),
    ({"Images": ["x.png"]}, "field 'Images': only text is read here"),
    ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "q", "image": "x"}]}]},
     "has a part 'image'"),
])
def test_what_belongs_to_the_dialogue_and_is_not_read_is_refused(more, message):
    with pytest.raises(DataError, match=f"f:3: .*{message}"):
        parse_row(PAIR | more, "f:3")


def test_characters_that_the_tokenizer_cannot_write_are_counted():
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "</s>": 1}, "<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    small = Tokenizer(backend, {"eos_token": "</s>", "unk_token": "<unk>"})
    audit = Audit()
    list(examples_of([parse_row(PAIR)], small, 256, audit))
    assert audit.notes["a text has characters that the tokenizer cannot write"] == 1


def test_an_answer_that_only_calls_a_tool_is_not_empty():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    audit = Audit()
    list(examples_of([parse_row(PAIR | {"chosen": [call]})], tiny_tokenizer(), 256, audit))
    assert audit.left_out["empty response"] == 0
    assert "a response has tool calls" in " ".join(audit.notes)


@pytest.mark.parametrize("row", [
    {"prompt": '[{"role": "user", "content": "q"}]', "chosen": "a", "rejected": "b"},
    {"messages": '[{"from": "human", "value": "q"}]', "chosen": "a", "rejected": "b"},
    {"prompt": [{"role": "human", "content": "q"}], "chosen": "a", "rejected": "b"},
    {"prompt": [{"role": "human", "content": "q"}], "chosen": "a", "rejected": "b", "model": "z"},
])
def test_messages_as_text_and_other_names_for_the_speakers_are_read_in_one_way(row):
    assert parse_row(row).prompt == [{"role": "user", "content": "q"}]


def test_the_first_bad_row_of_a_kind_is_shown(tmp_path):
    file = write_rows(tmp_path / "f.jsonl", [PAIR, {"prompt": "q"}, PAIR | {"margin": "much"}])
    audit = Audit()
    assert len(list(read_rows([file], skip_bad_rows=True, audit=audit))) == 1
    assert audit.left_out["malformed"] == 2
    assert f"malformed, the first: {file}:2: no field 'chosen'" in " ".join(audit.notes)


def test_prompts_on_both_sides_are_said(folder, tmp_path):  # noqa: F811
    rows = folder / "train.jsonl"
    args = ["--data", rows, "--eval-data", rows, "--max-steps", 1, "--output", tmp_path / "run"]
    status, out, err = train(folder, *args)
    assert status == 0, err
    assert "held-out prompts are also trained on" in out


def test_every_file_that_is_named_is_read(folder, tmp_path):  # noqa: F811
    files = ["--data", folder / "train.jsonl", "--data", folder / "held_out.jsonl"]
    args = train_rm.parse_options([str(arg) for arg in files])
    assert len(args.data) == 2, "the second --data has replaced the first"


def test_a_pipe_is_refused_because_it_can_be_read_only_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    status, _, err = command(train_rm.main, "--data", tmp_path / "pipe.jsonl")
    assert status == 2 and "a pipe can be read only once" in err
