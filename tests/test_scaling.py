"""Ranks, shards, LoRA and frozen layers take the steps they should, and no fault costs more than the step it fell into."""
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
import weakref
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, save_run, tiny_model, tiny_tokenizer
from ranks import FOUR, LORA, RUN, WAYS, no_number_for, read_pairs, sgd
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_train import SMALL, command, copy_run, metrics, options, toy_rows, write_rows

import model as model_module
import train_rm
from eval import score_pairs
from model import FrozenLinear, RewardModel

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(ROOT / "train_rm.py")]
# Rows of data are known by the token "@", which only one of them holds.
BAD = tiny_tokenizer().backend.token_to_id("@")


@pytest.fixture(scope="session")
def folder(background):
    """What ranks.py and crash.py train from."""
    return background[0]


def findings(process, file):
    """What one of them has found, when it has."""
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return json.loads(file.read_text())


@pytest.fixture(scope="session")
def crashed(background):
    folder, _, crash = background
    return findings(crash, folder / "crash" / "crash.json")


def train(folder, *args, data="d.jsonl"):
    """A run on the folder's data: status, stdout, stderr."""
    return command("--model", folder / "tiny", "--data", folder / data, "--eval-data", folder / "e.jsonl", *RUN, *args)


@pytest.fixture(scope="session")
def ranks(background):
    """What two and four ranks made of it; `one` and `one lora` are runs of one process, to compare with and go on from."""
    folder, ranks, _ = background
    return findings(ranks, folder / "done 2.json")


def losses(run, after=0):
    return [line["loss"] for line in metrics(run) if "loss" in line and line["step"] > after]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------- ranks and shards


@pytest.mark.parametrize("n, way", [(2, way) for way in WAYS] + [(4, way) for way in FOUR])
def test_ranks_and_shards_take_the_steps_of_one_process(n, way, ranks, folder):
    lora, half = "--lora-rank" in WAYS[way], "--bf16" in WAYS[way]
    one = sgd(folder, *([s for s in WAYS[way] if s != "--shard"] if lora or half else []))
    many, gradients = load_file(folder / f"{n} {way}.safetensors"), sum(name.startswith("gradient/") for name in one)
    assert one.keys() == many.keys() and gradients == (30 if half else 16 if lora else 22)
    assert [many[f"sums/{step}"][5].item() for step in range(3)] == [8, 8, 1]
    for name in one.keys() - {"kept/share"}:
        exact = name.startswith(("gradient/", "weight/"))  # sums and rewards add up many roundings
        torch.testing.assert_close(many[name], one[name], atol=5e-2 if half else 1e-6 if exact else 1e-5,
                                   rtol=1e-2 if half else 0 if exact else 1e-5, msg=lambda m: f"{name}: {m}")


def test_a_rank_keeps_only_its_share_of_a_sharded_model(ranks, folder):
    ways = [(2, way) for way in WAYS] + [(4, way) for way in FOUR]
    shares = {(n, way): load_file(folder / f"{n} {way}.safetensors")["kept/share"] for n, way in ways}
    assert all(share == 1 for (_, way), share in shares.items() if way.startswith("ddp"))
    # The head's bias cannot be divided, and rank 0 has it.
    assert all(1 / n <= share < 1 / n + 0.01 for (n, way), share in shares.items() if way.startswith("fsdp"))


def test_what_shards_save_is_an_ordinary_model_with_the_same_rewards(ranks, folder):
    assert ranks["sharded"] == [0, ""]
    reported = json.loads((folder / "sharded" / "report.json").read_text())
    for name in ("sharded", "one"):
        rewards = score_pairs(RewardModel.from_pretrained(folder / name), read_pairs(folder / "e.jsonl"))
        assert rewards.mean(0).tolist() == pytest.approx([reported["mean_chosen"], reported["mean_rejected"]], abs=1e-5)


