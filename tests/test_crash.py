"""A process that is killed at any moment, or whose disk is full, costs no more than its last step.

crash.py trains, kills and continues in the background, while other tests run.
"""
import json

import crash
import pytest


@pytest.fixture(scope="session", autouse=True)
def process(tmp_path_factory):
    """crash.py at work. It starts with the first test of the session, not with the first below."""
    folder = tmp_path_factory.mktemp("crash")
    process = crash.start_in_background(folder)
    yield folder, process
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def found(process):
    """What crash.py has found, when it is done."""
    folder, process = process
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    parts = {}
    for file in folder.glob("*/found.json"):
        parts[file.parent.name] = json.loads(file.read_text())
    return parts


def test_a_run_that_is_killed_twenty_times_learns_what_it_learns_otherwise(found):
    found = found["killed_at_random"]
    assert found["errors"] == [] and found["kills"] == 20
    assert found["kept"] < 12, "this test wants a best model that is not the last"
    assert found["resumed"] >= 10, "most of them continued from a checkpoint"
    assert found["broken"] == []
    assert len(found["ends"]) >= 2 and all(found["ends"]), "the weights of an uninterrupted run"


def test_a_kill_at_any_call_that_changes_the_disk_leaves_only_complete_files(found):
    found = found["killed_at_every_call"]
    assert found["errors"] == [], f"killed at: {found['places'][-2:]}"
    assert found["broken"] == []
    assert found["kept"] == 1, "this test wants a best model that is not the last"
    assert found["end"], "the weights of an uninterrupted run"
    assert found["files"] == found["expected_files"], "something is missing, or was left behind"


def test_kills_came_before_and_after_each_file_got_its_name(found):
    places = "\n".join(found["killed_at_every_call"]["places"])
    for name in ("options.json", "tokens", "held_out.jsonl", "checkpoint-1", "report.json",
                 "best.safetensors"):
        assert f"then fsync {name}" in places and f"then replace {name}" in places, name
        assert f"\nreplace {name}" in places, name


@pytest.mark.parametrize("writer, kept", [
    ("write_tokens", []),
    ("save_file", ["checkpoint-1.safetensors"]),
    ("save_pretrained", ["checkpoint-3.safetensors"]),
    ("save", ["checkpoint-3.safetensors"]),
])
def test_a_full_disk_costs_one_line_and_keeps_the_checkpoint_before(writer, kept, found):
    found = found["full_disks"][writer]
    assert found["status"] == 2 and found["error"].count("\n") == 1, found["error"]
    assert found["error"].startswith("train_rm.py: ") and "File too large" in found["error"]
    assert found["checkpoints"] == kept and found["broken"] == [] and found["leftovers"] == []
    assert found["continued"] == [0, ""]
