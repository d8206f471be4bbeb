"""JSON that is not one object a line: nothing of it is lost, and a pipe is not waited for."""
import json
import os
import threading

import pytest

from data import DataError, load_json
from extras import sources

ROW = {"prompt": "q", "chosen": "good", "rejected": "bad"}


def rows_of(path, text):
    path.write_text(text, "utf-8", newline="")
    return [row for _, row in sources.json_rows(str(path))]


def refusal(path, text):
    with pytest.raises(DataError) as caught:
        rows_of(path, text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("keys", [
    ("pairs", "more_pairs"), ("train", "train_part2"), ("more", "data"), ("train", "held_out"),
])
def test_a_second_list_of_rows_is_never_lost(tmp_path, keys, indent):
    text = json.dumps({"version": 1} | {key: [ROW] for key in keys}, indent=indent)
    names = ", ".join(keys)
    assert f"several lists of rows ({names}); write each" in refusal(tmp_path / "f.json", text)


def test_what_is_no_list_of_rows_may_stand_beside_the_rows(tmp_path):
    container = {"columns": ["prompt"], "info": {"n": 1}, "errors": [], "data": [ROW]}
    assert rows_of(tmp_path / "f.json", json.dumps(container)) == [ROW]


@pytest.mark.parametrize("text, message", [
    ('{"chosen": "first", "chosen": "second"}', "the key 'chosen' is there twice"),
    ('{"a": [{"b": {"c": 1, "c": 1}}]}', "the key 'c' is there twice"),
    ('{"margin": NaN}', "NaN is not JSON"),
    ('[-Infinity]', "-Infinity is not JSON"),
])
def test_python_reads_it_and_it_is_not_json(tmp_path, text, message):
    json.loads(text)
    with pytest.raises(ValueError, match=message):
        load_json(text)
    lines = text.replace("{", "{\n").replace("[", "[\n")
    assert message in refusal(tmp_path / "f.json", lines)
    assert message in refusal(tmp_path / "f.json", f"[{text}]")


def test_a_list_that_is_there_twice_is_not_lost(tmp_path):
    rows = json.dumps([ROW])
    text = f'{{\n"data": {rows},\n"data": {rows}\n}}'
    assert "the key 'data' is there twice" in refusal(tmp_path / "f.json", text)


def test_lines_that_end_as_on_old_macs_are_rows(tmp_path):
    text = json.dumps(ROW) + "\r"
    assert rows_of(tmp_path / "f.jsonl", text * 3) == [ROW] * 3
    assert rows_of(tmp_path / "f.jsonl", f"{text}\n" * 3) == [ROW] * 3, "Windows ends them so"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_row_in_a_pipe_is_passed_on_before_the_next_is_written(tmp_path):
    """A program that waits for the reward of its first row would wait for ever."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read, answered = [], threading.Event()

    def reader():
        for _, row in sources.json_rows(str(pipe)):
            read.append(row)
            answered.set()

    thread = threading.Thread(target=reader, daemon=True)
    thread.start()
    with open(pipe, "w") as file:
        print(json.dumps(ROW), file=file, flush=True)
        was_answered = answered.wait(10)
        print(json.dumps(ROW), file=file, flush=True)
    thread.join(10)
    assert was_answered, "the first row waits for the second: is it taken for a container?"
    assert read == [ROW, ROW]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_holds_rows_is_unpacked_from_a_pipe_too(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    text = json.dumps({"data": [ROW]})
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=(text,), daemon=True)
    writer.start()
    assert [row for _, row in sources.json_rows(str(tmp_path / "pipe"))] == [ROW]
