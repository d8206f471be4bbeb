"""From files to batches: every layout, nothing silently lost, one BOS, one end token, no prompt on both sides of a split."""
import gzip
import json
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from conftest import SHARED, needs_shared, tiny_tokenizer

import data
from data import (
    DataError, Preference, Tokenizer, collate, describe_audit, encode_preferences, epoch_order, parse_preference, read_preferences,
    Preferences, read_rows, split_by_prompt, step_batches,
)

GOLDEN = json.loads((Path(__file__).parent / "fixtures" / "templates.json").read_text("utf-8"))
FAMILIES = GOLDEN["templates"]
MARKS = ("<|eot_id|>", "<|im_start|>", "<|im_end|>")
U, A = lambda text: {"role": "user", "content": text}, lambda text: {"role": "assistant", "content": text}


def pair(prompt, chosen, rejected, **more):
    return two([U(prompt)] if prompt else [], [A(chosen)], [A(rejected)], **more)


def two(prompt, chosen, rejected, **more):
    return Preference(prompt, [chosen, rejected], [1, 0], **more)


def text_of(tokenizer, ids):
    return tokenizer.backend.decode(list(ids), skip_special_tokens=False)


# ---------------------------------------------------------------- layouts


@pytest.mark.parametrize("row", [
    {"prompt": "q", "chosen": "good", "rejected": "bad"},
    {"prompt": [U("q")], "chosen": [A("good")], "rejected": [A("bad")]},
    {"chosen": [U("q"), A("good")], "rejected": [U("q"), A("bad")]},
    {"prompt": "q", "chosen": [U("q"), A("good")], "rejected": [U("q"), A("bad")]},
    {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"},
    {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " good", "rejected": " bad"},
    {"prompt": "q", "chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"},
    {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"},
    {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "good"},
     "rejected": {"from": "gpt", "value": "bad"}},
])
def test_every_layout_means_the_same_pair(row):
    p, expected = parse_preference(row), pair("q", "good", "bad", where="row")
    for side in (m for response in p.responses for m in response):
        side["content"] = side["content"].strip()
    assert p == expected


def test_a_system_turn_beside_whole_dialogues_is_kept():
    p = parse_preference({"system": "s", "chosen": [U("q"), A("good")], "rejected": [U("q"), A("bad")]})
    assert p.prompt == [{"role": "system", "content": "s"}, U("q")] and p.responses[0] == [A("good")]


def test_a_dialogue_that_the_assistant_opens_has_a_prompt_too():
    p = parse_preference({"chosen": [A("hi"), U("q"), A("good")], "rejected": [A("hi"), U("q"), A("bad")]})
    assert p.prompt == [A("hi"), U("q")] and tuple(p.responses) == ([A("good")], [A("bad")])


def test_longer_dialogues_and_systems_are_read_too():
    turns = [U("a"), A("b"), U("c")]
    expected = two(turns, [A("good")], [A("bad")], where="row")
    shared = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    assert parse_preference({"chosen": shared + " good", "rejected": shared + " bad"}) == expected
    assert parse_preference({"history": [["a", "b"]], "instruction": "c", "chosen": "good", "rejected": "bad"}) == expected
    both = {"instruction": "c", "input": "d", "system": "s", "chosen": "good", "rejected": "bad"}
    assert parse_preference(both).prompt == [{"role": "system", "content": "s"}, U("c\nd")]


def test_sides_that_part_early_share_only_what_is_equal():
    p = parse_preference({"chosen": [U("a"), A("b"), U("c"), A("good")], "rejected": [U("a"), A("x"), U("c"), A("bad")]})
    assert p.prompt == [U("a")] and p.responses == [[A("b"), U("c"), A("good")], [A("x"), U("c"), A("bad")]]


def test_a_human_line_inside_a_sentence_does_not_start_a_turn():
    p = parse_preference({"chosen": "\n\nHuman: say Human: hi\n\nAssistant: ok", "rejected": "\n\nHuman: say Human: hi\n\nAssistant: no"})
    assert p.prompt == [U("say Human: hi")]


def test_margin_and_gold_are_kept():
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2, "gold_chosen": 1.5, "gold_rejected": -1}
    assert (parse_preference(row).margin, parse_preference(row).gold) == (2.0, [1.5, -1.0])


def test_a_pair_written_as_a_row_is_read_back_as_itself():
    for p in (pair("q", "a", "b", margin=1.5, gold=[1.0, -1.0]), pair("", "a", "b"), two([U("q")], [A("b"), U("c"), A("d")], [A("e")])):
        assert parse_preference(p.to_row(), "") == p


@pytest.mark.parametrize("row", [
    {"prompt": "q", "responses": ["bad", "good", "fair"], "scores": [-1, 7.5, 2]},
    {"prompt": "q", "responses": ["bad", "good", "fair"], "ranks": [3, 1, 2]},
    {"instruction": "q", "responses": [[A("bad")], [A("good")], A("fair")], "ranks": [9, 1, 4]},
    {"responses": [[U("q"), A("bad")], [U("q"), A("good")], [U("q"), A("fair")]], "ranks": [3, 1, 2]},
])
def test_k_responses_are_all_their_pairs_best_first(row):
    p = parse_preference(row)
    assert p.prompt == [U("q")] and p.responses == [[A("good")], [A("fair")], [A("bad")]]
    assert p.pairs() == [(0, 1), (0, 2), (1, 2)]
    assert parse_preference(p.to_row()).responses == p.responses and parse_preference(p.to_row()).pairs() == p.pairs()


