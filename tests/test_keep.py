"""train_rm.py: --keep saves the model of the lowest held-out loss, and --patience ends a run early.

test_crash.py kills a run at every call that writes best.safetensors; extras/test_sharding.py has
two processes.
"""
import math

import pytest
import torch
from conftest import command, read_lines, write_rows
from runs import assert_equal, column, metrics, pairs, report, train
from runs import every_step, folder  # pytest finds fixtures by their names here
from safetensors.torch import load_file
from test_resume import signal_in_step

import train_rm
from model import open_model

# An evaluation after each of 6 steps, and one checkpoint on the way.
SIX = ["--max-steps", 6, "--eval-steps", 1, "--save-steps", 3, "--lr", 1e-3]
NAN = math.nan


@pytest.fixture
def held_out(monkeypatch):
    """held_out(losses): the held-out loss after each step is the one given here.

    Returns what was seen: step -> the trained parameters, and the report with its true loss.
    """
    evaluate = train_rm.evaluate

    def set_losses(losses):
        seen = {}

        def with_given_loss(args, model, *more):
            figures = evaluate(args, model, *more)
            if len(more) == 2:  # the report on the saved model
                return figures
            log = train_rm.Path(args.output) / "metrics.jsonl"
            lines = read_lines(log) if log.exists() else []
            step = 1 + len([line for line in lines if "eval_loss" in line])
            tensors = {name: p.detach().clone() for name, p in train_rm.trained_parameters(model)}
            seen[step] = tensors, dict(figures)
            return figures | {"loss": losses[step - 1]}

        monkeypatch.setattr(train_rm, "evaluate", with_given_loss)
        return seen

    return set_losses


def assert_saved(run, tensors):
    """The trained parameters in the saved model."""
    saved = load_file(run / "model.safetensors")
    message = "the saved model is not the one with the lowest held-out loss (or --keep last)"
    assert_equal({name: saved[name] for name in tensors}, tensors, message)


def same_files(a, b):
    """The model, the log and the report of two runs, bit for bit."""
    assert_equal(load_file(a / "model.safetensors"), load_file(b / "model.safetensors"))
    assert metrics(a) == metrics(b)
    assert report(a) == report(b)


# ---------------------------------------------------------------- which model is saved


@pytest.mark.parametrize("losses, more, kept", [
    ([0.6, 0.5, 0.7, 0.6, 0.8, 0.9], [], 2),
    ([0.6, 0.5, 0.7, 0.4, 0.4, 0.5], [], 4),  # of two that are equal the first
    ([0.6, 0.5, 0.7, 0.6, 0.8, 0.4], [], 6),
    ([0.6, 0.5, 0.7, 0.6, 0.8, 0.9], ["--keep", "last"], 6),
    ([NAN, 0.6, NAN, 0.5, 0.9, NAN], [], 4),  # NaN is no lower loss, and nothing is lower than it
])
def test_the_model_of_the_lowest_held_out_loss_is_saved(
    losses, more, kept, folder, tmp_path, held_out
):
    seen, run = held_out(losses), tmp_path / "run"
    status, out, err = train(folder, *SIX, *more, "--output", run)
    assert status == 0, err
    tensors, figures = seen[kept]
    assert_saved(run, tensors)
    assert report(run)["step"] == kept
    assert report(run)["loss"] == pytest.approx(figures["loss"], abs=1e-6), "of the saved model"
    said = f"saved: the model of step {kept}, held-out loss {losses[kept - 1]:.3f}; that of the "
    said += f"last step, 6, had {losses[5]:.3f}"
    if kept == 6:
        said = f"saved: the model of the last step, 6, held-out loss {losses[5]:.3f}"
    assert said in out.splitlines(), "the last lines say which model it is"
    assert not (run / train_rm.BEST).exists(), "it is stored once: in model.safetensors"


