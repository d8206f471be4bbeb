"""A folder that cannot be opened is named for what it is, in one line that says what to do."""
import json
import re
import shlex
import subprocess
import sys

import pytest
import torch
from conftest import command, save_run, tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file

import eval as evaluation
from model import CheckpointError, RewardModel, open_model, read_json

IDS = torch.arange(3, 21).reshape(2, 9)


def rewards_of(folder) -> torch.Tensor:
    with torch.no_grad():
        return RewardModel.from_pretrained(folder)(IDS, torch.ones_like(IDS))


@pytest.fixture
def run(tmp_path):
    """A reward model of our own, to be made into something else."""
    return save_run(tmp_path / "run", tiny_model(), tiny_tokenizer())


def edit_config(folder, **settings) -> None:
    config_json = read_json(folder / "config.json") | settings
    (folder / "config.json").write_text(json.dumps(config_json))


def edit_tensors(folder, without="", **new) -> None:
    tensors = load_file(folder / "model.safetensors") | new
    kept = {}
    for name, tensor in tensors.items():
        if not (without and name.startswith(without)):
            kept[name] = tensor
    save_file(kept, folder / "model.safetensors")


def refusal(folder) -> str:
    """What is said of a folder, when a model is to be trained from it."""
    with pytest.raises(CheckpointError) as caught:
        open_model(folder, fresh_head=True)
    message = str(caught.value)
    assert str(folder) in message and "\n" not in message
    return message


def run_recommended(message) -> None:
    """Run the python command that a sentence recommends."""
    [text] = re.findall(r'python -c (".*")', message)
    [code] = shlex.split(text)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_is_said_of_a_folder_that_opens(run):
    for name in ("optimizer.pt", "other.gguf", "pytorch_model.bin"):
        (run / name).write_text("{}")
    (run / "global_step100").mkdir()
    assert open_model(run).head_origin == "kept"


def test_an_error_of_an_ordinary_folder_stays_as_it_was(run):
    (run / "value_head.bin").write_bytes(b"")
    (run / "zero_to_fp32.py").write_text("")
    edit_tensors(run, without="model.norm")
    assert re.search("missing: model.norm.weight$", refusal(run))


# ---------------------------------------------------------------- pickled weights


