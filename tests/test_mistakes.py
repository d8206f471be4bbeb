"""train_rm.py: a user's mistake costs one clear line, exit status 2, and nothing else."""
import json

import numpy as np
import pytest
from conftest import command, copy_run, save_run, tiny_model, tiny_tokenizer, write_rows
from runs import SMALL, pairs, train
from runs import folder, small_toy  # pytest finds fixtures by their names here

import train_rm


def refused(folder, run, *args):
    """The line that a mistake costs: exit status 2, no traceback, no model, no tokens."""
    status, _, err = train(folder, *args, "--output", run)
    assert status == 2 and "Traceback" not in err, err
    for name in ("tokens", "metrics.jsonl", "model.safetensors", "report.json"):
        assert not (run / name).exists(), name
    return err.strip().splitlines()[-1]


BAD_FILES = [
    (["{"], "d.jsonl:1: not JSON"),
    ([{"prompt": "q", "chosen": "a"}], "d.jsonl:1: no field 'rejected' (found: prompt, chosen)"),
    ([{"prompt": "q", "chosen": "a", "rejected": "a"}], "no pairs left in the train data"),
    (["", {"prompt": "q", "responses": ["a", "b"]}], "d.jsonl:2: no field 'scores' or 'ranks'"),
]


@pytest.mark.parametrize("lines, message", BAD_FILES)
def test_bad_data_are_named_with_file_row_and_field(lines, message, folder, tmp_path):
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (tmp_path / "d.jsonl").write_text("\n".join(text) + "\n")
    assert message in refused(folder, tmp_path / "run", "--data", tmp_path / "d.jsonl")


def test_a_missing_file_is_named(folder, tmp_path):
    nowhere = tmp_path / "nowhere.jsonl"
    assert f"{nowhere}: No such file" in refused(folder, tmp_path / "run", "--data", nowhere)


def test_no_held_out_rows_are_said(folder, tmp_path):
    data = write_rows(tmp_path / "e.jsonl", [{"prompt": "q", "chosen": "a", "rejected": ""}])
    said = refused(folder, tmp_path / "run", "--eval-data", data)
    assert "no pairs left in the held out data" in said


def test_a_mistake_leaves_nothing_to_clean_up(folder, tmp_path):
    (tmp_path / "d.jsonl").write_text("{\n")
    args = ["--data", tmp_path / "d.jsonl", "--max-steps", 1]
    refused(folder, tmp_path / "run", *args)
    write_rows(tmp_path / "d.jsonl", pairs(9))
    assert train(folder, *args, "--output", tmp_path / "run")[0] == 0
    assert not (tmp_path / "run.1").exists(), "a run that never had tokens is not worth keeping"


def truncate(model):
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def change_json(file, **settings):
    def change(model):
        about = json.loads((model / file).read_text()) | settings
        (model / file).write_text(json.dumps(about))

    return change


BAD_MODELS = {
    "model.safetensors: not a complete safetensors file": truncate,
    "size mismatch for model.layers.0.mlp": change_json("config.json", intermediate_size=25),
    "no eos_token": change_json("tokenizer_config.json", eos_token=None),
    "--max-length 200": change_json("config.json", max_position_embeddings=100),
}


@pytest.mark.parametrize("message", BAD_MODELS)
def test_a_model_that_cannot_be_used_is_one_line(message, folder, tmp_path):
    model = copy_run(folder / "tiny", tmp_path / "model")
    BAD_MODELS[message](model)
    args = ["--model", model, "--max-length", 200]
    assert message in refused(folder, tmp_path / "run", *args)


def test_token_ids_beyond_the_vocabulary_are_said(folder, tmp_path):
    save_run(tmp_path / "model", tiny_model(vocab_size=100), tiny_tokenizer(), 256)
    args = ["--model", tmp_path / "model", "--output", tmp_path / "run"]
    status, _, err = train(folder, *args)
    assert status == 2 and "beyond the model's vocabulary of 100" in err and err.count("\n") == 1


def test_an_output_that_is_not_a_run_is_left_alone(folder, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("mine")
    status, _, err = train(folder, "--output", tmp_path / "thesis")
    assert status == 2 and "holds files that are not a run's" in err
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]
    status, _, err = train(folder, "--output", tmp_path / "thesis" / "thesis.tex" / "run")
    assert status == 2 and err.count("\n") == 1 and "Not a directory" in err


def test_no_file_is_deleted_because_there_is_an_options_json_beside_it(folder, tmp_path):
    (tmp_path / "thesis").mkdir()
    for name in ("options.json", "thesis.tex"):
        (tmp_path / "thesis" / name).write_text("mine")
    train(folder, "--max-steps", 1, "--output", tmp_path / "thesis")
    assert [path.read_text() for path in tmp_path.rglob("thesis.tex")] == ["mine"]


@pytest.mark.parametrize("args, message", [
    (["--batch-size", 0], "--batch-size"),
    (["--num-attention-heads", 0], "--num-attention-heads"),
    (["--num-hidden-layers", -1], "--num-hidden-layers"),
    (["--lr", -1], "--lr"),
    (["--lr", "nan"], "--lr"),
    (["--lr", "inf"], "--lr inf is too large"),
    (["--epochs", "inf"], "--epochs inf is too large"),
    (["--weight-decay", -1], "--weight-decay"),
    (["--center-rewards-coefficient", -1], "--center-rewards-coefficient"),
    (["--label-smoothing", 0.5], "--label-smoothing"),
    (["--label-smoothing", -0.1], "--label-smoothing"),
    (["--eval-fraction", 1], "--eval-fraction"),
    (["--batch-size", "many"], "--batch-size: invalid int value: 'many'"),
    (["--device", "abacus"], "--device abacus"),
    (["--bf16", "--fp16"], "--bf16 and --fp16"),
    (["--hidden-size", 30, "--num-attention-heads", 4], "--hidden-size 30"),
    (["--eval-data", "x.jsonl"], "--eval-data needs --data"),
    (["--lora-rank", 2], "--model"),
    (["--seed", 2**63], "--seed"),
    (["--seed", -1], "--seed"),
    (["--resume", ""], "--resume is empty"),
    (["--model", ""], "--model is empty"),
    (["--vocab-size", 10**23], "--vocab-size"),
    (["--device", "meta"], "--device meta"),
])
def test_options_without_a_meaning_are_refused(args, message, tmp_path, small_toy):
    status, _, err = command(train_rm.main, *SMALL, *args, "--output", tmp_path / "run")
    assert status == 2 and message in err.splitlines()[-1], err
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_fewer_rows_than_processes_are_refused():
    rows, lengths = np.arange(1), np.ones(1)
    with pytest.raises(train_rm.DataError, match="1 rows in a step, 2 processes: raise"):
        train_rm.micro_batches(rows, lengths, accumulation=1, process=0, processes=2)