def test_a_small_data_set_is_learned_by_heart_and_an_earlier_model_is_saved(folder, tmp_path):
    noise = []  # what is better has no reason here, so it cannot be learned for other prompts
    for i, row in enumerate(pairs(28)):
        if i % 3 == 0:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        noise.append(row)
    data = ["--data", write_rows(tmp_path / "d.jsonl", noise[:12])]
    data += ["--eval-data", write_rows(tmp_path / "e.jsonl", noise[12:])]
    args = [*data, "--epochs", 20, "--eval-steps", 4, "--lr", 1e-2]
    saved = {}
    for keep in ("best", "last"):
        run = tmp_path / keep
        assert train(folder, *args, "--keep", keep, "--output", run)[0] == 0
        saved[keep] = report(run)["loss"]
        losses = [line["eval_loss"] for line in metrics(run) if "eval_loss" in line]
    assert column(run, "loss")[-1] < 0.2, "this test wants a model that learned its rows by heart"
    assert saved["best"] == pytest.approx(min(losses), abs=1e-5)
    assert saved["last"] == pytest.approx(losses[-1], abs=1e-5)
    assert saved["best"] < saved["last"] - 0.1


def test_a_run_of_one_evaluation_keeps_nothing_beside_its_model(folder, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(train_rm, "write_tensors", lambda path, *more: written.append(path.name))
    args = ["--max-steps", 3, "--output", tmp_path / "run"]
    assert train(folder, *args, "--eval-steps", 9)[0] == 0
    assert written == []
    assert train(folder, *args, "--eval-steps", 1, "--keep", "last")[0] == 0
    assert written == []


def test_of_lora_only_what_is_trained_is_kept_and_the_adapter_is_the_kept_one(
    folder, tmp_path, held_out, monkeypatch
):
    kept, write_tensors = [], train_rm.write_tensors

    def watched(path, tensors, state):
        kept.append((path.name, set(tensors)))
        write_tensors(path, tensors, state)

    monkeypatch.setattr(train_rm, "write_tensors", watched)
    seen, run = held_out([0.6, 0.5, 0.7, 0.6, 0.8, 0.9]), tmp_path / "run"
    assert train(folder, *SIX, "--lora-rank", 2, "--output", run)[0] == 0
    tensors, figures = seen[2]
    assert ("best.safetensors", set(tensors)) in kept
    assert not any(name.endswith("q_proj.weight") for name in tensors)
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    found = 0
    for name, tensor in tensors.items():
        if ".lora_" in name:
            assert adapter[f"base_model.model.{name}.weight"].equal(tensor), name
            found += 1
    assert found >= 4
    assert report(run)["loss"] == pytest.approx(figures["loss"], abs=1e-5)
    merged, of_adapter = open_model(run).state_dict(), open_model(run / "adapter").state_dict()
    for name, tensor in merged.items():
        torch.testing.assert_close(of_adapter[name], tensor)


# ---------------------------------------------------------------- --patience


@pytest.mark.parametrize("losses, patience, last, kept", [
    ([0.6, 0.5, 0.5, 0.6, 0.4, 0.4], 2, 4, 2),  # an equal loss is no lower one
    ([0.6, 0.7, 0.5, 0.6, 0.4, 0.6], 2, 6, 5),
    ([0.6, 0.7, 0.4, 0.5, 0.6, 0.7], 1, 2, 1),
    ([0.6, 0.7, 0.7, 0.7, 0.7, 0.7], 5, 6, 1),  # it would end there anyway
])
def test_patience_ends_a_run_after_so_many_evaluations_without_a_lower_loss(
    losses, patience, last, kept, folder, tmp_path, held_out, every_step
):
    held_out(losses)
    assert train(folder, *SIX, "--output", tmp_path / "whole")[0] == 0
    args = [*SIX, "--patience", patience, "--output", tmp_path / "run"]
    status, out, err = train(folder, *args)
    assert status == 0, err
    assert report(tmp_path / "run")["step"] == kept, (
        "did it end too early? Any of the last evaluations may have the lower loss"
    )
    ended_early = f"{patience} evaluations without a lower held-out loss" in out
    assert ended_early == (last < 6), "it says why it ended"
    until = [line for line in metrics(tmp_path / "whole") if line["step"] <= last]
    assert metrics(tmp_path / "run") == until, "until then it is the planned run, its lr too"


def test_the_steps_since_the_last_line_are_logged_when_patience_ends(folder, tmp_path, held_out):
    held_out([0.6, 0.7, 0.8])
    args = [*SIX, "--patience", 2, "--keep", "last", "--output", tmp_path / "run"]
    assert train(folder, *args)[0] == 0
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 3]
    assert report(tmp_path / "run")["step"] == 3


