"""Rows from folders, arrays and the hub: the same rows come out of every source."""
import gzip
import json

import pytest
from conftest import write_rows

from data import DataError, json_rows, read_rows
from extras import hub, sources

ROWS = [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad"} for i in range(3)]


def rows_of(path):
    return [row for _, row in json_rows(path)]


# ---------------------------------------------------------------- the same rows from everywhere


def test_lines_arrays_gzip_and_folders_hold_the_same_rows(tmp_path):
    folder = tmp_path / "all"
    folder.mkdir()
    lines = write_rows(folder / "a.jsonl", ROWS)
    array = folder / "b.json"
    array.write_text("\n" + json.dumps(ROWS, indent=2), "utf-8")
    zipped_lines = folder / "c.jsonl.gz"
    zipped_lines.write_bytes(gzip.compress(lines.read_bytes()))
    zipped_array = folder / "d.json.gz"
    zipped_array.write_bytes(gzip.compress(array.read_bytes()))
    lines_named_json = write_rows(folder / "e.json", ROWS)
    (folder / "notes.txt").write_text("not data")

    for file in (lines, array, zipped_lines, zipped_array, lines_named_json):
        assert rows_of(file) == ROWS, f"{file.name} gives other rows"
    assert rows_of(folder) == ROWS * 5, "a folder is all its .json and .jsonl files, once"
    assert len(list(read_rows([folder]))) == 15


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.json"):
        write_rows(tmp_path / name, [{"from": name}])
    assert [row["from"] for row in rows_of(tmp_path)] == ["a.jsonl", "b.jsonl", "c.json"]


def test_a_row_is_named_by_its_line_or_by_its_number_in_the_array(tmp_path):
    lines = tmp_path / "lines.json"
    lines.write_text('\n{"a": 1}\n\n{"a": 2}\n', "utf-8")
    array = tmp_path / "array.json"
    array.write_text('[{"a": 1},\n\n\n{"a": 2}]', "utf-8")
    assert [where for where, _ in json_rows(lines)] == [f"{lines}:2", f"{lines}:4"]
    assert [where for where, _ in json_rows(array)] == [f"{array}:1", f"{array}:2"]


def test_a_file_with_any_other_name_may_hold_lines_or_an_array(tmp_path):
    (tmp_path / "pairs").write_text('\ufeff[{"a": 1}]', "utf-8")  # Windows puts a BOM first
    (tmp_path / "pairs.txt").write_text('\ufeff{"a": 1}\r\n', "utf-8")
    assert rows_of(tmp_path / "pairs") == rows_of(tmp_path / "pairs.txt") == [{"a": 1}]


def test_an_empty_file_has_no_rows(tmp_path):
    (tmp_path / "empty.json").write_text(" \n\n")
    assert rows_of(tmp_path / "empty.json") == []


def test_json_lines_are_not_read_into_memory_as_a_whole(tmp_path):
    path = tmp_path / "long.json"
    path.write_text('{"a": 1}\n' * 100_000 + "broken\n")
    rows = json_rows(path)
    assert next(rows) == (f"{path}:1", {"a": 1}), "the first row needs only the first line"


@pytest.mark.parametrize("name", ["pairs.jsonl", "folder"])
def test_files_and_folders_of_the_hub_are_read_like_those_here(tmp_path, monkeypatch, name):
    (tmp_path / "folder").mkdir()
    write_rows(tmp_path / "folder" / "pairs.json", ROWS)
    write_rows(tmp_path / "pairs.jsonl", ROWS)
    asked = []

    def data_file(address):
        asked.append(address)
        return tmp_path / name

    monkeypatch.setattr(hub, "data_file", data_file)
    assert rows_of(f"hub:owner/prefs/{name}") == ROWS
    assert asked == [f"hub:owner/prefs/{name}"]


# ---------------------------------------------------------------- errors in one line


@pytest.mark.parametrize("content, message", [
    (b'{"a": 1}\n\n{"a": \n', "f.json:3: not JSON"),
    (b'{"a": 1}\n[1]\n', "f.json:2: not a JSON object"),
    (b'[{"a": 1},\n{"b": }]\n', "f.json:2: not JSON"),
    (b'[{"a": 1}]\n{"a": 2}\n', "f.json:2: not JSON"),
    (b'[{"a": 1}, 2]', "f.json:2: not a JSON object"),
    (b'[{"a": "\xff"}]', "f.json: not UTF-8"),
    (b"[" * 100_000, "f.json: not JSON"),
    (b"[" + b"9" * 5000 + b"]", "f.json: not JSON"),
])
def test_a_broken_file_is_named_with_its_line(tmp_path, content, message):
    (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(DataError) as caught:
        rows_of(tmp_path / "f.json")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere.json", "nowhere.json.gz", "nowhere"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(DataError, match=f"{name}: No such file"):
        rows_of(tmp_path / name)


def test_a_damaged_gzip_file_is_named(tmp_path):
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-20])
    (tmp_path / "no.json.gz").write_bytes(b"not gzip")
    for name in ("cut.json.gz", "no.json.gz"):
        with pytest.raises(DataError, match=name):
            rows_of(tmp_path / name)


def test_a_folder_without_json_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("not data")
    with pytest.raises(DataError, match="no .json, .jsonl, .json.gz or .jsonl.gz in this folder"):
        rows_of(tmp_path)


@pytest.mark.parametrize("name, kind", [
    ("train.parquet", "parquet"), ("train.arrow", "arrow"), ("train.csv", "csv"),
    ("train.tsv", "csv"),
])
def test_tables_are_refused_with_what_to_do(tmp_path, name, kind):
    (tmp_path / name).write_bytes(b"PAR1")
    with pytest.raises(DataError) as caught:
        rows_of(tmp_path / name)
    assert f"{name}: not JSON; convert it" in str(caught.value)
    assert f"load_dataset('{kind}'" in str(caught.value)
    assert "to_json('pairs.jsonl')" in str(caught.value)


def test_a_table_of_the_hub_is_refused_too(tmp_path, monkeypatch):
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(hub, "data_file", lambda address: tmp_path / "train.parquet")
    with pytest.raises(DataError, match="train.parquet: not JSON; convert it"):
        list(sources.json_rows("hub:owner/prefs/train.parquet"))
