"""Chat templates: the text and the ids of transformers, one BOS, one end token, and no way out."""
import json
import re

import pytest
import tokenizers
from conftest import FIXTURES, tiny_tokenizer

from data import Audit, DataError, LeftOut, Tokenizer, examples_of, open_tokenizer, parse_row
from extras.chat_template import TemplateTokenizer

GOLDEN = json.loads((FIXTURES / "templates.json").read_text("utf-8"))["templates"]
CONTENTS = "{% for m in messages %}{{ m.content }}{% endfor %}</s>"
MARKS = ("<|eot_id|>", "<|im_start|>", "<|im_end|>")
ANSWERS = {name: golden["template"] for name, golden in GOLDEN.items()}
# Nothing closes a turn here, and there is much white space that jinja2 could trim.
ANSWERS["open"] = """
{% for m in messages %}
  <{{ m.role }}>{{ m.content }}
{% endfor %}
{% if add_generation_prompt %}<assistant>{% endif %}
"""
ANSWERS["newline"] = "{% for m in messages %}{{ m.content }}{% endfor %}!\n"
ANSWERS["spaces"] = "{% for m in messages %}{{ m.content }}{% endfor %}!\n  "
# Llama 3.1 does so: a variable of the template hides the messages.
ANSWERS["renames"] = """{%- set first = messages[0]['content'] %}
{%- set messages = messages[1:] %}
{%- macro say(m) %}{{ m.content }}</s>{% endmacro %}
{{- first }}{% for m in messages %}{{ say(m) }}
{% endfor %}{% if add_generation_prompt %}A:{% endif %}"""


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def tokenizer_with(template, **options) -> TemplateTokenizer:
    """tiny_tokenizer with this chat template."""
    plain = tiny_tokenizer(**options)
    config = plain.config | {"chat_template": template}
    return TemplateTokenizer(plain.backend, config)


def golden_tokenizer(name) -> Tokenizer:
    """The tokenizer that transformers' ids were made with."""
    backend = tokenizers.Tokenizer.from_file(str(FIXTURES / "tokenizer.json"))
    config = {"pad_token": "<pad>", "chat_template": GOLDEN[name]["template"]}
    for token in ("bos_token", "eos_token"):
        config[token] = GOLDEN[name][token]
    return open_tokenizer(backend, config, name)


def text_of(tokenizer, ids) -> str:
    return tokenizer.backend.decode(list(ids), skip_special_tokens=False)


def sequences_of(tokenizer, prompt, *answers):
    """The sequences of some answers, and where the response starts."""
    row = parse_row({"prompt": prompt, "responses": list(answers)})
    sequences, start, _ = tokenizer.encode_row(row)
    return sequences, start


# ---------------------------------------------------------------- what transformers makes of it


@pytest.mark.parametrize("name", GOLDEN)
def test_published_templates_give_the_text_of_transformers(name):
    tokenizer = golden_tokenizer(name)
    assert type(tokenizer) is TemplateTokenizer
    rendered = 0
    for case in GOLDEN[name]["cases"]:
        messages = case["messages"]
        if "refused" in case:
            with pytest.raises(DataError, match=re.escape(case["refused"])):
                tokenizer.render(messages)
            continue
        assert tokenizer.render(messages) == case["text"]
        assert tokenizer.render(messages[:-1], add_generation_prompt=True) == case["prompt"]
        rendered += 1
    assert rendered >= 3


@pytest.mark.parametrize("name", GOLDEN)
def test_ids_are_those_of_transformers_up_to_the_end_token(name):
    tokenizer = golden_tokenizer(name)
    assert tokenizer.end_token == GOLDEN[name]["eos_token"]
    for case in GOLDEN[name]["cases"]:
        if "refused" in case:
            continue
        ids = tokenizer.encode([tokenizer.render(case["messages"])])[0].tolist()
        theirs = case["ids"]
        assert ids == theirs[: len(ids)], "another BOS, another text, or text after its end?"
        assert ids[-1] == tokenizer.end_id
        rest = tokenizer.backend.decode(theirs[len(ids) :])
        assert rest in ("", "\n"), "more was cut than the newline after the end token"


def test_what_templates_add_by_themselves_is_in_the_golden_texts():
    """The tests above prove little if the four dialogues do not reach these branches."""
    texts = {}
    for name in GOLDEN:
        texts[name] = [case.get("text") for case in GOLDEN[name]["cases"]]
    assert "<think>\n\n</think>\n\nIt is green." in texts["qwen3"][0]
    assert "A greeting." not in texts["qwen3"][2]
    assert "So soon?" in texts["qwen3"][3]
    assert "named SmolLM" in texts["smollm2"][0] and "named SmolLM" not in texts["smollm2"][1]
    assert "You are Qwen" in texts["qwen2.5"][0] and "You are Qwen" not in texts["qwen2.5"][1]


