"""From a file to token ids: rows, the held-out split, the tokenizer, and nothing silently lost."""
import gzip
import json
import random
import re
import weakref

import jinja2
import pytest
import tokenizers
from conftest import tiny_tokenizer, write_rows

from data import LONG_WORD, Audit, DataError, Tokenizer, examples_of, held_out_prompts
from data import json_rows, parse_row, prompt_hash, read_rows, write_tokens


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def pair(prompt, chosen, rejected, **more):
    return parse_row({"prompt": prompt, "chosen": chosen, "rejected": rejected} | more)


def encode(rows, tokenizer=None, max_length=60, **options):
    """The examples of these rows, and the audit's figures."""
    audit = Audit()
    tokenizer = tokenizer or tiny_tokenizer()
    examples = list(examples_of(rows, tokenizer, max_length, audit, **options))
    return examples, audit.summary()


# ---------------------------------------------------------------- rows


def test_text_and_messages_mean_the_same_pair():
    text = pair("q", "good", "bad")
    messages = pair([user("q")], [assistant("good")], [assistant("bad")])
    assert text.prompt == messages.prompt == [user("q")]
    assert text.responses == messages.responses == [[assistant("good")], [assistant("bad")]]
    assert text.scores[0] > text.scores[1], "chosen and rejected are swapped"


def test_the_parts_of_a_message_are_put_together_as_they_are():
    parts = [{"type": "text", "text": "the c"}, {"type": "text", "text": "at"}]
    row = pair([user(parts)], "a", "b")
    assert row.prompt == [user("the cat")], "nothing belongs between the parts of a text"


def test_a_response_may_have_several_turns():
    turns = [assistant("look"), {"role": "tool", "content": "1"}, assistant("good")]
    row = pair("q", turns, "bad")
    assert row.prompt == [user("q")]
    assert row.responses == [turns, [assistant("bad")]]


def test_scores_and_ranks_order_the_responses_and_rank_1_is_the_best():
    row = {"prompt": "q", "responses": ["bad", "good", "fair"]}
    scored, _ = encode([parse_row(row | {"scores": [-1, 7.5, 2]})])
    ranked, _ = encode([parse_row(row | {"ranks": [3, 1, 2]})])
    expected = {(1, 0), (1, 2), (2, 0)}  # good before bad, good before fair, fair before bad
    assert set(scored[0].pairs()) == expected, "the highest score is the best"
    assert set(ranked[0].pairs()) == expected, "rank 1 is the best, not the highest rank"


def test_equal_scores_are_no_pair():
    row = {"prompt": "q", "responses": ["a", "b", "c"], "scores": [1, 2, 1]}
    examples, _ = encode([parse_row(row)])
    assert examples[0].pairs() == [(1, 0), (1, 2)], "nobody preferred one of two equal responses"


def test_margin_and_true_rewards_are_kept():
    [example], _ = encode([pair("q", "a", "b", margin=2, gold_chosen=1.5, gold_rejected=-1)])
    assert example.margin == 2
    assert example.gold == [1.5, -1], "the true rewards belong to the other response"


def test_responses_to_score_or_to_rank_need_no_order_but_to_learn_from_they_do():
    assert parse_row({"prompt": "q", "response": "a"}).responses == [[assistant("a")]]
    to_rank = parse_row({"prompt": "q", "responses": ["a", "b"]}, "f:7")
    assert to_rank.responses == [[assistant("a")], [assistant("b")]]
    with pytest.raises(DataError, match="f:7: no field 'scores' or 'ranks'"):
        encode([to_rank])


PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
SEVERAL = {"prompt": "q", "responses": ["a", "b"]}


