"""train_rm.py: what a step is, and which options reach it.

test_run.py has what a run sees, logs and leaves behind; test_resume.py runs that are stopped.
"""
import math

import numpy as np
import pytest
import torch
from conftest import tiny_model, tiny_tokenizer, write_rows
from runs import MIXED, STILL, assert_close, column, options, pairs, train
from runs import every_step, folder  # pytest finds fixtures by their names here
from torch.optim.optimizer import register_optimizer_step_pre_hook

import train_rm
from data import Audit, Examples, examples_of, parse_row, write_tokens
from model import RewardModel

# ---------------------------------------------------------------- the gradient of one step


def write_examples(folder, rows):
    """Rows -> Examples, as a run has them."""
    tokenizer = tiny_tokenizer()
    examples = examples_of(map(parse_row, rows), tokenizer, 256, Audit())
    folder.mkdir()
    write_tokens(folder, examples, [])
    return Examples(folder)


def gradient_of_the_loop(model, examples, args):
    """Gradients and means of a step over all examples, by train_rm.py's own functions."""
    model.zero_grad()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    batches = train_rm.batches_of_step(np.arange(len(examples)), examples, 0, args)
    means = train_rm.accumulate_gradients(model, batches, args, scaler)
    return gradients(model), means


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def loss_written_plainly(model, rows, smoothing=0.0, centering=0.0):
    """The mean loss over rows of the mean over pairs: no batch, no padding, nothing of the loop."""
    tokenizer = tiny_tokenizer()
    losses = []
    for row in rows:
        responses = row.get("responses") or [row["chosen"], row["rejected"]]
        order = row.get("scores") or [-rank for rank in row.get("ranks", [1, 2])]
        rewards = []
        for response in responses:
            text = f"User: {row['prompt']}\nAssistant: {response}</s>"
            ids = torch.tensor([tokenizer.backend.encode(text).ids])
            rewards.append(model(ids, torch.ones_like(ids))[0])
        of_row = []
        for r_w, score_w in zip(rewards, order):
            for r_l, score_l in zip(rewards, order):
                if score_w > score_l:
                    as_labelled = torch.log1p(torch.exp(-(r_w - r_l - row.get("margin", 0))))
                    flipped = torch.log1p(torch.exp(-(r_l - r_w - row.get("margin", 0))))
                    loss = (1 - smoothing) * as_labelled + smoothing * flipped
                    of_row.append(loss + centering * (r_w + r_l) ** 2)
        losses.append(sum(of_row) / len(of_row))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("form", [[], ["--gradient-accumulation-steps", 3], ["--pack"]], ids=str)
@pytest.mark.parametrize("smoothing, centering", [(0, 0), (0.2, 0), (0, 0.3), (0.1, 0.02)])
def test_the_gradient_is_that_of_the_mean_loss_written_plainly(
    form, smoothing, centering, tmp_path
):
    of_loss = ["--label-smoothing", smoothing, "--center-rewards-coefficient", centering]
    model, examples = tiny_model(), write_examples(tmp_path / "tokens", MIXED)
    found, means = gradient_of_the_loop(model, examples, options(*form, *of_loss))

    model.zero_grad()
    loss = loss_written_plainly(model, MIXED, smoothing, centering)
    loss.backward()
    assert means["loss"] == pytest.approx(loss.item(), abs=1e-5), (
        "not the loss of these rows: are chosen and rejected swapped, or does a margin, the weight "
        "of a pair or an option not reach the loss?"
    )
    assert_close(found, gradients(model))


@pytest.mark.parametrize("accumulation", [2, 3, 5, 8])  # 7 rows: never equal pieces
def test_accumulation_takes_the_step_of_the_big_batch(accumulation, tmp_path):
    rows = [*MIXED, *pairs(2)]
    model, examples = tiny_model(), write_examples(tmp_path / "tokens", rows)
    of_loss = ["--label-smoothing", 0.1, "--center-rewards-coefficient", 0.01]
    cut = ["--gradient-accumulation-steps", accumulation]
    whole, means = gradient_of_the_loop(model, examples, options(*of_loss))
    pieces, means_of_pieces = gradient_of_the_loop(model, examples, options(*of_loss, *cut))
    assert_close(pieces, whole, message=(
        "cut into micro-batches, a step has another gradient: a pair weighs more, or less"
    ))
    assert means_of_pieces == pytest.approx(means, abs=1e-5), (
        "what is logged is not the mean over all micro-batches of the step"
    )