def test_equal_scores_are_no_pair_and_a_row_of_ties_is_left_out_by_that_name():
    p = parse_preference({"prompt": "q", "responses": ["a", "b", "c"], "scores": [1, 2, 1]})
    assert p.pairs() == [(0, 1), (0, 2)] and p.responses[0] == [A("b")]
    tied = parse_preference({"prompt": "q", "responses": ["a", "b"], "ranks": [1, 1]})
    pairs, audit = encode_preferences([p, tied], tiny_tokenizer(), 60)
    assert (audit["left_out"]["all tied"], audit["read"], audit["kept"], audit["pairs"]) == (1, 2, 1, 2)
    assert "x: 2 rows read = 1 kept + 1 left out (1 all tied); 2 pairs" in describe_audit("x", audit)


def test_a_row_with_an_empty_or_doubled_response_is_left_out_whole():
    k_row = lambda *responses: parse_preference({"prompt": "q", "responses": list(responses), "ranks": [1, 2, 3]})
    _, audit = encode_preferences([k_row("a", "", "b"), k_row("a", "b", "a"), k_row("a", "b", "c")], tiny_tokenizer(), 60)
    assert (audit["left_out"]["empty side"], audit["left_out"]["identical sides"], audit["kept"], audit["pairs"]) == (1, 1, 1, 3)


def test_rewardbenchs_lists_are_one_chosen_against_each_rejected():
    p = parse_preference({"prompt": "q", "chosen": ["good"], "rejected": ["a", "b", "c"]})
    assert p.responses == [[A("good")], [A("a")], [A("b")], [A("c")]] and p.pairs() == [(0, 1), (0, 2), (0, 3)]


def test_the_responses_of_a_row_are_encoded_once_and_weigh_one_together():
    rows = [{"prompt": "q", "responses": ["good", "fair", "bad", "awful"], "ranks": [1, 2, 3, 3], "margin": 0.5},
            {"prompt": "r", "chosen": "yes", "rejected": "no"}]
    pairs, _ = encode_preferences([parse_preference(r) for r in rows], tiny_tokenizer(), 60)
    assert (pairs.rows, len(pairs), len(pairs.offsets) - 1) == (2, 6, 6)
    said = lambda s: text_of(tiny_tokenizer(), pairs.sequence(s)).rpartition(": ")[2].removesuffix("</s>")
    assert [(said(c), said(r)) for c, r in zip(pairs.chosen, pairs.rejected)] == [
        ("good", "fair"), ("good", "bad"), ("good", "awful"), ("fair", "bad"), ("fair", "awful"), ("yes", "no")]
    for shared_prompts in (False, True):
        batch = collate(pairs, np.array([1, 0]), 0, shared_prompts)
        assert batch.weight.tolist() == pytest.approx([1, 0.2, 0.2, 0.2, 0.2, 0.2])
        assert batch.margin.tolist() == [0, 0.5, 0.5, 0.5, 0.5, 0.5]
        assert batch.chosen.tolist() == [0, 2, 2, 2, 3, 3] and batch.rejected.tolist() == [1, 3, 4, 5, 4, 5]


def test_a_prompt_too_long_for_one_of_k_responses_is_shortened_for_all():
    row = {"prompt": "word " * 40, "responses": ["good " * 9, "fair", "bad"], "ranks": [1, 2, 3]}
    pairs, audit = encode_preferences([parse_preference(row)], tiny_tokenizer(), 80)
    sequences, shared = pairs.row(0), pairs.prompt_tokens[0]
    assert max(map(len, sequences)) == 80 and audit["prompt_truncated"] == 1
    assert len({tuple(s[:shared].tolist()) for s in sequences}) == 1


