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
HEADS = ["v_head.summary", "value_head", "v_head", "out_proj", "regression_head"]


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
    with pytest.raises(CheckpointError, match="v_head.weight: a head of 2 labels") as caught:
        open_model(run)
    assert "\n" not in str(caught.value)


def test_other_unknown_names_are_named(run):
    rename_head(run, "v_head")
    tensors = load_file(run / "model.safetensors")
    save_file(tensors | {"v_head.extra": torch.zeros(1)}, run / "model.safetensors")
    with pytest.raises(CheckpointError, match="not expected:? v_head.extra$"):
        open_model(run)


# ---------------------------------------------------------------- names of the decoder


def rename(folder, new_name) -> None:
    """Give every tensor the name new_name(name); where that is None, leave it out."""
    renamed = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if new_name(name):
            renamed[new_name(name)] = tensor
    save_file(renamed, folder / "model.safetensors")


WRAPPERS = [
    "module.", "_orig_mod.", "pretrained_model.", "base_model.model.", "module._orig_mod.",
    "_orig_mod.module.base_model.model.",
]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrappers_name_before_all_names_changes_nothing(run, wrapper):
    tensors = load_file(run / "model.safetensors") | {"lm_head.weight": torch.zeros(400, 16)}
    save_file(tensors, run / "model.safetensors")
    rename(run, lambda name: wrapper + name)
    assert torch.equal(rewards_of(run), expected_rewards())


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_head_may_be_outside_of_what_is_wrapped(run, wrapper):
    rename(run, lambda name: name.replace("score", "v_head"))
    rename(run, lambda name: name if name.startswith("v_head") else wrapper + name)
    assert torch.equal(rewards_of(run), expected_rewards())


@pytest.mark.parametrize("wrapper", ["", "module.", "base_model.model."])
def test_a_decoder_that_was_saved_alone_opens_and_gets_a_new_head(run, tmp_path, wrapper):
    def bare(name):
        return None if name.startswith("score") else wrapper + name.removeprefix("model.")

    rename(run, bare)
    assert f"{wrapper}norm.weight" in load_file(run / "model.safetensors")
    with pytest.raises(CheckpointError, match="a language model without a reward head"):
        open_model(run)
    model = open_model(run, fresh_head=True)
    assert model.head_origin == "new"
    states = model.model.state_dict(), tiny_model().model.state_dict()
    for name, tensor in states[1].items():
        assert torch.equal(states[0][name], tensor), name
    again = save_run(tmp_path / "again", model, tiny_tokenizer())
    assert "model.norm.weight" in load_file(again / "model.safetensors"), "saved as usual"


def test_a_decoder_that_was_saved_alone_may_have_a_head(run):
    rename(run, lambda name: name.removeprefix("model."))
    assert torch.equal(rewards_of(run), expected_rewards())


@pytest.mark.parametrize("new_name, message", [
    (lambda name: name.replace("model.layers.1", "layers.1"), "begin with model. .*others do not"),
    (lambda name: name.replace("model.norm", "norm"), "begin with model. .*norm.weight"),
    (lambda name: name.replace("model.layers.1", "module.model.layers.1"),
     "names of layers begin with '' and with 'module.'"),
])
def test_names_that_begin_in_two_ways_are_refused(run, new_name, message):
    rename(run, new_name)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_model(run, fresh_head=True)
    assert "\n" not in str(caught.value)


def test_a_beginning_that_nobody_knows_is_shown(run):
    rename(run, lambda name: f"critic.{name}")
    with pytest.raises(CheckpointError, match="missing: model.*; not expected: critic.model.* more"):
        open_model(run, fresh_head=True)


def test_two_tensors_of_one_name_are_refused(run):
    tensors = load_file(run / "model.safetensors")
    double = {f"module.{name}": tensor + 1 for name, tensor in tensors.items()}
    save_file(tensors | double, run / "model.safetensors")
    with pytest.raises(CheckpointError, match="two tensors are called .*refusing to guess"):
        open_model(run)


# ---------------------------------------------------------------- numbers that are none


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_number_that_is_none_is_named_with_its_file_when_the_weights_are_read(run, bad, dtype):
    tensors = load_file(run / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = bad
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    save_file(tensors, run / "model.safetensors")
    model = open_model(run)  # its weights are not read yet, so this costs nothing
    expected = r"model.safetensors: model.layers.1.mlp.up_proj.weight holds NaN or infinity"
    with pytest.raises(CheckpointError, match=expected):
        model.take_weights("cpu")
        pytest.fail("NaN in the file was taken: later it looks like a learning rate too high")
    model = open_model(run)
    model.requires_grad_(False)  # what is not trained keeps its type
    with pytest.raises(CheckpointError, match=expected):
        model.take_weights("cpu")


def test_the_name_is_the_one_in_the_file(run):
    tensors = load_file(run / "model.safetensors")
    tensors["score.weight"][0, 0] = float("nan")
    save_file(tensors, run / "model.safetensors")
    rename(run, lambda name: "module." + name.replace("score", "value_head"))
    with pytest.raises(CheckpointError, match="safetensors: module.value_head.weight holds NaN"):
        RewardModel.from_pretrained(run)


def test_large_numbers_are_numbers(run):
    tensors = load_file(run / "model.safetensors")
    tensors["model.embed_tokens.weight"][:3] = 3e38  # their sum is infinite
    save_file(tensors, run / "model.safetensors")
    assert RewardModel.from_pretrained(run).model.embed_tokens.weight.max() > 1e38


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