# ---------------------------------------------------------------- one BOS, one end token


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("bos", [True, False])
def test_bos_is_there_once_where_the_template_writes_it_and_the_end_token_once_and_last(name, bos):
    tokenizer = tokenizer_with(ANSWERS[name], bos=bos, specials=MARKS)
    sequences, _ = sequences_of(tokenizer, "q", "good", "bad one")
    writes_bos = "bos_token" in ANSWERS[name]
    for sequence in sequences:
        ids = sequence.tolist()
        assert ids.count(1) == int(writes_bos), "the tokenizer put a BOS before the template's?"
        assert (ids[0] == 1) == writes_bos
        assert ids[-1] == tokenizer.end_id
        assert ids[-8:].count(tokenizer.end_id) == 1
    assert tokenizer.bos == ("<s>" if writes_bos else "")


def test_a_bos_that_the_template_leaves_out_is_not_added():
    template = (
        "{% if messages[0].role != 'system' %}{{ bos_token }}{% endif %}"
        "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    )
    tokenizer = tokenizer_with(template, bos=True)
    system = {"role": "system", "content": "s"}
    texts = [tokenizer.render([user("q")]), tokenizer.render([system, user("q")])]
    with_bos, without = tokenizer.encode(texts)
    assert with_bos[0] == 1 and without[0] != 1


def test_the_end_token_is_the_one_that_closes_an_answer_not_always_the_eos():
    ends = {}
    for name in ANSWERS:
        ends[name] = tokenizer_with(ANSWERS[name], specials=MARKS).end_token
    assert ends["qwen2.5"] == ends["qwen3"] == ends["chatml"] == "<|im_end|>"
    assert ends["llama3"] == "<|eot_id|>"
    assert ends["zephyr"] == ends["mistral"] == ends["open"] == "</s>"


def test_the_end_token_is_a_whole_special_token():
    template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    assert tokenizer_with(template, specials=("|>", *MARKS)).end_token == "<|im_end|>"
    plain = tiny_tokenizer()
    plain.backend.add_tokens(["<br>"])  # an ordinary word of the vocabulary
    config = plain.config | {"chat_template": template.replace("<|im_end|>", "<br>")}
    assert TemplateTokenizer(plain.backend, config).end_token == "</s>"


def test_a_pad_that_is_the_end_token_is_not_used():
    tokenizer = tokenizer_with(GOLDEN["chatml"]["template"], specials=MARKS, pad_token="<|im_end|>")
    assert tokenizer.pad_id != tokenizer.end_id


def test_all_special_tokens_that_have_a_name_reach_the_template():
    tokenizer = tokenizer_with(
        "{{ cls_token }}{% for m in messages %}{{ m.content }}{{ sep_token }}{% endfor %}",
        specials=("[CLS]", "[SEP]"),
        cls_token="[CLS]",
        sep_token={"content": "[SEP]"},
    )
    assert tokenizer.render([user("q"), assistant("a")]) == "[CLS]q[SEP]a[SEP]"
    assert tokenizer.end_token == "[SEP]"


def test_a_template_that_closes_no_turn_needs_an_eos():
    backend = tiny_tokenizer().backend
    with pytest.raises(DataError, match="no eos_token"):
        TemplateTokenizer(backend, {"chat_template": ANSWERS["open"]})


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("bos", [True, False])
def test_the_saved_template_alone_gives_the_ids_up_to_the_end_token(name, bos, tmp_path):
    """What transformers and vLLM do: render, then tokenize without adding anything."""
    dialogue = [user("hi"), assistant("you"), user("cat "), assistant("there ")]
    tokenizer = tokenizer_with(ANSWERS[name], bos=bos, specials=MARKS)
    ids = tokenizer.encode([tokenizer.render(dialogue)])[0].tolist()
    folders = (tmp_path / "saved", tmp_path / "saved-again")
    for folder in folders:
        folder.mkdir()
        tokenizer.save(folder, max_length=77)
        tokenizer = Tokenizer.from_folder(folder)
        assert tokenizer.max_length == 77
        rendered = tokenizer.render(dialogue)
        alone = tokenizer.backend.encode(rendered, add_special_tokens=False).ids
        assert alone == ids, f"{rendered!r} has another last token than training"
        prompt = tokenizer.render(dialogue[:-1], add_generation_prompt=True)
        unsaved = tokenizer_with(ANSWERS[name], bos=bos, specials=MARKS)
        assert prompt == unsaved.render(dialogue[:-1], add_generation_prompt=True)


def test_chat_template_jinja_comes_before_tokenizer_config(tmp_path):
    tiny_tokenizer().save(tmp_path, 77)
    source = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(source)
    assert Tokenizer.from_folder(tmp_path).render([user("a"), assistant("b")]) == "[a][b]"


def test_of_several_named_templates_the_default_is_taken():
    source = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    named = [{"name": "default", "template": source}, {"name": "rag", "template": "x"}]
    assert tokenizer_with(named).render([user("a")]) == "a</s>"
    with pytest.raises(DataError, match="choose a chat template with --chat-template: rag"):
        tokenizer_with(named[1:])
    with pytest.raises(DataError, match="chat_template is '3', not text"):
        tokenizer_with(3)


# ---------------------------------------------------------------- prompt and response


def test_the_prompt_is_the_same_tokens_in_all_sequences_and_the_response_the_rest():
    tokenizer = tokenizer_with(GOLDEN["llama3"]["template"], bos=True, specials=MARKS)
    sequences, start = sequences_of(tokenizer, "the mat", "the cat sat", "the cat did")
    prompt = tokenizer.render([user("the mat")], add_generation_prompt=True)
    for sequence, answer in zip(sequences, ("the cat sat", "the cat did")):
        assert text_of(tokenizer, sequence[:start]) == prompt
        assert text_of(tokenizer, sequence[start:]) == answer + "<|eot_id|>"


def test_a_think_block_before_the_last_answer_belongs_to_the_response():
    # Qwen3 does this; in the text of the prompt alone there is no such block.
    tokenizer = tokenizer_with(
        "{% for m in messages %}<{{ m.role }}>"
        "{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}"
        "{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    prompt = [user("a"), assistant("b"), user("c")]
    [good, _], start = sequences_of(tokenizer, prompt, "good", "bad")
    prompt_text = "<user>a</s><assistant>b</s><user>c</s><assistant>"
    assert text_of(tokenizer, good[:start]) == prompt_text
    assert text_of(tokenizer, good[start:]) == "<think></think>good</s>"


def test_a_prompt_that_is_too_long_loses_its_oldest_tokens_and_keeps_the_header():
    tokenizer = tokenizer_with(GOLDEN["llama3"]["template"], bos=True, specials=MARKS)
    sequences, start = sequences_of(tokenizer, "first " * 30 + "last", "good one", "bad")
    header = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    header_tokens = len(tokenizer.backend.encode(header, add_special_tokens=False).ids)
    for excess in range(1, start):
        limit = max(map(len, sequences)) - excess
        try:
            shortened = tokenizer.shorten(sequences, start, limit)
        except LeftOut:
            break
        for whole, short in zip(sequences, shortened[0]):
            assert short[0] == 1, "BOS is lost"
            assert (short[1:] == whole[1 + excess :]).all()
        assert text_of(tokenizer, shortened[0][0][: shortened[1]]).endswith(header)
    left = start - excess
    assert left <= header_tokens + 2, "it was given up too early"  # BOS, and the end of a turn


@pytest.mark.parametrize("content, changed", [
    ("m.content | trim", 0),
    ("m.content.split('</think>')[-1] | trim", 1),
], ids=["trims the answer", "cuts the thoughts"])
def test_responses_that_a_template_makes_equal_are_left_out(content, changed):
    template = "{% for m in messages %}{{ " + content + " }}</s>{% endfor %}"
    rejected = ["good ", "<think>I guess.</think>good"][changed]
    row = parse_row({"prompt": "q", "chosen": "good", "rejected": rejected})
    audit = Audit()
    assert list(examples_of([row], tokenizer_with(template), 60, audit)) == []
    assert audit.left_out["identical responses"] == 1
    note = "the template changed the response, or left some of it out"
    assert audit.notes[note] == changed, "what a template cuts has to be counted"


def test_a_template_that_never_writes_the_assistants_text_is_refused():
    users_only = "{% for m in messages if m.role == 'user' %}{{ m.content }}</s>\n{% endfor %}"
    with pytest.raises(DataError, match="does not write what is said"):
        tokenizer_with(users_only)


def test_a_turn_whose_role_the_template_does_not_know_is_counted():
    known = "{% for m in messages if m.role in ('user', 'assistant') %}{{ m.content }}{% endfor %}"
    turns = [{"role": "prompter", "content": "Which?"}]
    row = parse_row({"prompt": turns, "chosen": "This.", "rejected": "That."})
    audit = Audit()
    assert len(list(examples_of([row], tokenizer_with(known + "</s>"), 60, audit))) == 1
    assert audit.notes == {"the template changed the prompt, or left some of it out": 1}


def notes_of(template, **row):
    """What the audit is told about a row."""
    row = parse_row({"prompt": "Why?", "chosen": "So.", "rejected": "No."} | row)
    return tokenizer_with(template).encode_row(row)[2]


def test_an_answer_that_begins_as_the_template_begins_answers_is_whole():
    header = CONTENTS + "{% if add_generation_prompt %}<think>\n{% endif %}"
    for prompt in ("Why?", [user("")]):
        assert notes_of(header, prompt=prompt, chosen="<think>\nHm.</think>Yes.") == []


def test_white_space_alone_is_no_change_and_a_lost_word_is_one():
    spaces = CONTENTS.replace("m.content", "m.content.replace('\n', ' \n\n') | trim")
    answer = "<think>\nHm.\n</think>\nYes, \"so\".\n"
    assert notes_of(spaces, chosen=answer) == []
    changed = "the template changed the {}, or left some of it out".format
    less = "{{ bos_token }}" + CONTENTS.replace("m.content", "m.content[:16]")
    assert notes_of(less, chosen=answer) == [changed("response")]
    assert notes_of(less, prompt="Why is it so, please?", chosen=answer) == [
        changed("prompt"), changed("response"),
    ]


def test_a_field_of_a_message_that_the_template_does_not_write_is_listed():
    answer = [assistant("So.") | {"language": "English", "turn": 1, "id": "x"}]
    unread = ["field that nobody read: language", "field that nobody read: turn"]
    assert notes_of(CONTENTS, chosen=answer) == unread
    writes = CONTENTS.replace("m.content", "m.content ~ m.language ~ m.turn")
    assert notes_of(writes, chosen=answer) == []


def test_a_message_that_only_calls_tools_is_rendered_as_one_with_empty_content():
    call = {"role": "assistant", "tool_calls": [{"name": "add", "arguments": {"a": "é"}}]}
    writes = CONTENTS.replace("m.content", "m.content + (m.tool_calls or '') | string")
    sequences = []
    for content in ({}, {"content": None}, {"content": ""}):
        row = parse_row({"prompt": "q", "responses": [[call | content]]})
        ids, _, notes = tokenizer_with(writes).encode_row(row)
        sequences.append(ids[0].tolist())
        assert notes == []
    assert sequences[0] == sequences[1] == sequences[2]


def test_a_template_that_takes_a_prompt_only_with_its_answer_is_enough():
    strict = (
        "{% if messages | length != 2 %}{{ raise_exception('two messages, please') }}{% endif %}"
        "<u>{{ messages[0].content }}<a>{{ messages[1].content }}</s>"
    )
    tokenizer = tokenizer_with(strict)
    assert tokenizer.render([user("q")], add_generation_prompt=True) == "<u>q<a>"
    sequences, start = sequences_of(tokenizer, "the mat", "the cat", "the dog")
    assert text_of(tokenizer, sequences[1][start:]) == "the dog</s>"
    shorter, new_start = tokenizer.shorten(sequences, start, len(sequences[0]) - 1)
    assert text_of(tokenizer, shorter[0][new_start - 3 : new_start]) == "<a>"


def test_rows_with_tools_use_the_template_for_tools():
    named = [
        {"name": "default", "template": CONTENTS},
        {"name": "tool_use", "template": "{{ tools | tojson }}" + CONTENTS},
    ]
    tokenizer = tokenizer_with(named)
    assert tokenizer.render([user("a")]) == "a</s>"
    with_tools = tokenizer.render([user("a")], tools=[{"name": "f"}])
    assert with_tools == '[{"name": "f"}]a</s>', "a row with tools needs the template tool_use"


def test_a_dialogue_that_the_template_refuses_stops_or_is_counted():
    strict = (
        "{% for m in messages %}"
        "{% if m.role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
        "{{ m.content }}</s>{% endfor %}"
    )
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    turns = [{"role": "system", "content": "s"}, user("q")]
    rows = [parse_row(pair | {"prompt": turns}, "f:7"), parse_row(pair, "f:8")]
    tokenizer = tokenizer_with(strict)
    with pytest.raises(DataError, match="f:7: .*no system turns"):
        list(examples_of(rows, tokenizer, 60, Audit()))
    audit = Audit()
    kept = list(examples_of(rows, tokenizer, 60, audit, skip_bad_rows=True))
    assert len(kept) == 1
    assert audit.left_out["refused by the template"] == 1


@pytest.mark.parametrize("template, system, question", [
    ("{% for m in messages if m.role != 'system' %}{{ m.content }}|{% endfor %}</s>", "rhyme",
     "a rhyme?"),
    ("{% for m in messages[-2:] %}{{ m.content }}|{% endfor %}</s>", "no", "no ok"),
])
def test_a_turn_that_is_left_out_is_not_found_inside_another_one(template, system, question):
    turns = [{"role": "system", "content": system}, user(question)]
    row = parse_row({"prompt": turns, "chosen": "yes", "rejected": "maybe"})
    audit = Audit()
    list(examples_of([row], tokenizer_with(template), 60, audit))
    assert audit.notes["the template changed the prompt, or left some of it out"] == 1
