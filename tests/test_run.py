"""train_rm.py: which rows a run sees, what it logs, and what it leaves in the run folder."""
import io
import json
import os
import sys

import pytest
import torch
from conftest import command, copy_run, read_lines, save_run, tiny_model, tiny_tokenizer
from conftest import write_rows
from runs import MIXED, SMALL, STILL, column, metrics, options, pairs, report, toy, train
from runs import every_step, folder, small_toy  # pytest finds fixtures by their names here
from safetensors.torch import load_file, save_file

import eval as evaluation
import train_rm
from model import RewardModel

# ---------------------------------------------------------------- which rows, and what is logged


def test_the_seed_decides_the_order_of_the_rows(folder, tmp_path, every_step):
    for name, seed in (("a", 5), ("again", 5), ("other", 6)):
        args = [*STILL, "--seed", seed, "--output", tmp_path / name]
        assert train(folder, *args)[0] == 0
    losses = {name: column(tmp_path / name, "loss") for name in ("a", "again", "other")}
    assert losses["a"] == losses["again"]
    # The model is the same, and does not change. So only other rows give other losses.
    assert losses["a"] != losses["other"], "--seed does not reach the order of the rows"
    assert sum(losses["a"]) == pytest.approx(sum(losses["other"]), abs=1e-5)


def test_the_seed_decides_the_weights_that_a_model_from_scratch_starts_with(folder, tmp_path):
    data = ["--data", folder / "train.jsonl", "--eval-data", folder / "held_out.jsonl"]
    for name, seed in (("a", 5), ("again", 5), ("other", 6)):
        args = [*SMALL, *data, *STILL, "--seed", seed, "--output", tmp_path / name]
        assert command(train_rm.main, *args)[0] == 0
    files = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("a", "again", "other")]
    assert files[0] == files[1], "the same seed gives other weights"
    assert files[1] != files[2], "--seed does not reach the weights"


def test_logged_numbers_are_means_over_all_pairs_since_the_last_line(folder, tmp_path, monkeypatch):
    # Three equal steps are an epoch, and no weight changes: the means are those of all rows.
    monkeypatch.setattr(train_rm, "LOGGING_STEPS", 3)
    data = ["--eval-data", folder / "train.jsonl", "--gradient-accumulation-steps", 4]
    args = [*data, *STILL, "--epochs", 2, "--output", tmp_path / "run"]
    assert train(folder, *args)[0] == 0
    of_run = report(tmp_path / "run")
    lines = [line for line in metrics(tmp_path / "run") if "loss" in line]
    assert [(line["step"], line["epoch"]) for line in lines] == [(3, 1), (6, 2)]
    for line in lines:
        for name in ("loss", "accuracy", "mean_margin"):
            assert line[name] == pytest.approx(of_run[name], abs=1e-5), (
                f"{name} in the log is not the mean over all steps since the last line"
            )
        mean = (of_run["mean_chosen"] + of_run["mean_rejected"]) / 2
        assert line["mean_reward"] == pytest.approx(mean, abs=1e-5)


def test_evaluations_during_training_are_reports_on_the_held_out_rows(folder, tmp_path):
    args = [*STILL, "--eval-steps", 2, "--max-steps", 5, "--output", tmp_path / "run"]
    assert train(folder, *args)[0] == 0
    files = [tmp_path / "run" / "held_out.jsonl", folder / "train.jsonl"]
    output = ["--output", tmp_path / "report.json"]
    assert command(evaluation.main, "report", folder / "tiny", "--data", *files, *output)[0] == 0
    held_out, trained_on = json.loads((tmp_path / "report.json").read_text())
    lines = [line for line in metrics(tmp_path / "run") if "eval_loss" in line]
    assert [line["step"] for line in lines] == [2, 4, 5], "every two steps, and at the end"
    for line in lines:
        assert line["eval_loss"] == pytest.approx(held_out["loss"], abs=1e-5), (
            "not the loss of the held-out rows: are the rows evaluated that it trains on?"
        )
        assert line["eval_loss"] != pytest.approx(trained_on["loss"], abs=1e-2)
        assert line["eval_accuracy"] == pytest.approx(held_out["accuracy"])
        assert line["eval_accuracy_ci95"] == pytest.approx(held_out["accuracy_ci95"])


