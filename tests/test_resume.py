"""train_rm.py: a run that was stopped continues as if nothing had happened.

test_crash.py has the rest: killed processes, and disks that are full.
"""
import errno
import fcntl
import itertools
import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import SENT, command, save_run, tiny_model, tiny_tokenizer, write_rows
from runs import MIXED, assert_equal, column, metrics, pairs, report, toy, train
from runs import every_step, folder, small_toy  # pytest finds fixtures by their names here
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import train_rm
from data import Examples
from model import CheckpointError


def weights(run):
    """The tensors of the model."""
    return load_file(run / "model.safetensors")


def signal_in_step(monkeypatch, number, step):
    """The process gets a signal while it computes a step (1, 2, …), once."""
    accumulate, steps = train_rm.accumulate_gradients, itertools.count(1)

    def with_signal(*args):
        if next(steps) == step:
            SENT.append(number)
            os.kill(os.getpid(), number)
        return accumulate(*args)

    monkeypatch.setattr(train_rm, "accumulate_gradients", with_signal)


def read_checkpoint(run):
    """Tensors and state of the newest checkpoint of a run."""
    file = train_rm.checkpoints(run)[-1]
    with safe_open(file, "pt") as tensors:
        return load_file(file), json.loads(tensors.metadata()["state"])


def assert_same_run(found, expected):
    """The same weights, log, report, and checkpoint (AdamW's moments are there): bit for bit."""
    assert metrics(found) == metrics(expected), "the log of the resumed run is another one"
    assert_equal(weights(found), weights(expected), "the resumed run learned something else")
    assert report(found) == report(expected)
    tensors, state = read_checkpoint(found)
    expected_tensors, expected_state = read_checkpoint(expected)
    assert state == expected_state
    assert_equal(tensors, expected_tensors)


# ---------------------------------------------------------------- what is put back


def one_step(model, optimizer):
    """Any step of AdamW: every parameter then has moments."""
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def test_a_checkpoint_puts_back_all_that_the_next_step_depends_on(tmp_path):
    model = tiny_model()
    optimizer = train_rm.make_optimizer(model, 0.1, 0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7)
    for _ in range(3):
        one_step(model, optimizer)
    train_rm.save_checkpoint(tmp_path, 3, model, optimizer, scaler, [{"loss": 0.5}])

    again = tiny_model(seed=1)
    its_optimizer = train_rm.make_optimizer(again, 0.1, 0.0)
    its_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    step, since_log = train_rm.load_checkpoint(tmp_path, again, its_optimizer, its_scaler)
    assert step == 3, "the number of steps that were done"
    assert since_log == [{"loss": 0.5}], "the means since the last log line are lost"
    assert_equal(again.state_dict(), model.state_dict(), "weights are not put back")
    for parameter, its in zip(model.parameters(), again.parameters()):
        found, expected = its_optimizer.state[its], optimizer.state[parameter]
        assert_equal(found, expected, "a moment of AdamW, or its count of steps, is not put back")
    its_scaler.scale(torch.ones(()))  # a scaler makes its tensor in the first call
    assert its_scaler.get_scale() == 2.0**7, "the loss scale of float16 is not put back"


def test_a_resumed_run_goes_through_the_rows_that_the_stopped_one_had_left(
    folder, tmp_path, monkeypatch
):
    taken, rows_of_step = [], train_rm.rows_of_step

    def watched(*args):
        numbers = rows_of_step(*args)
        taken.extend(numbers.tolist())
        return numbers

    monkeypatch.setattr(train_rm, "rows_of_step", watched)
    with monkeypatch.context() as patch:
        signal_in_step(patch, signal.SIGINT, 2)
        assert train(folder, "--output", tmp_path / "run")[0] == 130  # 3 steps are an epoch
    assert command(train_rm.main, "--resume", tmp_path / "run")[0] == 0
    assert sorted(taken) == list(range(21)), "rows are repeated, or left out, after resuming"


def test_log_lines_up_to_the_checkpoint_stay_and_later_ones_go(tmp_path):
    write_rows(tmp_path / "metrics.jsonl", [{"step": step} for step in (4, 6, 8)])
    train_rm.keep_lines(tmp_path / "metrics.jsonl", until=6)
    kept = [line["step"] for line in metrics(tmp_path)]
    assert kept == [4, 6], "step 6 is done, and its line stays; step 8 will be done again"


