"""Parquet, CSV and TSV: what each cell becomes, and what is refused."""
import datetime
import decimal
import gzip
import itertools
import json
import os
import sys
import types

import pytest

from data import DataError, parse_row
from extras import tables


def csv_file(path, text):
    path.write_text(text, "utf-8", newline="")
    return str(path)


def rows_of_csv(path, text):
    return [row for _, row in tables.csv_rows(csv_file(path, text))]


def refusal(rows):
    """What the error says. It is one line."""
    with pytest.raises(DataError) as caught:
        list(rows)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- CSV: the cells


def test_csv_tsv_and_gzip_hold_the_same_rows(tmp_path):
    row = {"prompt": "q, or r", "chosen": "a", "rejected": "b"}
    csv_text = 'prompt,chosen,rejected\r\n"q, or r",a,b\r\n'
    tsv_text = "prompt\tchosen\trejected\nq, or r\ta\tb\n"
    assert rows_of_csv(tmp_path / "f.csv", csv_text) == [row]
    assert rows_of_csv(tmp_path / "f.tsv", tsv_text) == [row]
    assert rows_of_csv(tmp_path / "bom.csv", "\ufeff" + csv_text) == [row], "Excel writes a BOM"
    for name, text in (("f.csv.gz", csv_text), ("f.tsv.gz", tsv_text)):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
        assert [row for _, row in tables.csv_rows(str(tmp_path / name))] == [row]


def test_a_quoted_cell_keeps_its_newlines_and_the_row_is_named_by_its_first_line(tmp_path):
    path = csv_file(tmp_path / "f.csv", 'a,b\n"one\n\ntwo\r\n","say ""x"""\n\nx,y\n')
    assert list(tables.csv_rows(path)) == [
        (f"{path}:2", {"a": "one\n\ntwo\r\n", "b": 'say "x"'}),
        (f"{path}:7", {"a": "x", "b": "y"}),
    ]


def test_a_long_cell_is_read_whole(tmp_path):
    text = "x" * 300_000  # csv stops at 131,072 characters by itself
    assert rows_of_csv(tmp_path / "f.csv", f"a,b\n{text},y\n") == [{"a": text, "b": "y"}]


def test_a_table_trains_like_the_json_lines_with_the_same_rows(tmp_path):
    table = "prompt,responses,scores,margin\nq,\"[\"\"a\"\", \"\"b\"\"]\",\"[0, 2]\",0.5\n"
    [row] = rows_of_csv(tmp_path / "f.csv", table)
    parsed = parse_row(row)
    assert parsed.scores == [0.0, 2.0] and parsed.margin == 0.5 and len(parsed.responses) == 2


def test_rows_are_read_one_at_a_time(tmp_path):
    path = csv_file(tmp_path / "f.csv", "a,b\n1,2\n" + "x,y\n" * 10_000 + "broken\n")
    assert next(tables.csv_rows(path)) == (f"{path}:2", {"a": "1", "b": "2"})


def test_a_column_without_a_name_is_called_by_its_position(tmp_path):
    found = rows_of_csv(tmp_path / "f.csv", ",prompt,\n0,q,x\n")
    assert found == [{"column 1": "0", "prompt": "q", "column 3": "x"}], "pandas writes an index so"


@pytest.mark.parametrize("header, found", [
    ("Prompt,Chosen,Rejected", "'Prompt', 'Chosen', 'Rejected'"),
    ("Why is it blue?,Light.,Paint.", "'Why is it blue?', 'Light.', 'Paint.'"),
    ("my, pipe|separated", "'my', ' pipe|separated'"),
])
def test_a_header_without_a_usual_name_is_shown_once(tmp_path, capsys, header, found):
    for _ in range(2):
        rows_of_csv(tmp_path / "f.csv", header + "\n" + "," * header.count(",") + "\n")
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path}/f.csv:1: no column has a usual name") and found in line
    rows_of_csv(tmp_path / "g.csv", "prompt,my column\nq,x\n")
    assert capsys.readouterr().err == "", "one known column shows that this is a header"


