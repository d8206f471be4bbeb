"""Reward models of other projects open here, ours open there, and no reward changes."""
import json
import subprocess
import sys

import pytest
import torch
from conftest import FIXTURES, ROOT, command, save_run, tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file

from extras import checkpoint_formats
from model import CheckpointError, RewardModel, open_model, read_json

LLAMAFACTORY = FIXTURES / "round-trips" / "qwen2-llamafactory"
IDS = torch.arange(3, 21).reshape(2, 9)
HEADS = ["v_head.summary", "value_head", "v_head", "out_proj"]


def rewards_of(folder) -> torch.Tensor:
    with torch.no_grad():
        return RewardModel.from_pretrained(folder)(IDS, torch.ones_like(IDS))


def expected_rewards() -> torch.Tensor:
    with torch.no_grad():
        return tiny_model()(IDS, torch.ones_like(IDS))


def rename_head(folder, head: str, own_file: bool = False) -> None:
    """Store the value head under another name; in LLaMA-Factory's own file for it."""
    tensors = load_file(folder / "model.safetensors")
    theirs = {}
    for part in ("weight", "bias"):
        theirs[f"{head}.{part}"] = tensors.pop(f"score.{part}")
    if own_file:
        save_file(theirs, folder / "value_head.safetensors")
        theirs = {"lm_head.weight": torch.zeros(400, 16)}
    save_file(tensors | theirs, folder / "model.safetensors")


def edit_config(folder, **settings) -> None:
    config_json = read_json(folder / "config.json") | settings
    text = json.dumps(config_json)
    (folder / "config.json").write_text(text)


@pytest.fixture
def run(tmp_path):
    """A run folder. Its head has a bias of 0.25."""
    return save_run(tmp_path / "run", tiny_model(), tiny_tokenizer())


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("own_file", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_a_head_is_kept_whatever_other_projects_call_it(run, head, own_file):
    rename_head(run, head, own_file)
    edit_config(run, value_head_prefix=["no name"])  # a list names no head
    torch.testing.assert_close(rewards_of(run), expected_rewards(), atol=0, rtol=0)
    assert open_model(run, fresh_head=True).head_origin == "kept"


def test_config_json_may_name_the_head(run):
    rename_head(run, "my_head")
    with pytest.raises(CheckpointError, match="not expected:? my_head.bias"):
        open_model(run, fresh_head=True)
    edit_config(run, value_head_prefix="my_head")
    torch.testing.assert_close(rewards_of(run), expected_rewards(), atol=0, rtol=0)


def test_two_heads_are_refused_by_their_names(run):
    two = {"v_head.summary.weight": torch.zeros(1, 16)}
    save_file(two, run / "value_head.safetensors")
    with pytest.raises(CheckpointError, match=r"reward head \(score, v_head.summary\)"):
        open_model(run)


def test_a_head_of_two_labels_is_refused_in_one_line(run):
    rename_head(run, "v_head")
    tensors = load_file(run / "model.safetensors")
    tensors["v_head.weight"] = torch.zeros(2, 16)
    save_file(tensors, run / "model.safetensors")
    with pytest.raises(CheckpointError, match="size mismatch for score.weight") as caught:
        open_model(run)
    assert "\n" not in str(caught.value)


def test_other_unknown_names_are_named(run):
    rename_head(run, "v_head")
    tensors = load_file(run / "model.safetensors")
    save_file(tensors | {"v_head.extra": torch.zeros(1)}, run / "model.safetensors")
    with pytest.raises(CheckpointError, match="not expected:? v_head.extra$"):
        open_model(run)


# ---------------------------------------------------------------- LLaMA-Factory, there and back


def test_a_folder_in_their_layout_has_their_rewards_and_the_bias_counts(tmp_path):
    expected = load_file(LLAMAFACTORY / "expected.safetensors")
    inputs = expected["input_ids"], expected["attention_mask"]
    model = RewardModel.from_pretrained(LLAMAFACTORY)
    assert model.score.bias.item() == 0.75
    with torch.no_grad():
        torch.testing.assert_close(model(*inputs), expected["rewards"], atol=1e-5, rtol=0)

    # transformers opened what we save, when the fixture was made. It has no bias.
    model.save_pretrained(tmp_path, pad_token_id=0, state=model.state_dict())
    again = RewardModel.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(*inputs), expected["rewards"], atol=1e-5, rtol=0)
    in_transformers = expected["rewards_in_transformers"] + 0.75
    torch.testing.assert_close(in_transformers, expected["rewards"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("bias", [0.25, 0.0])
def test_what_is_written_in_their_layout_has_the_same_rewards(tmp_path, bias):
    model = tiny_model()
    torch.nn.init.constant_(model.score.bias, bias)
    run = save_run(tmp_path / "run", model, tiny_tokenizer())
    out = tmp_path / "new" / "out"
    assert checkpoint_formats.main([str(run), str(out)]) == 0
    assert torch.equal(rewards_of(out), rewards_of(run))

    config_json = read_json(out / "config.json")
    assert config_json["architectures"] == ["LlamaForCausalLM"]
    assert not config_json.keys() & {"num_labels", "id2label", "label2id", "problem_type"}
    assert (out / "tokenizer.json").read_bytes() == (run / "tokenizer.json").read_bytes()
    assert (out / "tokenizer_config.json").exists()


def test_what_is_written_has_their_names(tmp_path):
    assert checkpoint_formats.main([str(LLAMAFACTORY), str(tmp_path / "out")]) == 0
    theirs = load_file(LLAMAFACTORY / "model.safetensors").keys()
    ours = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert ours == theirs - {"lm_head.weight"}
    theirs = load_file(LLAMAFACTORY / "value_head.safetensors")
    ours = load_file(tmp_path / "out" / "value_head.safetensors")
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name


def test_the_script_runs_from_any_folder_and_overwrites_nothing(run, tmp_path):
    script = ROOT / "extras" / "checkpoint_formats.py"
    arguments = [sys.executable, str(script), str(run), "out"]
    first = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert torch.equal(rewards_of(tmp_path / "out"), rewards_of(run))


def test_invalid_input_is_one_line_and_exit_status_2(run, tmp_path):
    status, _, err = command(checkpoint_formats.main, run, run)
    assert status == 2
    assert err == f"checkpoint_formats.py: {run}: exists already; name a new folder\n"
    status, _, err = command(checkpoint_formats.main, tmp_path / "nothing", tmp_path / "out")
    assert status == 2
    assert err.count("\n") == 1 and "nothing: no such folder" in err
    assert not (tmp_path / "out").exists()