# ---------------------------------------------------------------- stopped and resumed


CURVES = {
    "best before the checkpoint": ([0.6, 0.5, 0.7, 0.6, 0.8, 0.9], []),
    "best after it": ([0.6, 0.7, 0.6, 0.5, 0.4, 0.9], []),
    # The model of step 5 is on the disk already when steps 4 and 5 are done again. To count from
    # it would end this run too early.
    "patience": ([0.6, 0.7, 0.65, 0.5, 0.4, 0.9], ["--patience", 3]),
    "patience that ends": ([0.6, 0.5, 0.7, 0.6, 0.3, 0.9], ["--patience", 2]),
    "last": ([0.6, 0.5, 0.7, 0.6, 0.8, 0.9], ["--keep", "last"]),
    "lora": ([0.6, 0.5, 0.7, 0.6, 0.8, 0.9], ["--lora-rank", 2]),
}


@pytest.mark.parametrize("curve", CURVES)
def test_a_run_that_was_stopped_or_killed_saves_the_model_of_the_uninterrupted_one(
    curve, folder, tmp_path, held_out, monkeypatch
):
    losses, more = CURVES[curve]
    held_out(losses)
    args = [*SIX, *more]
    status, out, err = train(folder, *args, "--output", tmp_path / "whole")
    assert status == 0, err
    last = metrics(tmp_path / "whole")[-1]["step"]
    for step in (1, 2, 4, 6):
        if step > last:
            continue
        for how in ("stopped", "killed"):
            run = tmp_path / f"{how} in step {step}"
            with monkeypatch.context() as patch:
                if how == "killed":
                    kill_before(patch, step)
                else:
                    signal_in_step(patch, train_rm.signal.SIGINT, step)
                status, _, _ = train(folder, *args, "--output", run)
            if status == 130 or how == "killed":
                assert command(train_rm.main, "--resume", run)[0] == 0
            same_files(run, tmp_path / "whole")
            assert not (run / train_rm.BEST).exists()


def kill_before(monkeypatch, step):
    """The process ends at the start of a step, with what is on the disk, as if it were killed."""
    rows_of_step = train_rm.rows_of_step

    def killed(numbers, number, *more):
        if number == step - 1:
            raise KeyboardInterrupt
        return rows_of_step(numbers, number, *more)

    monkeypatch.setattr(train_rm, "rows_of_step", killed)


def test_a_run_that_is_killed_between_model_and_report_still_has_its_best(
    folder, tmp_path, held_out, monkeypatch
):
    held_out([0.6, 0.5, 0.7, 0.6, 0.8, 0.9])
    assert train(folder, *SIX, "--output", tmp_path / "whole")[0] == 0

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_rm, "final_report", killed)
        assert train(folder, *SIX, "--output", tmp_path / "run")[0] == 130
    assert command(train_rm.main, "--resume", tmp_path / "run")[0] == 0
    same_files(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("change", [["--keep", "last"], ["--patience", 2]])
def test_which_model_is_kept_cannot_be_changed_when_a_run_is_resumed(
    change, folder, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        kill_before(patch, 4)
        train(folder, *SIX, "--output", tmp_path / "run")
    status, _, err = command(train_rm.main, "--resume", tmp_path / "run", *change)
    assert status == 2 and "the run was made with" in err.splitlines()[-1], err