# ---------------------------------------------------------------- CSV: refused


@pytest.mark.parametrize("text, message", [
    ("a,b\n1,2\n1\n", "f.csv:3: 1 cells, but the header has 2"),
    ('a,b\n"1\n2",2,3\n', "f.csv:2: 3 cells, but the header has 2"),
    ("a,b,a\n1,2,3\n", "f.csv:1: two columns are named 'a'"),
    ("prompt;chosen;rejected\nq;a;b\n", "f.csv:1: cells are separated by a comma in .csv"),
    ("prompt\tchosen\nq\ta\n", "f.csv:1: cells are separated by a comma in .csv"),
    ('a,b\n1,2\n3,"never closed\n1,2\n1,2\n', "f.csv:3: not CSV (unexpected end of data)"),
    ('a,b\n"x"y,2\n', "f.csv:2: not CSV"),
    ("a,b\n1,2\n1,\0\n", "f.csv:3: a NUL byte"),
    ("a,scores\nx,high\n", "f.csv:2: field 'scores' is not JSON"),
    ("a,responses\nx,\"['a', 'b']\"\n", "f.csv:2: field 'responses' is not JSON"),
    ("sep=,\na,b\n1,2\n", "f.csv:1: 'sep=' is a line for Excel: delete it"),
    ("prompt|chosen|rejected\nq|a|b\n", "f.csv:1: cells are separated by a comma in .csv"),
])
def test_a_table_that_would_be_misread_is_refused_in_one_line(tmp_path, text, message):
    assert message in refusal(tables.csv_rows(csv_file(tmp_path / "f.csv", text)))


def test_a_table_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "f.csv").write_bytes("a,b\n1,é\n".encode("latin-1"))
    (tmp_path / "f.csv.gz").write_bytes(b"not gzip")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"a,b\n" * 1000)[:-20])
    assert "f.csv: not UTF-8 text" in refusal(tables.csv_rows(str(tmp_path / "f.csv")))
    for name in ("f.csv.gz", "cut.csv.gz", "nowhere.csv"):
        assert f"{name}: " in refusal(tables.csv_rows(str(tmp_path / name)))


def test_a_table_of_a_header_alone_has_no_rows(tmp_path):
    assert rows_of_csv(tmp_path / "f.csv", "a,b\n\n") == []
    assert rows_of_csv(tmp_path / "f.csv", "") == []


# ---------------------------------------------------------------- Parquet


def test_values_that_json_lacks_become_text_or_are_refused_by_name():
    day = datetime.datetime(2024, 6, 12, 8, 30)
    assert tables.json_value(day, "f:1", "x") == "2024-06-12T08:30:00"
    assert tables.json_value(day.date(), "f:1", "x") == "2024-06-12"
    assert tables.json_value(decimal.Decimal("0.10"), "f:1", "x") == "0.10"
    scores = tables.json_value([decimal.Decimal("0.5")], "f:1", "scores")
    assert scores == [0.5], "a score as text orders nothing"
    assert tables.json_value(decimal.Decimal("0.5"), "f:1", "margin") == 0.5
    nested = [{"when": day.time(), "n": None}, ("a", 1.5, True)]
    plain = [{"when": "08:30:00", "n": None}, ["a", 1.5, True]]
    assert tables.json_value(nested, "f:1", "x") == plain
    for value in (b"\x89PNG", datetime.timedelta(1), [{"bytes": b""}]):
        with pytest.raises(DataError, match="^f:1: column 'x' holds (bytes|timedelta), which JSON"):
            tables.json_value(value, "f:1", "x")


