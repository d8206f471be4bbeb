"""Tokenizer folders in unusual states, and published ones: texts and ids are those of transformers."""
import json

import pytest
import tokenizers
from conftest import FIXTURES, SHARED, needs_shared
from make_tokenizers import (
    CHAT, DIALOGUES, MARKS, PUBLISHED, STATES, TOOL_DIALOGUES, build, dialogues_of, frozen_time,
    published_folder, token,
)

import extras.chat_template
from data import DataError, Tokenizer, to_messages

GOLDEN = json.loads((FIXTURES / "tokenizers.json").read_text("utf-8"))
TEMPLATES = json.loads((FIXTURES / "templates.json").read_text("utf-8"))["templates"]
NO_CONTENT = "'dict object' has no attribute 'content'"
REFUSED = {  # where transformers goes on, or refuses later: why the folder is not loaded here
    "additional_chat_templates without a default": "choose a chat template with --chat-template: rag",
    "named templates without a default": "choose a chat template with --chat-template: rag, tool_use",
    "split_special_tokens": "split_special_tokens is true",
}


@pytest.fixture(autouse=True)
def one_day(monkeypatch):
    class Module:
        datetime = frozen_time()

    monkeypatch.setattr(extras.chat_template, "datetime", Module)


def render(tokenizer, dialogue):
    messages = to_messages(dialogue["messages"], "user", "row", "messages")
    return tokenizer.render(messages, tools=dialogue.get("tools"))


def compare(tokenizer, dialogues, cases):
    """Each dialogue has transformers' text, and its ids up to the end token."""
    assert len(dialogues) == len(cases)
    for dialogue, case in zip(dialogues, cases):
        if case.get("refused") == NO_CONTENT:
            # transformers hands such a message over without content, we with an empty one.
            render(tokenizer, dialogue)
            continue
        if "refused" in case:
            with pytest.raises(DataError, match="the chat template refuses it"):
                render(tokenizer, dialogue)
            continue
        text = render(tokenizer, dialogue)
        assert text == case["text"]
        ids = tokenizer.encode([text])[0].tolist()
        theirs = list(map(int, case["ids"].split()))
        end = len(ids) - 1
        assert ids[:end] == theirs[:end], "other ids: a token that is not known, or other flags?"
        assert ids[end] == tokenizer.end_id
        rest = tokenizer.backend.decode(theirs[end:], skip_special_tokens=False)
        assert rest.strip() in ("", tokenizer.end_token), "more than white space was cut"


@pytest.mark.parametrize("name", STATES)
def test_a_folder_in_an_unusual_state_gives_the_text_and_ids_of_transformers(name, tmp_path):
    state, cases = STATES[name], GOLDEN["states"][name]
    folder = build(state, tmp_path)
    if name in REFUSED:
        with pytest.raises(DataError, match=REFUSED[name]):
            Tokenizer.from_folder(folder, state.get("choose"))
        return
    compare(Tokenizer.from_folder(folder, state.get("choose")), dialogues_of(state), cases)


@pytest.mark.parametrize("name", [name for name in STATES if name not in REFUSED])
def test_a_saved_folder_gives_them_again(name, tmp_path):
    state = STATES[name]
    (tmp_path / "saved").mkdir()
    tokenizer = Tokenizer.from_folder(build(state, tmp_path / "given"), state.get("choose"))
    tokenizer.save(tmp_path / "saved", 99)
    again = Tokenizer.from_folder(tmp_path / "saved")
    as_it_is = tokenizers.Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    for dialogue, case in zip(dialogues_of(state), GOLDEN["states"][name]):
        if "refused" in case:
            continue
        text = render(tokenizer, dialogue)
        ids = tokenizer.encode([text])[0].tolist()
        saved = render(again, dialogue)
        assert again.encode([saved])[0].tolist() == ids
        assert as_it_is.encode(saved, add_special_tokens=False).ids == ids, "of tokenizer.json alone"


@needs_shared
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_folders_give_the_texts_and_ids_of_transformers(name, tmp_path):
    folder, chosen = published_folder(SHARED, name, tmp_path), None
    if PUBLISHED[name]:
        chosen = tmp_path / "chosen.jinja"
        chosen.write_text(TEMPLATES[PUBLISHED[name]]["template"], "utf-8")
    tokenizer = Tokenizer.from_folder(folder, chosen)
    compare(tokenizer, DIALOGUES + TOOL_DIALOGUES, GOLDEN["published"][name])


@pytest.mark.parametrize("name", [
    "chat tokens in added_tokens_decoder alone", "their flags lstrip, rstrip, normalized",
    "flags of a token that is there", "single_word tokens", "additional_special_tokens",
    "additional_special_tokens as dicts", "extra_special_tokens, named",
    "both lists and a decoder", "special tokens that are ordinary words",
    "special_tokens_map.json beside a config", "added_tokens.json", "LlamaTokenizer",
    "GPT2Tokenizer with other rules", "truncation and padding baked in",
])
def test_in_these_states_tokenizer_json_alone_would_give_other_ids(name, tmp_path):
    """Else the tests above would prove little."""
    build(STATES[name], tmp_path)
    alone = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    cases = GOLDEN["states"][name]
    ids = [alone.encode(case["text"], add_special_tokens=False).ids for case in cases]
    assert ids != [list(map(int, case["ids"].split())) for case in cases]


def test_files_come_before_settings_and_the_chosen_before_the_default():
    texts = {name: cases[0].get("text", "") for name, cases in GOLDEN["states"].items()}
    for name in ("chat_template.jinja beside another", "named templates, one chosen"):
        assert texts[name].startswith("#[user]")
    assert texts["today's date"].startswith("03 Feb 2026")


def test_tokens_with_flags_are_saved_as_texts(tmp_path):
    """transformers 5 fails on a dict in tokenizer_config.json that does not say it is a token."""
    ends = {"additional_special_tokens": [token(mark, lstrip=True) for mark in MARKS]}
    ends["eos_token"] = token("</s>")
    state = {"config": {"chat_template": CHAT}, "files": {"special_tokens_map.json": ends}}
    tokenizer = Tokenizer.from_folder(build(state, tmp_path))
    tokenizer.save(tmp_path, 99)
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    assert saved["additional_special_tokens"] == MARKS and saved["eos_token"] == "</s>"
    (tmp_path / "special_tokens_map.json").unlink()
    text = render(tokenizer, DIALOGUES[0])
    again = Tokenizer.from_folder(tmp_path)
    assert again.encode([text])[0].tolist() == tokenizer.encode([text])[0].tolist()


def test_a_broken_file_beside_tokenizer_json_is_named(tmp_path):
    build({"files": {"special_tokens_map.json": "{"}}, tmp_path)
    with pytest.raises(DataError, match="special_tokens_map.json: not a JSON object"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("files, reason", [
    (["vocab.json", "merges.txt"], "no tokenizer.json, only vocab.json, merges.txt; write one with"),
    (["tokenizer.model"], "no tokenizer.json, only tokenizer.model; write one with transformers"),
    ([], "no tokenizer.json$"),
])
def test_a_folder_without_tokenizer_json_is_refused_with_what_to_do(files, reason, tmp_path):
    for file in files:
        (tmp_path / file).write_text("{}")
    with pytest.raises(DataError, match=reason) as error:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(error.value)
