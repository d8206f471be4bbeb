"""Published data sets are read as their authors mean them: every layout, and what it refuses."""
import copy
import re

import pytest
from layout_samples import (
    ARENA, B, BAD, FIFTY_FIVE, FIRST_ROUND, G, GOOD, MESSAGES, OTHER_ROUND, PAIR, Q, QUESTION,
    SAMPLES, SUMMARIES, assistant, system, user,
)

from data import DataError, parse_row, to_messages
from extras.layouts import LAYOUTS, to_native

NATIVE_ROWS = [
    PAIR,
    MESSAGES,
    PAIR | {"margin": 1, "id": 7, "source": "x", "subset": "y"},
    {"prompt": Q, "responses": [G, B], "scores": [1, 0]},
    {"prompt": QUESTION, "responses": [GOOD, BAD], "ranks": [1, 2]},
    {"prompt": Q, "responses": [G, B]},
    {"prompt": Q, "response": G, "id": 7},
]


@pytest.mark.parametrize("name", SAMPLES)
def test_a_published_row_means_the_native_row(name):
    row, expected = SAMPLES[name]
    before = copy.deepcopy(row)
    assert to_native(row, "row") == expected, "other answers, or a field that is lost"
    assert row == before, "the row itself was changed; held_out.jsonl needs it as it came"


@pytest.mark.parametrize("name", SAMPLES)
def test_the_native_row_is_read_and_means_itself(name):
    _, expected = SAMPLES[name]
    read = parse_row(expected)
    again = parse_row(to_native(expected, "row"))
    assert read.prompt and read.prompt == again.prompt
    assert (read.responses, read.scores) == (again.responses, again.scores)
    assert len(read.scores) == len(read.responses) or "response" in expected


def test_every_layout_has_a_sample():
    used = set()
    for row, _ in SAMPLES.values():
        native = {field: value for field, value in row.items() if value is not None}
        for layout in LAYOUTS:
            after = layout(native, "row")
            if after != native:
                used.add(layout.__name__)
            native = after
    assert used == {layout.__name__ for layout in LAYOUTS}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_a_native_row_has_no_other_layout(layout):
    for row in NATIVE_ROWS:
        before, after = parse_row(row), parse_row(layout(row, "row"))
        assert (before.prompt, before.responses) == (after.prompt, after.responses)
        assert before.scores == after.scores


def test_our_fields_count_where_a_row_has_theirs_too():
    both = {"response_1": B, "response_2": G, "preference_strength": 3}
    assert to_native(PAIR | both, "row") == PAIR | both


# ---------------------------------------------------------------- beside any layout


def prompt_of(native):
    return to_messages(native["prompt"], "user", "row", "prompt")


@pytest.mark.parametrize("name", SAMPLES)
def test_a_system_turn_beside_any_published_row_comes_first(name):
    row, expected = SAMPLES[name]
    turns = prompt_of(expected)
    if turns[0]["role"] == "system":
        return  # it has one
    native = to_native(row | {"system": "s"}, "row")
    assert prompt_of(native) == [system("s"), *turns]
    assert native | {"prompt": 0} == expected | {"prompt": 0}, "the system turn changed the answers"


@pytest.mark.parametrize("name", SAMPLES)
def test_a_history_beside_any_published_row_comes_before_its_prompt(name):
    row, expected = SAMPLES[name]
    if "history" in row:  # SHP: the prompt itself
        return
    native = to_native(row | {"history": [["a", "b"]]}, "row")
    turns = prompt_of(expected)
    first = 1 if turns[0]["role"] == "system" else 0
    earlier = [user("a"), assistant("b")]
    assert prompt_of(native) == turns[:first] + earlier + turns[first:]
    assert native | {"prompt": 0} == expected | {"prompt": 0}, "the history changed the answers"


# ---------------------------------------------------------------- refused, not guessed

COMPARED = {"conversation_a": FIRST_ROUND, "conversation_b": OTHER_ROUND, "winner": "model_a"}
FLAGS = {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}
PKU = {"prompt": Q, "response_0": G, "response_1": B}
WEBGPT = {"question": {"full_text": Q}, "answer_0": G, "answer_1": B, "score_0": 1, "score_1": 0}
SUMMARIZED = {"info": {"post": "p"}, "summaries": SUMMARIES, "choice": 1}
HELPSTEER3 = {"context": QUESTION, "response1": G, "response2": B, "overall_preference": 1}
SCORED = [{"response": G, "overall_score": 1}, {"response": B}]