def test_adamw_learns_the_same_on_shards(ranks, folder):
    for many, one in (("sharded", "one"), ("lora", "one lora")):
        assert len(losses(folder / many)) == 5
        assert losses(folder / many) == pytest.approx(losses(folder / one), abs=2e-5)
    assert ranks["half"] == [0, ""] and losses(folder / "half") == pytest.approx(losses(folder / "lora"), abs=0.05)


def test_a_run_goes_on_with_another_number_of_ranks(ranks, folder):
    assert ranks["resumed"] == ranks["lora"] == ranks["lora resumed"] == [0, ""]  # one process -> 2 shards; 2 shards -> 2
    assert losses(folder / "resumed") == pytest.approx(losses(folder / "one", after=3), abs=2e-5)
    assert losses(folder / "lora resumed") == pytest.approx(losses(folder / "lora", after=3), abs=2e-5)
    for settings, many in (([], "sharded"), (LORA, "lora")):  # 2 shards -> one process
        at_3, output = folder / many / "checkpoint-3", folder / f"{many} on one"
        status, _, err = train(folder, *settings, "--resume", at_3, "--output", output)
        assert status == 0, err
        assert losses(output) == pytest.approx(losses(folder / many, after=3), abs=2e-5)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_ranks_agree_on_a_step_that_is_not_a_number(way, ranks, folder):
    skipped = [(line["step"], line["rows"]) for line in metrics(folder / f"skip {way}") if "skipped" in line]
    place = f"{folder / 'bad.jsonl'}:13"
    assert ranks[f"skip {way}"][0] == 0 and skipped == [(2, [place]), (5, [place])]
    assert len(losses(folder / f"skip {way}")) == 3 and all(map(math.isfinite, losses(folder / f"skip {way}")))
    status, err = ranks[f"stop {way}"]
    assert status == 2 and f"step 2: the loss is nan; rows: {folder / 'bad.jsonl'}:13. Try" in err
    assert [p.name for p in train_rm.checkpoints(folder / f"stop {way}")] == ["checkpoint-1"]


