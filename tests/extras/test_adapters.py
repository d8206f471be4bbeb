"""Adapters of PEFT open here with the rewards that PEFT computes, and ours are what PEFT opens.

The fixtures, and the rewards in them, are made by tests/make_adapters.py with peft itself.
"""
import json
import shutil

import pytest
import torch
from conftest import FIXTURES, ROOT, command, copy_run, save_run, tiny_model
from conftest import tiny_tokenizer, write_rows
from runs import pairs
from safetensors.torch import load_file, save_file

import eval as evaluation
import train_rm
from model import CheckpointError, RewardModel, open_model, read_json

ADAPTERS = FIXTURES / "adapters"
BASES = {
    "head": "qwen2",
    "patterns": "llama-bias",
    "some-layers": "qwen2",
    "all-linear": "llama-bias",
    "llamafactory": "round-trips/qwen2-llamafactory",
    "gpt2": "gpt2",
    "gpt_neox": "gpt_neox",
}
PREFIX = "base_model.model."


def rewards_of(folder, inputs: dict, base=None) -> torch.Tensor:
    """The rewards of the texts of a fixture.  (3,)"""
    model = RewardModel.from_pretrained(folder, base=base)
    with torch.no_grad():
        return model(inputs["input_ids"], inputs["attention_mask"])


@pytest.fixture
def adapter(tmp_path):
    """A copy of the adapter `head`, to be changed. It names a copy of its base."""
    copy_run(FIXTURES / "qwen2", tmp_path / "base")
    folder = copy_run(ADAPTERS / "head", tmp_path / "adapter")
    return change_settings(folder, base_model_name_or_path=str(tmp_path / "base"))