@pytest.mark.parametrize("row, message", [
    ({"prompt": "q", "rejected": "b"}, r"here:1: no field 'chosen' \(found: prompt, rejected\)"),
    ({"prompt": "q", "chosen": "a"}, "here:1: no field 'rejected'"),
    ({"prompt": "q", "chosen": 3, "rejected": "b"}, "here:1: field 'chosen' is neither text nor messages"),
    ({"prompt": "q", "chosen": [{"role": "assistant"}], "rejected": "b"}, "here:1: field 'chosen' is neither"),
    ({"prompt": {"text": "q"}, "chosen": "a", "rejected": "b"}, "here:1: field 'prompt' is neither"),
    ({"prompt": "q", "chosen": [A("a"), U("b")], "rejected": "b"}, "here:1: field 'chosen' ends with a turn of 'user'"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "big"}, "here:1: field 'margin' is 'big'"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": float("nan")}, "here:1: field 'margin' is 'nan'"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 10**400}, "here:1: field 'margin'"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1e39}, "here:1: field 'margin'"),
    ({"prompt": [{"role": "us\ud800er", "content": "q"}], "chosen": "a", "rejected": "b"}, "here:1: field 'prompt' holds half"),
    ({"prompt": "q", "chosen": [U("q"), A("a")], "rejected": "b"}, "here:1: one of 'chosen' and 'rejected' holds the whole"),
    ({"prompt": "q", "chosen": "a\ud800", "rejected": "b"}, "here:1: field 'chosen' holds half of a surrogate"),
    ({"instruction": "q", "history": ["a"], "chosen": "a", "rejected": "b"}, "here:1: field 'history'"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "gold_chosen": 1.0}, "gold_rejected"),
    ({"prompt": "q", "responses": ["a"], "scores": [1]}, "here:1: field 'responses' is not a list of two or more"),
    ({"prompt": "q", "responses": ["a", "b"]}, "here:1: no field 'scores' or 'ranks' beside"),
    ({"prompt": "q", "responses": ["a", "b"], "scores": [1, 2, 3]}, "here:1: field 'scores' is not a list of one number for each"),
    ({"prompt": "q", "responses": ["a", "b"], "ranks": [1, None]}, "here:1: field 'ranks' is 'None', not a number"),
    ({"prompt": "q", "responses": ["a", 3], "ranks": [1, 2]}, r"here:1: field 'responses\[1\]' is neither text"),
    ({"responses": ["a", [U("q"), A("b")]], "ranks": [1, 2]}, "here:1: .* the whole dialogue"),
])
def test_a_bad_row_is_named_with_its_field(row, message):
    with pytest.raises(DataError, match=message):
        parse_preference(row, "here:1")


# ---------------------------------------------------------------- files


