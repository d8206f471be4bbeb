"""--config: what a run wrote into options.json starts the same run, and a mistake is one line."""
import json

import pytest
from conftest import command, write_rows
from runs import SMALL, assert_equal, metrics, options, pairs, report, train
from runs import folder  # pytest finds fixtures by their names here
from safetensors.torch import load_file

import train_rm


def written(path, **content):
    path.write_text(json.dumps(content))
    return path


def test_the_options_of_a_run_in_a_file_give_the_same_run(folder, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    args = ["--max-steps", 4, "--eval-steps", 2, "--lr", 1e-3, "--pack", "--freeze-layers", 1]
    assert train(folder, *args, "--output", first)[0] == 0
    config = first / "options.json"
    status, _, err = command(train_rm.main, "--config", config, "--output", second)
    assert status == 0, err
    assert metrics(second) == metrics(first) and report(second) == report(first)
    assert_equal(load_file(second / "model.safetensors"), load_file(first / "model.safetensors"))
    theirs, ours = (json.loads((run / "options.json").read_text()) for run in (first, second))
    expected = theirs["options"] | {"output": str(second), "config": str(config)}
    assert ours["options"] == expected

    status, _, err = command(  # what was made from a file can be a file, and be resumed
        train_rm.main, "--config", second / "options.json", "--output", tmp_path / "third"
    )
    assert status == 0, err
    (second / "report.json").unlink()
    status, _, err = command(train_rm.main, "--resume", second)
    assert status == 0, err
    assert report(second) == report(first)


def test_options_on_the_command_line_win(tmp_path):
    config = written(tmp_path / "c.json", lr=0.5, pack=True, data=["a", "b"], eval_data=["e"])
    args = options("--config", config)
    assert (args.lr, args.pack, args.data, args.eval_data) == (0.5, True, ["a", "b"], ["e"])
    args = options("--config", config, "--lr", 1, "--no-pack", "--data", "c")
    assert (args.lr, args.pack, args.data, args.eval_data) == (1.0, False, ["c"], ["e"])


def test_what_is_in_neither_has_the_default_that_follows_from_the_others(tmp_path):
    args = options("--config", written(tmp_path / "c.json", options={"data": ["a.jsonl"], "lr": 1}))
    assert args.batch_size == 64, "that of real data, and not of the toy world"
    assert args.lr == 1.0 and isinstance(args.lr, float), "as from the command line"
    args = options("--config", written(tmp_path / "c.json", lr=None, patience=None))
    assert args.lr == 1e-3 and args.patience is None


def test_how_a_run_was_started_is_not_read(tmp_path):
    given = {"resume": "runs/other", "config": "other.json", "output": "runs/other"}
    config = written(tmp_path / "c.json", data=["a.jsonl"], **given)
    args = options("--config", config)
    assert args.resume is None and args.config == str(config)
    assert args.output != "runs/other", "the run that the file comes from would be moved aside"


def test_epochs_on_the_command_line_win_over_steps_in_the_file(tmp_path):
    config = written(tmp_path / "c.json", max_steps=20)
    args = options("--config", config, "--epochs", 2)
    assert (args.epochs, args.max_steps) == (2.0, None)
    status, _, err = command(train_rm.main, "--epochs", 2, "--max-steps", 20)
    assert status == 2 and "choose one of --epochs and --max-steps" in err


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    config = tmp_path / "c.json"
    config.write_text('{"lr": 1e-3, "lr": 2}')
    status, _, err = command(train_rm.main, "--config", config)
    assert status == 2 and "the key 'lr' is there twice" in err


MISTAKES = [
    ({"learning_rate": 1e-3}, "'learning_rate' is no option"),
    ({"versions": {}}, "'versions' is no option"),
    ({"lr": "1e-5"}, "'lr' has to be a number, and is \"1e-5\""),
    ({"lr": True}, "'lr' has to be a number, and is true"),
    ({"batch_size": 1.5}, "'batch_size' has to be a whole number, and is 1.5"),
    ({"pack": 1}, "'pack' has to be true or false, and is 1"),
    ({"pack": None}, "'pack' has to be true or false, and is null"),
    ({"data": "a.jsonl"}, "'data' has to be a list of texts, and is \"a.jsonl\""),
    ({"data": []}, "'data' has to be a list of texts, and is []"),
    ({"model": 7}, "'model' has to be a text, and is 7"),
    ({"keep": "first"}, "'keep' has to be one of best, last, and is \"first\""),
    ({"save_dtype": "float16"}, "'save_dtype' has to be one of float32, bfloat16"),
]


@pytest.mark.parametrize("content, message", MISTAKES, ids=[str(m[0]) for m in MISTAKES])
def test_a_mistake_in_the_file_is_one_line_with_file_and_key(content, message, tmp_path):
    file = written(tmp_path / "c.json", options=content)
    status, out, err = command(train_rm.main, "--config", file, "--output", tmp_path / "run")
    assert status == 2 and err.count("\n") == 1, err
    assert err.startswith(f"train_rm.py: {file}: {message}"), err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text, message", [
    ("{", "not JSON"),
    ("[1]", "not an object of options"),
    ('{"options": [1]}', "not an object of options"),
    (None, "No such file"),
])
def test_a_file_that_has_no_options_is_one_line(text, message, tmp_path):
    file = tmp_path / "c.json"
    if text is not None:
        file.write_text(text)
    status, _, err = command(train_rm.main, "--config", file)
    assert status == 2 and err.startswith(f"train_rm.py: {file}: {message}"), err
    assert err.count("\n") == 1


def test_a_value_out_of_range_is_refused_as_on_the_command_line(tmp_path):
    file = written(tmp_path / "c.json", batch_size=0)
    status, _, err = command(train_rm.main, "--config", file)
    assert status == 2 and "--batch-size 0 is too small" in err.splitlines()[-1]


def test_a_run_is_resumed_with_its_own_options_and_no_others(folder, tmp_path):
    run = tmp_path / "run"
    data = ["--data", write_rows(tmp_path / "d.jsonl", pairs(20)), "--output", run]
    assert command(train_rm.main, *SMALL, *data, "--max-steps", 1)[0] == 0
    file = written(tmp_path / "c.json", lr=0.5)
    status, _, err = command(train_rm.main, "--resume", run, "--config", file)
    assert status == 2 and "--config" in err.splitlines()[-1]