def test_no_prompt_is_both_trained_on_and_held_out(tmp_path, monkeypatch):
    rows = [row | {"rejected": f"no {n}"} for n in range(3) for row in pairs(20)]
    write_rows(tmp_path / "d.jsonl", rows)
    seen, accumulate = set(), train_rm.accumulate_gradients

    def watched(model, batches, *more):
        for batch in batches:
            seen.update(map(tuple, batch.input_ids.tolist()))
        return accumulate(model, batches, *more)

    monkeypatch.setattr(train_rm, "accumulate_gradients", watched)
    data = ["--data", tmp_path / "d.jsonl", "--eval-fraction", 0.3, "--batch-size", 16]
    run = tmp_path / "run"
    assert command(train_rm.main, *SMALL, *data, "--output", run)[0] == 0
    backend = train_rm.Tokenizer.from_folder(run).backend
    trained_on = {backend.decode(ids).split("\n")[0].removeprefix("User: ") for ids in seen}
    held_out = {row["prompt"] for row in read_lines(run / "held_out.jsonl")}
    assert not trained_on & held_out, "a held-out prompt was trained on"
    assert len(held_out) == 6 and trained_on == {row["prompt"] for row in rows} - held_out
    assert len(read_lines(run / "held_out.jsonl")) == 18, "a prompt is held out with all its rows"


def test_a_pretrained_head_is_kept_and_a_language_model_gets_a_new_one(folder, tmp_path):
    model = tiny_model()
    state = {name: t for name, t in model.state_dict().items() if not name.startswith("score.")}
    save_run(tmp_path / "lm", model, tiny_tokenizer())
    save_file(state, tmp_path / "lm" / "model.safetensors")
    for name, base, said in (("kept", folder / "tiny", "kept"), ("new", tmp_path / "lm", "new")):
        args = ["--model", base, *STILL, "--output", tmp_path / name]
        status, out, err = train(folder, *args)
        assert status == 0 and f"value head {said}" in out, err
    heads = [load_file(tmp_path / name / "model.safetensors") for name in ("kept", "new")]
    message = "training started with a new head, and forgot the one that was trained before"
    assert torch.equal(heads[0]["score.weight"], model.score.weight), message
    assert not torch.equal(heads[1]["score.weight"], model.score.weight)


def test_eight_pairs_can_be_learned_by_heart(tmp_path):
    data = write_rows(tmp_path / "d.jsonl", pairs(8))
    args = ["--data", data, "--eval-data", data, "--batch-size", 8, "--max-steps", 60, "--lr", 1e-2]
    status, _, err = command(train_rm.main, *SMALL, *args, "--output", tmp_path / "run")
    assert status == 0, err
    of_run = report(tmp_path / "run")
    assert of_run["accuracy"] == 1.0 and of_run["loss"] < 0.05


# ---------------------------------------------------------------- --pack, and the one gather


def test_pack_takes_the_steps_of_the_plain_form(folder, tmp_path, every_step):
    write_rows(tmp_path / "d.jsonl", [*MIXED, *pairs(9)])
    for name, more in (("plain", []), ("packed", ["--pack", "--gradient-accumulation-steps", 2])):
        args = ["--data", tmp_path / "d.jsonl", "--lr", 1e-3, "--epochs", 3, *more]
        assert train(folder, *args, "--output", tmp_path / name)[0] == 0
    for name in ("loss", "grad_norm", "accuracy", "mean_margin"):
        plain, packed = (column(tmp_path / run, name) for run in ("plain", "packed"))
        assert packed == pytest.approx(plain, abs=2e-5), name
    losses = [report(tmp_path / name)["loss"] for name in ("plain", "packed")]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_with_pack_every_batch_is_packed_in_training_and_evaluation(
    folder, tmp_path, monkeypatch
):
    packed, forward = {True: set(), False: set()}, RewardModel.forward

    def watched(self, **inputs):
        packed[torch.is_grad_enabled()].add("form" in inputs)
        return forward(self, **inputs)

    monkeypatch.setattr(RewardModel, "forward", watched)
    assert train(folder, "--pack", "--max-steps", 2, "--output", tmp_path / "run")[0] == 0
    assert packed == {True: {True}, False: {True}}


