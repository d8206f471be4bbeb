"""The README.md of a run: its figures are the run's, and nobody uploads training texts unwarned."""
import json
import subprocess
import sys

import pytest
from conftest import ROOT, command, save_run, tiny_model, tiny_tokenizer, write_rows

import train_rm


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    save_run(folder / "tiny", tiny_model(), tiny_tokenizer(bos=True), 256)
    rows = []
    for i in range(10):
        rows.append({"prompt": f"q {i}", "chosen": f"the cat {i}", "rejected": f"no {i}"})
    data = write_rows(folder / "pairs.jsonl", rows)
    args = ["--model", folder / "tiny", "--data", data, "--output", folder / "run"]
    status, _, err = command(train_rm.main, *args, "--max-steps", 2, "--device", "cpu")
    assert status == 0, err
    return folder / "run"


def test_the_card_has_the_figures_of_the_run(run):
    card = (run / "README.md").read_text("utf-8")
    report = json.loads((run / "report.json").read_text("utf-8"))
    assert f"| accuracy | {report['accuracy']:.3f} (" in card
    assert "on 9 pairs of 9 prompts (pairs.jsonl)" in card
    assert "9 rows read = 9 kept + 0 left out" in card
    assert "from tiny on" in card, "a path of this machine says nothing to others"


def test_the_card_says_where_the_reward_is_read_and_what_not_to_upload(run):
    card = (run / "README.md").read_text("utf-8")
    assert "read at the last token of a text, '</s>'" in card
    assert "'<s>User: …\\nAssistant: …</s>'" in card
    assert "held_out.jsonl hold the texts of the data. Leave them out" in card


def test_the_card_can_be_written_again(run):
    before = (run / "README.md").read_text("utf-8")
    (run / "README.md").unlink()
    program = [sys.executable, ROOT / "extras" / "model_card.py", run]
    subprocess.run(program, check=True)
    assert (run / "README.md").read_text("utf-8") == before


def test_weights_are_saved_in_the_dtype_that_is_asked_for(run, tmp_path):
    from safetensors.torch import load_file

    folder = run.parent
    args = ["--model", folder / "tiny", "--data", folder / "pairs.jsonl", "--max-steps", 2]
    args += ["--output", tmp_path / "half", "--save-dtype", "bfloat16", "--device", "cpu"]
    assert command(train_rm.main, *args)[0] == 0
    full, half = (load_file(path / "model.safetensors") for path in (run, tmp_path / "half"))
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    for name, tensor in full.items():
        assert str(half[name].dtype) == "torch.bfloat16"
        assert half[name].equal(tensor.bfloat16()), "rounded twice, or other weights"