@pytest.mark.parametrize("row, message", [
    ({"prompt": "q", "rejected": "b"}, "no field 'chosen' (found: prompt, rejected)"),
    ({"prompt": "q", "chosen": "a"}, "no field 'rejected' (found: prompt, chosen)"),
    (PAIR | {"chosen": 3}, "field 'chosen' is neither text nor chat messages"),
    (PAIR | {"chosen": [{"role": "assistant"}]}, "field 'chosen' is neither text nor"),
    (PAIR | {"prompt": {"text": "q"}}, "field 'prompt' is neither text nor chat messages"),
    (PAIR | {"chosen": [assistant("a"), user("b")]}, "field 'chosen' ends with a turn of 'user'"),
    (PAIR | {"margin": "big"}, "field 'margin' is 'big', not a number that float32 holds"),
    (PAIR | {"margin": True}, "field 'margin' is 'True', not a number"),
    (PAIR | {"margin": float("nan")}, "field 'margin' is 'nan', not a number"),
    (PAIR | {"margin": 10**400}, "field 'margin' is '1000"),
    (PAIR | {"margin": 1e39}, "field 'margin' is '1e+39', not a number"),
    (PAIR | {"gold_chosen": 1.0}, "field 'gold_rejected' is 'None', not a number"),
    (PAIR | {"chosen": "a\ud800"}, "field 'chosen' holds half of a surrogate pair"),
    (PAIR | {"prompt": [{"role": "us\ud800er", "content": "q"}]}, "field 'prompt' holds half"),
    (SEVERAL | {"responses": "ab"}, "field 'responses' is not a non-empty list"),
    (SEVERAL | {"responses": []}, "field 'responses' is not a non-empty list"),
    (SEVERAL | {"responses": ["a", 3]}, "field 'responses[1]' is neither text nor chat messages"),
    (SEVERAL | {"scores": [1, 2, 3]}, "field 'scores' is not a list of one number a response"),
    (SEVERAL | {"ranks": [1, None]}, "field 'ranks' is 'None', not a number"),
])
def test_a_bad_row_is_named_with_its_field_in_one_line(row, message):
    with pytest.raises(DataError, match="f.jsonl:3: " + re.escape(message)) as error:
        parse_row(row, "f.jsonl:3")
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- files

ROWS = [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad"} for i in range(3)]


def test_lines_zipped_lines_and_blank_lines_hold_the_same_rows(tmp_path):
    plain = write_rows(tmp_path / "a.jsonl", ROWS)
    zipped = tmp_path / "b.jsonl.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    spaced = tmp_path / "c.jsonl"  # with a byte order mark, as some editors write it
    spaced.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes().replace(b"\n", b"\r\n\r\n"))
    for file in (plain, zipped, spaced):
        assert [row for _, row in json_rows(file)] == ROWS
    assert [where for where, _ in json_rows(plain)] == [f"{plain}:{i}" for i in (1, 2, 3)]
    assert [where for where, _ in json_rows(spaced)] == [f"{spaced}:{i}" for i in (1, 3, 5)]


def test_only_a_newline_ends_a_row(tmp_path):
    file = tmp_path / "f.jsonl"
    file.write_text('{"prompt": "a\u2028b\x85c"}\n', encoding="utf-8")  # str.splitlines cuts here
    assert [row for _, row in json_rows(file)] == [{"prompt": "a\u2028b\x85c"}]


@pytest.mark.parametrize("content, message", [
    (b'{"a": 1}\n\n{"a": \n', "f.jsonl:3: not JSON"),
    (b'{"a": 1}\n3\n', "f.jsonl:2: not a JSON object"),
    (b'{"a": "\xff"}\n', "f.jsonl: not UTF-8"),
    (b"[" * 100_000, "f.jsonl: not JSON"),
])
def test_a_broken_file_is_named_with_its_line(tmp_path, content, message):
    (tmp_path / "f.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        list(json_rows(tmp_path / "f.jsonl"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [
    gzip.compress(b'{"a": 1}\n' * 1000)[:-20],
    b"not gzip",
    None,
], ids=["cut off", "not gzip", "missing"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, content):
    file = tmp_path / "f.jsonl.gz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match="f.jsonl.gz: "):
        list(json_rows(file))


LINES = b'{"prompt": "q", "chosen": "a", "rejected": "b"}\n' * 3000