@pytest.mark.parametrize("form", ["default run", "--pack"])
@pytest.mark.parametrize("phase", ["training", "evaluation", "report"])
def test_a_breakpoint_on_the_gather_stops_every_form_and_phase(
    phase, form, folder, tmp_path, monkeypatch, small_toy
):
    gather, save_model, trained = torch.gather, train_rm.save_model, []

    def breakpoint_in_phase(*args):
        now = "report" if trained else "evaluation"
        if torch.is_grad_enabled():
            now = "training"
        if now == phase:
            raise RuntimeError(f"the gather, in {now}")
        return gather(*args)

    monkeypatch.setattr(torch, "gather", breakpoint_in_phase)
    monkeypatch.setattr(train_rm, "save_model", lambda *a: (trained.append(1), save_model(*a)))
    args = ["--max-steps", 2, "--eval-steps", 1, "--output", tmp_path / "run"]
    with pytest.raises(RuntimeError, match=f"the gather, in {phase}"):
        if form == "--pack":
            train(folder, "--pack", *args)
        else:
            command(train_rm.main, *args)


# ---------------------------------------------------------------- the run folder


def test_the_run_folder_holds_what_the_design_says_in_safe_formats(tmp_path, small_toy):
    run, umask = tmp_path / "run", os.umask(0o022)
    try:
        status, out, err = toy("--max-steps", 4, "--save-steps", 2, "--output", run)
    finally:
        os.umask(umask)
    assert status == 0, err
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "options.json", "metrics.jsonl", "report.json", "held_out.jsonl", "toy.jsonl", "README.md",
        "tokens", "checkpoint-2.safetensors",
    }
    assert {p.stat().st_mode & 0o777 for p in run.iterdir() if p.is_file()} == {0o644}
    about = json.loads((run / "options.json").read_text())
    assert about["options"]["save_steps"] == 2 and about["options"]["lr"] == 1e-3
    assert about["versions"]["torch"] == torch.__version__
    audit = json.loads((run / "tokens" / "audit.json").read_text())
    assert audit["train"]["kept"] + audit["held out"]["kept"] == 300
    assert {"ceiling_accuracy", "gold_correlation", "accuracy"} <= report(run).keys()
    for text in ("ceiling", "Which colour is grass?", f"python eval.py report {run}"):
        assert text in out