def test_a_step_is_cut_into_as_many_forward_passes_as_asked_for(folder, tmp_path, monkeypatch):
    rows_of_passes, forward = [], RewardModel.forward

    def counted(self, input_ids, attention_mask, *form):
        if torch.is_grad_enabled():
            rows_of_passes.append(len(input_ids))
        return forward(self, input_ids, attention_mask, *form)

    monkeypatch.setattr(RewardModel, "forward", counted)
    args = ["--max-steps", 1, "--gradient-accumulation-steps", 3, "--output", tmp_path / "run"]
    assert train(folder, *args)[0] == 0
    assert sorted(rows_of_passes) == [4, 4, 6], "7 pairs in three passes: 2, 2 and 3 pairs"


@pytest.mark.parametrize("form", [[], ["--pack"]], ids=str)
def test_recomputing_layers_takes_the_same_step_and_keeps_less(form, folder, tmp_path):
    examples, steps, kept = write_examples(tmp_path / "tokens", MIXED), [], []
    for more in ([], ["--gradient-checkpointing"]):
        args, model = options(*form, *more), tiny_model(num_hidden_layers=6)
        train_rm.prepare(model, args, examples)
        model.score.bias.requires_grad_()
        numbers = 0

        def count(tensor):
            nonlocal numbers
            numbers += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            steps.append(gradient_of_the_loop(model, examples, args)[0])
        kept.append(numbers)
    assert_close(steps[1], steps[0])
    assert kept[1] < 0.7 * kept[0], "nothing was saved: does the option reach the decoder?"


def test_processes_with_unequal_shares_take_the_step_of_one(tmp_path, monkeypatch):
    """One after the other, without torchrun. DDP then averages the gradients of all of them."""
    model, examples = tiny_model(), write_examples(tmp_path / "tokens", MIXED)
    whole, means = gradient_of_the_loop(model, examples, options())
    monkeypatch.setattr(train_rm, "process_count", lambda: 2)
    monkeypatch.setattr(train_rm.dist, "all_reduce", lambda tensor: None)
    of_processes = []
    for number in range(2):  # 3 rows and 2 rows
        monkeypatch.setattr(train_rm, "process_number", lambda: number)
        of_processes.append(gradient_of_the_loop(model, examples, options()))
    (first, its_means), (second, means_of_second) = of_processes
    averaged = {name: (first[name] + second[name]) / 2 for name in whole}
    assert_close(averaged, whole, message=(
        "averaged over processes, the gradient is not that of the mean over all rows: does each "
        "row count once, and is it multiplied by the number of processes?"
    ))
    for name, mean in means.items():
        assert its_means[name] + means_of_second[name] == pytest.approx(mean, abs=1e-5), name


# ---------------------------------------------------------------- the update


@pytest.fixture
def updates():
    """What the optimizer sees at each of its steps: learning rates, and the gradient's norm."""
    seen = []

    def look(optimizer, args, kwargs):
        rates = {group["lr"] for group in optimizer.param_groups}
        squares = 0.0
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                squares += parameter.grad.double().square().sum().item()
        seen.append((rates, math.sqrt(squares)))

    handle = register_optimizer_step_pre_hook(look)
    yield seen
    handle.remove()


def test_the_learning_rate_rises_then_falls_to_nothing_along_half_a_cosine():
    rates = [train_rm.learning_rate(step, 200, 2e-3) / 2e-3 for step in range(200)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10), "5% warmup: ten steps of 200, 0.1 … 1.0"
    cosine = (1 + np.cos(np.pi * np.arange(190) / 190)) / 2
    assert rates[10:] == pytest.approx(cosine), "half a cosine, from the peak down to 0"


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_optimizer_gets_the_learning_rate_of_each_step(
    accumulation, folder, tmp_path, updates, every_step
):
    args = ["--max-steps", 40, "--lr", 1e-3, "--gradient-accumulation-steps", accumulation]
    status, _, err = train(folder, *args, "--output", tmp_path / "run")
    assert status == 0, err
    expected = [5e-4, 1e-3]  # 5% of 40 steps
    for step in range(38):
        expected.append(5e-4 * (1 + math.cos(math.pi * step / 38)))
    assert [rate for rates, _ in updates for rate in rates] == pytest.approx(expected), (
        "the rate of a step has to reach the optimizer: one a step, not one for each micro-batch"
    )
    assert column(tmp_path / "run", "lr") == pytest.approx(expected)


@pytest.mark.parametrize("limit", [0.1, 1e9])
def test_the_gradient_is_clipped_to_max_grad_norm_before_the_update(
    limit, folder, tmp_path, updates, every_step
):
    args = ["--max-steps", 3, "--max-grad-norm", limit, "--output", tmp_path / "run"]
    assert train(folder, *args)[0] == 0
    logged = column(tmp_path / "run", "grad_norm")
    assert min(logged) > 0.1, "this test needs gradients that are larger than the small limit"
    expected = [min(norm, limit) for norm in logged]
    assert [norm for _, norm in updates] == pytest.approx(expected, rel=1e-4), (
        "the gradient that the update gets is not clipped to --max-grad-norm"
    )