def test_a_pickled_model_is_converted_by_the_command_that_is_recommended(run):
    expected = rewards_of(run)
    state = load_file(run / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"]  # tied, as in many models
    torch.save(state, run / "pytorch_model.bin")
    torch.save({}, run / "training_args.bin")
    (run / "model.safetensors").unlink()
    message = refusal(run)
    assert "no model.safetensors but pytorch_model.bin, which is pickled" in message
    run_recommended(message)
    assert torch.equal(rewards_of(run), expected)


def test_several_pickled_files_are_converted_too(run):
    expected = rewards_of(run)
    state = load_file(run / "model.safetensors")
    names = sorted(state)
    for number, part in enumerate((names[:5], names[5:]), 1):
        part = {name: state[name] for name in part}
        torch.save(part, run / f"pytorch_model-0000{number}-of-00002.bin")
    (run / "model.safetensors").unlink()
    run_recommended(refusal(run))
    assert torch.equal(rewards_of(run), expected)


def test_a_pickled_head_beside_a_language_model_is_not_replaced_by_a_new_one(run):
    """LLaMA-Factory's value_head.bin. Training from this folder used to say "value head new"."""
    expected = rewards_of(run)
    state = load_file(run / "model.safetensors")
    head = {f"v_head.summary.{part}": state[f"score.{part}"] for part in ("weight", "bias")}
    torch.save(head, run / "value_head.bin")
    edit_tensors(run, without="score.")
    message = refusal(run)
    assert "its reward head is in value_head.bin, which is pickled" in message
    with pytest.raises(CheckpointError, match="its reward head is in value_head.bin"):
        open_model(run)  # to score with, too
    run_recommended(message)
    assert torch.equal(rewards_of(run), expected)


# ---------------------------------------------------------------- quantised weights

INT = torch.zeros(4, 4, dtype=torch.int32)
BYTES = torch.zeros(4, 1, dtype=torch.uint8)
NORM = "model.norm.weight"
PROJ = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize("name", ["bitsandbytes", "gptq", "awq", "fp8"])
def test_quantised_weights_are_named_by_the_config(run, name):
    edit_config(run, quantization_config={"quant_method": name, "bits": 4})
    message = refusal(run)
    assert f"quantised weights ({name}; config.json: quantization_config)" in message


def test_mlx_names_its_quantisation_in_another_way(run):
    edit_config(run, quantization={"group_size": 64, "bits": 4})
    packed = {f"{PROJ}.weight": INT.to(torch.uint32), f"{PROJ}.scales": torch.ones(4, 1)}
    edit_tensors(run, **packed)
    assert "quantised weights (MLX; config.json: quantization)" in refusal(run)


@pytest.mark.parametrize("new, name", [
    ({f"{PROJ}.qweight": INT, f"{PROJ}.scales": torch.ones(4)}, "GPTQ or AWQ"),
    ({f"{PROJ}.weight": BYTES, f"{PROJ}.weight.absmax": torch.ones(1)}, "bitsandbytes (4 bits)"),
    ({f"{PROJ}.weight": BYTES.char(), f"{PROJ}.SCB": torch.ones(4)}, "bitsandbytes (8 bits)"),
    ({f"{PROJ}.weight_packed": INT}, "compressed-tensors"),
    ({NORM: torch.ones(16).to(torch.float8_e4m3fn)}, "fp8"),
    ({f"{PROJ}.weight_scale_inv": torch.ones(1)}, "fp8"),
])
def test_quantised_weights_are_named_by_their_tensors(run, new, name):
    edit_tensors(run, **new)
    message = refusal(run)
    assert f"quantised weights ({name}; " in message and "made from" in message


# ---------------------------------------------------------------- other models


@pytest.mark.parametrize("settings, expected", [
    ({"model_type": "deberta-v2"}, "an encoder (deberta-v2)"),
    ({"model_type": "bert"}, "an encoder (bert)"),
    ({"model_type": "t5", "is_encoder_decoder": True}, "an encoder with a decoder (t5)"),
    ({"model_type": "qwen2_vl"}, "a vision-language model (qwen2_vl)"),
    ({"model_type": "llava", "vision_config": {}}, "a vision-language model (llava)"),
    ({"model_type": "rwkv"}, "model_type 'rwkv' is not one of llama"),
    ({"model_type": ["bert"]}, "model_type ['bert'] is not one of llama"),
])
def test_a_model_of_another_kind_is_named(run, settings, expected):
    edit_config(run, **settings)
    assert expected in refusal(run)


def test_an_adapter_that_is_not_merged_is_named(run):
    tensors = load_file(run / "model.safetensors")
    wrapped = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    save_file(wrapped | {name: torch.ones(2, 16)}, run / "model.safetensors")
    message = refusal(run)
    assert "an adapter that is not merged" in message and "merge_and_unload()" in message


# ---------------------------------------------------------------- other files


@pytest.mark.parametrize("file, expected", [
    ("model-q4.gguf", "model-q4.gguf is GGUF"),
    ("model.onnx", "model.onnx is ONNX"),
    ("onnx/model.onnx", "onnx/model.onnx is ONNX"),
    ("weights.npz", "weights.npz is MLX's older format"),
    ("zero_to_fp32.py", "a DeepSpeed checkpoint"),
    ("global_step100/mp_rank_00_model_states.pt", "a DeepSpeed checkpoint"),
    ("mp_rank_00/model_optim_rng.pt", "a Megatron checkpoint"),
    ("iter_0000100/mp_rank_00/model_optim_rng.pt", "a Megatron checkpoint"),
    ("pytorch_model_fsdp_0/__0_0.distcp", "a checkpoint of torch.distributed (FSDP)"),
    ("model.pt", "no model.safetensors but model.pt, which is pickled"),
    ("checkpoint-500/config.json", "config.json: No such file here, but in checkpoint-500"),
    ("optimizer.pt", "config.json: No such file; it says what the weights mean"),
])
def test_a_folder_is_named_by_its_files(tmp_path, file, expected):
    path = tmp_path / "folder" / file
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    assert expected in refusal(tmp_path / "folder")
    if "config.json" not in expected:  # with a config.json too
        (tmp_path / "folder" / "config.json").write_text("{}")
        assert expected in refusal(tmp_path / "folder")


def test_a_file_is_no_folder(run):
    assert "a file; name the folder" in refusal(run / "model.safetensors")


def test_weights_without_a_config(run):
    (run / "config.json").unlink()
    assert "config.json: No such file; it says what the weights mean" in refusal(run)


def test_a_git_lfs_pointer_in_place_of_the_weights_is_named(run):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 15134416656\n"
    (run / "model.safetensors").write_text(pointer)
    message = refusal(run)
    assert "model.safetensors is a Git LFS pointer" in message and "git lfs pull" in message


@pytest.mark.parametrize("left", [0, 5, 100, -1])
def test_a_truncated_file_is_named(run, left):
    file = run / "model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    assert "model.safetensors: not a complete safetensors file" in refusal(run)


def test_a_command_says_it_in_one_line(run):
    edit_config(run, model_type="bert")
    row = json.dumps({"prompt": "q", "response": "a"})
    status, out, err = command(evaluation.main, "score", run, stdin=row)
    assert (status, out) == (2, "") and err.count("\n") == 1 and "an encoder (bert)" in err
