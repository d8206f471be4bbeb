"""What each cell of CSV becomes, and which cells are refused."""
import csv

import pytest

from data import DataError, parse_row
from extras import tables

MESSAGE = {"role": "assistant", "content": "a"}


def read(tmp_path, **cells):
    """The row of a table with a prompt and these columns."""
    with open(tmp_path / "f.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["prompt", *cells], ["q", *cells.values()]])
    [(_, row)] = tables.csv_rows(str(tmp_path / "f.csv"))
    return row


@pytest.mark.parametrize("column, cell, value", [
    ("responses", '["a", "b"]', ["a", "b"]),
    ("scores", "[1, 0.5]", [1, 0.5]),
    ("ranks", "[1, 2]", [1, 2]),
    ("tools", "[]", []),
    ("messages", '[{"role": "user", "content": "q"}]', [{"role": "user", "content": "q"}]),
    ("completions", '[{"response": "a", "overall_score": 7}]',
     [{"response": "a", "overall_score": 7}]),
    ("history", '[["q", "a"]]', [["q", "a"]]),
    ("history", "[Serious] I asked, and then?", "[Serious] I asked, and then?"),
    ("chosen", '[{"role": "assistant", "content": "a"}]', [MESSAGE]),
    ("chosen", '[ {"role": "assistant", "content": "a"} ]', [MESSAGE]),
    ("chosen", '{"role": "assistant", "content": "a"}', MESSAGE),
    ("chosen", '[{"name": "answers may be JSON"}]', '[{"name": "answers may be JSON"}]'),
    ("chosen", "[{x} for x in y]", "[{x} for x in y]"),
    ("chosen", "[x, y]", "[x, y]"),
    ("chosen", "[1, 2]", "[1, 2]"),
    ("chosen", "5", "5"),
    ("response_a", '["good"]', '["good"]'),  # a layout of the arena reads it
    ("source", "null", "null"),
    ("id", "0012", "0012"),
    ("margin", "0.5", 0.5),
    ("score", " -3 ", -3),
    ("score_chosen", "1e2", 100.0),
    ("label", "1", 1),
    ("label", "chosen", "chosen"),
    ("label", "true", "true"),
    ("helpfulness", "4", 4),
])
def test_what_a_cell_becomes(tmp_path, column, cell, value):
    found = read(tmp_path, **{column: cell})[column]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("column, cell, message", [
    ("chosen", "[{'role': 'user', 'content': 'q'}]", "is Python, not JSON"),
    ("chosen", "{'role': 'assistant', 'content': 'a'}", "is Python, not JSON"),
    ("chosen", "[ {'role': 'assistant', 'content': 'a'}]", "is Python, not JSON"),
    ("chosen", "array([{'content': 'a', 'role': 'x'}], dtype=object)", "is Python, not JSON"),
    ("source", "[{'from': 'gpt', 'value': 'a'}\n {'from': 'gpt'}]", "is Python, not JSON"),
    ("history", "[['q', 'a']]", "is Python, not JSON"),
    ("history", "[('q', 'a')]", "is Python, not JSON"),
    ("completions", "[{'response': 'a'}]", "is not JSON"),
    ("chosen", "['good']", "is a list of texts"),
    ("rejected", "['it is', \"it's\"]", "is a list of texts"),
    ("response", "array(['good'], dtype=object)", "is a list of texts"),
    ("chosen", '["good"]', "is a list of texts"),
    ("scores", "[1, NaN]", "is not JSON (NaN is not JSON)"),
    ("chosen", '{"role": "assistant", "content": "a", "content": "b"}',
     "is not JSON (the key 'content' is there twice)"),
])
def test_a_cell_that_would_train_on_quotes_and_brackets_is_refused(tmp_path, column, cell, message):
    with pytest.raises(DataError) as caught:
        read(tmp_path, **{column: cell})
    assert str(caught.value).startswith(f"{tmp_path}/f.csv:2: field {column!r} {message}")


@pytest.mark.parametrize("cells, row", [
    ({"system": "", "source": ""}, {}),
    ({"chosen": "", "rejected": "b"}, {"chosen": "", "rejected": "b"}),
    ({"chosen": "", "rejected": ""}, {"chosen": "", "rejected": ""}),
    ({"response": ""}, {"response": ""}),
    ({"chosen": "", "rejected": "", "response": "a"}, {"response": "a"}),
    ({"chosen": "", "responses": '["a", "b"]'}, {"responses": ["a", "b"]}),
    ({"chosen": "a", "rejected": "b", "response": ""}, {"chosen": "a", "rejected": "b"}),
])
def test_an_empty_cell_is_no_field_and_an_empty_answer_is_an_empty_text(tmp_path, cells, row):
    assert read(tmp_path, **cells) == {"prompt": "q"} | row


def test_an_empty_answer_is_a_row_with_an_empty_response(tmp_path):
    parsed = parse_row(read(tmp_path, chosen="", rejected="b"))
    assert parsed.responses[0] == [], "the audit counts it; 'no field chosen' would stop the run"