def test_accumulation_changes_no_logged_number_while_clipping_is_active(
    folder, tmp_path, every_step
):
    # AdamW divides by the size of the gradient, so weights alone would hide a missing factor.
    for cut in (1, 2, 3, 5):
        args = ["--max-steps", 6, "--max-grad-norm", 0.1, "--lr", 1e-3]
        args += ["--gradient-accumulation-steps", cut, "--center-rewards-coefficient", 0.01]
        assert train(folder, *args, "--output", tmp_path / str(cut))[0] == 0
    for name in ("loss", "accuracy", "mean_margin", "mean_reward", "mean_abs_reward", "grad_norm"):
        whole = column(tmp_path / "1", name)
        for cut in ("2", "3", "5"):
            assert column(tmp_path / cut, name) == pytest.approx(whole, abs=2e-5), name


def test_gradients_of_earlier_steps_are_gone(folder, tmp_path, every_step):
    args = ["--batch-size", 21, "--max-steps", 4, *STILL, "--output", tmp_path / "run"]
    assert train(folder, *args)[0] == 0
    norms = column(tmp_path / "run", "grad_norm")
    # Every step has all rows, and no weight changes.
    assert norms == pytest.approx([norms[0]] * 4, rel=1e-4), "gradients add up: not set to zero?"


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_weight_decay_pulls_on_matrices_and_on_nothing_else(decay):
    model = tiny_model()
    model.score.bias.requires_grad_()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = train_rm.make_optimizer(model, 0.1, decay)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # without a gradient, AdamW does nothing but decay
    for name, tensor in model.state_dict().items():
        factor = 1 - 0.1 * decay if tensor.ndim == 2 else 1.0
        torch.testing.assert_close(tensor, factor * before[name], msg=lambda m: (
            f"--weight-decay pulls on matrices and on nothing else, but {name}: {m}"
        ))


def test_the_optimizer_is_adamw_with_the_betas_of_the_file_and_every_trained_parameter():
    model = tiny_model()
    model.score.bias.requires_grad_(False)
    optimizer = train_rm.make_optimizer(model, 0.1, 0.01)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {group["betas"] for group in optimizer.param_groups} == {train_rm.BETAS}
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    expected = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in expected} and len(trained) == len(expected)


@pytest.mark.parametrize("coefficient, moves", [(0, False), (0.1, True)])
def test_the_bias_trains_only_where_the_centering_penalty_gives_it_a_gradient(
    coefficient, moves, folder, tmp_path
):
    # Rows of three responses: the gradients of a row add up to nearly 0, and Adam makes them large.
    data = ["--data", write_rows(tmp_path / "d.jsonl", MIXED * 5)]
    args = ["--center-rewards-coefficient", coefficient, "--lr", 1e-3, "--epochs", 4]
    assert train(folder, *data, *args, "--output", tmp_path / "run")[0] == 0
    bias = RewardModel.from_pretrained(tmp_path / "run").score.bias.item()
    assert (bias != 0.25) == moves, "the bias cancels: only the centering penalty may train it"


def test_centering_keeps_rewards_around_0(folder, tmp_path, every_step):
    for coefficient in (0, 0.5):
        args = ["--max-steps", 30, "--lr", 1e-2, "--center-rewards-coefficient", coefficient]
        assert train(folder, *args, "--output", tmp_path / str(coefficient))[0] == 0
    without, kept = (column(tmp_path / str(c), "mean_abs_reward")[-1] for c in (0, 0.5))
    assert kept < without / 2


# ---------------------------------------------------------------- half precision


@pytest.mark.parametrize("precision, tolerance", [("--fp16", 0.02), ("--bf16", 0.05)])
def test_half_precision_logs_what_float32_logs(
    precision, tolerance, folder, tmp_path, updates, every_step
):
    args = ["--max-steps", 8, "--lr", 1e-4, "--max-grad-norm", 0.5]
    for name, more in (("full", []), ("half", [precision])):
        assert train(folder, *args, *more, "--output", tmp_path / name)[0] == 0
    for name in ("loss", "grad_norm"):
        full, half = column(tmp_path / "full", name), column(tmp_path / "half", name)
        assert full != half, "it computes in float32: the option does nothing"
        assert half == pytest.approx(full, rel=tolerance), (
            f"{name}: is the gradient unscaled before it is clipped and logged?"
        )
    assert [norm for _, norm in updates] == pytest.approx([0.5] * 16, rel=1e-3)