def test_eval_py_gives_the_report_that_training_gave(tmp_path, small_toy):
    run, output = tmp_path / "run", tmp_path / "report.json"
    assert toy("--max-steps", 5, "--output", run)[0] == 0
    args = ["report", run, "--data", run / "held_out.jsonl", "--output", output]
    assert command(evaluation.main, *args)[0] == 0
    trained, again = report(run), json.loads(output.read_text())
    trained.pop("step")  # which one was kept
    assert trained.keys() <= again.keys()
    for name, value in trained.items():
        if isinstance(value, float):
            assert again[name] == pytest.approx(value, abs=1e-5), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_saved_weights_have_the_type_that_was_asked_for(folder, tmp_path, dtype):
    name, run = str(dtype).removeprefix("torch."), tmp_path / "run"
    args = ["--max-steps", 1, "--save-dtype", name, "--output", run]
    assert train(folder, *args)[0] == 0
    saved = load_file(run / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {dtype}, "--save-dtype is ignored"
    assert json.loads((run / "config.json").read_text())["dtype"] == name


def test_a_short_run_says_so_and_the_commands_that_it_ends_with_work(tmp_path):
    rows, run = write_rows(tmp_path / "mine.jsonl", pairs(20)), tmp_path / "run"
    status, out, _ = command(train_rm.main, "--data", rows, *SMALL, "--output", run)
    assert status == 0
    assert "steps: 1, which is few to learn from" in out
    _, _, commands = out.partition("Next:\n")
    reporting, ranking = [line.strip() for line in commands.splitlines()]
    assert reporting == f"python eval.py report {run} --data {run / 'held_out.jsonl'}"
    assert command(evaluation.main, *reporting.split()[2:])[0] == 0
    assert ranking == f"head -n 1 {run / 'held_out.jsonl'} | python eval.py rank {run}"
    row = (run / "held_out.jsonl").read_text().splitlines()[0]
    status, out, _ = command(evaluation.main, "rank", run, stdin=row)
    assert status == 0 and len(json.loads(out)["rewards"]) == 2


def test_evaluations_and_checkpoints_come_at_the_steps_asked_for(folder, tmp_path, monkeypatch):
    saved, save = [], train_rm.save_checkpoint

    def watched(args, step, *more):
        saved.append(step)
        save(args, step, *more)

    monkeypatch.setattr(train_rm, "save_checkpoint", watched)
    args = ["--max-steps", 9, "--eval-steps", 4, "--save-steps", 3, "--output", tmp_path / "run"]
    assert train(folder, *args)[0] == 0
    lines = [line for line in metrics(tmp_path / "run") if "eval_loss" in line]
    assert [line["step"] for line in lines] == [4, 8, 9]
    assert saved == [3, 6]
    assert [path.name for path in train_rm.checkpoints(tmp_path / "run")] == [
        "checkpoint-6.safetensors"
    ], "the newest checkpoint is kept, and the older one removed"


@pytest.mark.parametrize("option, name", [("--model", "tiny"), ("--data", "tiny/train.jsonl")])
def test_a_folder_that_is_read_is_not_moved_aside(option, name, folder, tmp_path):
    source = copy_run(folder / "tiny", tmp_path / "tiny")
    write_rows(source / "train.jsonl", pairs(9))
    (source / "options.json").write_text("{}")  # as in a run
    before = sorted(tmp_path.rglob("*"))
    status, _, err = train(folder, option, tmp_path / name, "--output", source)
    assert status == 2 and f"{tmp_path / name} is read from there" in err.splitlines()[-1]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", [".", "..", "tiny/.."])
def test_a_run_folder_has_a_name(name, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(copy_run(folder / "tiny", tmp_path / "tiny"))
    before = sorted(tmp_path.rglob("*"))
    status, _, err = train(folder, "--output", name)
    assert status == 2 and "give the run folder a name" in err.splitlines()[-1]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_to_an_earlier_run_is_not_replaced_by_a_folder_on_another_disk(folder, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    (tmp_path / "run").mkdir()
    args = ["--max-steps", 1, "--output", tmp_path / "link"]
    assert train(folder, *args)[0] == 0 and (tmp_path / "run" / "report.json").exists()
    status, _, err = train(folder, *args)
    assert status == 2 and "a link to an earlier run" in err
    assert (tmp_path / "link").is_symlink() and (tmp_path / "run" / "report.json").exists()


def test_a_reader_that_has_gone_does_not_end_the_training(folder, tmp_path, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    def with_head(argv):  # as in `python train_rm.py | head`
        monkeypatch.setattr(sys, "stdout", Gone())
        return train_rm.main(argv)

    args = ["--model", folder / "tiny", "--data", folder / "train.jsonl", "--max-steps", 2]
    status, _, err = command(with_head, *args, "--output", tmp_path / "run")
    assert status == 0, err
    assert (tmp_path / "run" / "report.json").exists()


def test_an_earlier_run_is_moved_aside_and_never_lost(folder, tmp_path):
    for _ in range(3):
        assert train(folder, "--max-steps", 1, "--output", tmp_path / "run")[0] == 0
    for name in ("run", "run.1", "run.2"):
        assert (tmp_path / name / "report.json").exists()


def test_an_earlier_run_stays_where_a_file_of_rows_is_missing(folder, tmp_path):
    run = tmp_path / "run"
    assert train(folder, *STILL, "--max-steps", 1, "--output", run)[0] == 0
    before = sorted(tmp_path.iterdir())
    status, _, err = train(folder, "--eval-data", tmp_path / "none.jsonl", "--output", run)
    assert status == 2 and "none.jsonl: No such file" in err
    assert sorted(tmp_path.iterdir()) == before and (run / "report.json").exists()


def test_a_file_may_have_any_name_that_the_disk_takes(folder, tmp_path):
    file = write_rows(tmp_path / "b\udcff\u2028 \U0001f642.jsonl", pairs(9))  # a byte 0xff
    args = ["--data", file, "--max-steps", 1, "--output", tmp_path / "run"]
    status, _, err = train(folder, *args)
    assert status == 0, err


def test_all_files_of_data_are_used(folder, tmp_path):
    more = write_rows(tmp_path / "more.jsonl", pairs(9, first=40))
    data = ["--data", folder / "train.jsonl", more, "--output", tmp_path / "run"]
    assert train(folder, *data, "--max-steps", 1)[0] == 0
    audit = json.loads((tmp_path / "run" / "tokens" / "audit.json").read_text())
    assert audit["train"]["kept"] == 30


# ---------------------------------------------------------------- tokens of an earlier run


def test_data_may_name_an_earlier_run_whose_tokens_are_used_again(folder, tmp_path, every_step):
    data = write_rows(tmp_path / "d.jsonl", pairs(25))
    args = ["--model", folder / "tiny", "--batch-size", 8, "--lr", 1e-3]
    first, second = tmp_path / "first", tmp_path / "second"
    assert command(train_rm.main, *args, "--data", data, "--output", first)[0] == 0
    data.unlink()
    status, out, err = command(train_rm.main, *args, "--data", first, "--output", second)
    assert status == 0, err
    assert column(second, "loss") == column(first, "loss")
    assert report(second) == report(first) and not (second / "tokens").exists()
    held_out = first / "held_out.jsonl"
    assert f"--data {held_out}\n  head -n 1 {held_out} " in out, "a file that is there is named"


def test_a_run_is_not_resumed_with_other_rows_of_the_earlier_run(folder, tmp_path, monkeypatch):
    args = ["--model", folder / "tiny", "--max-steps", 4, "--save-steps", 2, "--batch-size", 8]
    first, second, other = tmp_path / "first", tmp_path / "second", tmp_path / "other"
    swapped = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in pairs(25)]
    for run, rows in ((first, pairs(25)), (other, swapped)):
        data = write_rows(tmp_path / "d.jsonl", rows)
        assert command(train_rm.main, *args, "--data", data, "--output", run)[0] == 0
    assert command(train_rm.main, *args, "--data", first, "--output", second)[0] == 0
    (second / "report.json").unlink()  # as if it had been killed before
    assert command(train_rm.main, "--resume", second)[0] == 0
    (second / "report.json").unlink()
    first.rename(tmp_path / "away")
    other.rename(first)
    status, _, err = command(train_rm.main, "--resume", second)
    assert status == 2 and f"{first / 'tokens'}: other rows than when this run started" in err


def test_from_scratch_the_tokenizer_of_the_earlier_run_is_used_too(tmp_path, small_toy):
    first, second = tmp_path / "first", tmp_path / "second"
    assert toy("--max-steps", 3, "--output", first)[0] == 0
    status, _, err = toy("--max-steps", 3, "--data", first, "--lr", 1e-3, "--output", second)
    assert status == 0, err
    files = [(run / "tokenizer.json").read_text() for run in (first, second)]
    assert files[0] == files[1]


def test_tokens_of_another_tokenizer_are_refused(folder, tmp_path, small_toy):
    first, second = tmp_path / "first", tmp_path / "second"
    assert toy("--max-steps", 1, "--output", first)[0] == 0
    args = ["--model", folder / "tiny", "--data", first, "--output", second]
    status, _, err = command(train_rm.main, *args)
    assert status == 2 and err.count("\n") == 1, "it would train on texts that are garbage to it"


# ---------------------------------------------------------------- the command line


def test_the_help_page_explains_every_option_and_groups_them():
    status, out, _ = command(train_rm.main, "--help")
    assert status == 0
    for group in ("what to learn from", "how long and how fast", "the loss", "speed and memory"):
        assert f"\n{group}:" in out
    for name in vars(options()):
        if name != "device":
            shown = out.split(f"--{name.replace('_', '-')}")
            assert len(shown) > 1, f"{name} is not on the help page"


def test_every_option_has_a_help_text(monkeypatch):
    added, add = [], train_rm.argparse._ActionsContainer.add_argument

    def watched(self, *names, **settings):
        added.append((names[0], settings.get("help")))
        return add(self, *names, **settings)

    monkeypatch.setattr(train_rm.argparse._ActionsContainer, "add_argument", watched)
    train_rm.parse_options([])
    assert len(added) > 30
    assert [name for name, text in added if not text] == []


def test_the_first_line_comes_before_the_work(folder, tmp_path, monkeypatch):
    def not_yet(*args, **settings):
        raise RuntimeError("work")

    monkeypatch.setattr(train_rm, "open_model", not_yet)
    monkeypatch.setattr(train_rm, "read_rows", not_yet)
    said = []
    monkeypatch.setattr(train_rm, "say", said.append)
    with pytest.raises(RuntimeError, match="work"):
        train(folder, "--output", tmp_path / "run")
    assert said == [f"run folder {tmp_path / 'run'}, on cpu"]
