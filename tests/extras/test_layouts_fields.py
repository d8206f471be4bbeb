"""Fields that no layout knows: named by the user, refused where they matter, kept where not."""
import copy
import re

import pytest
from layout_samples import (
    BAD, FIRST_ROUND, GOOD, OTHER_ROUND, PAIR, QUESTION, WEATHER, B, G, Q, assistant, parts, system,
    user,
)

from data import DataError, parse_row
from extras.layouts import to_native

ANSWERS = {"chosen": G, "rejected": B}
OTHER_NAMES = {"query": Q, "good": G, "bad": B}
NAMES = {"prompt": "query", "chosen": "good", "rejected": "bad"}


def refused(row, message, names=None):
    with pytest.raises(DataError, match="f.jsonl:3: .*" + re.escape(message)) as error:
        to_native(row, "f.jsonl:3", names)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- names that the user gives


def test_named_fields_take_the_place_of_ours_before_any_layout():
    row = dict(OTHER_NAMES)
    assert to_native(row, "row", NAMES) == PAIR
    assert row == OTHER_NAMES, "the row itself was changed"
    whole = {"a": FIRST_ROUND, "b": OTHER_ROUND}
    native = to_native(whole, "row", {"prompt": None, "chosen": "a", "rejected": "b"})
    assert native == {"prompt": QUESTION, "chosen": GOOD, "rejected": BAD}
    lists = {"query": Q, "good": [G], "bad": [B, "Lead is."]}
    assert to_native(lists, "row", NAMES)["scores"] == [1, 0, 0]


def test_chosen_and_rejected_may_change_places():
    swapped = PAIR | {"chosen": B, "rejected": G}
    assert to_native(swapped, "row", {"chosen": "rejected", "rejected": "chosen"}) == PAIR


def test_a_name_of_ours_for_itself_changes_nothing():
    assert to_native(PAIR, "row", {"prompt": "prompt", "chosen": "chosen"}) == PAIR


def test_a_named_field_may_be_null_as_in_tables():
    assert to_native(ANSWERS | {"query": None}, "row", {"prompt": "query"})["prompt"] == []


def test_a_named_field_that_is_not_there_is_refused_with_those_that_are():
    refused(PAIR, "no field 'query' (found: prompt, chosen, rejected)", {"prompt": "query"})
    refused({}, "no field 'query' (found: nothing)", {"prompt": "query"})


def test_two_values_for_one_field_are_refused():
    refused(PAIR | {"query": "x"}, "two prompts, in 'prompt' and in 'query'", {"prompt": "query"})
    refused(PAIR | {"good": "x"}, "two responses, in 'chosen' and in 'good'", {"chosen": "good"})
    refused(PAIR, "field 'prompt' is not empty; --prompt-field '' says it is", {"prompt": ""})
    assert to_native(PAIR | {"query": Q}, "row", {"prompt": "query"}) == PAIR


# ---------------------------------------------------------------- text that nobody read


@pytest.mark.parametrize("row", [
    ANSWERS,
    {"responses": [G, B], "ranks": [1, 2]},
    {"response": G},
    ANSWERS | {"system": "Be brief."},
    ANSWERS | {"prompt": ""},
])
@pytest.mark.parametrize("value", [
    Q,
    "was ist\ndas",
    "水银是液体吗",
    QUESTION,
    user("hi"),
    [{"from": "human", "value": "hi"}],
    ["one", "two words"],
])
def test_answers_without_a_prompt_beside_text_are_refused(row, value):
    row = row | {"query": value, "note": value, "n": 3}
    message = "no prompt, and text in 'query', 'note': name the prompt with --prompt-field, or"
    refused(row, message + " --prompt-field '' where there is none")
    assert to_native(row, "row", {"prompt": ""})["query"] == value


def test_what_is_about_a_row_is_no_text():
    about = {
        "source": "a web page", "subset": "chat hard", "question_id": "no 1 of x",
        "chosen_model": "Llama 2 chat", "models": ["GPT 4 turbo", "Llama 2 chat"],
        "timestamp": "Mon Jan 01 2024", "tstamp": "2024-01-01 10:00:00", "hash": "a0b1c2",
        "score_chosen": 4.5, "tags": ["math", "easy"], "extra": {"note": "two words"},
        "category": "General chat", "one": "word",
    }
    native = to_native(ANSWERS | about, "row")
    assert native | ANSWERS == ANSWERS | about | {"prompt": []}