@pytest.mark.parametrize("name, content", [
    ("f.jsonl", LINES + b'{"prompt": "\xff"}\n'),
    ("f.jsonl.gz", gzip.compress(LINES) + b"garbage"),
    ("f.jsonl.gz", gzip.compress(LINES)[:-8] + b"12345678"),  # another checksum
], ids=["not UTF-8", "garbage behind", "checksum"])
def test_a_file_that_breaks_later_gives_no_row_twice(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    given = []
    with pytest.raises(DataError, match=f"{name}:[0-9]+ is the last row that can be read"):
        for where, _ in json_rows(tmp_path / name):
            given.append(where)
    assert len(given) > 1000 and len(set(given)) == len(given), "rows come twice"


def test_a_number_that_is_infinite_is_refused(tmp_path):
    for name, text in (("f.jsonl", '{"id": 1e999}\n'), ("f.json", '[{"id": -1e999}]')):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match="1e999 is too large a number"):
            list(json_rows(tmp_path / name))


def test_a_bad_row_stops_or_is_counted_and_broken_json_always_stops(tmp_path):
    file = write_rows(tmp_path / "f.jsonl", [*ROWS, {"prompt": "q"}])
    with pytest.raises(DataError, match="f.jsonl:4: no field 'chosen'"):
        list(read_rows([file]))
    audit = Audit()
    assert len(list(read_rows([file], skip_bad_rows=True, audit=audit))) == 3
    assert audit.left_out["malformed"] == 1, "a row was skipped and not counted: a silent loss"
    file.write_text('{"prompt": \n')
    with pytest.raises(DataError, match="f.jsonl:1: not JSON"):
        list(read_rows([file], skip_bad_rows=True))


def test_a_file_is_read_only_as_far_as_it_is_needed(tmp_path):
    file = write_rows(tmp_path / "f.jsonl", ROWS * 10_000)
    with open(file, "a") as lines:
        lines.write("broken")
    assert next(read_rows([file])).where == f"{file}:1"


def test_memory_does_not_grow_with_the_texts(tmp_path):
    """Rows are read, encoded and written one by one; only a few are alive at a time."""
    file = write_rows(tmp_path / "f.jsonl", ROWS * 300)
    alive, most = set(), []

    def watched():
        for number, row in enumerate(read_rows([file])):
            alive.add(number)
            weakref.finalize(row, alive.discard, number)
            most.append(len(alive))
            yield row

    write_tokens(tmp_path, examples_of(watched(), tiny_tokenizer(), 60, Audit()), [])
    assert len(most) == 900
    assert max(most) < 10, "rows are kept in memory"


# ---------------------------------------------------------------- the held-out split


def split(rows, fraction, seed=0):
    """The prompts to train on and the prompts that are held out, as text."""
    held_out = held_out_prompts(rows, fraction, seed)
    train, evaluation = [], []
    for row in rows:
        side = evaluation if prompt_hash(row, seed) in held_out else train
        side.append(json.dumps(row.prompt))
    return train, evaluation


def test_no_prompt_is_on_both_sides_whatever_else_differs_in_its_rows():
    rows = []
    for i in range(200):
        rows.append(pair(f"q{i % 20}", f"a{i}", f"b{i}", id=i, source=f"s{i % 7}", margin=i))
    train, evaluation = split(rows, 0.2)
    assert len(train) + len(evaluation) == 200
    assert not set(train) & set(evaluation), "a prompt was trained on and evaluated on"
    assert len(set(evaluation)) == 4


@pytest.mark.parametrize("prompts, fraction, held_out", [
    (2, 0.01, 1), (20, 0.05, 1), (20, 0.3, 6), (201, 0.1, 20), (201, 0.5, 100),
])
def test_the_share_is_exact_in_prompts_and_at_least_one(prompts, fraction, held_out):
    rows = []
    for i in range(prompts):
        rows += [pair(f"q{i}", "a", "b")] * (1 + i % 3)
    _, evaluation = split(rows, fraction)
    assert len(set(evaluation)) == held_out


def test_a_row_that_is_added_moves_hardly_any_other():
    rows = [pair(f"q{i}", "a", "b") for i in range(100)]
    before = set(split(rows, 0.2)[1])
    for i in range(20):
        after = set(split([pair(f"new {i}", "a", "b"), *rows], 0.2)[1])
        old_ones = {prompt for prompt in after if "new" not in prompt}
        assert len(before ^ old_ones) <= 1
    assert set(split(rows[::-1], 0.2)[1]) == before, "the order of the rows moved them"


