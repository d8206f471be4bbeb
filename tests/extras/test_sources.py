"""Rows from folders, arrays and the hub: the same rows come out of every source."""
import gzip
import json
import sys

import pytest
from conftest import write_rows

from data import DataError, json_rows, read_rows
from extras import folders, hub, json_files, sources

ROWS = [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad"} for i in range(3)]


def rows_of(path):
    """The rows, by way of extras/sources.py. (data.py reads .jsonl itself.)"""
    return [row for _, row in sources.json_rows(str(path))]


def refusal(path):
    """What the error says. It is one line."""
    with pytest.raises(DataError) as caught:
        rows_of(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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
    table = folder / "f.csv"
    table.write_text("prompt,chosen,rejected\nq0,good,bad\nq1,good,bad\nq2,good,bad\n")
    (folder / "notes.txt").write_text("not data")

    for file in (lines, array, zipped_lines, zipped_array, lines_named_json, table):
        assert rows_of(file) == ROWS, f"{file.name} gives other rows"
    assert rows_of(folder) == ROWS * 6, "a folder is all its data files, once"
    assert len(list(read_rows([folder]))) == 18


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


@pytest.mark.parametrize("content", ["", " \n\n", "\ufeff", "[]", "[\n]", '{"train": []}'])
@pytest.mark.parametrize("name", ["f.json", "f.jsonl"])
def test_a_file_without_rows_says_so(tmp_path, name, content):
    (tmp_path / name).write_text(content, "utf-8")
    assert refusal(tmp_path / name) == f"no rows in {tmp_path / name}"


# ---------------------------------------------------------------- JSON over several lines


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["f.json", "f.jsonl"])
def test_an_object_may_hold_the_rows(tmp_path, name, indent):
    containers = [{"train": ROWS}, {"version": "1.0", "data": ROWS}, {"my rows": ROWS}]
    for container in containers:
        (tmp_path / name).write_text(json.dumps(container, indent=indent), "utf-8")
        assert rows_of(tmp_path / name) == ROWS, f"the rows under {list(container)[-1]!r} are lost"


def test_an_object_with_two_splits_is_refused_by_their_names(tmp_path):
    for indent in (None, 2):
        text = json.dumps({"train": ROWS, "test": ROWS}, indent=indent)
        (tmp_path / "f.json").write_text(text)
        assert "several lists of rows (train, test)" in refusal(tmp_path / "f.json")


MESSAGES = [{"role": "user", "content": "q"}]


@pytest.mark.parametrize("row", [
    ROWS[0],
    {"prompt": MESSAGES, "chosen": "good", "rejected": "bad"},
    {"messages": MESSAGES, "margin": 1},
    {"info": {"post": "…"}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0},
    {},
])
def test_one_row_over_several_lines_is_that_row(tmp_path, row):
    """It may have lists of objects too: it must not be taken for what holds the rows."""
    for name in ("f.json", "f.jsonl", "f"):
        for indent in (None, 2):
            (tmp_path / name).write_text(json.dumps(row, indent=indent), "utf-8")
            assert rows_of(tmp_path / name) == [row]


def test_rows_one_after_the_other_may_take_several_lines_each(tmp_path):
    texts = [json.dumps(row, indent=2) for row in ROWS]
    (tmp_path / "f.jsonl").write_text("\n".join(texts))
    assert rows_of(tmp_path / "f.jsonl") == ROWS, "jq writes rows like this"
    names = [where for where, _ in sources.json_rows(str(tmp_path / "f.jsonl"))]
    assert names[2] == f"{tmp_path}/f.jsonl:3"


def test_lines_that_each_look_like_a_container_stay_rows(tmp_path):
    rows = [{"data": ROWS}, {"data": ROWS}]
    assert rows_of(write_rows(tmp_path / "f.json", rows)) == rows


def test_columns_in_the_place_of_rows_are_refused(tmp_path):
    columns = {"prompt": {"0": "q", "1": "q"}, "chosen": {"0": "a", "1": "b"}}
    (tmp_path / "f.json").write_text(json.dumps(columns))  # as pandas.to_json writes
    assert "an object of objects (prompt, chosen), not a list of rows" in refusal(
        tmp_path / "f.json"
    )


# ---------------------------------------------------------------- folders


def make_files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_rows(folder / name, [{"from": name}])


def test_what_holds_no_rows_is_left_aside_by_name_and_said_once(tmp_path, capsys):
    make_files(tmp_path, "dataset_info.json", "state.json", "README.md", ".gitattributes", "a.json")
    for _ in range(2):  # training reads its files several times
        assert rows_of(tmp_path) == [{"from": "a.json"}]
    names = ".gitattributes, README.md, dataset_info.json, state.json"
    assert capsys.readouterr().err == f"{tmp_path}: not rows, left aside: {names}\n"


@pytest.mark.parametrize("names, choices", [
    (["train.jsonl", "test.jsonl"], ["test.jsonl", "train.jsonl"]),
    (["pairs_train.json", "pairs-val.json"], ["pairs-val.json", "pairs_train.json"]),
    (["a.jsonl", "test.jsonl"], ["a.jsonl", "test.jsonl"]),
    (["train/a.jsonl", "test/a.jsonl"], ["test", "train"]),
    (["data/a.jsonl", "README.md"], ["data"]),
    (["a.jsonl", "more/b.jsonl"], ["a.jsonl", "more"]),
    (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet",
      "test-00000-of-00001-0a1b2c.parquet"], ["test-0*.parquet", "train-0*.parquet"]),
    (["train_sft-00000-of-00001.json", "train_prefs-00000-of-00001.json"],
     ["train_prefs-0*.json", "train_sft-0*.json"]),
    (["train.jsonl", "held_out.jsonl"], ["held_out.jsonl", "train.jsonl"]),  # our own names
    (["trainset.jsonl", "testset.jsonl"], ["testset.jsonl", "trainset.jsonl"]),
    (["prefsTrain.jsonl", "prefsTest.jsonl"], ["prefsTest.jsonl", "prefsTrain.jsonl"]),
    (["train.jsonl", "benchmark.jsonl"], ["benchmark.jsonl", "train.jsonl"]),
    (["train.jsonl", "RewardBench.jsonl"], ["RewardBench.jsonl", "train.jsonl"]),
    (["train.jsonl", "train_eval.jsonl"], ["train.jsonl", "train_eval.jsonl"]),
    (["a.jsonl", "more/B.JSONL"], ["a.jsonl", "more"]),
    (["a.jsonl", "more/b.jsonl.zst"], ["a.jsonl", "more"]),
])
def test_splits_and_subfolders_are_never_mixed(tmp_path, names, choices):
    make_files(tmp_path, *names)
    choices = ", ".join(f"{tmp_path}/{choice}" for choice in choices)
    for path in (tmp_path, f"{tmp_path}/"):
        assert refusal(path).endswith(f"; choose: {choices}")