def test_a_lost_rank_ends_the_job_with_a_line_that_says_so(tmp_path):
    args = [*SMALL, "--toy-pairs", 100, "--max-steps", 10**5, "--batch-size", 8, "--logging-steps", 1,
            "--output", tmp_path / "run"]
    job = subprocess.Popen([*TORCHRUN, *map(str, args)], env=ONE_THREAD, text=True, stdout=subprocess.DEVNULL,
                           stderr=subprocess.PIPE)
    try:
        while job.poll() is None and not ((tmp_path / "run" / "metrics.jsonl").exists() and metrics(tmp_path / "run")):
            time.sleep(0.05)
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        [second] = [int(pid) for pid in children if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
        os.kill(second, signal.SIGKILL)
        _, err = job.communicate(timeout=30)
    finally:
        job.kill()
    assert job.returncode not in (0, None) and "train_rm.py: process 0 of 2 lost another one" in err, err


# ---------------------------------------------------------------- LoRA, frozen layers


def with_lora(folder, *settings, base="tiny"):
    """A model as --lora-rank 2 trains it, before the first step."""
    torch.manual_seed(0)
    model = RewardModel.open(folder / base)
    args = options("--model", folder / base, "--lora-rank", 2, *settings)
    args.device = torch.device("cpu")
    train_rm.to_the_machine(model, args, read_pairs(folder / "d.jsonl").used_ids)
    return model, args


def test_lora_starts_from_exactly_the_model_it_is_given(folder):
    pairs = read_pairs(folder / "d.jsonl")
    before = score_pairs(RewardModel.from_pretrained(folder / "tiny"), pairs)
    model, _ = with_lora(folder)
    assert (score_pairs(model, pairs) == before).all()
    with torch.no_grad():  # and its factors do count
        model.model.layers[0].mlp.up_proj.lora_B.fill_(0.1)
    assert abs(score_pairs(model, pairs) - before).max() > 1e-3


def test_merged_lora_gives_the_rewards_of_the_factors_and_nothing_else_has_changed(folder, tmp_path):
    pairs, (model, args) = read_pairs(folder / "d.jsonl"), with_lora(folder)
    base = load_file(folder / "tiny" / "model.safetensors")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for step in range(4):
        hands, n = train_rm.step_batches(pairs, step, 8)
        batches, scaler = [train_rm.collate(pairs, hands[0], 0, True)], torch.amp.GradScaler("cpu", enabled=False)
        train_rm.accumulate_gradients(model, batches, n, args, scaler)
        optimizer.step()
        optimizer.zero_grad()
    now = {name: p for name, p in model.named_parameters() if "lora_" not in name}
    assert {name for name in base if not torch.equal(now[name], base[name])} == {"score.weight"}
    save_run(tmp_path / "merged", model, tiny_tokenizer())
    merged = RewardModel.from_pretrained(tmp_path / "merged")
    assert {name for name, p in merged.named_parameters() if name in base and not torch.equal(p, base[name])} == {
        name for name in base if "_proj" in name or name == "score.weight"}
    unmerged = score_pairs(model, pairs)
    assert abs(unmerged - score_pairs(merged, pairs)).max() < 1e-5
    assert abs(unmerged - score_pairs(RewardModel.from_pretrained(folder / "tiny"), pairs)).max() > 1e-2


def test_the_number_of_trained_parameters_is_what_the_formula_says(folder):
    D, I, out, kv, r = 16, 24, 24, 12, 2  # tiny: 4 heads and 2 key/value heads, 6 wide
    of_layer = r * ((D + out) + 2 * (D + kv) + (out + D) + 3 * (D + I))
    trained = lambda *settings: sum(p.numel() for p in with_lora(folder, *settings)[0].parameters() if p.requires_grad)
    assert trained() == 2 * of_layer + D
    assert trained("--freeze-layers", 1) == of_layer + D
    assert trained("--freeze-layers", 1, "--center-rewards-coefficient", 0.1) == of_layer + D + 1


@pytest.mark.parametrize("half", [[], ["--bf16"]])
def test_lora_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(half, folder, tmp_path):
    for name, more in (("whole", []), ("parts", ["--resume", tmp_path / "whole" / "checkpoint-3"])):
        status, _, err = train(folder, *LORA, *half, *more, "--output", tmp_path / name)
        assert status == 0, err
    assert equal(*(load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts")))
    assert losses(tmp_path / "whole", after=3) == losses(tmp_path / "parts")


def test_lora_goes_on_only_above_the_model_it_was_trained_on(folder, tmp_path):
    assert train(folder, *LORA, "--output", tmp_path / "run")[0] == 0
    save_run(tmp_path / "other", tiny_model(seed=1), tiny_tokenizer(), 256)
    copy_run(folder / "tiny", tmp_path / "moved")
    for base, message in (("other", "made with"), ("moved", "made with --model")):
        status, _, err = train(folder, *LORA, "--model", tmp_path / base, "--resume", tmp_path / "run" / "checkpoint-3",
                               "--output", tmp_path / "on")
        assert status == 2 and message in err and err.count("\n") == 1, err


def test_a_changed_base_model_is_noticed_by_its_numbers(folder, tmp_path):
    args = [*LORA, "--model", copy_run(folder / "tiny", tmp_path / "base")]
    assert train(folder, *args, "--output", tmp_path / "run")[0] == 0
    save_run(tmp_path / "base", tiny_model(seed=1), tiny_tokenizer(), 256)
    status, _, err = train(folder, *args, "--resume", tmp_path / "run" / "checkpoint-3", "--output", tmp_path / "on")
    assert status == 2 and "made with another model below the LoRA factors" in err and err.count("\n") == 1, err


def test_frozen_layers_stay_as_they_are_and_the_rest_trains(folder, tmp_path):
    status, out, err = train(folder, "--freeze-layers", 1, "--output", tmp_path / "run")
    before, after = (load_file(f / "model.safetensors") for f in (folder / "tiny", tmp_path / "run"))
    assert status == 0 and before.keys() == after.keys(), err
    frozen = {name for name in before if name.startswith(("model.embed_tokens.", "model.layers.0."))}
    assert {name for name in before if torch.equal(before[name], after[name])} == frozen
    assert f"{sum(t.numel() for n, t in after.items() if n not in frozen):,} of them trained" in out


@pytest.mark.parametrize("base, half", [("in bf16", "--bf16"), ("in bf16", "--fp16"), ("tiny", "--bf16")])
def test_frozen_matrices_stay_in_half_precision_where_they_lie_in_it_and_trained_numbers_do_not(base, half, folder):
    model, _ = with_lora(folder, "--freeze-layers", 1, half, base=base)
    stored = load_file(folder / base / "model.safetensors")
    for name, p in model.named_parameters():
        frozen_matrix = p.ndim == 2 and not p.requires_grad
        lossless = frozen_matrix and (base, half) == ("in bf16", "--bf16")
        assert p.dtype == (torch.bfloat16 if lossless else torch.float32), name
        assert not frozen_matrix or torch.equal(p.float(), stored[name].float())
    assert sum(isinstance(module, FrozenLinear) for module in model.modules()) == 14


@pytest.mark.parametrize("half", ["--bf16", "--fp16"])
def test_half_precision_leaves_frozen_layers_as_they_were(half, folder, tmp_path):
    for base in ("tiny", "in bf16"):
        args = ["--model", folder / base, "--freeze-layers", 1, half, "--output", tmp_path / base]
        status, _, err = train(folder, *args)
        assert status == 0, err
        before, after = (load_file(f / "model.safetensors") for f in (folder / base, tmp_path / base))
        frozen = {name for name in before if name.startswith(("model.embed_tokens.", "model.layers.0."))}
        assert {name for name in before if torch.equal(before[name].float(), after[name])} == frozen


@pytest.mark.parametrize("args, message", [
    (["--lora-rank", 2], "--lora-rank needs --model"),
    (["--freeze-layers", 1], "--freeze-layers needs --model"),
    (["--model", "tiny", "--lora-alpha", 2], "--lora-alpha needs --lora-rank"),
    (["--model", "tiny", "--freeze-layers", 3], "--freeze-layers 3: the model has 2"),
    (["--model", "tiny", "--freeze-layers", 2, "--lora-rank", 2], "the model has 2, and LoRA needs one"),
])
def test_less_to_train_than_there_is_is_refused(args, message, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    status, _, err = command(*args, "--data", "d.jsonl", "--eval-data", "e.jsonl", "--output", tmp_path / "run")
    assert status == 2 and message in err.splitlines()[-1] and "Traceback" not in err and not (tmp_path / "run").exists()


# ---------------------------------------------------------------- loading


@pytest.mark.parametrize("settings", [[], ["--shard"], ["--lora-rank", 2, "--bf16"], ["--shard", "--lora-rank", 2]])
def test_a_model_is_opened_without_memory_and_loaded_one_tensor_at_a_time(settings, folder, tmp_path, monkeypatch):
    pieces = copy_run(folder / "tiny", tmp_path / "pieces")
    half = {name: t.bfloat16() for name, t in load_file(pieces / "model.safetensors").items()}
    (pieces / "model.safetensors").unlink()
    index = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(half)}
    (pieces / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    for file in set(index.values()):
        save_file({name: half[name] for name in half if index[name] == file}, pieces / file)
    given, alive = [], []

    class Spied:
        def __init__(self, *args):
            self.file = safe_open(*args)

        def __enter__(self):
            self.opened = self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def get_tensor(self, name):
            alive.append(sum(tensor() is not None for tensor in given))
            tensor = self.opened.get_tensor(name)
            given.append(weakref.ref(tensor))
            return tensor

    model = RewardModel.open(pieces)
    assert all(p.is_meta for p in model.parameters())
    monkeypatch.setattr(model_module, "safe_open", Spied)
    args = options("--model", pieces, *settings)
    args.device = torch.device("cpu")
    if args.shard:
        train_rm.start_processes(args)
    try:
        train_rm.to_the_machine(model, args, read_pairs(folder / "d.jsonl").used_ids)
        loaded = {name: t.clone() for name, t in model.weights()}
    finally:
        if args.shard:
            dist.destroy_process_group()
    assert alive == [0] * len(half)
    assert equal({name: loaded[name] for name in half}, {name: t.float() for name, t in half.items()})


# ---------------------------------------------------------------- a step that is not finite


@pytest.fixture
def no_reward_for_at_signs(monkeypatch):
    monkeypatch.setattr(RewardModel, "forward", no_number_for(BAD))


@pytest.mark.parametrize("form", [[], ["--no-shared-prompts"], ["--gradient-accumulation-steps", 2], ["--bf16"], ["--fp16"]])
def test_a_step_without_a_number_stops_the_run_with_all_that_was_before(form, folder, tmp_path, no_reward_for_at_signs):
    status, _, err = train(folder, *form, "--output", tmp_path / "run", data="bad.jsonl")
    assert status == 2 and err.count("\n") == 1
    assert err.startswith(f"train_rm.py: step 2: the loss is nan; rows: {folder / 'bad.jsonl'}:13. Try a lower --lr"), err
    assert "or --on-nan skip with --resume, from step 1" in err
    [checkpoint] = train_rm.checkpoints(tmp_path / "run")
    assert checkpoint.name == "checkpoint-1"
    assert all(p.isfinite().all() for p in RewardModel.from_pretrained(checkpoint).parameters())
    status, _, err = train(folder, *form, "--output", tmp_path / "run", "--resume", "--on-nan", "skip", data="bad.jsonl")
    assert status == 0, err
    assert [line["step"] for line in metrics(tmp_path / "run") if "skipped" in line] == [2, 5]  # once an epoch


@pytest.mark.parametrize("form", [[], ["--no-shared-prompts"], ["--bf16"], ["--fp16"]])
def test_a_step_without_a_number_can_be_left_out(form, folder, tmp_path, no_reward_for_at_signs):
    status, out, err = train(folder, *form, "--on-nan", "skip", "--output", tmp_path / "run", data="bad.jsonl")
    assert status == 0 and f"step 2: the loss is nan; rows: {folder / 'bad.jsonl'}:13; skipped" in out, err
    lines = metrics(tmp_path / "run")
    assert [line for line in lines if "skipped" in line] == [
        {"step": step, "skipped": "loss is nan", "rows": [f"{folder / 'bad.jsonl'}:13"]} for step in (2, 5)]
    assert [line["step"] for line in lines if "loss" in line] == [1, 3, 4]
    assert all(p.isfinite().all() for p in RewardModel.from_pretrained(tmp_path / "run").parameters())


def test_a_gradient_without_a_number_names_all_rows_of_its_step(folder, tmp_path, monkeypatch):
    loss, calls = train_rm.bradley_terry_loss, []

    def steep(*inputs):  # its value is finite, its slope is not
        calls.append(1)
        return loss(*inputs) + (0 * inputs[0].sum()).abs().sqrt() if len(calls) == 3 else loss(*inputs)

    monkeypatch.setattr(train_rm, "bradley_terry_loss", steep)
    status, _, err = train(folder, "--output", tmp_path / "run")
    assert status == 2 and err.startswith("train_rm.py: step 3: the gradient's norm is nan; rows: "), err
    assert err.count("d.jsonl:") == 1  # the third step of 17 rows has one


def test_an_overflow_in_float16_halves_the_scale_and_the_run_goes_on(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**126))
    status, _, err = train(folder, "--fp16", "--save-steps", 1, "--output", tmp_path / "run")
    assert status == 0 and not any("skipped" in line for line in metrics(tmp_path / "run")), err
    states = [json.loads((tmp_path / "run" / f"checkpoint-{step}" / "trainer_state.json").read_text()) for step in (1, 2, 3, 4)]
    assert [state["scaler"]["scale"] for state in states] == [2.0**125, 2.0**124, 2.0**123, 2.0**122]
    assert equal(*(load_file(f / "model.safetensors") for f in (folder / "tiny", tmp_path / "run")))  # never stepped


# ---------------------------------------------------------------- crashes, full disks, signals


def test_twenty_kills_change_nothing_that_is_learned(crashed):
    found = crashed["killed_at_random"]
    assert found["broken"] == [] and all(found["ends"]) and found["resumed"] >= 10


def test_a_kill_at_any_call_that_changes_the_disk_leaves_only_whole_checkpoints(crashed):
    found = crashed["killed_at_every_call"]
    assert found["broken"] == [] and found["kills"] == 30 and found["ends"] == [True] * found["kills"]


@pytest.mark.parametrize("writer", ["save_pretrained", "save", "save_file"])  # the model, the tokenizer, the optimizer
def test_a_full_disk_costs_one_line_and_keeps_the_checkpoint_before(writer, crashed):
    found = crashed["disks"][writer]
    assert found["status"] == 2 and found["left"] == ["checkpoint-1"] and found["resumed"] == 0
    assert found["err"].startswith("train_rm.py: ") and found["err"].count("\n") == 1 and "File too large" in found["err"]


@pytest.mark.parametrize("name, status", [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_saves_and_the_run_goes_on_from_there(name, status, crashed):
    assert crashed["asked_to_stop"][name] == {"status": status, "err": "", "left": ["checkpoint-3"], "resumed": True}


# ---------------------------------------------------------------- doing it again


@pytest.fixture
def deterministic_again():
    yield
    torch.use_deterministic_algorithms(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_a_deterministic_run_asks_torch_and_notes_what_repeats_it(folder, tmp_path, deterministic_again):
    assert not torch.are_deterministic_algorithms_enabled()
    for name in "ab":
        status, _, err = train(folder, "--deterministic", "--seed", 5, "--output", tmp_path / name)
        assert status == 0 and torch.are_deterministic_algorithms_enabled(), err
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    saved = json.loads((tmp_path / "a" / "options.json").read_text())
    assert saved["deterministic"] and saved["seed"] == 5 and saved["processes"] == 1
    assert saved["data_fingerprint"] == read_pairs(folder / "d.jsonl").fingerprint
    assert saved["versions"].keys() == {"torch", "tokenizers", "safetensors", "numpy", "python", "cuda"}
    assert saved["versions"]["torch"] == torch.__version__ and saved["versions"]["python"] == platform.python_version()


# ---------------------------------------------------------------- a user's mistakes


def test_processes_that_torchrun_did_not_start_are_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, err = train(folder, "--output", tmp_path / "run")
    assert status == 2 and err.startswith("train_rm.py: WORLD_SIZE is 2, but not by torchrun") and err.count("\n") == 1


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried"),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")])
def test_too_little_memory_costs_one_line_that_says_what_to_do(error, folder, tmp_path, monkeypatch):
    def greedy(*args):
        raise error

    monkeypatch.setattr(train_rm, "accumulate_gradients", greedy)
    status, _, err = train(folder, "--output", tmp_path / "run")
    assert status == 2 and err.startswith("train_rm.py: out of memory (") and "docs/scaling.md" in err and err.count("\n") == 1


@pytest.mark.parametrize("choice", ["stop", "skip"])
def test_an_evaluation_without_a_number_keeps_the_work_that_was_done(choice, folder, tmp_path, no_reward_for_at_signs):
    bad = write_rows(tmp_path / "e.jsonl", [*toy_rows(3), {"prompt": "q", "chosen": "@", "rejected": "b"}])
    status, out, err = train(folder, "--eval-steps", 2, "--on-nan", choice, "--eval-data", bad, "--output", tmp_path / "run")
    assert status == 2 and f"1 pairs have a reward that is not a finite number, the first at {bad}:4" in err
    kept = [p.name for p in train_rm.checkpoints(tmp_path / "run")]
    assert kept == (["checkpoint-2"] if choice == "stop" else ["checkpoint-3"])
    assert (tmp_path / "run" / "model.safetensors").exists() == (choice == "skip")