def test_parquet_is_read_batch_by_batch(monkeypatch):
    """With a stand-in for pyarrow: the second batch is asked for when the first is used up."""
    asked = []

    class File:
        schema_arrow = types.SimpleNamespace(names=["a"])

        def __init__(self, path, **how):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def iter_batches(self, batch_size):
            for number in range(3):
                asked.append(number)
                yield types.SimpleNamespace(to_pylist=lambda: [{"a": "x"}] * batch_size)

    parquet = types.SimpleNamespace(ParquetFile=File)
    stand_in = types.SimpleNamespace(parquet=parquet, ArrowException=ArithmeticError)
    monkeypatch.setitem(sys.modules, "pyarrow", stand_in)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    rows = tables.parquet_rows("f.parquet")
    assert next(rows) == ("f.parquet:1", {"a": "x"}) and asked == [0]
    assert len(list(itertools.islice(rows, 256))) == 256 and asked == [0, 1]
    assert len(list(rows)) == 511


@pytest.fixture
def write_parquet(tmp_path):
    """A function that writes columns, for tests that need the real pyarrow."""
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is an optional extra")
    parquet = pytest.importorskip("pyarrow.parquet")

    def write(columns, **options):
        parquet.write_table(pyarrow.table(columns), tmp_path / "f.parquet", **options)
        return str(tmp_path / "f.parquet")

    return write


def test_a_parquet_file_gives_the_rows_of_json_lines(write_parquet):
    rows = [
        {"prompt": "q", "chosen": [{"role": "assistant", "content": "a"}], "margin": 0.5,
         "scores": [1, 2], "id": None, "ok": True, "info": {"n": 1, "m": None}},
        {"prompt": None, "chosen": [], "margin": None, "scores": None, "id": "x", "ok": None,
         "info": None},
    ]
    path = write_parquet({name: [row[name] for row in rows] for name in rows[0]})
    found = list(tables.parquet_rows(path))
    assert [where for where, _ in found] == [f"{path}:1", f"{path}:2"]
    assert [row for _, row in found] == rows
    assert json.loads(json.dumps(found[0][1])) == rows[0]


def test_times_of_a_parquet_file_are_text_and_pictures_are_refused(write_parquet):
    day = datetime.datetime(2024, 6, 12)
    price = decimal.Decimal("1.50")
    path = write_parquet({"a": ["x"], "day": [day], "price": [price]})
    [(_, row)] = tables.parquet_rows(path)
    assert row == {"a": "x", "day": "2024-06-12T00:00:00", "price": "1.50"}
    path = write_parquet({"a": ["x", "y"], "picture": [None, {"bytes": b"\x89PNG"}]})
    assert f"{path}:2: column 'picture' holds bytes" in refusal(tables.parquet_rows(path))


def test_many_row_groups_keep_their_order(write_parquet):
    path = write_parquet({"n": list(range(1000))}, row_group_size=300)
    assert [row["n"] for _, row in tables.parquet_rows(path)] == list(range(1000))
    path = write_parquet({"n": []})
    assert list(tables.parquet_rows(path)) == []


def test_a_large_row_group_is_not_kept_in_memory(write_parquet):
    """Row groups of a gigabyte are common. pyarrow keeps whole columns, unless it has a buffer."""
    import pyarrow

    text = "".join(map(chr, range(32, 127))) * 40
    path = write_parquet(
        {"a": [f"{i}{text}" for i in range(5000)]}, compression="none", use_dictionary=False
    )
    pool = pyarrow.default_memory_pool()
    before, most = pool.bytes_allocated(), 0
    for _ in tables.parquet_rows(path):
        most = max(most, pool.bytes_allocated() - before)
    assert most < os.path.getsize(path) / 2, f"{most} bytes for a file of {os.path.getsize(path)}"


def test_a_parquet_file_that_cannot_be_read_is_one_line(tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is an optional extra")
    for name, content in (("no.parquet", b"not parquet" * 9), ("empty.parquet", b"")):
        (tmp_path / name).write_bytes(content)
        message = refusal(tables.parquet_rows(str(tmp_path / name)))
        assert f"{name}: not Parquet that can be read" in message
    missing = refusal(tables.parquet_rows(str(tmp_path / "nowhere.parquet")))
    assert missing == f"{tmp_path}/nowhere.parquet: No such file or directory"