def test_frozen_weights_are_not_taken_from_another_model(folder, tmp_path, monkeypatch):
    """With LoRA a checkpoint holds the factors alone. The base is read again."""
    base = save_run(tmp_path / "base", tiny_model(), tiny_tokenizer(), 256)
    args = ["--model", base, "--lora-rank", 2, "--max-steps", 4, "--output", tmp_path / "run"]
    with monkeypatch.context() as patch:
        signal_in_step(patch, signal.SIGINT, 2)
        assert train(folder, *args)[0] == 130
    save_run(base, tiny_model(seed=1), tiny_tokenizer(), 256)  # somebody trained it further
    status, _, err = command(train_rm.main, "--resume", tmp_path / "run")
    assert status == 2, "factors that were trained on one base were put on another one"
    assert "is another model than at the first start" in err, err


# ---------------------------------------------------------------- stopped and resumed

# 15 steps, four in an epoch; log lines after 4, 8, 12 and 15 steps; evaluations after 6 and 12.
LONG = ["--max-steps", 15, "--eval-steps", 6, "--save-steps", 14, "--lr", 1e-3, "--batch-size", 6]


@pytest.fixture(scope="module")
def whole(folder):
    """Uninterrupted runs, by their options."""
    write_rows(folder / "mixed.jsonl", [*MIXED, *pairs(17)])
    runs = {}

    def run(*args):
        if args not in runs:
            runs[args] = folder / f"whole {len(runs)}"
            data = ["--data", folder / "mixed.jsonl"]
            assert train(folder, *data, *LONG, *args, "--output", runs[args])[0] == 0
        return runs[args]

    return run


@pytest.mark.parametrize("step, more", [
    (1, ()),
    (4, ()),  # a log line, and the end of an epoch
    (6, ("--pack", "--bf16")),  # an evaluation
    (7, ("--gradient-accumulation-steps", "2")),
    (14, ()),  # the last checkpoint
])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(
    step, more, folder, whole, tmp_path, monkeypatch
):
    monkeypatch.setattr(train_rm, "LOGGING_STEPS", 4)
    expected, run = whole(*more), tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_in_step(patch, signal.SIGINT, step)
        args = ["--data", folder / "mixed.jsonl", *LONG, *more, "--output", run]
        status, out, err = train(folder, *args)
    assert status == 130 and f"--resume {run}" in out.splitlines()[-1], err
    name = f"checkpoint-{step}.safetensors"
    assert [path.name for path in train_rm.checkpoints(run)] == [name], "it stops after the step"
    status, out, err = command(train_rm.main, "--resume", run)
    assert status == 0 and f"resumed from {run / name}" in out, err
    assert_same_run(run, expected)