def test_text_beside_a_prompt_is_kept_and_not_refused():
    notes = {"comment": "two words", "critique": "It is good."}
    assert to_native(PAIR | notes, "row") == PAIR | notes
    native = to_native({"chosen": FIRST_ROUND, "rejected": OTHER_ROUND} | notes, "row")
    assert native["prompt"] == QUESTION
    apart = {"chosen": FIRST_ROUND, "rejected": [user("Other?"), *BAD]}
    with pytest.raises(DataError, match="the responses answer different prompts"):
        to_native(apart | notes, "row")


# ---------------------------------------------------------------- pictures, tools


@pytest.mark.parametrize("field", ["images", "image", "videos", "video", "audios", "audio"])
def test_pictures_sound_and_film_are_refused_by_name(field):
    for value in (["0.png"], "0.png", {"bytes": None}):
        refused(PAIR | {field: value}, f"field {field!r}: only text is read here")
    for value in ([], None, "", {}):
        assert to_native(PAIR | {field: value}, "row") == PAIR


def test_tools_are_a_list_in_the_native_row():
    for value in ([WEATHER], '[{"type": "function", "function": {"name": "weather"}}]'):
        assert to_native(PAIR | {"tools": value}, "row") == PAIR | {"tools": [WEATHER]}
    for value in ([], "", " ", "[]", None):
        assert to_native(PAIR | {"tools": value}, "row") == PAIR
    refused(PAIR | {"tools": "weather"}, "field 'tools' is not JSON")
    refused(PAIR | {"tools": WEATHER}, "field 'tools' is not a list of tools")
    refused(PAIR | {"tools": '{"name": "weather"}'}, "field 'tools' is not a list of tools")


# ---------------------------------------------------------------- messages that say more

CALL = {"role": "assistant", "content": "", "tool_calls": [WEATHER], "reasoning_content": "Hm."}
RESULT = {"role": "tool", "content": "12 degrees", "tool_call_id": "c1", "name": "weather"}
CALLED = [user("Weather?"), CALL, RESULT]
WARM, COLD = assistant("It is warm."), assistant("It is cold.")
MAIL = {"type": "function", "function": {"name": "mail"}}
OTHER_CALL = CALL | {"tool_calls": [MAIL]}


def sharegpt(messages):
    """The messages with ShareGPT's names."""
    turns = []
    for message in messages:
        turn = dict(message)
        turn["from"] = {"user": "human", "assistant": "gpt"}.get(turn["role"], turn["role"])
        turn["value"] = turn.pop("content")
        del turn["role"]
        turns.append(turn)
    return turns


@pytest.mark.parametrize("row", [
    {"prompt": CALLED, "chosen": [WARM], "rejected": [COLD], "system": ""},
    {"chosen": [*CALLED, WARM], "rejected": [*CALLED, COLD]},
    {"prompt": "Weather?", "chosen": [*CALLED, WARM], "rejected": [*CALLED, COLD]},
    {"messages": CALLED, "chosen": [WARM], "rejected": [COLD]},
    {"messages": [*CALLED, WARM], "rejected_messages": [*CALLED, COLD]},
    {"messages": [*CALLED, WARM], "rejected_response": [COLD]},
    {"context": CALLED, "response1": [WARM], "response2": [COLD], "overall_preference": -1},
    {"conversation_a": [*CALLED, WARM], "conversation_b": [*CALLED, COLD], "winner": "model_a",
     "turn": 2},
    {"conversations": sharegpt(CALLED), "chosen": WARM, "rejected": COLD},
])
def test_calls_and_thoughts_in_messages_survive_every_layout(row):
    before = copy.deepcopy(row)
    read = parse_row(to_native(row, "row"))
    assert (read.prompt, read.responses) == (CALLED, [[WARM], [COLD]])
    assert row == before


def test_answers_that_differ_in_a_call_are_different():
    late = {"chosen": [*CALLED, CALL], "rejected": [*CALLED, OTHER_CALL]}
    native = to_native(late, "row")
    assert native == {"prompt": CALLED, "chosen": [CALL], "rejected": [OTHER_CALL]}
    question = user("Weather?")
    early = {"chosen": [question, CALL, WARM], "rejected": [question, OTHER_CALL, WARM]}
    assert to_native(early, "row")["prompt"] == [question], "they part at the call"


def test_parts_of_text_are_joined_in_every_layout():
    question = [{"role": "user", "content": [*parts("Which metal "), *parts("is liquid?")]}]
    for row in ({"chosen": question + GOOD, "rejected": question + BAD},
                {"messages": question, "chosen": GOOD, "rejected": BAD},
                {"messages": question + GOOD, "rejected_messages": question + BAD}):
        assert to_native(row, "row")["prompt"] == QUESTION
    assert parse_row(PAIR | {"prompt": [system("s"), *question]}).prompt[1:] == QUESTION
