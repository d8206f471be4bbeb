"""Every layout gives the same Row, in every command, and no field is lost on the way."""
import copy
import json
import re

import pytest
from conftest import SHARED, needs_shared
from layout_samples import assistant, system, user

from data import DataError, is_native, parse_row, read_rows
from extras.layouts import to_native


def meaning(row):
    """What a Row says, without where it comes from."""
    return row.prompt, row.responses, row.scores, row.margin, row.gold


QUESTION = [user("q")]
GOOD, BAD = [assistant("good")], [assistant("bad")]
PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}

# ---------------------------------------------------------------- one reading


LAYOUTS = {
    "messages": {"prompt": QUESTION, "chosen": GOOD, "rejected": BAD},
    "one message": {"prompt": user("q"), "chosen": GOOD[0], "rejected": BAD[0]},
    "TRL, implicit prompt": {"chosen": QUESTION + GOOD, "rejected": QUESTION + BAD},
    "UltraFeedback": {
        "prompt": "q",
        "chosen": QUESTION + GOOD,
        "rejected": QUESTION + BAD,
        "messages": QUESTION + GOOD,
    },
    "UltraFeedback, answers apart": PAIR | {"messages": QUESTION + GOOD},
    "Anthropic": {
        "chosen": "\n\nHuman: q\n\nAssistant: good",
        "rejected": "\n\nHuman: q\n\nAssistant: bad",
    },
    "Anthropic, prompt apart": {
        "prompt": "\n\nHuman: q\n\nAssistant:",
        "chosen": " good",
        "rejected": " bad",
    },
    "Anthropic, prompt repeated": {
        "prompt": "\n\nHuman: q\n\nAssistant: ",
        "chosen": "\n\nHuman: q\n\nAssistant: good",
        "rejected": "\n\nHuman: q\n\nAssistant: bad",
    },
    "Anthropic, prompt as text": {
        "prompt": "q",
        "chosen": "\n\nHuman: q\n\nAssistant: good",
        "rejected": "\n\nHuman: q\n\nAssistant: bad",
    },
    "alpaca": {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"},
    "alpaca with empty fields": PAIR | {"system": "", "history": [], "input": "", "messages": None},
    "Orca": {"question": "q", "chosen": "good", "rejected": "bad"},
    "Orca of Argilla": {"system": None, "input": "q", "chosen": "good", "rejected": "bad"},
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
    "ShareGPT, whole dialogues": {
        "chosen": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}],
        "rejected": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "bad"}],
    },
    "messages as the prompt": {"messages": QUESTION, "chosen": "good", "rejected": "bad"},
    "RewardBench 2": {"prompt": "q", "chosen": ["good"], "rejected": ["bad"]},
}


