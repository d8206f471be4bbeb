"""Tokenizers and data as they were published, which are not part of this repository."""
import functools
import itertools

import pytest
from conftest import SHARED, needs_shared

from data import Audit, Tokenizer, examples_of, parse_row, read_rows

REAL = ["qwen2.5-0.5b-instruct", "tinyllama-1.1b-chat", "minimind", "smollm2-135m-seqcls",
        "mistral-7b-v0.1"]
FILES = ["hh_harmless/test", "ukp_convincing/test", "ethics_util/test",
         "trl_conversational/explicit_prompt", "trl_conversational/implicit_prompt"]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@functools.cache
def real_tokenizer(folder):
    return Tokenizer.from_folder(SHARED / "hf_metadata" / folder)


@needs_shared
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("folder", REAL)
def test_real_files_with_real_tokenizers(file, folder):
    tokenizer = real_tokenizer(folder)
    rows = itertools.islice(read_rows([SHARED / "prefs" / f"{file}.jsonl.gz"]), 100)
    audit = Audit()
    bos_id = tokenizer.backend.token_to_id(tokenizer.bos)
    examples = list(examples_of(rows, tokenizer, 400, audit))
    assert len(examples) + sum(audit.left_out.values()) == 100
    assert len(examples) > 30
    for example in examples:
        first, second = example.sequences
        assert (first[: example.start] == second[: example.start]).all()
        assert max(len(first), len(second)) <= 400
        for ids in (first, second):
            assert ids[-1] == tokenizer.end_id
            if tokenizer.bos:
                assert ids[0] == bos_id
            if tokenizer.bos and folder != "minimind":  # its BOS begins every turn
                assert (ids == bos_id).sum() == 1, "BOS twice"


@needs_shared
def test_qwens_template_renders_with_its_default_system_turn():
    tokenizer = real_tokenizer("qwen2.5-0.5b-instruct")
    text = tokenizer.render([user("Hi"), assistant("Hello.")])
    assert text == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. "
        "You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
    )
    assert tokenizer.encode([text])[0][-1] == tokenizer.end_id == 151645
    assert tokenizer.pad_id == 151643


@needs_shared
def test_minimind_puts_an_empty_think_block_into_the_last_answer():
    tokenizer = real_tokenizer("minimind")
    row = parse_row({"prompt": "Hi", "responses": ["Hello.", "Go."]})
    [hello, _], start, _ = tokenizer.encode_row(row)
    whole = tokenizer.backend.decode(hello.tolist(), skip_special_tokens=False)
    assert whole == (
        "<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\nHello.<|im_end|>"
    )
    response = tokenizer.backend.decode(hello[start:].tolist(), skip_special_tokens=False)
    assert response.endswith("Hello.<|im_end|>")


@needs_shared
@pytest.mark.parametrize("folder", REAL)
def test_plain_dialogues_are_not_said_to_be_changed(folder):
    answers = ["a", " b \n", "\n\nc\n\n\nd", "\te\r\nf", "<b>&amp; \"q\" \\n</b>", "é e\u0301 \u00a0",
               "{{ m }} {% x %}", "user", "Assistant", "<think> not closed"]
    for answer in answers:
        for prompt in (answer, [user("x"), assistant(answer), user(" So?\n")]):
            row = parse_row({"prompt": prompt, "chosen": answer, "rejected": "No."})
            assert real_tokenizer(folder).encode_row(row)[2] == [], answer