@pytest.mark.parametrize("names", [
    ["a.jsonl", "b.jsonl"],
    ["train.jsonl", "more.jsonl"],
    ["test_1.jsonl", "test_2.jsonl"],
    ["train-00000-of-00002.json", "train-00001-of-00002.json"],
    ["latest.jsonl", "trainer.jsonl", "contest.jsonl"],  # words, not parts of words
    ["trainset.jsonl", "train.jsonl", "TrainData.json"],
    ["B.JSONL", "C.Json", "a.jsonlines", "d.ndjson"],
])
def test_files_that_belong_together_are_read_together(tmp_path, names):
    make_files(tmp_path, *names, "empty/notes.txt", ".cache/test.jsonl")
    assert [row["from"] for row in rows_of(tmp_path)] == sorted(names)


def test_a_missing_piece_is_named_and_a_piece_alone_can_be_named(tmp_path):
    make_files(tmp_path, "train-00000-of-00003.json", "train-00002-of-00003-ab.json")
    for path in (tmp_path, tmp_path / "train-0*.json"):
        message = refusal(path)
        assert "missing: train-00001-of-00003.json; to read only some pieces, name each" in message
    assert len(rows_of(tmp_path / "train-00000-of-00003.json")) == 1


def test_a_packed_file_in_a_folder_is_not_called_no_rows(tmp_path):
    make_files(tmp_path, "a.jsonl", "b.jsonl.zst")
    assert "b.jsonl.zst: a packed file; unpack it" in refusal(tmp_path)
    assert rows_of(tmp_path / "*.jsonl") == [{"from": "a.jsonl"}]


@pytest.mark.parametrize("text", ['{"rows": 12}', '[{"rows": 12}]', '{\n"rows": 12\n}'])
def test_a_json_file_of_other_fields_beside_the_data_is_named(tmp_path, text):
    make_files(tmp_path, "train.jsonl", "more.json")
    (tmp_path / "stats.json").write_text(text)
    message = f"{tmp_path}/stats.json: no field in common with {tmp_path}/train.jsonl; move it"
    assert message in refusal(tmp_path), "a stats.json would stop the run as a row without a prompt"


def test_tables_are_known_by_endings_in_capitals_too(tmp_path):
    (tmp_path / "F.CSV").write_text("prompt,chosen\nq,a\n")
    (tmp_path / "F.TSV.GZ").write_bytes(gzip.compress(b"prompt\tchosen\nq\ta\n"))
    (tmp_path / "F.JSONL.GZ").write_bytes(gzip.compress(b'{"prompt": "q", "chosen": "a"}\n'))
    assert rows_of(tmp_path) == [{"prompt": "q", "chosen": "a"}] * 3