ORIGINALS = copy.deepcopy(LAYOUTS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_means_the_same_pair(layout):
    row = parse_row(LAYOUTS[layout] | {"margin": 2})
    assert meaning(row) == (QUESTION, [GOOD, BAD], [1, 0], 2, [])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_is_read_the_same_for_training_ranking_and_scoring(layout):
    """chosen and rejected, or the same texts as `responses`, or one of them as `response`."""
    pair = dict(LAYOUTS[layout])
    chosen, rejected = pair.pop("chosen"), pair.pop("rejected")
    if layout == "RewardBench 2":
        chosen, rejected = chosen[0], rejected[0]
    if layout.startswith("UltraFeedback"):
        del pair["messages"]  # the chosen dialogue
    to_rank = parse_row(pair | {"responses": [chosen, rejected]})
    assert (to_rank.prompt, to_rank.responses) == (QUESTION, [GOOD, BAD])
    assert to_rank.scores == []
    to_learn = parse_row(pair | {"responses": [chosen, rejected], "ranks": [1, 2]})
    assert (to_learn.prompt, to_learn.responses) == (QUESTION, [GOOD, BAD])
    assert to_learn.scores == [-1, -2]
    to_score = parse_row(pair | {"response": rejected})
    assert (to_score.prompt, to_score.responses) == (QUESTION, [BAD])


@pytest.mark.parametrize("field", ["messages", "conversations"])
def test_the_last_turn_of_a_whole_dialogue_is_the_response_to_score(field):
    dialogue = [system("s"), user("a"), assistant("b"), user("q"), assistant("good")]
    for row in ({field: dialogue}, {"response": dialogue}, {"prompt": "q", field: dialogue}):
        read = parse_row(row)
        assert read.prompt == dialogue[:-1]
        assert read.responses == [GOOD]


def test_a_long_dialogue_is_the_same_in_every_layout():
    turns = [user("a"), assistant("b"), user("q")]
    transcript = "\n\nHuman: a\n\nAssistant: b\n\nHuman: q\n\nAssistant:"
    rows = [
        {"prompt": turns, "chosen": "good", "rejected": "bad"},
        {"chosen": turns + GOOD, "rejected": turns + BAD},
        {"chosen": transcript + " good", "rejected": transcript + " bad"},
        {"prompt": transcript, "chosen": " good", "rejected": " bad"},
        PAIR | {"history": [["a", "b"]]},
        {"instruction": "q", "history": [["a", "b"]], "chosen": "good", "rejected": "bad"},
        {"messages": turns[2:], "history": [["a", "b"]], "chosen": "good", "rejected": "bad"},
    ]
    for row in rows:
        assert meaning(parse_row(row))[:2] == (turns, [GOOD, BAD]), row


# ---------------------------------------------------------------- systems, histories, inputs


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_system_turn_beside_any_layout_comes_first(layout):
    row = parse_row(LAYOUTS[layout] | {"system": "s"})
    assert meaning(row)[:3] == ([system("s"), *QUESTION], [GOOD, BAD], [1, 0])


def test_a_system_turn_that_is_there_already_is_not_doubled():
    whole = {"chosen": [system("s"), *QUESTION, *GOOD], "rejected": [system("s"), *QUESTION, *BAD]}
    row = parse_row(whole | {"system": "s"})
    assert meaning(row) == meaning(parse_row(whole))
    assert row.prompt == [system("s"), *QUESTION]


def test_a_history_stands_between_the_system_turn_and_the_prompt():
    expected = [system("s"), user("a"), assistant("b"), *QUESTION]
    beside = parse_row(PAIR | {"history": [["a", "b"]], "system": "s"})
    inside = parse_row(PAIR | {"history": [["a", "b"]], "prompt": [system("s"), *QUESTION]})
    assert beside.prompt == inside.prompt == expected


def test_an_input_follows_its_instruction():
    row = parse_row({"instruction": "q", "input": "text", "chosen": "good", "rejected": "bad"})
    assert row.prompt == [user("q\ntext")]


def test_a_tool_and_its_caller_have_the_roles_of_chat_templates():
    names = ("system", "human", "function_call", "observation", "gpt")
    turns = [{"from": name, "value": name} for name in names]
    row = parse_row({"conversations": turns})
    roles = [turn["role"] for turn in row.prompt + row.responses[0]]
    assert roles == ["system", "user", "assistant", "tool", "assistant"]


# ---------------------------------------------------------------- K responses


def test_rewardbench_2_is_one_row_of_k_responses():
    row = parse_row({"prompt": "q", "chosen": ["good"], "rejected": ["bad", "worse", "worst"]})
    assert row.prompt == QUESTION
    assert row.responses == [GOOD, BAD, [assistant("worse")], [assistant("worst")]]
    assert row.scores == [1, 0, 0, 0]


def test_k_whole_dialogues_share_their_prompt():
    responses = [QUESTION + GOOD, QUESTION + BAD, QUESTION + [assistant("fair")]]
    row = parse_row({"responses": responses, "scores": [3, 1, 2]})
    assert row.prompt == QUESTION
    assert row.responses == [GOOD, BAD, [assistant("fair")]]
    assert row.scores == [3, 1, 2], "the scores belong to other responses"


# ---------------------------------------------------------------- where the prompt ends


def test_dialogues_that_part_early_share_only_what_is_equal():
    chosen = [user("a"), assistant("b"), user("c"), assistant("good")]
    rejected = [user("a"), assistant("x"), user("c"), assistant("bad")]
    row = parse_row({"chosen": chosen, "rejected": rejected})
    assert row.prompt == [user("a")]
    assert row.responses == [chosen[1:], rejected[1:]]


def test_a_dialogue_that_the_assistant_opens_has_a_prompt_too():
    opening = [assistant("hi"), *QUESTION]
    row = parse_row({"chosen": opening + GOOD, "rejected": opening + BAD})
    assert meaning(row)[:2] == (opening, [GOOD, BAD])


def test_equal_dialogues_keep_their_last_turn_as_the_response():
    row = parse_row({"chosen": QUESTION + GOOD, "rejected": QUESTION + GOOD})
    assert meaning(row)[:2] == (QUESTION, [GOOD, GOOD])


def test_the_user_may_go_on_after_a_prompt_that_ends_with_an_answer():
    prompt = [user("a"), assistant("b")]
    row = parse_row({"prompt": prompt, "chosen": QUESTION + GOOD, "rejected": QUESTION + BAD})
    assert meaning(row)[:2] == (prompt + QUESTION, [GOOD, BAD])


def test_a_prompt_that_ends_with_an_answer_may_be_repeated_in_the_dialogues():
    prompt = [user("a"), assistant("b")]
    whole = prompt + QUESTION
    row = parse_row({"prompt": prompt, "chosen": whole + GOOD, "rejected": whole + BAD})
    assert meaning(row)[:2] == (whole, [GOOD, BAD])


def test_an_answer_of_several_turns_stays_an_answer():
    turns = [assistant("x"), user("y"), *GOOD]
    row = parse_row({"system": "s", "prompt": "q", "response": turns})
    assert meaning(row)[:2] == ([system("s"), *QUESTION], [turns])


def test_a_prompt_of_a_system_turn_alone_is_kept():
    pair = {"chosen": QUESTION + GOOD, "rejected": QUESTION + BAD}
    row = parse_row(pair | {"prompt": [system("s")]})
    assert meaning(row)[:2] == ([system("s"), *QUESTION], [GOOD, BAD])


def test_texts_that_answer_nothing_have_no_prompt():
    for row in ({"chosen": "a", "rejected": "b"}, {"responses": ["a", "b"], "ranks": [1, 2]}):
        assert meaning(parse_row(row))[:2] == ([], [[assistant("a")], [assistant("b")]])
    assert parse_row({"prompt": None, "response": "a"}).prompt == []


def test_human_inside_a_line_does_not_start_a_turn():
    dialogue = "\n\nHuman: say Human: hi\n\nAssistant: "
    row = parse_row({"chosen": dialogue + "good", "rejected": dialogue + "bad"})
    assert row.prompt == [user("say Human: hi")]


def test_an_empty_answer_stays_empty_so_that_it_is_counted():
    row = parse_row({"chosen": "\n\nHuman: q\n\nAssistant:", "rejected": QUESTION + BAD})
    assert meaning(row)[:2] == (QUESTION, [[assistant("")], BAD])
    row = parse_row({"chosen": QUESTION + GOOD, "rejected": ""})
    assert meaning(row)[:2] == (QUESTION, [GOOD, []])
    row = parse_row({"chosen": "", "rejected": "", "system": "s"})
    assert meaning(row)[:2] == ([system("s")], [[], []])


# ---------------------------------------------------------------- refused, not guessed


@pytest.mark.parametrize("row, message", [
    ({"prompt": "q", "chosen": QUESTION + GOOD, "rejected": "bad"},
     "one of 'chosen' and 'rejected' holds the whole dialogue, the other only an answer"),
    ({"responses": ["good", QUESTION + BAD]}, "some responses hold the whole dialogue"),
    ({"prompt": QUESTION, "chosen": GOOD, "rejected": [user("bad")]},
     "field 'rejected' begins with a turn of 'user'"),
    ({"chosen": [user("good")], "rejected": BAD}, "field 'chosen' begins with a turn of 'user'"),
    ({"prompt": "other", "chosen": QUESTION + GOOD, "rejected": QUESTION + BAD},
     "field 'prompt' is not in the dialogues of the responses"),
    (PAIR | {"history": ["a", "b"]}, "field 'history' is not a list of [question, answer]"),
    (PAIR | {"history": "a"}, "field 'history' is not a list of [question, answer]"),
    (PAIR | {"history": [["a", 1]]}, "field 'history' is neither text nor chat messages"),
    (PAIR | {"system": 3}, "field 'system' is neither text nor chat messages"),
    (PAIR | {"system": "s", "prompt": [system("t"), *QUESTION]}, "two system turns"),
    (PAIR | {"instruction": "other"}, "two prompts, in 'prompt' and in 'instruction'"),
    (PAIR | {"input": "more"}, "two prompts, in 'prompt' and in 'instruction' or 'input'"),
    (PAIR | {"messages": [user("other")]}, "two prompts, in 'prompt' and in 'messages'"),
    (PAIR | {"conversations": [user("other")]}, "two prompts, in 'prompt' and in 'messages'"),
    ({"instruction": ["q"], "chosen": "good", "rejected": "bad"}, "'instruction' is not text"),
    ({"messages": QUESTION + GOOD, "responses": ["a"]},
     "field 'messages' already ends with a turn of the assistant"),
    ({"messages": QUESTION}, "field 'messages' does not end with a turn of the assistant"),
    ({"messages": []}, "field 'messages' does not end with a turn of the assistant"),
    ({"messages": QUESTION, "responses": []}, "field 'responses' is not a non-empty list"),
    ({"conversations": [{"from": "gpt"}]}, "field 'messages' is neither text nor chat messages"),
    ({"prompt": "q", "chosen": ["good"]}, "no field 'rejected' (found: prompt)"),
    ({"rejected": "bad"}, "no field 'chosen' (found: rejected)"),
    ({"a": "b", "c": "d"}, "neither a prompt nor responses (found: a, c)"),
    ({}, "neither a prompt nor responses (found: nothing)"),
])
def test_a_row_that_could_be_misread_is_refused_in_one_line(row, message):
    with pytest.raises(DataError, match="f.jsonl:3: .*" + re.escape(message)) as error:
        parse_row(row, "f.jsonl:3")
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- the door


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_comes_out_is_native_and_the_row_is_not_changed(layout):
    native = to_native(LAYOUTS[layout], "row")
    assert is_native(native)
    assert meaning(parse_row(to_native(native, "row"))) == meaning(parse_row(native))
    assert LAYOUTS[layout] == ORIGINALS[layout]


# ---------------------------------------------------------------- published files


@needs_shared
def test_transcripts_and_messages_of_the_same_dialogues_agree():
    transcripts = read_rows([SHARED / "prefs/hh_harmless/train.jsonl.gz"])
    implicit = read_rows([SHARED / "prefs/trl_conversational/implicit_prompt.jsonl.gz"])
    same = 0
    for one, other in zip(transcripts, implicit):
        assert meaning(one) == meaning(other), one.where
        same += 1
    assert same == 300


@needs_shared
@pytest.mark.parametrize("file", ["dpo_en_demo.json", "dpo_zh_demo.json"])
def test_llamafactorys_demo_data_are_read(file):
    raws = json.loads((SHARED / "prefs/llamafactory_demo" / file).read_text("utf-8"))
    assert len(raws) == 300
    for number, raw in enumerate(raws, 1):
        row = parse_row(raw, f"{file}:{number}")
        assert row.prompt[-1]["role"] == "user", row.where
        assert len(row.responses) == 2