def test_the_seed_decides_which_prompts_are_held_out():
    rows = [pair(f"q{i}", "a", "b") for i in range(50)]
    first, again, other = (split(rows, 0.2, seed) for seed in (1, 1, 2))
    assert first == again, "the same seed gives another split"
    assert first != other, "--seed does not reach the held-out split"


def test_without_prompts_a_pair_and_its_contradiction_stay_together():
    rows = []
    for i in range(50):
        rows += [pair("", f"a{i}", f"b{i}"), pair("", f"b{i}", f"a{i}")]
    held_out = held_out_prompts(rows, 0.3, 0)
    sides = [prompt_hash(row) in held_out for row in rows]
    assert sides[::2] == sides[1::2]
    assert sum(sides) == 30


def test_too_few_prompts_ask_for_a_file_to_evaluate_on():
    rows = [pair("q", "a", "b"), pair("q", "c", "d")]
    with pytest.raises(DataError, match="too few prompts to hold some out: 1; give --eval-data"):
        held_out_prompts(rows, 0.5, 0)


# ---------------------------------------------------------------- the tokenizer


def test_the_text_of_a_dialogue():
    tokenizer = tiny_tokenizer(bos=True)
    dialogue = [{"role": "system", "content": "s"}, user("a\nb")]
    begun = "<s>System: s\nUser: a\nb\nAssistant:"
    assert tokenizer.render(dialogue, add_generation_prompt=True) == begun
    answered = "<s>System: s\nUser: a\nb\nAssistant: yes</s>"
    assert tokenizer.render([*dialogue, assistant("yes")]) == answered


@pytest.mark.parametrize("bos", [True, False])
def test_bos_once_where_the_tokenizer_uses_one_and_the_end_token_once_and_last(bos):
    [example], _ = encode([pair("q", "good", "bad one")], tiny_tokenizer(bos=bos))
    for sequence in example.sequences:
        ids = sequence.tolist()
        assert ids.count(1) == int(bos), "BOS twice, or none where the model expects one"
        assert (ids[0] == 1) == bos
        assert ids.count(2) == 1 and ids[-1] == 2, "the reward is not read at the end token"


def test_add_bos_token_decides_and_null_asks_the_tokenizer():
    def starts_with_bos(**options):
        return tiny_tokenizer(**options).render([user("q")]).startswith("<s>")

    assert starts_with_bos(bos=True, add_bos_token=None)
    assert not starts_with_bos(bos=False, add_bos_token=None)
    assert starts_with_bos(bos=False, add_bos_token=True)
    assert not starts_with_bos(bos=True, add_bos_token=False)


def test_a_text_that_already_ends_does_not_end_twice():
    plain, closed = tiny_tokenizer().encode(["the cat", "the cat</s>"])
    assert plain.tolist() == closed.tolist()
    assert plain.tolist().count(2) == 1


def test_padding_and_truncation_in_tokenizer_json_are_switched_off():
    backend = tiny_tokenizer().backend
    backend.enable_padding(length=64)
    backend.enable_truncation(4)
    [ids] = Tokenizer(backend, {"eos_token": "</s>"}).encode(["the cat sat on the mat"])
    assert len(ids) > 4 and ids[-1] == 2, "the text was cut"
    assert 0 not in ids, "the text was padded"


def test_an_end_token_that_tokenizer_json_holds_as_ordinary_text_is_one_token():
    state = json.loads(tiny_tokenizer().backend.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] != "</s>"]
    backend = tokenizers.Tokenizer.from_str(json.dumps(state))
    [ids] = Tokenizer(backend, {"eos_token": {"content": "</s>"}}).encode(["the cat"])
    assert ids[-1] == 2


@pytest.mark.parametrize("pad", ["</s>", None, "not in the vocabulary"])
def test_the_pad_is_never_the_end_token(pad):
    """transformers looks for the last token that is not a pad: it would miss the end token."""
    tokenizer = tiny_tokenizer(pad_token=pad)
    assert tokenizer.pad_id != tokenizer.end_id == 2, (
        "the pad is the end token: transformers would read the reward one token early"
    )