@pytest.mark.parametrize("row, message", [
    (SUMMARIZED | {"choice": None}, "no field 'choice' (found: info"),
    (SUMMARIZED | {"choice": 2}, "field 'choice' is '2', not one of 0, 1"),
    (SUMMARIZED | {"choice": True}, "field 'choice' is 'True', not one of 0, 1"),
    (SUMMARIZED | {"summaries": SUMMARIES[:1]}, "field 'summaries' holds 1 summaries, not 2"),
    (SUMMARIZED | {"summaries": [{"text": G}, {}]}, "no 'text' in summaries[1]"),
    (SUMMARIZED | {"summaries": "x"}, "field 'summaries' is not a list"),
    (SUMMARIZED | {"info": {"title": "t"}}, "field 'info' has neither 'post' nor 'article'"),
    (SUMMARIZED | {"info": {"post": 3}}, "field 'info': 'post' is not text"),
    (SUMMARIZED | {"prompt": "other"}, "two prompts, in 'prompt' and in 'info'"),
    (WEBGPT | {"score_1": None}, "no field 'score_1'"),
    (WEBGPT | {"score_0": "high"}, "field 'score_0' is 'high'"),
    (WEBGPT | {"question": {"id": 1}}, "field 'question' has no text in 'full_text'"),
    ({"history": Q, "human_ref_A": G, "human_ref_B": B}, "no field 'labels' (found: history"),
    ({"history": Q, "human_ref_A": G, "human_ref_B": B, "labels": 2},
     "field 'labels' is '2', not one of 1, 0"),
    (PKU, "no field 'better_response_id' (found: prompt, response_0"),
    (PKU | {"better_response_id": -1}, "field 'better_response_id' is '-1', not one of 0, 1"),
    (PKU | {"better_response_id": [1]}, "field 'better_response_id' is '[1]', not one of"),
    ({"prompt": Q, "response_1": G, "response_2": B, "preference_strength": "strong"},
     "field 'preference_strength' is"),
    (HELPSTEER3 | {"overall_preference": float("nan")}, "field 'overall_preference' is 'nan'"),
    (HELPSTEER3 | {"prompt": "other"}, "two prompts, in 'prompt' and in 'context'"),
    ({"question": Q, "response_A": G, "response_B": B, "label": "A=B"},
     "field 'label' is 'A=B', not one of A>B, B>A"),
    ({"question": Q, "response_A": G, "response_B": B}, "no field 'label'"),
    ({"prompt": Q, "response_1": G, "response_2": B, "winner": "model_c"},
     "field 'winner' is 'model_c', not one of model_a, model_b, tie"),
    (COMPARED | {"winner": "m1"} | ARENA, "field 'winner' is 'm1', not one of model_a"),
    (COMPARED | {"winner": None}, "no field 'winner'"),
    (COMPARED | {"turn": 2}, "field 'turn' is 2, but 'conversation_a' has 1 answers"),
    (COMPARED | {"turn": 0}, "field 'turn' is 0, but 'conversation_a' has 1 answers"),
    (COMPARED | {"turn": "x"}, "field 'turn' is"),
    (FIFTY_FIVE | FLAGS | {"winner_tie": 1}, "2 of winner_model_a, winner_model_b, winner_tie are"),
    (FIFTY_FIVE | FLAGS | {"winner_model_a": 0}, "0 of winner_model_a, winner_model_b, winner_tie"),
    (FIFTY_FIVE | FLAGS | {"winner_tie": None}, "no field 'winner_tie'"),
    (FIFTY_FIVE | FLAGS | {"prompt": Q}, "field 'prompt' is not a JSON list of texts"),
    (FIFTY_FIVE | FLAGS | {"response_b": '["a"]'}, "2 prompts, but 1 answers in 'response_b'"),
    ({"prompt": Q, "response_1": G, "response_2": B, "scores": [1]},
     "field 'response_2': only 1 scores"),
    ({"prompt": Q, "response_1": G, "response_3": B, "scores": [1, 0]},
     "no field 'response_2' (found: prompt, response_3, scores)"),
    ({"prompt": Q, "answers": [{"answer": G, "rank": 1}, {"answer": B}]},
     "field 'answers': no 'rank' in answers[1]"),
    ({"prompt": Q, "answers": [{"answer": G, "rank": 1}, B]}, "no 'answer' in answers[1]"),
    ({"instruction": Q, "completions": SCORED}, "no 'overall_score' in completions[1]"),
    ({"messages": QUESTION, "rejected_response": B},
     "field 'messages' does not end with a turn of the assistant"),
    ({"messages": FIRST_ROUND, "rejected_response": []}, "field 'rejected_response' is empty"),
    ({"query": Q, "prompt": "p", "response": G, "rejected_response": B},
     "two prompts, in 'prompt' and in 'query'"),
])
def test_a_broken_row_is_refused_with_its_field_and_value(row, message):
    with pytest.raises(DataError, match="f.jsonl:3: .*" + re.escape(message)) as error:
        parse_row(to_native(row, "f.jsonl:3"), "f.jsonl:3")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", SAMPLES)
def test_whatever_stands_in_a_field_ends_in_a_row_or_in_one_line(name):
    row, _ = SAMPLES[name]
    junk = [3, -1.5, True, "", "x", [], ["x"], [3], [None], {}, {"a": 1}, [[]], [{}], [{"role": 1}]]
    refused = 0
    for field in row:
        for value in junk:
            try:
                parse_row(to_native(row | {field: value}, "f:1"), "f:1")
            except DataError as e:
                refused += 1
                assert str(e).startswith("f:1: ") and "\n" not in str(e)
    assert refused > 10