def write_rows(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


ROWS = [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad"} for i in range(3)]


def test_lines_arrays_gzip_and_folders_hold_the_same_rows(tmp_path):
    (tmp_path / "all").mkdir()
    lines = write_rows(tmp_path / "all" / "a.jsonl", ROWS)
    array = tmp_path / "all" / "b.json"
    array.write_text("\n" + json.dumps(ROWS, indent=2), encoding="utf-8")
    zipped = tmp_path / "all" / "c.jsonl.gz"
    zipped.write_bytes(gzip.compress(lines.read_bytes()))
    for file in (lines, array, zipped):
        assert [row for _, row in read_rows(file)] == ROWS
    assert [row for _, row in read_rows(tmp_path / "all")] == ROWS * 3
    assert [where for where, _ in read_rows(lines)] == [f"{lines}:{i}" for i in (1, 2, 3)]


@pytest.mark.parametrize("content, message", [
    (b'{"a": 1}\n\n{"a": \n', "f.jsonl:3: not JSON"),
    (b'{"a": 1}\n[1]\n', "f.jsonl:2: not a JSON object"),
    (b'[{"a": 1},\n{"b": }]\n', "f.jsonl:2: not JSON"),
    (b'[{"a": 1}, 2]', "f.jsonl:2: not a JSON object"),
    (b'{"a": "\xff"}\n', "f.jsonl: not UTF-8"),
    (b"[" * 100_000, "f.jsonl:1: n"),
])
def test_a_broken_file_is_named_with_its_line(tmp_path, content, message):
    (tmp_path / "f.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_rows(tmp_path / "f.jsonl"))


def test_missing_truncated_and_empty_places_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere.jsonl: No such file"):
        list(read_rows(tmp_path / "nowhere.jsonl"))
    (tmp_path / "f.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-20])
    with pytest.raises(DataError, match="f.jsonl.gz"):
        list(read_rows(tmp_path / "f.jsonl.gz"))
    (tmp_path / "g.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match="g.jsonl.gz"):
        list(read_rows(tmp_path / "g.jsonl.gz"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no .json"):
        list(read_rows(tmp_path / "empty"))


def test_a_malformed_row_stops_or_is_counted_as_asked(tmp_path):
    file = write_rows(tmp_path / "f.jsonl", [*ROWS, {"prompt": "q"}])
    with pytest.raises(DataError, match="f.jsonl:4: no field 'chosen'"):
        read_preferences(file)
    preferences, malformed = read_preferences(file, skip_bad_rows=True)
    assert (len(preferences), malformed) == (3, 1)


# ---------------------------------------------------------------- the audit


def test_read_is_kept_plus_left_out_by_reason():
    tokenizer = tiny_tokenizer()
    preferences = [
        pair("q", "good", "bad"), pair("q", "good", "bad"), pair("q", "bad", "good"),  # a duplicate, a contradiction
        pair("q", "", "bad"), pair("q", "good", "  "), two([U("q")], [], [A("bad")]),
        pair("q", "same", "same"),
        pair("q", "x" * 100, "bad"),
        pair("long " * 50, "good", "bad"),
    ]
    class Given(Preferences):
        __iter__ = lambda self: iter(preferences)

    rows = Given([])
    rows.malformed = 2
    pairs, audit = encode_preferences(rows, tokenizer, max_length=60)
    assert audit["left_out"] == {"malformed": 2, "all tied": 0, "refused by the template": 0, "empty side": 3, "identical sides": 1, "too long": 1}
    assert audit["read"] == len(preferences) + 2 == audit["kept"] + sum(audit["left_out"].values())
    assert (audit["kept"], audit["duplicates"], audit["contradictions"], audit["prompt_truncated"]) == (4, 1, 1, 1)
    assert len(pairs) == 4 and audit["prompts"] == 2
    assert "11 pairs read = 4 kept + 7 left out (2 malformed, 3 empty side, 1 identical sides, 1 too long)" in describe_audit("x", audit)


def test_long_pairs_are_dropped_where_asked():
    pairs, audit = encode_preferences([pair("long " * 50, "good", "bad"), pair("q", "a", "b")], tiny_tokenizer(), 60, drop_long=True)
    assert audit["left_out"]["too long"] == 1 and audit["prompt_truncated"] == 0 and len(pairs) == 1


def test_the_longer_side_is_counted_with_ties_as_half():
    _, audit = encode_preferences([pair("q", "xxxxx", "y"), pair("q", "z", "v"), pair("q", "w", "vvvvv")], tiny_tokenizer(), 60)
    assert audit["longer_wins"] == 0.5


def test_a_dialogue_the_template_refuses_stops_or_is_counted():
    strict = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}{{ m.content }}</s>{% endfor %}"
    bad = two([{"role": "system", "content": "s"}], [A("a")], [A("b")], where="f:7")
    with pytest.raises(DataError, match="f:7: .*no system turns"):
        encode_preferences([bad], tiny_tokenizer(strict), 60)
    _, audit = encode_preferences([bad, pair("q", "a", "b")], tiny_tokenizer(strict), 60, skip_bad_rows=True)
    assert (audit["left_out"]["refused by the template"], audit["kept"]) == (1, 1)


# ---------------------------------------------------------------- templates


def golden_tokenizer(name):
    config = {key: FAMILIES[name][key] for key in ("bos_token", "eos_token")} | {"pad_token": "<pad>"}
    backend = tokenizers.Tokenizer.from_file(str(Path(__file__).parent / "fixtures" / "tokenizer.json"))
    return Tokenizer(backend, config | {"chat_template": FAMILIES[name]["template"]}, name)


@pytest.mark.parametrize("name", FAMILIES)
def test_real_chat_templates_render_as_transformers_renders_them(name):
    tokenizer, taken = golden_tokenizer(name), 0
    for case in FAMILIES[name]["cases"]:
        if "refused" in case:
            with pytest.raises(DataError, match=re.escape(case["refused"])):
                tokenizer.render(case["messages"])
            continue
        taken += 1
        assert tokenizer.render(case["messages"]) == case["text"]
        assert tokenizer.render(case["messages"][:-1], add_generation_prompt=True) == case["prompt"]
    assert taken >= 3


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_are_those_of_transformers_up_to_the_end_token(name):
    tokenizer = golden_tokenizer(name)
    assert tokenizer.end_token == FAMILIES[name]["eos_token"]
    for case in (case for case in FAMILIES[name]["cases"] if "ids" in case):
        ids = tokenizer.encode([tokenizer.render(case["messages"])])[0][0].tolist()
        theirs = case["ids"]
        assert ids == theirs[: len(ids)] and ids[-1] == tokenizer.end_id
        assert tokenizer.backend.decode(theirs[len(ids) :]) in ("", "\n")  # a template's closing newline is all we cut
        assert ids[:2].count(tokenizer.bos_id) <= 1


def test_what_qwen3_and_smollm2_add_by_themselves_is_in_the_golden_texts():
    text = lambda name, i: FAMILIES[name]["cases"][i]["text"]
    assert "<think>\n\n</think>\n\nIt is green." in text("qwen3", 0) and "A greeting." not in text("qwen3", 2)
    assert "So soon?" in text("qwen3", 3)
    assert "named SmolLM" in text("smollm2", 0) and "named SmolLM" not in text("smollm2", 1)
    assert "You are Qwen" in text("qwen2.5", 0) and "You are Qwen" not in text("qwen2.5", 1)


@pytest.mark.parametrize("template, message", [
    ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 1 seconds"),
    ("{% set s = 'ab' * 999999 %}{% for i in range(99999) %}{% if 'bb' in s %}{% endif %}{% endfor %}", "more than 1 seconds"),
    ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}", "more than 1 seconds"),
    ("{% set ns = namespace(a=[]) %}{% for i in range(30) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a }}", "more than 1 seconds"),
    ("{{ lipsum(99999, false, 20, 1000) }}", "more than 1 seconds"),
    ("{% for m in [[[]]] * 60 recursive %}{{ loop(messages) }}{{ loop(messages) }}{% endfor %}", "refuses this dialogue"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ("{% for i in range(10 ** 7) %}{% endfor %}", "Range too big"),
    ("{{ 'x' * 99999999 * 99999999 }}", "too much"),
    ("{{ 10 ** 99 ** 99 }}", "too much"),
    ("{{ messages.append(1) }}", "refuses this dialogue"),
    ("{{ messages.__class__.__init__.__globals__ }}", "refuses this dialogue"),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses this dialogue"),
    ("{% include '/etc/passwd' %}", "refuses this dialogue"),
    ("{{ cycler.__init__.__globals__.os.system('true') }}", "refuses this dialogue"),
    ("{% for m in messages %}{{ m", "not valid"),
])
def test_a_dangerous_or_endless_template_fails_in_one_line_and_soon(template, message, monkeypatch):
    monkeypatch.setattr(data, "RENDER_SECONDS", 1)
    began, handler = time.perf_counter(), signal.getsignal(signal.SIGALRM)
    with pytest.raises(DataError, match=message) as error:
        tiny_tokenizer(template)
    assert "\n" not in str(error.value) and time.perf_counter() - began < 15
    assert signal.getsignal(signal.SIGALRM) == handler and signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_all_named_special_tokens_reach_the_template():
    tokenizer = tiny_tokenizer("{{ cls_token }}{% for m in messages %}{{ m.content }}{{ sep_token }}{% endfor %}",
                               specials=("[CLS]", "[SEP]"), cls_token="[CLS]", sep_token={"content": "[SEP]"})
    assert tokenizer.render([U("q"), A("a")]) == "[CLS]q[SEP]a[SEP]" and tokenizer.end_token == "[SEP]"


def test_a_bos_that_the_template_leaves_out_is_not_put_in_again(tmp_path):
    template = "{% if messages[0].role != 'system' %}{{ bos_token }}{% endif %}{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    tokenizer = tiny_tokenizer(template, bos=True)
    with_bos, without = ([U("q"), A("a")], [{"role": "system", "content": "s"}, A("a")])
    assert [tokenizer.encode([tokenizer.render(m)])[0][0][0] == 1 for m in (with_bos, without)] == [True, False]


def test_add_bos_token_null_asks_the_tokenizer():
    starts = lambda **config: tiny_tokenizer(**config).render([U("q")]).startswith("<s>")
    assert starts(bos=True, add_bos_token=None) and not starts(bos=False, add_bos_token=None)
    assert starts(bos=False, add_bos_token=True) and not starts(bos=True, add_bos_token=False)


@pytest.mark.parametrize("rows", [
    {"prompt": [U("q"), A("call")], "chosen": [{"role": "tool", "content": "1"}, A("a")], "rejected": [{"role": "tool", "content": "2"}, A("b")]},
    {"chosen": [U("q"), A("x"), U("one"), A("a")], "rejected": [U("q"), A("x"), U("two"), A("b")]},
    {"system": "s", "chosen": [U("one"), A("a")], "rejected": [U("two"), A("b")]},
    {"prompt": [U("q")], "chosen": [A("x"), U("y"), A("a")], "rejected": [A("b")]},
])
def test_sides_that_part_at_any_turn_keep_their_prompt_when_written_and_read(rows):
    p = parse_preference(rows, "")
    assert p.prompt and parse_preference(p.to_row(), "") == p


def test_tojson_and_the_clock_are_those_of_transformers():
    tokenizer = tiny_tokenizer("{{ {'b': 1, 'a': 'é'} | tojson(sort_keys=true, indent=1) }}{{ strftime_now('%Y') }}</s>")
    assert tokenizer.render([U("x")]) == '{\n "a": "é",\n "b": 1\n}' + time.strftime("%Y") + "</s>"


def test_the_end_token_is_the_one_the_template_closes_a_turn_with():
    zephyr, llama3 = (tiny_tokenizer(FAMILIES[n]["template"], specials=MARKS) for n in ("zephyr", "llama3"))
    assert (zephyr.end_token, llama3.end_token, tiny_tokenizer().end_token) == ("</s>", "<|eot_id|>", "</s>")


@pytest.mark.parametrize("template", [None, *(g["template"] for g in FAMILIES.values())])
@pytest.mark.parametrize("bos", [True, False])
def test_bos_once_and_end_token_once_and_last(template, bos):
    tokenizer = tiny_tokenizer(template, bos=bos, specials=MARKS)
    pairs, _ = encode_preferences([pair("q", "good", "bad one")], tokenizer, 100)
    writes_bos = "bos_token" in template if template else bos  # with a template as transformers has it: the template's
    for s in range(2):
        ids = pairs.sequence(s).tolist()
        assert ids[-1] == tokenizer.end_id
        assert text_of(tokenizer, ids[-8:]).count(tokenizer.end_token) == 1
        assert ids.count(1) == int(writes_bos) and (ids[0] == 1) == writes_bos


def test_text_that_already_ends_does_not_end_twice():
    tokenizer = tiny_tokenizer()
    plain, closed, newline = (ids.tolist() for ids, _ in tokenizer.encode(["the cat", "the cat</s>", "the cat</s>\n"]))
    assert plain == closed == newline and plain.count(2) == 1


def test_padding_and_truncation_baked_into_a_tokenizer_are_switched_off():
    baked = tiny_tokenizer().backend
    baked.enable_padding(length=64)
    baked.enable_truncation(4)
    ids, _ = Tokenizer(baked, {"eos_token": "</s>"}).encode(["the cat sat on the mat"])[0]
    assert len(ids) > 4 and ids[-1] == 2 and 0 not in ids


def test_an_end_token_that_tokenizer_json_holds_as_an_ordinary_one_is_still_one_token():
    state = json.loads(tiny_tokenizer().backend.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] != "</s>"]
    backend = tokenizers.Tokenizer.from_str(json.dumps(state))
    ids, _ = Tokenizer(backend, {"eos_token": "</s>"}).encode(["the cat"])[0]
    assert ids[-1] == 2


def test_the_pad_told_to_transformers_is_never_the_end_token():
    assert tiny_tokenizer(pad_token="</s>").pad_id != 2 and tiny_tokenizer(pad_token=None).pad_id != 2


def test_a_pad_the_model_has_no_embedding_for_is_not_used(tmp_path):
    tokenizer = tiny_tokenizer(specials=("[PAD]",), pad_token="[PAD]", unk_token="<pad>")
    assert tokenizer.pad_id == 3  # as <pad>, <s>, </s> are 0, 1, 2
    tokenizer.save(tmp_path, 77)
    (tmp_path / "config.json").write_text('{"vocab_size": 3}')
    assert Tokenizer.from_folder(tmp_path).pad_id == 0


def test_a_tokenizer_that_nothing_ends_is_refused():
    with pytest.raises(DataError, match="no eos_token"):
        tiny_tokenizer(eos_token=None)


OPEN_ENDED = "\n{% for m in messages %}\n  <{{ m.role }}>{{ m.content }}\n{% endfor %}\n{% if add_generation_prompt %}<assistant>{% endif %}\n"


@pytest.mark.parametrize("template", [None, OPEN_ENDED, *(g["template"] for g in FAMILIES.values())])
@pytest.mark.parametrize("bos", [True, False])
def test_a_saved_tokenizer_encodes_the_same_and_its_template_alone_gives_those_ids(template, bos, tmp_path):
    tokenizer = tiny_tokenizer(template, bos=bos, specials=MARKS)
    tokenizer.save(tmp_path, max_length=77)
    again = Tokenizer.from_folder(tmp_path)
    assert again.max_length == 77 and again.end_token == tokenizer.end_token and again.header_tokens == tokenizer.header_tokens
    sequences, shared = split(tokenizer, [U("hi"), A("you"), U("cat ")], ["there ", "then"])
    for t in (again, Tokenizer.from_folder(save_again(again, tmp_path))):
        ids, prompt_tokens = split(t, [U("hi"), A("you"), U("cat ")], ["there ", "then"])
        assert [s.tolist() for s in ids] == [s.tolist() for s in sequences] and prompt_tokens == shared
    # What transformers does with the template: render, then tokenize without adding anything.
    rendered = again.render([U("hi"), A("you"), U("cat "), A("there ")])
    assert again.backend.encode(rendered, add_special_tokens=False).ids == sequences[0].tolist()


def save_again(tokenizer, folder):
    tokenizer.save(folder, max_length=77)
    return folder


def test_chat_template_jinja_comes_before_tokenizer_config(tmp_path):
    tiny_tokenizer().save(tmp_path, 77)
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    assert Tokenizer.from_folder(tmp_path).render([U("a"), A("b")]) == "[a][b]"


def test_a_trained_tokenizer_is_the_same_every_time():
    texts = [f"word{i % 50} and {i % 7} cats sat on the mat" for i in range(300)]
    one, two = (Tokenizer.train(texts, 400).backend.to_str() for _ in range(2))
    assert one == two


# ---------------------------------------------------------------- prompts and truncation


@pytest.mark.parametrize("template", [None, FAMILIES["llama3"]["template"]])
def test_the_prompt_is_the_same_tokens_on_both_sides_and_the_response_the_rest(template):
    tokenizer = tiny_tokenizer(template, bos=True, specials=MARKS)
    pairs, _ = encode_preferences([pair("the mat", "the cat sat", "the cat did")], tokenizer, 200)
    chosen, rejected, shared = pairs.sequence(0), pairs.sequence(1), pairs.prompt_tokens[0]
    assert chosen[:shared].tolist() == rejected[:shared].tolist()
    assert text_of(tokenizer, chosen[shared:]).strip() == "the cat sat" + tokenizer.end_token  # not cut at "the cat"
    prompt = tokenizer.render([U("the mat")], add_generation_prompt=True)
    assert text_of(tokenizer, chosen[:shared]).removeprefix("<s>") == prompt.removeprefix("<s>")


def test_a_template_that_rewrites_the_last_turn_keeps_a_shared_prompt():
    # Qwen3's way: an empty think block appears in the last answer only.
    template = ("{% for m in messages %}<{{ m.role }}>{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}"
                "{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}")
    tokenizer = tiny_tokenizer(template)
    [chosen, _], shared = split(tokenizer, [U("a"), A("b"), U("c")], ["good", "bad"])
    assert text_of(tokenizer, chosen[:shared]) == "<user>a</s><assistant>b</s><user>c</s><assistant>"
    assert text_of(tokenizer, chosen[shared:]) == "<think></think>good</s>"


def split(tokenizer, prompt, responses):
    texts, seam = tokenizer.render_responses(prompt, [[A(r)] for r in responses])
    return tokenizer.split_prompt(tokenizer.encode(texts), seam)


@pytest.mark.parametrize("template", [None, FAMILIES["llama3"]["template"]])
def test_too_long_prompts_lose_their_oldest_tokens_and_nothing_else(template):
    tokenizer = tiny_tokenizer(template, bos=True, specials=MARKS)
    sequences, shared = split(tokenizer, [U("first " * 30 + "last")], ["good one", "bad"])
    limit = max(map(len, sequences)) - 40
    cut, cut_shared = tokenizer.truncate(sequences, shared, limit)
    assert max(map(len, cut)) == limit and cut_shared == shared - 40
    for whole, short in zip(sequences, cut):
        assert short[0] == 1 and (short[1:] == whole[41:]).all()  # BOS stays, then 40 tokens are missing
    assert (cut[0][:cut_shared] == cut[1][:cut_shared]).all()
    assert tokenizer.truncate(cut, cut_shared, limit)[0][0].tolist() == cut[0].tolist()  # what fits is left alone


def test_the_assistants_header_and_some_prompt_survive_or_the_pair_goes():
    tokenizer = tiny_tokenizer(FAMILIES["llama3"]["template"], specials=MARKS)
    header = tokenizer.render([U("x")], add_generation_prompt=True)[len(tokenizer.render([U("x")])) :]
    sequences, shared = split(tokenizer, [U("word " * 20)], ["good", "bad"])
    lengths = []
    for limit in range(max(map(len, sequences)), 0, -1):
        fitted = tokenizer.truncate(sequences, shared, limit)
        if fitted is None:
            break
        ids, prompt_tokens = fitted
        assert header in text_of(tokenizer, ids[0][:prompt_tokens]) and len(ids[0]) == limit or limit >= len(sequences[0])
        assert text_of(tokenizer, ids[0][prompt_tokens:]) == "good" + tokenizer.end_token
        lengths.append(limit)
    response_and_header = len(sequences[0]) - shared + tokenizer.header_tokens
    assert lengths[-1] == response_and_header + 1 + 1  # the BOS this template writes, and one last token of the prompt


def test_pairs_that_differ_only_late_stay_different_after_truncation():
    preferences = [pair("p " * 40, "the same beginning " + c, "the same beginning " + d) for c, d in (("a", "b"), ("b", "ba"))]
    pairs, audit = encode_preferences(preferences, tiny_tokenizer(), 60)
    assert audit["prompt_truncated"] == 2 and len(pairs) == 2
    for i in range(2):
        assert pairs.sequence(2 * i).tolist() != pairs.sequence(2 * i + 1).tolist()


def test_a_template_that_drops_the_answer_leaves_nothing_to_compare():
    deaf = "{% for m in messages if m.role == 'user' %}{{ m.content }}</s>\n{% endfor %}"
    _, audit = encode_preferences([pair("q", "good", "bad")], tiny_tokenizer(deaf), 60)
    assert audit["left_out"]["identical sides"] == 1


def test_sides_that_a_template_makes_equal_are_left_out():
    trims = "{% for m in messages %}{{ m.content | trim }}</s>{% endfor %}"
    _, audit = encode_preferences([pair("q", "good ", "good")], tiny_tokenizer(trims), 60)
    assert audit["left_out"]["identical sides"] == 1


# ---------------------------------------------------------------- splits, order, batches


def test_no_prompt_is_on_both_sides_of_a_split():
    preferences = [pair(f"q{i % 20}", f"a{i}", f"b{i}") for i in range(200)]
    split = lambda seed: tuple(map(list, split_by_prompt(preferences, 0.2, seed)))
    train, held_out = split(0)
    assert len(train) + len(held_out) == 200 and len(held_out) == 40
    assert not {p.key for p in train} & {p.key for p in held_out}
    assert split(0) == (train, held_out) != split(1)


def test_without_prompts_a_pair_and_its_contradiction_stay_together():
    preferences = [pair("", f"a{i}", f"b{i}") for i in range(50)] + [pair("", f"b{i}", f"a{i}") for i in range(50)]
    train, held_out = map(list, split_by_prompt(preferences, 0.3, seed=0))
    assert len(held_out) == 30 and not {p.key for p in train} & {p.key for p in held_out}


def test_one_prompt_cannot_be_split():
    with pytest.raises(DataError, match="too few"):
        list(split_by_prompt([pair("q", "a", "b"), pair("q", "c", "d")], 0.5, seed=0)[0])


def some_pairs(n, tokenizer=None):
    preferences = [pair(f"q{i}", "good " * (i % 7 + 1), "bad " * (i % 5 + 1), margin=float(i)) for i in range(n)]
    return encode_preferences(preferences, tokenizer or tiny_tokenizer(), 100)[0]


def test_a_batch_holds_both_sides_of_its_pairs_padded_right():
    pairs = some_pairs(9)
    batch = collate(pairs, np.array([4, 0, 8]), pad_id=0)
    assert batch.input_ids.shape == batch.attention_mask.shape and batch.input_ids.shape[0] == 6
    order = [*batch.chosen.tolist(), *batch.rejected.tolist()]
    assert sorted(order) == list(range(6)) and batch.weight.tolist() == [1, 1, 1]
    for row, s in zip(order, [8, 0, 16, 9, 1, 17]):
        length = len(pairs.sequence(s))
        assert batch.input_ids[row, :length].tolist() == pairs.sequence(s).tolist()
        assert batch.attention_mask[row].tolist() == [1] * length + [0] * (batch.input_ids.shape[1] - length)
        assert (batch.input_ids[row, length:] == 0).all()
    assert batch.margin.tolist() == [4.0, 0.0, 8.0]


@pytest.mark.parametrize("ranks, accumulation", [(1, 1), (2, 1), (1, 3), (2, 2), (4, 2)])
def test_each_pair_comes_once_per_epoch_on_one_rank(ranks, accumulation):
    pairs = some_pairs(26)  # 3 steps of 8, one of 2: fewer than the ranks
    for epoch in range(2):
        seen = []
        for step in range(4 * epoch, 4 * epoch + 4):
            shares = [step_batches(pairs, step, 8, accumulation, rank, ranks) for rank in range(ranks)]
            in_step = [i for runs, _ in shares for run in runs for i in run.tolist()]
            assert all(n == len(in_step) for _, n in shares) and len(in_step) == (8 if step % 4 < 3 else 2)
            alone = step_batches(pairs, step, 8)[0]
            assert sorted(in_step) == sorted(i for run in alone for i in run.tolist())  # the step is the same everywhere
            seen += in_step
        assert sorted(seen) == list(range(26))


def test_order_depends_on_seed_and_epoch_alone():
    assert epoch_order(50, 0, 0).tolist() == epoch_order(50, 0, 0).tolist()
    assert len({tuple(epoch_order(50, seed, epoch).tolist()) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_generation_tags_leave_the_text_as_it_is():
    body = "{% for m in messages %}{% if m.role == 'assistant' %}@{{ m.content }}</s>#{% else %}[{{ m.content }}]{% endif %}{% endfor %}"
    marked = tiny_tokenizer(body.replace("@", "{% generation %}").replace("#", "{% endgeneration %}"))
    plain = tiny_tokenizer(body.replace("@", "").replace("#", ""))
    dialogue = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert marked.render(dialogue) == plain.render(dialogue) == "[a]b</s>"
    scoped = tiny_tokenizer("{% set x = 'A' %}{% generation %}{% set x = 'B' %}{% endgeneration %}{{ x }}</s>")
    assert scoped.render(dialogue) == "A</s>"  # a scope of its own, as in transformers
    assert marked.end_token == "</s>"


# ---------------------------------------------------------------- real data and real tokenizers


@needs_shared
@pytest.mark.parametrize("file", ["hh_harmless/test.jsonl.gz", "ukp_convincing/test.jsonl.gz", "ethics_util/test.jsonl.gz",
                                  "trl_conversational/explicit_prompt.jsonl.gz", "trl_conversational/implicit_prompt.jsonl.gz",
                                  "llamafactory_demo/dpo_en_demo.json", "llamafactory_demo/dpo_zh_demo.json"])
@pytest.mark.parametrize("folder", ["hf_metadata/qwen2.5-0.5b-instruct", "hf_metadata/tinyllama-1.1b-chat",
                                    "hf_metadata/minimind", "hf_metadata/smollm2-135m-seqcls", "hf_metadata/mistral-7b-v0.1"])
def test_real_files_with_real_tokenizers(file, folder):
    tokenizer = Tokenizer.from_folder(SHARED / folder)
    preferences = read_preferences(SHARED / "prefs" / file)[0][:100]
    pairs, audit = encode_preferences(preferences, tokenizer, 400)
    assert audit["read"] == len(preferences) == audit["kept"] + sum(audit["left_out"].values())
    assert audit["kept"] > 30
    for i in range(len(pairs)):
        chosen, rejected, shared = pairs.sequence(2 * i), pairs.sequence(2 * i + 1), pairs.prompt_tokens[i]
        assert (chosen[:shared] == rejected[:shared]).all() and max(len(chosen), len(rejected)) <= 400
        for ids in (chosen, rejected):
            assert ids[-1] == tokenizer.end_id
            if tokenizer.bos:
                assert ids[0] == tokenizer.bos_id
                if "minimind" not in folder:  # whose BOS is the token that begins every turn
                    assert (ids == tokenizer.bos_id).sum() == 1


@needs_shared
def test_transcripts_and_messages_of_the_same_dialogues_agree():
    rows = lambda name: read_preferences(SHARED / "prefs" / name)[0][:300]
    transcripts, implicit = rows("hh_harmless/train.jsonl.gz"), rows("trl_conversational/implicit_prompt.jsonl.gz")
    same = sum((a.prompt, a.responses) == (b.prompt, b.responses) for a, b in zip(transcripts, implicit))
    assert same == 300


@needs_shared
def test_qwens_template_renders_with_its_default_system_turn():
    tokenizer = Tokenizer.from_folder(SHARED / "hf_metadata" / "qwen2.5-0.5b-instruct")
    assert tokenizer.render([U("Hi"), A("Hello.")]) == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
    )
    ids, _ = tokenizer.encode([tokenizer.render([U("Hi"), A("Hello.")])])[0]
    assert ids[-1] == tokenizer.end_id == 151645 and tokenizer.pad_id == 151643


@needs_shared
def test_minimind_puts_an_empty_think_block_into_the_last_answer():
    tokenizer = Tokenizer.from_folder(SHARED / "hf_metadata" / "minimind")
    [chosen, _], shared = split(tokenizer, [U("Hi")], ["Hello.", "Go."])
    assert text_of(tokenizer, chosen[shared:]).endswith("Hello.<|im_end|>")
    assert text_of(tokenizer, chosen) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nHello.<|im_end|>"
    )
