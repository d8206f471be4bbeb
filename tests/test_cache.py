"""Large data: streamed into a cache that is mapped into memory, built once, and gives what memory would have given."""
import json
import mmap
import os
import signal
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
from conftest import ROOT, save_run, tiny_model, tiny_tokenizer

import train_rm
from data import DataError, Pairs, Preference, Preferences, cached_preferences, encode_preferences, split_by_prompt, step_batches, toy_preferences

ROWS = [*toy_preferences(60, 0), {"prompt": "é?", "responses": ["a", "b", "c"], "scores": [1, 2, 2], "id": "k", "subset": "ü"}]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def same(a: Pairs, b: Pairs) -> bool:
    arrays = ("ids", "offsets", "row_sequences", "row_pairs", "chosen", "rejected", "prompt_tokens", "margin", "prompt_key", "used_ids",
              "prompt_group")
    equal = all(np.array_equal(getattr(a, name), getattr(b, name)) for name in arrays)
    return equal and a.fingerprint == b.fingerprint and [a.tags(r) for r in range(a.rows)] == [b.tags(r) for r in range(b.rows)]


@pytest.mark.parametrize("rows", [ROWS, ROWS[:60], []], ids=["with K responses", "gold rewards", "nothing"])
def test_the_cache_holds_what_memory_would_hold(tmp_path, rows):
    preferences, tokenizer = Preferences([write(tmp_path / "d.jsonl", rows)]), tiny_tokenizer()
    inside, audit = encode_preferences(preferences, tokenizer, 256)
    for _ in range(2):  # made, then found
        mapped, again = cached_preferences(tmp_path / "cache" / "d", preferences, tokenizer, 256)
        assert same(inside, mapped) and again == audit
    assert (mapped.gold is None) == (len(rows) != 60) and (mapped.gold is None or np.array_equal(mapped.gold, inside.gold))
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["d", "d.lock"]


def test_pages_given_back_can_be_read_again(tmp_path):
    preferences = Preferences([write(tmp_path / "d.jsonl", ROWS)])
    pairs, _ = cached_preferences(tmp_path / "d", preferences, tiny_tokenizer(), 256)
    before = [s.tolist() for r in range(pairs.rows) for s in pairs.row(r)]
    pairs.release()
    assert [s.tolist() for r in range(pairs.rows) for s in pairs.row(r)] == before and pairs.tags(60)["subset"] == "ü"


