"""Graded answers become rows of K scored answers: the same grades, and nothing is lost."""
import json

import pytest

from data import Audit, DataError, parse_row
from extras import grouping


def graded(prompt, response, score, **more):
    return {"prompt": prompt, "response": response, "score": score} | more


def helpsteer(prompt, response, helpfulness, verbosity):
    return {
        "prompt": prompt, "response": response, "helpfulness": helpfulness, "correctness": 4,
        "coherence": 4, "complexity": 1, "verbosity": verbosity,
    }


def group(*rows, **options):
    """The grouped rows of a file f.jsonl that holds these rows."""
    named = [(f"f.jsonl:{number}", row) for number, row in enumerate(rows, 1)]
    return list(grouping.group(iter(named), **options))


def refusal(*rows):
    with pytest.raises(DataError) as caught:
        group(*rows)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_graded_answers_are_grouped_by_prompt_and_helpfulness_orders_them():
    rows = [helpsteer("q", "a", 4, 1), helpsteer("r", "c", 2, 2), helpsteer("q", "b", 0, 3)]
    [(where, first), (other, second)] = group(*rows)
    assert (where, other) == ("f.jsonl:1", "f.jsonl:2"), "prompts keep their order"
    assert first == {
        "prompt": "q", "responses": ["a", "b"], "scores": [4.0, 0.0], "correctness": 4,
        "coherence": 4, "complexity": 1, "verbosity": [1, 3],
    }
    assert second["responses"] == ["c"] and second["scores"] == [2.0], "one answer is a group too"


def test_one_line_says_how_many_answers_became_how_many_rows(capsys):
    for _ in range(2):  # training reads its files several times
        rows = [("said.jsonl:1", graded("q", "a", 1)), ("said.jsonl:2", graded("q", "b", 2))]
        list(grouping.group(iter(rows)))
    line = "said.jsonl: 2 answers graded by 'score', grouped by prompt into 1 rows\n"
    assert capsys.readouterr().err == line


def test_the_pairs_of_a_group_are_those_of_its_grades():
    answers = [("a", 3), ("b", 1.5), ("c", 3), ("a", 2)]
    [(where, row)] = group(*(graded("q", text, score) for text, score in answers))
    parsed = parse_row(row, where)
    texts = [response[0]["content"] for response in parsed.responses]
    assert list(zip(texts, parsed.scores)) == answers, "the same answer twice stays twice"


def test_a_plain_score_comes_before_helpfulness():
    [(_, row)] = group(helpsteer("q", "a", 4, 1) | {"score": 7})
    assert row["scores"] == [7.0] and row["helpfulness"] == 4


def test_messages_are_prompts_too_and_other_system_turns_make_other_prompts():
    turns = [{"role": "user", "content": "q"}]
    turns_again = json.loads('[{"content": "q", "role": "user"}]')
    found = group(
        graded(turns, "a", 1), graded(turns_again, "b", 2), graded("q", "c", 3),
        graded("q", "d", 4, system="Be brief."), graded("q", "e", 5, system=None),
        graded("q", "f", 6, history=[["x", "y"]]),
    )
    grouped = [row["responses"] for _, row in found]
    assert grouped == [["a", "b"], ["c", "e"], ["d"], ["f"]], "they answer different prompts"
    assert found[2][1]["system"] == "Be brief." and found[3][1]["history"] == [["x", "y"]]


@pytest.mark.parametrize("field", [
    "context", "Context", "system_prompt", "document", "passage", "article", "background",
])
def test_answers_about_two_texts_are_never_compared(field):
    """"Summarise." asks for something else with every document."""
    texts = ["Doc A", "Doc B", "Doc A"]
    rows = [graded("Summarise.", str(i), i, **{field: text}) for i, text in enumerate(texts)]
    found = [row for _, row in group(*rows)]
    assert [row["responses"] for row in found] == [["0", "2"], ["1"]], "they answer other prompts"
    assert [row[field] for row in found] == ["Doc A", "Doc B"]


def test_fields_of_the_answers_are_kept_one_value_an_answer():
    [(_, row)] = group(
        graded("q", "a", 1, source="s", id=1, model="m"), graded("q", "b", 2, source="s", id=2)
    )
    assert row["source"] == "s" and row["id"] == [1, 2] and row["model"] == ["m", None]


def test_a_field_that_must_not_differ_is_refused_where_the_row_is_read():
    [(where, row)] = group(graded("q", "a", 1, margin=1), graded("q", "b", 2, margin=2))
    with pytest.raises(DataError, match="f.jsonl:1: field 'margin'"):
        parse_row(row, where)


@pytest.mark.parametrize("row, answer", [
    (graded("q", "a", 1), True),
    (graded("q", "a", "1"), True),  # and then refused, by its score
    (helpsteer("q", "a", 1, 1), True),
    (graded("q", "a", 1, chosen=None), True),  # tables have null where a row has no field
    (graded("q", "a", None), False),
    ({"prompt": "q", "response": "a"}, False),
    ({"response": "a", "score": 1}, False),
    (graded("q", "a", 1, chosen="b"), False),
    ({"prompt": "q", "responses": ["a"], "scores": [1]}, False),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "score": 1}, False),
])
def test_what_is_a_graded_answer(row, answer):
    assert grouping.is_scored_answer(row) == answer


@pytest.mark.parametrize("row, message", [
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, "(found: chosen, prompt, rejected)"),
    (graded("q", "a", None), "(found: prompt, response)"),
    ({}, "(found: nothing)"),
    (helpsteer("q", "a", 4, 1), "graded by 'helpfulness', the first row by 'score'"),
    (graded("q", "a", "4"), "field 'score' is '4', not a number"),
    (graded("q", "a", float("nan")), "field 'score' is 'nan', not a number"),
    (graded("q", "a", True), "field 'score' is 'True', not a number"),
    (graded("q", "a", [1]), "field 'score' is '[1]', not a number"),
])
def test_a_row_of_another_kind_is_refused_by_its_line_or_counted(row, message):
    good = graded("q", "a", 1)
    found = refusal(good, row, good)
    assert found.startswith("f.jsonl:2: ") and message in found
    audit = Audit()
    [(_, kept)] = group(good, row, good, skip_bad_rows=True, audit=audit)
    assert kept["scores"] == [1.0, 1.0] and audit.left_out["malformed"] == 1


def test_no_rows_are_no_groups():
    assert group() == []