def test_a_star_chooses_among_the_files_of_a_folder(tmp_path):
    make_files(tmp_path, "train-1.json", "train-2.json", "test-1.json")
    found = [row["from"] for row in rows_of(tmp_path / "train-*.json")]
    assert found == ["train-1.json", "train-2.json"]
    assert "several splits; choose: " in refusal(tmp_path / "*.json"), "a star must not mix splits"
    assert refusal(tmp_path / "x*.json") == f"{tmp_path}/x*.json: no such file"
    assert "x**y.json: " in refusal(tmp_path / "x**y.json"), "Python 3.11 knows no such pattern"


def test_ten_names_are_shown_and_the_others_counted(tmp_path):
    make_files(tmp_path, *(f"{i:02}/a.jsonl" for i in range(13)))
    assert refusal(tmp_path).endswith("/09 and 3 more")
    assert folders.shortened([]) == "nothing"


def test_every_split_that_a_file_can_name_is_one_that_an_object_can_hold():
    assert folders.SPLITS.keys() <= json_files.CONTAINERS


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
    (b'{"a": "cut\n{"a": 2}\n', "f.json:1: not JSON"),  # a broken line of JSON lines
    (b'{"a": \n{"b": 1}\n', "f.json:2: not JSON"),
    (b'{\n"a": 1\n}\n[2]', "f.json:4: not JSON"),
    (b"prompt,chosen,rejected\nq,a,b\n", "f.json: not JSON: it begins with 'prompt,chosen,reject"),
    (b"\n <!DOCTYPE html>", "f.json: a web page, not the data: the download failed"),
    (b"<HTML>", "f.json: a web page, not the data"),
    (b"<p>", "f.json: not JSON: it begins with '<p>'"),
    (b"prompt,chosen\n", "(it looks like a table: name it .csv)"),
    (b"chosen\trejected\n", "(it looks like a table: name it .tsv)"),
    (gzip.compress(b"{}"), "f.json: gzip: give it a name that ends in .gz"),
    (b"PAR1\x15", "f.json: Parquet: give it a name that ends in .parquet"),
    ('{"a": 1}'.encode("utf-16"), "f.json: UTF-16 text: save it as UTF-8"),
    (b"PK\x03\x04", "f.json: a packed file; unpack it"),
    (b"version https://git-lfs.github.com/spec/v1\n", "f.json: not the data, but a pointer to it"),
    (b"[" * 100_000, "f.json: not JSON"),
    (b'{"a":' * 100_000, "f.json:1: not JSON"),
    (b"[" + b"9" * 5000 + b"]", "f.json: not JSON"),
])
def test_a_broken_file_is_named_with_its_line(tmp_path, content, message):
    (tmp_path / "f.json").write_bytes(content)
    assert message in refusal(tmp_path / "f.json")


@pytest.mark.parametrize("name", ["nowhere.json", "nowhere.json.gz", "nowhere"])
def test_a_missing_file_is_named(tmp_path, name):
    assert refusal(tmp_path / name) == f"{tmp_path / name}: No such file or directory"


def test_a_damaged_gzip_file_is_named(tmp_path):
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-20])
    (tmp_path / "no.json.gz").write_bytes(b"not gzip")
    for name in ("cut.json.gz", "no.json.gz"):
        assert name in refusal(tmp_path / name)


def test_a_name_that_may_be_a_data_set_of_the_hub_is_told_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    advice = "a data set of the Hugging Face hub is hub:owner/name"
    assert refusal("owner/name") == f"owner/name: No such file or directory; {advice}"
    assert "hub:" not in refusal("runs/frist"), "runs/ is here: a mistyped path"
    assert "hub:" not in refusal("/owner/name")


def test_a_folder_without_data_files_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("not data")
    message = "no .json, .jsonl, .csv, .tsv or .parquet in this folder (found: notes.txt)"
    assert refusal(tmp_path) == f"{tmp_path}: {message}"


def test_an_arrow_file_is_refused_with_what_to_do(tmp_path):
    make_files(tmp_path, "data-00000-of-00001.arrow", "state.json", "dataset_info.json")
    for path in (tmp_path, tmp_path / "data-00000-of-00001.arrow"):
        assert "Arrow is not read; convert it: datasets.load_dataset('arrow'" in refusal(path)


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.zip", "a.tar.gz"])
def test_a_packed_file_is_refused_by_its_cause(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x28\xb5\x2f\xfd")
    assert "a packed file; unpack it" in refusal(tmp_path / name)


def test_without_pyarrow_parquet_is_one_line_wherever_it_comes_from(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(hub, "data_file", lambda address: tmp_path / "train.parquet")
    for path in (tmp_path, tmp_path / "train.parquet", "hub:owner/prefs/train.parquet"):
        assert refusal(path).endswith("train.parquet: Parquet needs pyarrow: pip install pyarrow")