def test_a_pad_that_the_model_has_no_embedding_for_is_not_used(tmp_path):
    tokenizer = tiny_tokenizer(specials=("[PAD]",), pad_token="[PAD]", unk_token="<pad>")
    assert tokenizer.pad_id == 3  # after <pad>, <s> and </s>
    tokenizer.save(tmp_path, 77)
    (tmp_path / "config.json").write_text('{"vocab_size": 3}')
    assert Tokenizer.from_folder(tmp_path).pad_id == 0


def test_a_tokenizer_without_an_end_token_is_refused():
    with pytest.raises(DataError, match="no eos_token"):
        tiny_tokenizer(eos_token=None)


@pytest.mark.parametrize("bos", [True, False])
def test_a_saved_tokenizer_gives_the_same_ids(bos, tmp_path):
    rows = [pair([user("hi"), assistant("you"), user("cat ")], "there ", "then")]
    tokenizer = tiny_tokenizer(bos=bos)
    before = encode(rows, tokenizer)[0][0].sequences
    for _ in range(2):  # saved again, it is still the same
        tokenizer.save(tmp_path, max_length=77)
        tokenizer = Tokenizer.from_folder(tmp_path)
        after = encode(rows, tokenizer)[0][0].sequences
        assert [ids.tolist() for ids in after] == [ids.tolist() for ids in before]
        assert tokenizer.max_length == 77


def test_a_saved_tokenizer_adds_no_bos_to_that_of_its_template(tmp_path):
    """transformers renders with the template, and vLLM then encodes with the tokenizer's rules."""
    tiny_tokenizer(bos=True).save(tmp_path, max_length=77)
    tokenizer = Tokenizer.from_folder(tmp_path)
    text = tokenizer.render([user("hi"), assistant("you")])
    tokenizer.save(tmp_path, max_length=77)
    saved = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = saved.encode(text, add_special_tokens=True).ids
    assert ids.count(1) == 1, "served elsewhere, a text would begin with two BOS"
    assert ids == tokenizer.encode([text])[0].tolist()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    assert config["add_bos_token"] is False, "served elsewhere, a text would begin with two BOS"
    of_this_program = {"model", "chosen_template", "head_config"}
    assert not config.keys() & of_this_program, "these are no settings of a tokenizer"


@pytest.mark.parametrize("bos", [True, False])
def test_the_saved_chat_template_writes_what_render_writes(bos, tmp_path):
    """transformers and vLLM have only the template: with another text they get other rewards."""
    tokenizer = tiny_tokenizer(bos=bos)
    tokenizer.save(tmp_path, max_length=77)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(config["chat_template"])
    dialogue = [{"role": "system", "content": " {{ <s> }}\n"}, user("a\n\nb"), assistant("é ")]
    for turns in range(1, 4):
        for add in (False, True):
            theirs = template.render(
                messages=dialogue[:turns],
                add_generation_prompt=add,
                bos_token=config["bos_token"],
                eos_token=config["eos_token"],
            )
            assert theirs == tokenizer.render(dialogue[:turns], add_generation_prompt=add)


def test_a_tokenizer_is_learned_from_pieces_of_endless_words_and_of_nothing_else():
    normal = "the cat  sat on the mat. " * 200
    assert LONG_WORD.split(normal) == [normal]
    for endless in ("x" * 2500, " " * 2500):
        pieces = LONG_WORD.split(f"a {endless} b")
        assert "".join(pieces) == f"a {endless} b" and max(map(len, pieces)) <= 1000
    rng = random.Random(0)
    word = "".join(rng.choices("abcdefgh", k=200_000))  # as one word it takes minutes
    Tokenizer.train([word, normal], 300)


def test_a_trained_tokenizer_is_the_same_every_time():
    texts = [f"word{i % 50} and {i % 7} cats sat on the mat" for i in range(300)]
    first, second = Tokenizer.train(texts, 400), Tokenizer.train(texts, 400)
    assert first.backend.to_str() == second.backend.to_str()


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_folder_without_a_usable_tokenizer_is_named(content, tmp_path):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=re.escape(str(tmp_path))) as error:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(error.value)