def change_settings(folder, **settings):
    """Write other values into adapter_config.json."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(read_json(path) | settings))
    return folder


def change_tensors(folder, change):
    """Write other tensors into adapter_model.safetensors: what change(tensors) returns."""
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    return folder


def renamed(old: str, new: str):
    """A change of names, for change_tensors."""
    return lambda tensors: {name.replace(old, new): tensors[name].clone() for name in tensors}


# ---------------------------------------------------------------- as PEFT computes them


@pytest.mark.parametrize("name", BASES)
def test_an_adapter_has_the_rewards_that_peft_computes(name):
    base = FIXTURES / BASES[name]
    expected = load_file(ADAPTERS / name / "expected.safetensors")
    rewards = rewards_of(ADAPTERS / name, expected, base)
    torch.testing.assert_close(rewards, expected["rewards"], atol=1e-5, rtol=0, msg=lambda m: (
        f"not PEFT's rewards: is s = α/r (with rslora α/√r), and the head the adapter's? {m}"
    ))
    without = rewards_of(base, expected)
    assert (rewards - without).abs().max() > 0.1, "the same without the adapter: nothing is proved"


@pytest.mark.parametrize("name, settings", [
    ("head", {"lora_alpha": 17}),
    ("head", {"use_rslora": True}),
    ("patterns", {"use_rslora": False}),
    ("patterns", {"alpha_pattern": {}}),
])
def test_every_setting_of_the_size_counts(name, settings, tmp_path):
    folder = change_settings(copy_run(ADAPTERS / name, tmp_path / "adapter"), **settings)
    expected = load_file(folder / "expected.safetensors")
    rewards = rewards_of(folder, expected, FIXTURES / BASES[name])
    assert (rewards - expected["rewards"]).abs().max() > 1e-3, "the setting changes nothing"


@pytest.mark.parametrize("name, targets", [
    ("all-linear", "all-linear"),  # PEFT writes the list that it stands for; others write the word
    ("head", ["q_proj", "v_proj", "score"]),  # modules_to_save is stronger
])
def test_other_ways_to_name_the_same_targets(name, targets, tmp_path):
    folder = change_settings(copy_run(ADAPTERS / name, tmp_path / "a"), target_modules=targets)
    expected = load_file(folder / "expected.safetensors")
    rewards = rewards_of(folder, expected, FIXTURES / BASES[name])
    torch.testing.assert_close(rewards, expected["rewards"], atol=1e-5, rtol=0)


def test_the_head_of_the_adapter_takes_the_place_of_any_head_of_the_base(adapter):
    expected = load_file(adapter / "expected.safetensors")
    path = adapter.parent / "base" / "model.safetensors"
    save_file(renamed("score.", "v_head.summary.")(load_file(path)), path)
    torch.testing.assert_close(
        rewards_of(adapter, expected), expected["rewards"], atol=1e-5, rtol=0
    )


def test_factors_are_merged_in_float32_into_a_base_in_bfloat16(adapter):
    base = adapter.parent / "base"
    tensors = load_file(base / "model.safetensors")
    key = "model.layers.1.self_attn.v_proj"
    half = tensors[f"{key}.weight"].bfloat16()
    save_file(tensors | {f"{key}.weight": half}, base / "model.safetensors")
    factors = load_file(adapter / "adapter_model.safetensors")
    A, B = (factors[f"{PREFIX}{key}.lora_{side}.weight"] for side in "AB")
    merged = open_model(adapter).state_dict()[f"{key}.weight"]
    assert torch.equal(merged, half.float() + 16 / 4 * (B @ A)), "α 16 and r 4"


@pytest.mark.parametrize("old, new", [
    (".lora_A.", ".lora_A.default."),  # the names inside a PeftModel, which some trainers save
    (".score.", ".score.modules_to_save.default."),
    (".score.", ".score.modules_to_save."),
    ("model.model.layers.", "model.layers."),  # trained on a bare decoder
])
def test_other_names_for_the_same_tensors_are_read(adapter, old, new):
    expected = load_file(adapter / "expected.safetensors")
    change_tensors(adapter, renamed(old, new))
    torch.testing.assert_close(
        rewards_of(adapter, expected), expected["rewards"], atol=1e-5, rtol=0
    )


def test_what_is_not_used_for_a_reward_is_left_out(adapter):
    expected = load_file(adapter / "expected.safetensors")

    def add(tensors):
        more = {"score.original_module.weight": torch.ones(1, 24), "lm_head.weight": torch.ones(9)}
        more |= {"lm_head.lora_A.weight": torch.ones(1, 24)}
        return tensors | {PREFIX + name: more[name] for name in more}

    change_tensors(adapter, add)
    torch.testing.assert_close(
        rewards_of(adapter, expected), expected["rewards"], atol=1e-5, rtol=0
    )


def test_an_adapter_of_a_language_model_gets_a_new_head_to_train_and_no_rewards_before(tmp_path):
    folder = copy_run(ADAPTERS / "llamafactory", tmp_path / "adapter")
    base = copy_run(FIXTURES / BASES["llamafactory"], tmp_path / "base")
    for place in (folder, base):
        (place / "value_head.safetensors").unlink()
    with pytest.raises(CheckpointError, match="without a reward head"):
        open_model(folder, base=base)
    assert open_model(folder, fresh_head=True, base=base).head_origin == "new"


# ---------------------------------------------------------------- which base


def test_the_base_is_the_one_that_is_named_and_base_is_stronger(adapter, capsys, monkeypatch):
    named = adapter.parent / "base"
    expected = load_file(adapter / "expected.safetensors")
    assert torch.allclose(rewards_of(adapter, expected), expected["rewards"], atol=1e-5)
    assert f"merged into its base {named}\n" in capsys.readouterr().err

    # A relative path counts from where the program is started, as in PEFT.
    change_settings(adapter, base_model_name_or_path="base")
    with pytest.raises(CheckpointError, match=r"adapter: no base \(base: no such folder\)"):
        open_model(adapter)
    monkeypatch.chdir(adapter.parent)
    assert torch.allclose(rewards_of(adapter, expected), expected["rewards"], atol=1e-5)

    other = named.rename(adapter.parent / "moved")
    assert torch.allclose(rewards_of(adapter, expected, other), expected["rewards"], atol=1e-5)
    assert f"merged into its base {other}\n" in capsys.readouterr().err


def test_a_name_on_the_hub_is_asked_for_with_its_revision(adapter, monkeypatch):
    asked = []

    def model_folder(name):
        asked.append(name)
        return adapter.parent / "base"

    monkeypatch.setattr("extras.hub.model_folder", model_folder)
    change_settings(adapter, base_model_name_or_path="owner/name", revision="v1")
    open_model(adapter)
    open_model(adapter, base="other/name")
    assert asked == ["owner/name@v1", "other/name"], "the revision is that of the named base"


def test_the_tokenizer_is_the_adapters_or_where_it_has_none_the_bases(adapter):
    assert open_model(adapter).folder == adapter.parent / "base"
    tiny_tokenizer().save(adapter, 64)
    assert open_model(adapter).folder == adapter


def test_the_pad_is_that_of_the_adapters_tokenizer(adapter):
    tokenizer = tiny_tokenizer()
    tokenizer.save(adapter, 64)
    settings = read_json(adapter / "tokenizer_config.json")
    end = {"pad_token": settings["eos_token"]}  # as TRL does where a tokenizer has no pad
    (adapter / "tokenizer_config.json").write_text(json.dumps(settings | end))
    found = open_model(adapter).config.config_json["pad_token_id"]
    assert found == tokenizer.end_id, "transformers would read the reward at another token"


# ---------------------------------------------------------------- what is refused, by name


def test_a_number_that_is_none_is_named_with_its_file_and_tensor(adapter):
    change_tensors(adapter, lambda tensors: {n: t * float("nan") for n, t in tensors.items()})
    with pytest.raises(CheckpointError, match="adapter_model.safetensors: .* holds NaN"):
        RewardModel.from_pretrained(adapter)


def test_matrices_of_gpt2_are_transposed_whatever_the_setting_says(tmp_path):
    folder = copy_run(ADAPTERS / "gpt2", tmp_path / "adapter")
    change_settings(folder, fan_in_fan_out=False)  # as PEFT leaves it, where it met a Linear too
    expected = load_file(folder / "expected.safetensors")
    rewards = rewards_of(folder, expected, FIXTURES / "gpt2")
    torch.testing.assert_close(rewards, expected["rewards"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("setting, value", [
    ("peft_type", "LOHA"),
    ("use_dora", True),
    ("lora_bias", True),
    ("bias", "lora_only"),
    ("trainable_token_indices", [3]),
    ("target_parameters", ["experts.gate_up_proj"]),
    ("layer_replication", [[0, 2], [1, 2]]),
    ("init_lora_weights", "pissa"),
    ("layers_pattern", "blocks"),
    ("a_setting_of_next_year", {"on": True}),
])
def test_a_setting_that_is_not_computed_is_refused_by_its_name(adapter, setting, value):
    change_settings(adapter, **{setting: value})
    with pytest.raises(CheckpointError, match=f"{setting} .* is not computed here") as caught:
        open_model(adapter)
    assert "adapter_config.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("settings, message", [
    ({"r": 0}, "r is 0, not a usable number"),
    ({"lora_alpha": "16"}, "lora_alpha is '16'"),
    ({"rank_pattern": ["q_proj"]}, r"rank_pattern is \['q_proj'\]"),
    ({"rank_pattern": {"q_proj": 3}}, "rank 3 for model.layers.0.self_attn.q_proj; its A has 4"),
    ({"rank_pattern": {"(": 3}}, "is no pattern"),
    ({"target_modules": None}, "target_modules is None"),
    ({"target_modules": ["q_proj"]}, "target_modules leaves .*v_proj out"),
    ({"target_modules": "model.*q_proj"}, "target_modules leaves .*v_proj out"),
    ({"layers_to_transform": [1]}, "target_modules leaves model.layers.0.* out"),
    ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "no factors for .*layers.0.*o_proj"),
    ({"modules_to_save": ["score", "embed_tokens"]}, "names 'embed_tokens', and the .* no tensor"),
    ({"base_model_name_or_path": None}, "names no base; name it with --base"),
    ({"base_model_name_or_path": "no/such/base"}, "no base .* name it with --base"),
])
def test_settings_that_do_not_fit_the_file_are_refused(adapter, settings, message):
    change_settings(adapter, **settings)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_model(adapter)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("old, new, message", [
    ("layers.1.", "layers.7.", "another base: it has no factors for model.layers.1"),
    ("lora_B.", "lora_C.", "lora_C.weight is not computed here"),
    ("layers.0.self_attn.q_proj.lora_B", "layers.0.self_attn.q_proj.lora_X", "is not computed"),
    (".lora_A.", ".lora_embedding_A.", "lora_embedding_A.* is not computed here"),
    (".score.", ".scores.", "modules_to_save names 'score', and the adapter has no tensor of it"),
])
def test_tensors_of_another_kind_or_base_are_refused_by_name(adapter, old, new, message):
    change_tensors(adapter, renamed(old, new))
    with pytest.raises(CheckpointError, match=message):
        open_model(adapter)


@pytest.mark.parametrize("old, new, message", [
    ("layers.1.", "layers.7.", r"need model.layers.7.* of \(24, 24\); it is missing in this one"),
    (".score.", ".scores.", r"it has scores.weight of \(1, 24\); it is missing in this one"),
    (".score.weight", ".model.norm.weight", r"norm.weight of \(1, 24\); it is \(24,\) in this"),
])
def test_tensors_that_the_base_does_not_have_are_refused_by_name(adapter, old, new, message):
    change_tensors(adapter, lambda tensors: tensors | renamed(old, new)(tensors))
    with pytest.raises(CheckpointError, match=f"another base: .*{message}"):
        open_model(adapter)


def test_a_base_of_another_size_is_refused_and_so_is_a_deeper_one(adapter, tmp_path):
    other = save_run(tmp_path / "other", tiny_model(), tiny_tokenizer())
    with pytest.raises(CheckpointError, match=r"another base: .* of \(24, 24\); it is \(24, 16\)"):
        open_model(adapter, base=other)
    with pytest.raises(CheckpointError, match="another base: it has no factors for model.layers.2"):
        open_model(adapter, base=FIXTURES / "qwen2-window")


def test_a_head_of_two_labels_is_refused(adapter):
    change_tensors(adapter, lambda tensors: tensors | {PREFIX + "score.weight": torch.ones(2, 24)})
    with pytest.raises(CheckpointError, match="score"):
        open_model(adapter)


def test_pickled_files_are_never_read(adapter):
    weights = adapter / "adapter_model.safetensors"
    (adapter / "value_head.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match=r"value_head.bin, pickled: never read"):
        open_model(adapter)
    weights.rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model.bin is pickled: never read"):
        open_model(adapter)


def test_two_models_in_one_folder_and_adapters_on_adapters_are_refused(adapter, tmp_path):
    with pytest.raises(CheckpointError, match="is an adapter too"):
        open_model(adapter, base=ADAPTERS / "head")
    with pytest.raises(CheckpointError, match="--base: .* is no adapter"):
        open_model(tmp_path / "base", base=tmp_path / "base")
    shutil.copyfile(tmp_path / "base" / "model.safetensors", adapter / "model.safetensors")
    with pytest.raises(CheckpointError, match="an adapter and a whole model"):
        open_model(adapter)


# ---------------------------------------------------------------- training, from and to an adapter

IDS = torch.arange(3, 21).reshape(2, 9)


def train(model, output, *options):
    """A few steps of train_rm.py on 14 rows. Returns the run folder."""
    rows = write_rows(output.parent / "rows.jsonl", pairs(14))
    held_out = write_rows(output.parent / "held_out.jsonl", pairs(7, first=14))
    status, out, err = command(
        train_rm.main, "--model", model, "--data", rows, "--eval-data", held_out,
        "--batch-size", 7, "--lr", 0.01, "--max-steps", 4, "--output", output, *options,
    )
    assert status == 0, err
    return out


def rewards(folder, base=None):
    """The rewards of two texts."""
    with torch.no_grad():
        return RewardModel.from_pretrained(folder, base=base)(IDS, torch.ones_like(IDS))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """tiny, and a LoRA run on it: its folder `run` has adapter/."""
    folder = tmp_path_factory.mktemp("adapters")
    save_run(folder / "tiny", tiny_model(), tiny_tokenizer(), 256)
    out = train(folder / "tiny", folder / "run", "--lora-rank", 2, "--freeze-layers", 1)
    assert f"{folder / 'run' / 'adapter'} holds the factors alone" in out
    return folder


def test_a_lora_run_leaves_an_adapter_with_the_rewards_of_the_run(trained):
    merged = rewards(trained / "run")
    assert (merged - rewards(trained / "tiny")).abs().max() > 0.01, "training changed nothing"
    of_adapter = rewards(trained / "run" / "adapter")
    torch.testing.assert_close(of_adapter, merged, atol=1e-5, rtol=0, msg=lambda m: (
        f"the adapter has other rewards than its run: are α and r written as they are? {m}"
    ))


def test_our_adapter_has_the_names_that_peft_expects(trained):
    folder = trained / "run" / "adapter"
    settings = read_json(folder / "adapter_config.json")
    known = read_json(ADAPTERS / "head" / "adapter_config.json")
    assert settings.keys() <= known.keys(), "PEFT does not know this setting"
    assert settings["base_model_name_or_path"] == str(trained / "tiny")
    assert settings["modules_to_save"] == ["score"] and settings["task_type"] == "SEQ_CLS"
    assert settings["r"] == 2 and settings["lora_alpha"] == 4, "α/r is 2"
    names = {f"{PREFIX}score.weight"}
    names.add(f"{PREFIX}score.bias")  # of tiny; PEFT does not read it
    parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    parts += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    for part in parts:
        names.add(f"{PREFIX}model.layers.1.{part}.lora_A.weight")
        names.add(f"{PREFIX}model.layers.1.{part}.lora_B.weight")
    assert load_file(folder / "adapter_model.safetensors").keys() == names


@pytest.mark.parametrize("options", [["--lora-rank", 2], []])
def test_training_continues_from_an_adapter(trained, tmp_path, options):
    # The named base is away: a copy is given instead.
    folder = copy_run(trained / "run" / "adapter", tmp_path / "adapter")
    change_settings(folder, base_model_name_or_path="not/here")
    base = copy_run(trained / "tiny", tmp_path / "base")
    start = rewards(folder, base)
    still = ["--base", base, "--lr", 1e-30]
    train(folder, tmp_path / "still", *options, *still)
    torch.testing.assert_close(rewards(tmp_path / "still"), start, atol=1e-5, rtol=0)
    out = train(folder, tmp_path / "run", *options, "--base", base)
    assert "value head kept" in out
    assert (rewards(tmp_path / "run") - start).abs().max() > 0.01, "it does not train"
    assert not (tmp_path / "run" / "adapter").exists()
    if options:
        assert "no adapter/ is written: no folder holds its base" in out


def test_a_lora_run_on_an_adapter_knows_its_base_and_its_adapter(trained, tmp_path):
    from extras import lora

    hashes = set()
    folder = copy_run(trained / "run" / "adapter", tmp_path / "adapter")
    for base in (trained / "tiny", save_run(tmp_path / "b", tiny_model(1), tiny_tokenizer())):
        for _ in range(2):  # the second time with other factors
            model = open_model(folder, base=base)
            lora.train_less(model, 0, 2)
            hashes.add(model.base)
            change_tensors(folder, lambda tensors: {n: t + 1 for n, t in tensors.items()})
    assert len(hashes) == 4, "a run that is resumed on other weights would not be refused"


def test_score_writes_the_rewards_of_an_adapter(trained, tmp_path):
    rows = write_rows(tmp_path / "text.jsonl", [{"prompt": "Who?", "response": "the cat"}])
    template = tmp_path / "other.jinja"
    template.write_text("{% for m in messages %}the {{ m['content'] }}{% endfor %}</s>")
    train(trained / "tiny", tmp_path / "run", "--lora-rank", 2, "--chat-template", template)
    lines = []
    for folder in (tmp_path / "run", tmp_path / "run" / "adapter"):
        status, out, err = command(evaluation.main, "score", folder, "--input", rows)
        assert status == 0, err
        lines.append(json.loads(out)["reward"])
    assert lines[1] == pytest.approx(lines[0], abs=1e-5), "is the template that of the run?"


def test_base_without_a_model_is_refused():
    status, _, err = command(train_rm.main, "--base", ROOT)
    assert status == 2 and "--base need --model" in err