@pytest.mark.parametrize("step", [3, 9])  # while the scale is too large for any step; later
def test_the_loss_scale_of_float16_is_resumed_too(step, folder, tmp_path, monkeypatch):
    class LargeScale(torch.amp.GradScaler):
        def __init__(self, device, enabled):
            super().__init__(device, enabled=enabled, init_scale=2.0**20)

    monkeypatch.setattr(torch.amp, "GradScaler", LargeScale)
    args = [*LONG, "--fp16"]
    assert train(folder, *args, "--output", tmp_path / "whole")[0] == 0
    scale = read_checkpoint(tmp_path / "whole")[1]["scaler"]["scale"]
    assert 2**10 < scale < 2**17, "this test wants some overflows, but not in every step"
    with monkeypatch.context() as patch:
        signal_in_step(patch, signal.SIGINT, step)
        assert train(folder, *args, "--output", tmp_path / "run")[0] == 130
    status, _, err = command(train_rm.main, "--resume", tmp_path / "run")
    assert status == 0, err
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("name, expected", [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_stops_after_the_step_with_a_checkpoint(
    name, expected, folder, tmp_path, monkeypatch
):
    before = signal.getsignal(signal.SIGTERM)
    signal_in_step(monkeypatch, getattr(signal, name), 2)
    status, _, err = train(folder, "--max-steps", 5, "--output", tmp_path / "run")
    assert status == expected and err == ""
    assert read_checkpoint(tmp_path / "run")[1]["step"] == 2, (
        "a checkpoint has the number of steps that are done: resumed, it would repeat one"
    )
    assert signal.getsignal(signal.SIGTERM) is before, "outside training signals act as before"


def test_a_signal_that_no_test_has_sent_ends_pytest():
    arrived, before = [], signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda number, frame: arrived.append(number))
    try:
        command(lambda argv: 128 + signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert arrived == [signal.SIGTERM], "a training run inside a test has swallowed it"


def test_a_second_signal_two_seconds_later_stops_at_once(monkeypatch):
    clock = itertools.chain([10.0, 11.0], itertools.repeat(13.0))
    monkeypatch.setattr(train_rm.time, "monotonic", lambda: next(clock))
    with train_rm.stop_signals() as received:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # torchrun repeats what the terminal has sent
        assert received, "the first signal only asks to stop"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_before_training_is_one_line(folder, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_rm, "write_tokens", interrupted)
    status, _, err = train(folder, "--output", tmp_path / "run")
    assert status == 130 and "Traceback" not in err


def test_a_run_that_is_killed_while_its_tokenizer_is_written_can_be_resumed(
    tmp_path, monkeypatch, small_toy
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_in_step(patch, signal.SIGINT, 1)
        assert toy("--max-steps", 2, "--output", run)[0] == 130
    shutil.rmtree(run / "tokens")
    for name in ("held_out.jsonl", "metrics.jsonl", "tokenizer_config.json"):
        (run / name).unlink()
    train_rm.checkpoints(run)[0].unlink()
    (run / "tokenizer.json").write_text("{")  # as if it was killed here
    status, _, err = command(train_rm.main, "--resume", run)
    assert status == 0, err


def test_a_run_without_a_checkpoint_starts_again_from_its_tokens(
    folder, whole, tmp_path, monkeypatch
):
    monkeypatch.setattr(train_rm, "LOGGING_STEPS", 4)
    data, run = write_rows(tmp_path / "d.jsonl", [*MIXED, *pairs(17)]), tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_in_step(patch, signal.SIGINT, 5)
        assert train(folder, "--data", data, *LONG, "--output", run)[0] == 130
    train_rm.checkpoints(run)[0].unlink()
    data.unlink()  # it is not needed any more
    status, _, err = command(train_rm.main, "--resume", run)
    assert status == 0, err
    assert_same_run(run, whole())


def test_the_half_line_of_a_killed_run_is_taken_out_of_the_log(folder, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_in_step(patch, signal.SIGINT, 5)
        assert train(folder, *LONG, "--output", run)[0] == 130
    with open(run / "metrics.jsonl", "a") as log:
        log.write('{"step": 6, "loss": 0.5}\n{"step": 7, "lo')
    assert command(train_rm.main, "--resume", run)[0] == 0
    steps = [line["step"] for line in metrics(run)]
    assert steps == [6, 10, 12, 15, 15], "lines of steps that are done again are there once"


def test_a_half_written_checkpoint_is_never_taken_for_one(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with train_rm.replacing(tmp_path / "checkpoint-9.safetensors") as path:
            path.write_bytes(b"half")
            assert train_rm.checkpoints(tmp_path) == []
            raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_are_ordered_by_their_steps_not_by_their_names(tmp_path):
    for step in (500, 1000, 1500):
        (tmp_path / f"checkpoint-{step}.safetensors").touch()
    names = [path.name for path in train_rm.checkpoints(tmp_path)]
    assert names[-1] == "checkpoint-1500.safetensors"


def test_a_finished_run_is_not_trained_again(folder, tmp_path):
    run = tmp_path / "run"
    assert train(folder, "--max-steps", 4, "--save-steps", 2, "--output", run)[0] == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    status, out, _ = command(train_rm.main, "--resume", run)
    assert status == 0 and "is finished" in out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


# ---------------------------------------------------------------- options of --resume


@pytest.fixture
def stopped(folder, tmp_path, monkeypatch):
    """A run that was stopped after 5 of 15 steps."""
    with monkeypatch.context() as patch:
        signal_in_step(patch, signal.SIGINT, 5)
        assert train(folder, *LONG, "--output", tmp_path / "stopped")[0] == 130
    return tmp_path / "stopped"


def test_where_and_how_a_run_computes_may_change_when_it_is_resumed(
    folder, stopped, tmp_path, every_step
):
    assert train(folder, *LONG, "--output", tmp_path / "whole")[0] == 0
    free = ["--gradient-accumulation-steps", 3, "--gradient-checkpointing", "--device", "cpu"]
    free += ["--pack", "--eval-steps", 100, "--save-steps", 100]
    assert command(train_rm.main, "--resume", stopped, *free)[0] == 0
    assert [line["step"] for line in metrics(stopped) if "eval_loss" in line] == [15]
    later = column(tmp_path / "whole", "loss")[-9:]
    assert column(stopped, "loss")[-9:] == pytest.approx(later, abs=1e-4)


@pytest.mark.parametrize("args, message", [
    (["--lr", 0.5], "--lr 0.001"),
    (["--seed", 1], "--seed 0"),
    (["--max-steps", 20], "--max-steps 15"),
    (["--label-smoothing", 0.1], "--label-smoothing 0.0"),
    (["--bf16"], "without --bf16"),
    (["--batch-size", 5], "--batch-size 6"),
    (["--output", "elsewhere"], "--output"),
])
def test_what_would_change_the_run_is_refused_when_it_is_resumed(args, message, stopped):
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    status, _, err = command(train_rm.main, "--resume", stopped, *args)
    assert status == 2, f"{args} was taken: half of the run would be another run"
    assert message in err.splitlines()[-1], err
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


def test_the_options_of_the_run_may_be_given_again(folder, stopped):
    status, _, err = train(folder, *LONG, "--resume", stopped)
    assert status == 0, err


def test_only_a_run_can_be_resumed(folder, tmp_path):
    for path in (folder / "tiny", tmp_path / "nowhere"):
        status, _, err = command(train_rm.main, "--resume", path)
        assert status == 2 and "no options.json there, so not a run" in err.splitlines()[-1]


def lock(run):
    """Claim a run folder -> what gives it back. It would be shared: a run has to want it alone."""
    handle = os.open(run, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return lambda: os.close(handle)


@pytest.mark.parametrize("earlier_run", [True, False])
def test_no_second_run_writes_into_the_folder_of_one_that_goes_on(
    earlier_run, folder, stopped, monkeypatch
):
    output = stopped if earlier_run else stopped.with_name("new")
    plain, answers = train_rm.accumulate_gradients, []

    def second_run_comes(*args):
        try:
            lock(output)()
            answers.append("written into by two runs")
        except BlockingIOError:
            answers.append("refused")
        return plain(*args)

    monkeypatch.setattr(train_rm, "accumulate_gradients", second_run_comes)
    assert train(folder, "--max-steps", 2, "--output", output)[0] == 0
    assert answers == ["refused", "refused"], "a second run may write into the same folder"
    lock(output)()  # the run has ended: whoever comes next may write


@pytest.mark.parametrize("option", ["--resume", "--output"])
def test_a_folder_that_another_run_writes_into_is_refused_and_stays_as_it_is(
    option, folder, stopped
):
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    give_back = lock(stopped)
    status, _, err = train(folder, *LONG, option, stopped)
    give_back()
    assert status == 2 and "another run is writing into it" in err.splitlines()[-1]
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before
    assert [path.name for path in stopped.parent.iterdir()] == ["stopped"]


def test_a_run_whose_folder_was_moved_writes_nothing_into_what_is_there_now(
    folder, tmp_path, monkeypatch
):
    run, plain, steps = tmp_path / "run", train_rm.accumulate_gradients, itertools.count(1)

    def moved_in_step_3(*args):
        if next(steps) == 3:
            run.rename(tmp_path / "moved")
            run.mkdir()  # another run
        return plain(*args)

    monkeypatch.setattr(train_rm, "accumulate_gradients", moved_in_step_3)
    args = ["--max-steps", 5, "--save-steps", 1, "--output", run]
    status, _, err = train(folder, *args)
    assert status == 2 and f"{run} was moved or removed" in err
    assert list(run.iterdir()) == [], "it writes into the folder of another run"
    assert read_checkpoint(tmp_path / "moved")[1]["step"] == 2


def test_a_copy_of_a_checkpoint_with_another_name_is_not_taken_for_one(stopped):
    newest = train_rm.checkpoints(stopped)[-1]
    shutil.copy(newest, newest.with_name("checkpoint-best.safetensors"))
    assert train_rm.checkpoints(stopped) == [newest]


def test_a_checkpoint_that_was_written_again_without_its_state_is_named(stopped):
    newest = train_rm.checkpoints(stopped)[-1]
    save_file(load_file(newest), newest)
    status, _, err = command(train_rm.main, "--resume", stopped)
    assert status == 2 and f"{newest}: there is no state of a run in it" in err


def test_a_damaged_state_of_a_checkpoint_is_named(stopped):
    newest = train_rm.checkpoints(stopped)[-1]
    content = newest.read_bytes()
    for before, after in ((b"since_log", b"since_lag"), (b"accuracy", b"accuracY")):
        assert before in content
        newest.write_bytes(content.replace(before, after, 1))
        status, _, err = command(train_rm.main, "--resume", stopped)
        assert status == 2 and f"{newest} is damaged" in err.splitlines()[-1]


@pytest.mark.parametrize("name, value", [
    ("lr", "x"), ("batch_size", "64"), ("seed", [1]), ("model", ["a"]), ("data", [5]),
    ("data", "a"), ("save_dtype", "x"), ("bf16", "yes"), ("base", 5),
])
def test_an_option_of_a_run_that_cannot_be_is_named(name, value, stopped):
    about = json.loads((stopped / "options.json").read_text())
    about["options"][name] = value
    (stopped / "options.json").write_text(json.dumps(about))
    status, _, err = command(train_rm.main, "--resume", stopped)
    assert status == 2 and f"{name!r} cannot be {value!r}" in err.splitlines()[-1]


def test_a_disk_without_locks_refuses_nobody(folder, tmp_path, monkeypatch):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert train(folder, "--max-steps", 2, "--output", tmp_path / "run")[0] == 0


@pytest.mark.parametrize("name, content, message", [
    ("options.json", b'{"options": {"lr": 0.', "options.json: not JSON"),
    ("options.json", b'{"options": []}', "options.json: no options in it"),
    ("tokens/audit.json", b'{"train": {"pairs": 3}}', "audit.json is damaged"),
    ("tokens/audit.json", b"{\xff", "audit.json is damaged"),
    ("metrics.jsonl", b'{"step": 2, "loss": 1}\n{"stop": 3}\n\xff\xff\n', None),
])
def test_a_damaged_file_of_a_run_costs_one_line_when_it_is_resumed(
    folder, tmp_path, monkeypatch, name, content, message
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_in_step(patch, signal.SIGINT, 5)
        assert train(folder, *LONG, "--output", run)[0] == 130
    (run / name).write_bytes(content)
    status, _, err = command(train_rm.main, "--resume", run)
    if message is None:
        assert status == 0 and [line["step"] for line in metrics(run)] == [2, 6, 10, 12, 15, 15]
        return
    assert status == 2 and message in err.strip().splitlines()[-1], err


def test_a_checkpoint_of_another_size_is_named():
    parameter = torch.nn.Parameter(torch.zeros(3, 2))
    with pytest.raises(CheckpointError, match="a checkpoint does not fit the model"):
        train_rm.fill(parameter, torch.zeros(4, 2))


# ---------------------------------------------------------------- a step that cannot be taken


def break_step(monkeypatch, step, broken):
    """In one step (1, 2, …), `broken` changes the losses."""
    loss, steps = train_rm.bradley_terry_loss, itertools.count(1)

    def maybe_broken(r_chosen, *args, **settings):
        losses = loss(r_chosen, *args, **settings)
        return broken(losses, r_chosen) if next(steps) == step else losses

    monkeypatch.setattr(train_rm, "bradley_terry_loss", maybe_broken)


def not_a_number(losses, rewards):
    return losses * math.nan


def steep(losses, rewards):
    """Losses whose value is finite and whose slope is not."""
    return losses + (0 * rewards).abs().sqrt()


@pytest.mark.parametrize("form", [[], ["--pack"], ["--bf16"], ["--fp16"]], ids=str)
@pytest.mark.parametrize("step", [1, 3])
def test_a_step_without_a_number_stops_the_run_with_all_that_was_before(
    step, form, folder, tmp_path, monkeypatch
):
    args, run = ["--max-steps", 5, *form], tmp_path / "run"
    assert train(folder, *args, "--output", tmp_path / "whole")[0] == 0
    with monkeypatch.context() as patch:
        break_step(patch, step, not_a_number)
        status, _, err = train(folder, *args, "--output", run)
    assert status == 2, "a step that is NaN was taken: all weights are NaN from there on"
    assert err.count("\n") == 1, err
    assert err.startswith(f"train_rm.py: step {step} ") and "loss is nan" in err, err

    examples = Examples(run / "tokens")
    numbers = train_rm.rows_of_step(examples.numbers(held_out=False), step - 1, 7, 0)
    assert all(place in err for place in examples.where(numbers)), "it names the rows of the step"
    name = f"checkpoint-{step - 1}.safetensors"
    assert [path.name for path in train_rm.checkpoints(run)] == [name]

    status, _, err = command(train_rm.main, "--resume", run)
    assert status == 0, err
    assert_equal(weights(run), weights(tmp_path / "whole"))


def test_a_gradient_without_a_number_stops_the_run_too(folder, tmp_path, monkeypatch):
    break_step(monkeypatch, 2, steep)
    status, _, err = train(folder, "--max-steps", 5, "--output", tmp_path / "run")
    assert status == 2 and err.count("\n") == 1, err
    assert err.startswith("train_rm.py: step 2 ") and "nan" in err, err


def test_an_overflow_in_float16_halves_the_scale_and_the_run_continues(
    folder, tmp_path, monkeypatch, every_step
):
    class HugeScale(torch.amp.GradScaler):
        def __init__(self, device, enabled):
            super().__init__(device, enabled=enabled, init_scale=2.0**126)

    monkeypatch.setattr(torch.amp, "GradScaler", HugeScale)
    args = ["--fp16", "--max-steps", 4, "--save-steps", 3, "--output", tmp_path / "run"]
    status, _, err = train(folder, *args)
    assert status == 0, err
    assert read_checkpoint(tmp_path / "run")[1]["scaler"]["scale"] == 2.0**123, (
        "the scale has to be halved after each overflow, or no step will ever be taken"
    )
    assert column(tmp_path / "run", "grad_norm") == [None] * 4, "JSON has no infinity"
    assert_equal(weights(tmp_path / "run"), weights(folder / "tiny"))  # no step was taken


@pytest.mark.parametrize("error", [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. No"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8143257993216 bytes"),
])
def test_too_little_memory_is_one_line_that_says_what_to_do(error, folder, tmp_path, monkeypatch):
    def greedy(*args):
        raise error

    monkeypatch.setattr(train_rm, "accumulate_gradients", greedy)
    status, _, err = train(folder, "--output", tmp_path / "run")
    assert status == 2 and err.startswith("train_rm.py: out of memory ("), err
    assert "docs/scaling.md" in err and err.count("\n") == 1


def test_a_process_that_has_died_is_said_in_one_line_by_the_others(folder, tmp_path, monkeypatch):
    error = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]")
    plain, steps = train_rm.accumulate_gradients, itertools.count(1)

    def peer_dies_in_step_3(*args):
        if next(steps) == 3:
            raise error
        return plain(*args)

    monkeypatch.setattr(train_rm, "accumulate_gradients", peer_dies_in_step_3)
    args = ["--max-steps", 5, "--save-steps", 2, "--output", tmp_path / "run"]
    status, _, err = train(folder, *args)
    assert status == 2 and "another process has died" in err and "--resume" in err
    assert read_checkpoint(tmp_path / "run")[1]["step"] == 2
    error.args = ("The size of tensor a (3) must match the size of tensor b (4)",)
    steps = itertools.count(1)
    with pytest.raises(RuntimeError, match="The size of"):  # a mistake of ours is not hidden
        train(folder, *args)


def test_a_disk_that_cannot_be_written_to_costs_one_line(folder, stopped, monkeypatch):
    read_only = OSError(errno.EROFS, "Read-only file system", str(stopped))
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}

    def refuse(*args, **kwargs):
        raise read_only

    for change in ("mkdir", "write_text", "write_bytes", "rename"):
        monkeypatch.setattr(Path, change, refuse)
    for options in (["--output", stopped], ["--output", stopped.with_name("new")]):
        status, _, err = train(folder, *LONG, *options)
        assert status == 2 and "Read-only file system" in err.splitlines()[-1]
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


def test_a_held_out_reward_that_is_not_a_number_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("model.check_finite", lambda *_: None)  # it would find the NaN at load
    model = tiny_model()
    with torch.no_grad():  # a token that only one held-out row has
        model.model.embed_tokens.weight[tiny_tokenizer().backend.token_to_id("@")] = math.nan
    save_run(tmp_path / "model", model, tiny_tokenizer(), 256)
    rows = [*pairs(3), {"prompt": "q", "chosen": "@", "rejected": "b"}]
    data = ["--model", tmp_path / "model", "--eval-data", write_rows(tmp_path / "e.jsonl", rows)]
    status, _, err = train(folder, *data, "--output", tmp_path / "run")
    assert status == 2 and "held-out row 4: a reward is not a finite number" in err, err
