"""The loop: accumulation, ranks and interruptions do not change what is learned, and mistakes cost one clear line."""
import contextlib
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, save_run, tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file

import train_rm
from data import Tokenizer, collate, encode_preferences, parse_preference, read_preferences, step_batches, toy_preferences
from eval import main as evaluation_main
from eval import report, score_pairs
from model import RewardModel

SMALL = ["--hidden-size", 16, "--num-hidden-layers", 1, "--num-attention-heads", 2, "--vocab-size", 400]


def command(*args):
    """train_rm.py's command line in this process: status, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = train_rm.main([str(a) for a in args])
        except SystemExit as e:  # argparse
            status = e.code
    return status, out.getvalue(), err.getvalue()


def options(*args):
    return train_rm.parse_options([str(a) for a in args])


def toy_rows(n, seed=0):
    return list(toy_preferences(n, seed))


def write_rows(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_speed(lines):
    return [{k: v for k, v in line.items() if k != "pairs_per_second"} for line in lines]


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("tiny"), tiny_model(), tiny_tokenizer(), max_length=256)


# ---------------------------------------------------------------- one step


def gradients(model, pairs, args, step):
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    runs, n = step_batches(pairs, step, args.batch_size, args.gradient_accumulation_steps, seed=args.seed)
    model.zero_grad()
    batches = [collate(pairs, run, 0, args.shared_prompts) for run in runs]
    sums, _ = train_rm.accumulate_gradients(model, batches, n, args, scaler)
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, sums


@pytest.mark.parametrize("step", [0, 2])  # a whole step of 8 pairs; an epoch's ragged last one of 5
@pytest.mark.parametrize("accumulation", [2, 4, 8])
def test_accumulation_takes_the_step_of_the_big_batch(step, accumulation):
    pairs, _ = encode_preferences([parse_preference(r) for r in toy_rows(21)], tiny_tokenizer(), 256)
    model, settings = tiny_model(), ["--label-smoothing", 0.1, "--center-rewards-coefficient", 0.01, "--batch-size", 8]
    whole, sums = gradients(model, pairs, options(*settings), step)
    parts, part_sums = gradients(model, pairs, options(*settings, "--gradient-accumulation-steps", accumulation), step)
    assert sums[5] == part_sums[5] == (8 if step == 0 else 5)
    torch.testing.assert_close(part_sums, sums, atol=1e-5, rtol=1e-5)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("form", [[], ["--no-shared-prompts"], ["--bf16"]])
def test_recomputing_layers_takes_the_same_step_and_keeps_less(form):
    pairs, _ = encode_preferences([parse_preference(r) for r in toy_rows(8)], tiny_tokenizer(), 256)
    model, args, steps, kept = tiny_model(num_hidden_layers=6), options("--batch-size", 8, *form), [], []
    for model.model.recompute in (False, True):
        size, count = [0], lambda tensor: (size.__setitem__(0, size[0] + tensor.numel()), tensor)[1]
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            steps.append(gradients(model, pairs, args, 0)[0])
        kept.append(size[0])
    assert all(torch.equal(steps[0][name], steps[1][name]) for name in steps[0])
    if "--bf16" not in form:  # there the weights' copies are among what is kept
        assert kept[1] < 0.6 * kept[0]


def test_the_gradient_is_that_of_the_mean_loss_written_plainly():
    pairs, _ = encode_preferences([parse_preference(r) for r in toy_rows(8)], tiny_tokenizer(), 256)
    model, args = tiny_model(), options("--batch-size", 8, "--gradient-accumulation-steps", 4)
    by_loop, _ = gradients(model, pairs, args, 0)
    model.zero_grad()
    gaps = []
    for i in range(8):  # one text at a time: no padding, no batch
        r = [model(torch.tensor(pairs.sequence(s))[None].long(), torch.ones(1, len(pairs.sequence(s)))) for s in (2 * i, 2 * i + 1)]
        gaps.append(r[0] - r[1])
    torch.log1p(torch.exp(-torch.cat(gaps))).mean().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(by_loop[name], p.grad, atol=1e-6, rtol=1e-4)


def test_margins_in_the_data_reach_the_loss():
    def loss_with(margin):
        pairs, _ = encode_preferences([parse_preference(r | {"margin": margin}) for r in toy_rows(8)], tiny_tokenizer(), 256)
        return gradients(tiny_model(), pairs, options("--batch-size", 8), 0)[1][0].item() / 8

    assert loss_with(3.0) > loss_with(0.0) + 0.5


K_ROWS = [{"prompt": "Which colour is grass?", "responses": ["It is red.", "It is green.", "Green it is.", "Go."], "scores": [1, 5, 5, 0]},
          {"prompt": "Which colour is snow?", "chosen": "It is white.", "rejected": "It is black."},
          {"prompt": "Who?", "responses": ["Me.", "You.", "They."], "ranks": [2, 1, 3], "margin": 0.5}]


@pytest.mark.parametrize("form", [[], ["--no-shared-prompts"]])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_k_responses_train_as_all_pairs_of_one_prompt_which_counts_once(form, accumulation):
    pairs, _ = encode_preferences([parse_preference(r) for r in K_ROWS], tiny_tokenizer(), 256)
    model, args = tiny_model(), options("--batch-size", 3, "--gradient-accumulation-steps", accumulation, *form)
    by_loop, sums = gradients(model, pairs, args, 0)
    assert sums[5] == 3
    model.zero_grad()
    losses = []
    for row, margin in zip(([0, 1, 2, 3], [4, 5], [6, 7, 8]), (0, 0, 0.5)):  # the sequences of each prompt, best first
        r = [model(torch.tensor(pairs.sequence(s))[None].long(), torch.ones(1, len(pairs.sequence(s))))[0] for s in row]
        untied = {4: [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)], 2: [(0, 1)], 3: [(0, 1), (0, 2), (1, 2)]}[len(row)]
        losses.append(sum(torch.log1p(torch.exp(margin - (r[i] - r[j]))) for i, j in untied) / len(untied))
    loss = sum(losses) / 3
    loss.backward()
    assert sums[0].item() / 3 == pytest.approx(loss.item(), abs=1e-6)
    for name, p in model.named_parameters():
        torch.testing.assert_close(by_loop[name], p.grad, atol=1e-6, rtol=1e-4)


def test_rows_of_k_responses_train_and_evaluate_from_the_command_line(tmp_path):
    rows = [row | {"prompt": f"{row['prompt']} {i}"} for i in range(20) for row in K_ROWS]
    (tmp_path / "k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = [*SMALL, "--data", tmp_path / "k.jsonl", "--eval-fraction", 0.3, "--batch-size", 4, "--max-steps", 5, "--logging-steps", 1]
    status, out, err = command(*args, "--output", tmp_path / "run")
    assert status == 0, err
    audit = json.loads((tmp_path / "run" / "options.json").read_text())["audit"]
    assert sum(a["read"] for a in audit.values()) == 60 and sum(a["pairs"] for a in audit.values()) == 20 * (5 + 1 + 3)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["pairs"] == audit["held out"]["pairs"] and report["prompts"] == audit["held out"]["kept"] == 18
    again, _ = read_preferences(tmp_path / "run" / "held_out.jsonl")
    assert sum(len(p.pairs()) for p in again) == report["pairs"]


def test_the_learning_rate_rises_then_falls_to_nothing():
    for kind, half in (("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)):
        args = options("--lr", 2e-3, "--lr-scheduler", kind, "--warmup-ratio", 0.1)
        rates = [train_rm.learning_rate(step, 100, args) / 2e-3 for step in range(100)]
        assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
        assert rates[55] == pytest.approx(half, abs=0.02)
        assert rates[99] < 0.02 or kind == "constant"
        assert all(a >= b for a, b in zip(rates[10:], rates[11:]))


# ---------------------------------------------------------------- whole runs


def test_eight_pairs_can_be_learned_by_heart(tmp_path):
    data = write_rows(tmp_path / "eight.jsonl", toy_rows(8))
    status, out, err = command("--data", data, "--eval-data", data, "--output", tmp_path / "run", "--batch-size", 8,
                               "--max-steps", 80, "--lr", 5e-3)
    assert status == 0, err
    result = json.loads((tmp_path / "run" / "report.json").read_text())
    assert result["accuracy"] == 1.0 and result["loss"] < 0.05
    assert "8 of 8 evaluation pairs have a prompt that is trained on too" in out


def test_the_logged_loss_is_the_mean_over_all_pairs_since_the_last_line(tiny_run, tmp_path):
    # At a learning rate of (nearly) nothing the mean over an epoch of ragged steps is the loss over the data.
    data = write_rows(tmp_path / "d.jsonl", toy_rows(21))
    status, _, err = command("--model", tiny_run, "--data", data, "--eval-data", data, "--output", tmp_path / "run", "--lr", 1e-30,
                             "--batch-size", 8, "--gradient-accumulation-steps", 4, "--logging-steps", 3)
    assert status == 0, err
    [line] = [line for line in metrics(tmp_path / "run") if "loss" in line]
    result = json.loads((tmp_path / "run" / "report.json").read_text())
    assert line["loss"] == pytest.approx(result["loss"], abs=1e-5)
    assert line["accuracy"] == pytest.approx(result["accuracy"], abs=1e-6)
    assert line["mean_margin"] == pytest.approx(result["mean_margin"], abs=1e-5)
    assert line["mean_reward"] == pytest.approx((result["mean_chosen"] + result["mean_rejected"]) / 2, abs=1e-5)


def test_training_on_from_a_reward_model_keeps_its_head(tiny_run, tmp_path):
    data = write_rows(tmp_path / "d.jsonl", toy_rows(16))
    status, out, err = command("--model", tiny_run, "--data", data, "--eval-data", data, "--output", tmp_path / "run", "--lr", 1e-30)
    assert status == 0 and "value head kept" in out, err
    torch.testing.assert_close(load_file(tmp_path / "run" / "model.safetensors")["score.weight"],
                               load_file(tiny_run / "model.safetensors")["score.weight"])


def test_the_bias_trains_only_where_it_has_a_gradient(tiny_run, tmp_path):
    data = write_rows(tmp_path / "d.jsonl", toy_rows(16))
    for coefficient, moves in ((0, False), (0.1, True)):
        status, _, err = command("--model", tiny_run, "--data", data, "--eval-data", data, "--output", tmp_path / str(coefficient),
                                 "--lr", 1e-3, "--batch-size", 8, "--center-rewards-coefficient", coefficient)
        assert status == 0, err
        assert (RewardModel.from_pretrained(tmp_path / str(coefficient)).score.bias.item() != 0) == moves


def test_centering_keeps_rewards_around_0(tmp_path):
    means = []
    for coefficient in (0, 0.1):
        status, _, err = command(*SMALL, "--toy-pairs", 600, "--max-steps", 40, "--output", tmp_path / str(coefficient), "--lr", 1e-2,
                                 "--center-rewards-coefficient", coefficient)
        assert status == 0, err
        means.append(metrics(tmp_path / str(coefficient))[-2]["mean_abs_reward"])
    assert means[1] < means[0] / 2


@pytest.mark.parametrize("precision", ["--bf16", "--fp16"])
def test_half_precision_learns_what_float32_learns(precision, tmp_path):
    losses = []
    for extra in ([], [precision]):
        folder = tmp_path / f"run{len(losses)}"
        status, _, err = command(*SMALL, "--toy-pairs", 600, "--max-steps", 40, "--output", folder, "--lr", 1e-2, *extra)
        assert status == 0, err
        losses.append(metrics(folder)[-2]["loss"])
    assert losses[0] < 0.67 and losses[1] == pytest.approx(losses[0], abs=0.03)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        assert command(*SMALL, "--toy-pairs", 300, "--max-steps", 5, "--output", tmp_path / name, "--seed", seed)[0] == 0
    files = [(tmp_path / n / "model.safetensors").read_bytes() for n in "abc"]
    assert files[0] == files[1] != files[2]
    assert without_speed(metrics(tmp_path / "a")) == without_speed(metrics(tmp_path / "b"))


def test_the_run_folder_holds_what_the_design_says_and_only_safe_formats(tmp_path):
    status, out, err = command(*SMALL, "--toy-pairs", 300, "--max-steps", 4, "--save-steps", 2, "--output", tmp_path / "run")
    assert status == 0, err
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "options.json", "metrics.jsonl",
                     "report.json", "held_out.jsonl", "checkpoint-2"}
    assert {p.suffix for p in (tmp_path / "run").rglob("*") if p.is_file()} == {".json", ".jsonl", ".safetensors"}
    saved = json.loads((tmp_path / "run" / "options.json").read_text())
    assert saved["toy_pairs"] == 300 and saved["audit"]["train"]["kept"] > 200 and saved["versions"]["torch"] == torch.__version__
    result = json.loads((tmp_path / "run" / "report.json").read_text())
    assert {"ceiling_accuracy", "gold_correlation", "accuracy"} <= result.keys()
    assert "ceiling" in out and "Which colour is grass?" in out and "python eval.py report" in out
    assert command(*SMALL, "--toy-pairs", 300, "--max-steps", 1, "--output", tmp_path / "run")[0] == 0  # an earlier run is kept
    assert (tmp_path / "run.1" / "report.json").exists()


def test_a_fresh_process_gives_the_rewards_training_reported(tmp_path):
    status, _, err = command(*SMALL, "--toy-pairs", 300, "--max-steps", 5, "--output", tmp_path / "run")
    assert status == 0, err
    done = subprocess.run([sys.executable, str(ROOT / "eval.py"), "report", str(tmp_path / "run"), "--data",
                           str(tmp_path / "run" / "held_out.jsonl"), "--output", str(tmp_path / "r.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    trained, again = (json.loads(p.read_text()) for p in (tmp_path / "run" / "report.json", tmp_path / "r.json"))
    assert trained.keys() <= again.keys()
    for key in (key for key, value in trained.items() if not isinstance(value, (dict, list))):
        assert again[key] == pytest.approx(trained[key], abs=1e-5), key


def test_the_learning_curve_needs_matplotlib_and_says_so_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    status, _, err = command(*SMALL, "--toy-pairs", 300, "--max-steps", 5, "--plot", "--output", tmp_path / "run")
    assert status == 2 and err == "train_rm.py: --plot needs matplotlib, an optional extra: pip install matplotlib\n"
    assert not (tmp_path / "run").exists()


def test_the_learning_curve_is_drawn_from_the_metrics_of_the_run(tmp_path, monkeypatch):
    drawn = []

    class Axes:
        def plot(self, steps, losses, *style, label, **more):
            drawn.append((label, steps, losses))

        def __getattr__(self, name):
            return lambda *args, **settings: None

    class Figure:
        def savefig(self, path, **settings):
            Path(path).write_bytes(b"picture")

    monkeypatch.setattr(train_rm, "pyplot", lambda: type("", (), {"subplots": lambda self, **settings: (Figure(), Axes())})())
    args = [*SMALL, "--toy-pairs", 300, "--max-steps", 6, "--logging-steps", 2, "--eval-steps", 3, "--plot"]
    assert command(*args, "--output", tmp_path / "run")[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert (tmp_path / "run" / "curve.png").read_bytes() == b"picture"
    assert drawn == [("training", [2, 4, 6], [line["loss"] for line in lines if "loss" in line]),
                     ("held out", [3, 6], [line["eval_loss"] for line in lines if "eval_loss" in line])]


# ---------------------------------------------------------------- interruptions


LONG = [*SMALL, "--toy-pairs", 700, "--max-steps", 60, "--batch-size", 24, "--logging-steps", 7, "--eval-steps", 10]  # ragged epochs


def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path):
    assert command(*LONG, "--output", tmp_path / "whole")[0] == 0
    # Ctrl-C, for real, in a process of its own, as soon as it has logged something.
    process = subprocess.Popen([sys.executable, str(ROOT / "train_rm.py"), *map(str, LONG), "--output", str(tmp_path / "parts")],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step 14/"):
            process.send_signal(signal.SIGINT)
    assert process.wait() == 130 and "--resume" in lines[-1], process.stderr.read()
    [checkpoint] = (tmp_path / "parts").glob("checkpoint-*")
    assert 14 <= int(checkpoint.name.split("-")[1]) < 60
    status, out, err = command(*LONG, "--output", tmp_path / "parts", "--resume")
    assert status == 0 and f"resumed from {checkpoint}" in out, err
    whole, parts = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[k], parts[k]) for k in whole)
    assert without_speed(metrics(tmp_path / "whole")) == without_speed(metrics(tmp_path / "parts"))
    assert (tmp_path / "whole" / "report.json").read_text() == (tmp_path / "parts" / "report.json").read_text()


@pytest.mark.parametrize("at", [7, 10, 29])  # on a log line, on an evaluation, at an epoch's end
def test_any_checkpoint_resumes_exactly(at, tmp_path):
    assert command(*LONG, "--output", tmp_path / "whole", "--save-steps", at, "--save-total-limit", 0)[0] == 0
    before = without_speed(metrics(tmp_path / "whole"))
    weights = load_file(tmp_path / "whole" / "model.safetensors")
    status, _, err = command(*LONG, "--output", tmp_path / "whole", "--resume", tmp_path / "whole" / f"checkpoint-{at}",
                             "--gradient-accumulation-steps", 1)
    assert status == 0, err
    again = load_file(tmp_path / "whole" / "model.safetensors")
    assert all(torch.equal(weights[k], again[k]) for k in weights)
    assert without_speed(metrics(tmp_path / "whole")) == before


def test_resuming_from_an_older_checkpoint_never_mixes_it_with_later_ones(tmp_path):
    args = [*LONG, "--output", tmp_path / "run", "--save-steps", 20]
    assert command(*args, "--save-total-limit", 0)[0] == 0
    names = lambda: sorted(p.name for p in train_rm.checkpoints(tmp_path / "run"))
    assert names() == ["checkpoint-20", "checkpoint-40"]
    weights = load_file(tmp_path / "run" / "checkpoint-40" / "optimizer.safetensors")
    assert command(*args, "--resume", tmp_path / "run" / "checkpoint-20", "--save-total-limit", 1)[0] == 0
    assert names() == ["checkpoint-40"]  # the newest one is kept, and it is what it was
    again = load_file(tmp_path / "run" / "checkpoint-40" / "optimizer.safetensors")
    assert all(torch.equal(weights[k], again[k]) for k in weights)


def test_a_run_is_never_continued_into_another_ones_folder(tmp_path):
    args = [*SMALL, "--toy-pairs", 300, "--max-steps", 4, "--save-steps", 2]
    assert command(*args, "--output", tmp_path / "a")[0] == command(*args, "--output", tmp_path / "b")[0] == 0
    before = {p: p.read_bytes() for p in (tmp_path / "b").rglob("*") if p.is_file()}
    status, _, err = command(*args, "--resume", tmp_path / "a" / "checkpoint-2", "--output", tmp_path / "b")
    assert status == 2 and "holds another run" in err
    assert {p: p.read_bytes() for p in (tmp_path / "b").rglob("*") if p.is_file()} == before
    assert command(*args, "--resume", tmp_path / "a" / "checkpoint-2", "--output", tmp_path / "c")[0] == 0  # a new one may


def test_damaged_run_files_are_named_when_resuming(tmp_path):
    args = [*SMALL, "--toy-pairs", 300, "--max-steps", 4, "--save-steps", 2, "--output", tmp_path / "run"]
    assert command(*args)[0] == 0
    (tmp_path / "run" / "report.json").unlink()
    log = (tmp_path / "run" / "metrics.jsonl").read_text()
    (tmp_path / "run" / "metrics.jsonl").write_text("garbage\n")
    status, _, err = command(*args, "--resume")
    assert status == 2 and "metrics.jsonl: not JSON lines" in err
    (tmp_path / "run" / "metrics.jsonl").write_text(log)
    (tmp_path / "run" / "checkpoint-2" / "trainer_state.json").write_text("{}")
    status, _, err = command(*args, "--resume")
    assert status == 2 and "trainer_state.json: no data_fingerprint" in err


def test_files_of_a_run_can_be_read_by_others(tmp_path):
    umask = os.umask(0o022)
    try:
        assert command(*SMALL, "--toy-pairs", 300, "--max-steps", 2, "--output", tmp_path / "run")[0] == 0
    finally:
        os.umask(umask)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "run").iterdir()} == {0o644}


def test_data_named_twice_is_all_used(tmp_path):
    a, b = write_rows(tmp_path / "a.jsonl", toy_rows(24)), write_rows(tmp_path / "b.jsonl", toy_rows(16, seed=4))
    status, out, err = command(*SMALL, "--data", a, "--data", b, "--max-steps", 1, "--output", tmp_path / "run")
    audit = json.loads((tmp_path / "run" / "options.json").read_text())["audit"]
    assert status == 0 and audit["train"]["read"] + audit["held out"]["read"] == 40, err


def test_optimizer_state_of_another_shape_is_refused(tmp_path):
    # The fused AdamW does not look at shapes: moments of other rows would be taken for these.
    small = [*SMALL, "--toy-pairs", 200, "--max-steps", 5, "--save-steps", 2, "--output", tmp_path / "run"]
    assert command(*small)[0] == 0
    (checkpoint,) = train_rm.checkpoints(tmp_path / "run")
    tensors = load_file(checkpoint / "optimizer.safetensors")
    tensors["exp_avg/model.embed_tokens.weight"] = torch.zeros(5000, 16)
    save_file(tensors, checkpoint / "optimizer.safetensors")
    (tmp_path / "run" / "report.json").unlink()
    status, _, err = command(*small, "--resume")
    assert status == 2 and "exp_avg/model.embed_tokens.weight does not fit this model" in err


@pytest.mark.parametrize("save_format", ["transformers", "llamafactory"])
def test_what_is_saved_in_another_layout_gives_the_rewards_training_reported(tmp_path, save_format):
    small = [*SMALL, "--toy-pairs", 300, "--max-steps", 4, "--center-rewards-coefficient", 0.5, "--save-format", save_format]
    status, out, err = command(*small, "--output", tmp_path / "run")
    assert status == 0, err
    assert ("note: the head has a bias of" in out) == (save_format == "transformers")
    model, tokenizer = RewardModel.from_pretrained(tmp_path / "run"), Tokenizer.from_folder(tmp_path / "run")
    preferences, _ = read_preferences(tmp_path / "run" / "held_out.jsonl")
    pairs, _ = encode_preferences(preferences, tokenizer, 512)
    again, reported = report(score_pairs(model, pairs), pairs), json.loads((tmp_path / "run" / "report.json").read_text())
    assert again["mean_chosen"] == pytest.approx(reported["mean_chosen"], abs=1e-5)
    assert again["loss"] == pytest.approx(reported["loss"], abs=1e-5)
    names = set(load_file(tmp_path / "run" / "model.safetensors"))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    if save_format == "llamafactory":
        head = load_file(tmp_path / "run" / "value_head.safetensors")
        assert {n: list(t.shape) for n, t in head.items()} == {"v_head.summary.weight": [1, 16], "v_head.summary.bias": [1]}
        assert not any(n.startswith("score") for n in names) and config["architectures"] == ["LlamaForCausalLM"]
    else:
        assert {"score.weight", "score.bias"} <= names and config["num_labels"] == 1


def test_ours_to_llamafactory_and_back_changes_no_weight(tmp_path):
    ours = save_run(tmp_path / "ours", tiny_model(), tiny_tokenizer())
    there, back = tmp_path / "there", tmp_path / "back"
    RewardModel.from_pretrained(ours).save_pretrained(there, 0, "llamafactory")
    RewardModel.from_pretrained(there).save_pretrained(back, 0)
    before, after = load_file(ours / "model.safetensors"), load_file(back / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (ours, back)]
    assert configs[0] == configs[1]


def test_normalized_rewards_have_mean_0_and_deviation_1_on_the_held_out_pairs(tmp_path, capsys):
    run = tmp_path / "run"
    assert command(*SMALL, "--toy-pairs", 300, "--max-steps", 4, "--normalize", "--output", run)[0] == 0
    rows = [json.loads(line) for line in (run / "held_out.jsonl").read_text().splitlines()]
    texts = write_rows(tmp_path / "texts.jsonl", [{"prompt": r["prompt"], "response": r[side]} for r in rows for side in ("chosen", "rejected")])
    rewards = {}
    for options in ([], ["--normalized"]):
        assert evaluation_main(["score", str(run), "--input", str(texts), "--output", str(tmp_path / "scored.jsonl"), *options]) == 0
        rewards[len(options)] = np.array([json.loads(line)["reward"] for line in (tmp_path / "scored.jsonl").read_text().splitlines()])
    assert abs(rewards[1].mean()) < 1e-5 and abs(rewards[1].std() - 1) < 1e-5
    np.testing.assert_allclose(rewards[1], (rewards[0] - rewards[0].mean()) / rewards[0].std(), atol=1e-5)


def test_training_on_drops_the_mean_and_deviation_of_the_old_rewards(tmp_path):
    small = ["--toy-pairs", 300, "--max-steps", 2]
    assert command(*SMALL, *small, "--normalize", "--output", tmp_path / "first")[0] == 0
    assert {"mean", "std"} <= json.loads((tmp_path / "first" / "config.json").read_text()).keys()
    assert command(*small, "--model", tmp_path / "first", "--output", tmp_path / "second")[0] == 0
    assert not {"mean", "std"} & json.loads((tmp_path / "second" / "config.json").read_text()).keys()


def test_normalized_without_its_numbers_is_an_error_in_one_line(tiny_run, capsys):
    assert evaluation_main(["score", str(tiny_run), "--normalized", "--input", str(ROOT / "nothing.jsonl")]) == 2
    assert capsys.readouterr().err == f"eval.py: {tiny_run}/config.json: no usable mean and std; train with --normalize\n"


def test_a_finished_run_is_not_trained_again(tmp_path):
    args = [*SMALL, "--toy-pairs", 300, "--max-steps", 4, "--save-steps", 2, "--output", tmp_path / "run"]
    assert command(*args)[0] == 0
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    status, out, _ = command(*args, "--resume")
    assert status == 0 and "is finished" in out
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_a_checkpoint_is_itself_a_run_folder(tmp_path):
    assert command(*SMALL, "--toy-pairs", 300, "--max-steps", 4, "--save-steps", 2, "--output", tmp_path / "run")[0] == 0
    assert RewardModel.from_pretrained(tmp_path / "run" / "checkpoint-2").head_origin == "kept (score)"


def test_a_half_written_checkpoint_is_never_taken_for_one(tmp_path):
    (tmp_path / "run").mkdir()

    def write(folder):
        (folder / "trainer_state.json").write_text("{}")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_rm.write_folder(tmp_path / "run" / "checkpoint-9", write)
    assert train_rm.checkpoints(tmp_path / "run") == []


# ---------------------------------------------------------------- ranks


def test_two_ranks_take_the_steps_of_one_and_count_each_pair_once(tiny_run, tmp_path):
    # 33 pairs in steps of 16: every third step has one pair, and a rank with nothing to do. 11 held-out pairs: an odd number.
    data, held_out = write_rows(tmp_path / "d.jsonl", toy_rows(33)), write_rows(tmp_path / "e.jsonl", toy_rows(11, seed=9))
    args = ["--model", tiny_run, "--data", data, "--eval-data", held_out, "--batch-size", 16, "--max-steps", 9, "--logging-steps", 1,
            "--gradient-accumulation-steps", 2, "--lr", 1e-4, "--center-rewards-coefficient", 0.01]
    assert command(*args, "--output", tmp_path / "one")[0] == 0
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                           str(ROOT / "train_rm.py"), *map(str, args), "--output", str(tmp_path / "two")],
                          capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for a, b in zip(one, two):
        for key in a.keys() & {"loss", "accuracy", "mean_margin", "mean_reward", "grad_norm", "eval_loss", "eval_accuracy"}:
            assert b[key] == pytest.approx(a[key], abs=2e-5), (a["step"], key)
    reports = [json.loads((tmp_path / n / "report.json").read_text()) for n in ("one", "two")]
    assert reports[0]["pairs"] == reports[1]["pairs"] == 11
    assert reports[1]["accuracy"] == reports[0]["accuracy"] and reports[1]["loss"] == pytest.approx(reports[0]["loss"], abs=1e-5)
    weights = [load_file(tmp_path / n / "model.safetensors") for n in ("one", "two")]
    assert all((weights[0][k] - weights[1][k]).abs().max() < 1e-4 for k in weights[0])


# ---------------------------------------------------------------- a user's mistakes


def refused(tmp_path, *args, output="run"):
    """The one line a mistake costs: exit status 2, no traceback, nothing written."""
    before = sorted(p for p in tmp_path.rglob("*") if p.is_file())
    status, _, err = command(*args, "--output", tmp_path / output)
    assert status == 2 and "Traceback" not in err
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == before
    assert not (tmp_path / "run").exists() or output != "run"
    return err.strip().splitlines()[-1]


def test_a_missing_file_is_named(tmp_path):
    assert "nowhere.jsonl: No such file" in refused(tmp_path, "--data", tmp_path / "nowhere.jsonl")


def test_broken_json_is_named_with_its_line(tmp_path):
    (tmp_path / "d.jsonl").write_text(json.dumps(toy_rows(1)[0]) + "\n{\n")
    assert "d.jsonl:2: not JSON" in refused(tmp_path, "--data", tmp_path / "d.jsonl")


def test_a_missing_field_is_named_with_its_row(tmp_path):
    data = write_rows(tmp_path / "d.jsonl", [*toy_rows(3), {"prompt": "q", "chosen": "a"}])
    assert "d.jsonl:4: no field 'rejected' (found: prompt, chosen)" in refused(tmp_path, "--data", data)


def test_no_pairs_after_the_audit_are_said(tmp_path, tiny_run):
    data = write_rows(tmp_path / "d.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "a"}, {"prompt": "p", "chosen": "a", "rejected": ""}])
    good = write_rows(tmp_path / "good.jsonl", toy_rows(4))
    assert "no pairs left in the train data" in refused(tmp_path, "--model", tiny_run, "--data", data, "--eval-data", good)
    assert "no pairs left in the held out data" in refused(tmp_path, "--model", tiny_run, "--data", good, "--eval-data", data)


def copy_run(source, target, **files):
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_truncated_and_misshapen_weights_are_said(tmp_path, tiny_run):
    data = write_rows(tmp_path / "d.jsonl", toy_rows(40))
    folder = copy_run(tiny_run, tmp_path / "m")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "model.safetensors: not a complete safetensors file" in refused(tmp_path, "--model", folder, "--data", data)
    (folder / "model.safetensors").write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 25}))
    assert "wrong shape: model.layers.0.mlp" in refused(tmp_path, "--model", folder, "--data", data)


def test_a_tokenizer_without_an_end_token_is_said(tmp_path, tiny_run):
    data = write_rows(tmp_path / "d.jsonl", toy_rows(40))
    folder = copy_run(tiny_run, tmp_path / "m")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": None, "chat_template": None}))
    assert "no eos_token" in refused(tmp_path, "--model", folder, "--data", data)


def test_token_ids_beyond_the_vocabulary_are_said(tmp_path):
    data = write_rows(tmp_path / "d.jsonl", toy_rows(40))
    folder = save_run(tmp_path / "m", tiny_model(vocab_size=100), tiny_tokenizer())
    assert "beyond the model's vocabulary of 100" in refused(tmp_path, "--model", folder, "--data", data)


def test_an_output_that_cannot_be_written_is_said_before_the_work(tmp_path):
    (tmp_path / "file").write_text("mine")
    assert f"--output {tmp_path / 'file' / 'run'}: {tmp_path / 'file'} is not a folder" in refused(tmp_path, output="file/run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    assert "holds files that are not a run's" in refused(tmp_path, output="full")


def test_no_permission_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere, so the answer is faked
    assert "no permission to write" in refused(tmp_path)


def test_resuming_from_another_model_or_other_options_is_refused(tmp_path, tiny_run):
    args = [*SMALL, "--toy-pairs", 300, "--max-steps", 4, "--save-steps", 2]
    assert command(*args, "--output", tmp_path / "run")[0] == 0
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    (tmp_path / "run" / "report.json").unlink()  # as if it had been interrupted
    before.pop(tmp_path / "run" / "report.json")
    for other, message in [
        (["--resume", tiny_run], "no trainer_state.json, so not a checkpoint"),
        (["--resume", tmp_path / "nowhere"], "no trainer_state.json"),
        (["--resume", "--hidden-size", 24], "made with --hidden-size 16, not 24"),
        (["--resume", "--lr", 0.5], "made with --lr 0.001, not 0.5"),
        (["--resume", "--vocab-size", 500], "made with --vocab-size 400, not 500"),
        (["--resume", "--seed", 1], "made with --seed 0, not 1"),
    ]:
        status, _, err = command(*args, *other, "--output", tmp_path / "run")
        assert status == 2 and message in err and err.count("\n") == 1, err
    status, _, err = command("--resume", "--output", tmp_path / "nothing")
    assert status == 2 and "no checkpoint in" in err
    data = write_rows(tmp_path / "d.jsonl", toy_rows(60))
    assert command(*SMALL, "--data", data, "--max-steps", 4, "--save-steps", 2, "--output", tmp_path / "own")[0] == 0
    (tmp_path / "own" / "report.json").unlink()
    write_rows(data, toy_rows(60, seed=3))
    status, _, err = command(*SMALL, "--data", data, "--max-steps", 4, "--save-steps", 2, "--output", tmp_path / "own", "--resume")
    assert status == 2 and "made with other training data" in err
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("args, message", [
    (["--batch-size", 60, "--gradient-accumulation-steps", 8], "--batch-size 60 is not a multiple of 8"),
    (["--batch-size", 0], "--batch-size: must be more than 0, not 0"),
    (["--lr", -1], "--lr: must be more than 0"),
    (["--lr", "nan"], "--lr: must be more than 0"),
    (["--label-smoothing", 0.5], "--label-smoothing: must be at least 0 and less than 0.5"),
    (["--eval-fraction", 1], "--eval-fraction: must be more than 0 and less than 1"),
    (["--batch-size", "many"], "--batch-size: invalid int value: 'many'"),
    (["--device", "abacus"], "--device abacus"),
    (["--bf16", "--fp16"], "choose one"),
    (["--hidden-size", 30, "--num-attention-heads", 4], "--hidden-size 30 is not a multiple"),
    (["--eval-data", "x.jsonl"], "--eval-data needs --data"),
    (["--vocab-size", 200], "--vocab-size: must be at least 300"),
])
def test_options_without_a_meaning_are_refused(args, message, tmp_path):
    assert message in refused(tmp_path, *args)


def test_more_tokens_than_the_model_takes_are_refused(tmp_path, tiny_run):
    data = write_rows(tmp_path / "d.jsonl", toy_rows(40))
    assert "--max-length 512 is more than the 256 tokens this model takes" in refused(
        tmp_path, "--model", tiny_run, "--data", data, "--max-length", 512)


def test_a_loss_that_is_not_a_number_stops_the_run(tiny_run, tmp_path):
    folder = copy_run(tiny_run, tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"][0] = math.inf
    save_file(state, folder / "model.safetensors")
    data = write_rows(tmp_path / "d.jsonl", toy_rows(40))
    status, _, err = command("--model", folder, "--data", data, "--output", tmp_path / "run")
    assert status == 2 and re.search("step 1: the loss is (nan|inf)", err)


def test_the_help_page_explains_every_option():
    status, out, _ = command("--help")
    assert status == 0
    for group in ("what to learn from", "how long and how fast", "the machine", "what to keep"):
        assert group in out