def test_memory_does_not_grow_with_the_texts(tmp_path, monkeypatch):
    alive, most = weakref.WeakSet(), []

    class Watched(Preferences):
        def __iter__(self):
            for p in super().__iter__():
                alive.add(p)
                most.append(len(alive))
                yield p

    monkeypatch.setattr(Preference, "__hash__", object.__hash__)  # for the set
    monkeypatch.setattr(Preference, "__eq__", object.__eq__)
    data = write(tmp_path / "d.jsonl", ({"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(4000)))
    pairs, _ = cached_preferences(tmp_path / "d", Watched([data]), tiny_tokenizer(), 256)
    assert pairs.rows == len(most) == 4000 and max(most) < 1500
    assert isinstance(pairs.ids.base.obj, mmap.mmap) and isinstance(pairs.tag_text, mmap.mmap)


def test_the_split_is_the_same_however_often_it_is_read(tmp_path):
    preferences = Preferences([write(tmp_path / "d.jsonl", [*ROWS, {"prompt": "no pair"}])], skip_bad_rows=True)
    train, held_out = split_by_prompt(preferences, 0.3, 0)
    sides = [[p.where for p in side] for side in (train, held_out, train, held_out)]
    assert sides[:2] == sides[2:] and sorted(sides[0] + sides[1]) == sorted(p.where for p in preferences)
    assert (train.malformed, held_out.malformed) == (1, 0)


BUILD = f"""
import os, sys, time
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from pathlib import Path
from conftest import tiny_tokenizer
import data
encode = data.encode_preferences
def slowly(*args, **options):
    print("building", flush=True)
    time.sleep(float(sys.argv[3]))
    return encode(*args, **options)
data.encode_preferences = slowly
pairs, _ = data.cached_preferences(Path(sys.argv[2]), data.Preferences([sys.argv[1]]), tiny_tokenizer(), 256)
print(pairs.rows, flush=True)"""


def test_of_several_processes_one_builds_and_the_others_wait(tmp_path):
    write(tmp_path / "d.jsonl", ROWS)
    started = [subprocess.Popen([sys.executable, "-c", BUILD, tmp_path / "d.jsonl", tmp_path / "cache", "0.5"], stdout=subprocess.PIPE,
                                text=True) for _ in range(3)]
    outputs = [process.communicate()[0].split() for process in started]
    assert [output[-1] for output in outputs] == ["61"] * 3 and sum("building" in output for output in outputs) == 1


def test_a_builder_that_is_killed_leaves_nothing_and_the_next_one_builds(tmp_path):
    write(tmp_path / "d.jsonl", ROWS)
    first = subprocess.Popen([sys.executable, "-c", BUILD, tmp_path / "d.jsonl", tmp_path / "cache", "60"], stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "building\n"
    second = subprocess.Popen([sys.executable, "-c", BUILD, tmp_path / "d.jsonl", tmp_path / "cache", "0"], stdout=subprocess.PIPE, text=True)
    time.sleep(0.2)
    assert second.poll() is None and not (tmp_path / "cache").exists()
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert second.communicate()[0].split() == ["building", "61"]


def test_training_from_the_cache_is_training_from_memory_and_stale_caches_are_not_taken(tmp_path, capsys):
    model = save_run(tmp_path / "m", tiny_model(), tiny_tokenizer(), max_length=256)
    data = write(tmp_path / "d.jsonl", toy_preferences(60, 0))
    train = lambda output, *more: train_rm.main(["--model", str(model), "--data", str(data), "--max-steps", "4", "--batch-size", "8",
                                                 "--output", str(tmp_path / output), *more])
    cache = ["--cache-dir", str(tmp_path / "cache")]
    folders = lambda: sorted(p.name for p in (tmp_path / "cache").iterdir() if p.is_dir())
    assert train("memory") == train("made", *cache) == train("found", *cache) == 0
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("memory", "made", "found")]
    assert weights[0] == weights[1] == weights[2] and len(folders()) == 2
    assert (tmp_path / "made" / "held_out.jsonl").read_bytes() == (tmp_path / "memory" / "held_out.jsonl").read_bytes()
    assert train("shorter", *cache, "--max-length", "64") == train("other", *cache, "--seed", "1") == 0
    assert len(folders()) == 6  # the seed decides which prompts are held out
    write(data, toy_preferences(60, 1))
    assert train("changed", *cache) == 0 and len(folders()) == 8
    options = [json.loads((tmp_path / run / "options.json").read_text()) for run in ("memory", "made", "changed")]
    assert options[0]["data_fingerprint"] == options[1]["data_fingerprint"] != options[2]["data_fingerprint"]


def test_a_malformed_row_leaves_no_cache_behind(tmp_path, capsys):
    data = write(tmp_path / "d.jsonl", [*toy_preferences(40, 0), {"prompt": "q", "chosen": "a"}])
    assert train_rm.main(["--data", str(data), "--cache-dir", str(tmp_path / "cache"), "--output", str(tmp_path / "run")]) == 2
    assert "d.jsonl:41: no field 'rejected'" in capsys.readouterr().err
    assert not [p for p in tmp_path.rglob("*") if p.is_dir() and p.name != "cache"]


def test_every_rank_has_equally_many_micro_batches_and_every_row_is_in_one(tmp_path):
    pairs, _ = encode_preferences(Preferences([write(tmp_path / "d.jsonl", ROWS)]), tiny_tokenizer(), 256)  # 61 rows: the last step has 5
    for step in (0, 7):
        for accumulation, ranks in ((1, 1), (1, 4), (4, 2), (1, 8), (2, 4)):
            for shared in (True, False):
                shares = [step_batches(pairs, step, 8, accumulation, rank, ranks, shared_prompts=shared)[0] for rank in range(ranks)]
                assert len({len(hands) for hands in shares}) == 1
                rows = sorted(r for hands in shares for hand in hands for r in hand)
                assert rows == sorted(step_batches(pairs, step, 8)[0][0]) and len(rows) == (8 if step == 0 else 5)


@pytest.mark.parametrize("file, damage", [
    ("ids.bin", lambda data: data[:-400]), ("ids.bin", lambda data: data[:-2]), ("tags.jsonl", lambda data: data[:-3]),
    ("arrays.safetensors", lambda data: data[:100]), ("about.json", lambda data: b"{"), ("about.json", None)])
def test_a_damaged_cache_is_named(tmp_path, file, damage):
    preferences = Preferences([write(tmp_path / "d.jsonl", ROWS)])
    make = lambda: cached_preferences(tmp_path / "cache", preferences, tiny_tokenizer(), 256)
    make()
    path = tmp_path / "cache" / file
    path.write_bytes(damage(path.read_bytes())) if damage else path.unlink()
    with pytest.raises(DataError, match="cache: this cache is damaged .*; delete the folder"):
        make()
