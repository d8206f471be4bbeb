"""A reward model that was trained elsewhere gives, here, the rewards that it was trained to give.

tests/make_readings.py trained tiny models with TRL, and wrote down the rewards of transformers and
PEFT. What each of them proves is where the reward is read.
"""
import json

import numpy as np
import pytest
import torch
from conftest import FIXTURES, command, copy_run, write_rows
from runs import pairs
from safetensors.torch import load_file, save_file

import train_rm
from eval import Scorer
from model import RewardModel, read_json

READINGS = FIXTURES / "readings"


def cut(ids, end_id):
    return ids[:-1]


def with_end(ids, end_id):
    return np.append(ids, end_id).astype(np.int32)


# What is said before and at the token where the reward is read, and a reading that would be wrong.
CASES = {
    "newline": ("<|im_end|>\n", cut),
    "pad-is-eos": ("", with_end),
    "lora": ("", with_end),
    "llamafactory": ("</s>", cut),
    "openrlhf": ("</s>", cut),
}
every_case = pytest.mark.parametrize("case", CASES)


def opened(case):
    """The model. The adapter names its base by a path from the root of the repository."""
    base = READINGS / "lora-base" if case == "lora" else None
    return RewardModel.from_pretrained(READINGS / case, base=base)


def rows_of(case):
    """Rows of prompt and response, and the rewards that they have in transformers."""
    rows = json.loads((READINGS / case / "rows.json").read_text("utf-8"))
    return rows, [row.pop("reward") for row in rows]


def examples_of(scorer, rows):
    """Two responses to each prompt; in packed batches they share it."""
    examples = []
    for first, second in zip(rows[::2], rows[1::2]):
        assert first["prompt"] == second["prompt"]
        raw = {"prompt": first["prompt"], "responses": [first["response"], second["response"]]}
        examples.append(scorer.read_candidates(raw, "row"))
    return examples


def sequences_of(scorer, rows):
    """The token ids of each row, as `score` reads it."""
    sequences = []
    for row in rows:
        sequences += scorer.read_text(row, "row").sequences
    return sequences


def rewards_of(scorer, rows):
    return np.concatenate(scorer.rewards(examples_of(scorer, rows))).tolist()


@every_case
@pytest.mark.parametrize("pack", [False, True])
def test_a_model_trained_elsewhere_gives_the_rewards_that_it_was_trained_to_give(case, pack):
    rows, expected = rows_of(case)
    found = rewards_of(Scorer(opened(case), pack=pack), rows)
    assert found == pytest.approx(expected, abs=1e-5), "is the reward read at another token?"


@every_case
def test_read_at_another_token_the_rewards_would_be_others(case):
    """So the test above can fail."""
    ending, change = CASES[case]
    rows, expected = rows_of(case)
    scorer = Scorer(opened(case))
    end_id = scorer.tokenizer.backend.token_to_id("</s>")
    for row, ids, reward in zip(rows, sequences_of(scorer, rows), expected):
        text = scorer.tokenizer.backend.decode(ids.tolist(), skip_special_tokens=False)
        assert text.endswith(row["response"] + ending)
        other = torch.from_numpy(change(ids, end_id).astype(np.int64))[None]
        with torch.no_grad():
            other_reward = scorer.model(other, torch.ones_like(other)).item()
        assert abs(other_reward - reward) > 1e-3, "this fixture does not show where it is read"


def test_the_ids_and_the_bias_of_the_fixtures_are_those_that_mislead():
    for case in ("pad-is-eos", "llamafactory"):
        config = read_json(READINGS / case / "config.json")
        assert config["pad_token_id"] == config["eos_token_id"], case
    assert read_json(READINGS / "lora-base" / "config.json")["pad_token_id"] is None
    head = load_file(READINGS / "llamafactory" / "value_head.safetensors")
    assert head["v_head.summary.bias"].item() == 0.25, "a reward without it would be wrong"


# ---------------------------------------------------------------- trained on, saved, opened again


def train_on(case, output, *options):
    """A few steps on the rows: the rewards of the model in memory, as it was saved."""
    rows, _ = rows_of(case)
    data = []
    for number, (first, second) in enumerate(zip(rows[::2], rows[1::2])):
        pair = {"chosen": second["response"], "rejected": first["response"]}
        data.append({"prompt": first["prompt"]} | pair)
        data.append({"prompt": f"Which number is {number}?"} | pair)
    in_memory = []
    save_model = train_rm.save_model

    def note_and_save(output, model, tokenizer, *more):
        in_memory.extend(rewards_of(Scorer(model, tokenizer), rows))
        save_model(output, model, tokenizer, *more)

    file = write_rows(output.with_suffix(".jsonl"), data)
    if case == "lora":
        options = ["--base", READINGS / "lora-base", *options]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_rm, "save_model", note_and_save)
        status, out, err = command(
            train_rm.main, "--model", READINGS / case, "--data", file, "--batch-size", 3,
            "--lr", 0.01, "--max-steps", 3, "--output", output, "--device", "cpu", *options,
        )
    assert status == 0, err
    assert "value head kept" in out
    return in_memory


def assert_same_reading(case, again, in_memory):
    """again has the rewards of the model in memory, at the same token as before training."""
    rows, before = rows_of(case)
    assert np.abs(np.subtract(in_memory, before)).min() > 0.01, "training changed nothing"
    assert rewards_of(again, rows) == pytest.approx(in_memory, abs=1e-5)
    first, later = sequences_of(Scorer(opened(case)), rows), sequences_of(again, rows)
    for ids, ids_later in zip(first, later):
        assert ids.tolist() == ids_later.tolist(), "the saved folder reads at another token"


@every_case
@pytest.mark.parametrize("pack", [False, True])
def test_trained_on_and_saved_it_is_read_where_it_was(case, pack, tmp_path):
    in_memory = train_on(case, tmp_path / "run", *(["--pack"] if pack else []))
    again = Scorer(RewardModel.from_pretrained(tmp_path / "run"), pack=pack)
    assert_same_reading(case, again, in_memory)


@pytest.mark.parametrize("case", ["newline", "pad-is-eos", "openrlhf", "llamafactory"])
def test_the_adapter_of_a_lora_run_is_read_where_the_model_was(case, tmp_path):
    in_memory = train_on(case, tmp_path / "run", "--lora-rank", 2)
    for folder in (tmp_path / "run", tmp_path / "run" / "adapter"):
        assert_same_reading(case, Scorer(RewardModel.from_pretrained(folder)), in_memory)


@every_case
def test_the_saved_folder_tells_transformers_where_to_read(case, tmp_path):
    train_on(case, tmp_path / "run")
    config = read_json(tmp_path / "run" / "config.json")
    settings = read_json(tmp_path / "run" / "tokenizer_config.json")
    template = (READINGS / case / "chat_template.jinja").read_text("utf-8")
    assert settings["chat_template"] == template, "the text is another one in transformers"
    if case in ("pad-is-eos", "lora"):
        assert config["pad_token_id"] == config["eos_token_id"], "it would read the reward at </s>"
    else:
        assert config["pad_token_id"] == 0, "no text ends with <unk>: it reads at the last token"
    vocabulary = read_json(tmp_path / "run" / "tokenizer.json")["model"]["vocab"]
    assert vocabulary[settings["pad_token"]] == config["pad_token_id"], "batches get another pad"


# ---------------------------------------------------------------- projects that read by the mask


def ids_of(folder, base=None):
    """The token ids of one text, up to where its reward is read."""
    scorer = Scorer(RewardModel.from_pretrained(folder, base=base))
    example = scorer.read_text({"prompt": "Which?", "response": "It is green."}, "row")
    return example.sequences[0].tolist()


def edit(path, **settings):
    path.write_text(json.dumps(read_json(path) | settings))


def test_an_adapter_of_llamafactory_is_read_at_the_end_whatever_its_pad_is(tmp_path):
    folder = copy_run(READINGS / "lora", tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    weight = tensors.pop("base_model.model.score.weight")
    save_file(tensors, folder / "adapter_model.safetensors")
    head = {"v_head.summary.weight": weight, "v_head.summary.bias": torch.ones(1)}
    save_file(head, folder / "value_head.safetensors")
    edit(folder / "adapter_config.json", modules_to_save=None, task_type="CAUSAL_LM")
    assert ids_of(folder, READINGS / "lora-base")[-1] == 1, "read before </s>, which is its pad too"


@pytest.mark.parametrize("newline", ["", "\\n"])
def test_a_model_of_openrlhf_is_read_at_the_end_token(newline, tmp_path):
    folder = copy_run(READINGS / "openrlhf", tmp_path / "theirs")
    edit(folder / "config.json", pad_token_id=1)  # OpenRLHF's, where a tokenizer has no pad
    edit(folder / "tokenizer_config.json", pad_token="</s>")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("'</s>'", f"'</s>{newline}'"))
    expected = ids_of(folder)
    assert expected[-1] == 1, "OpenRLHF cuts newlines, and takes the last token that is no padding"
    rows = write_rows(tmp_path / "rows.jsonl", pairs(6))
    args = ["--model", folder, "--data", rows, "--max-steps", 1, "--output", tmp_path / "run"]
    status, _, err = command(train_rm.main, *args)
    assert status == 0, err
    config = read_json(tmp_path / "run" / "config.json")
    assert config["value_head_prefix"] == "score", "OpenRLHF would look for a head of another name"
    assert config["pad_token_id"] == 0, "transformers would read before </s>"
    assert ids_of(tmp_path / "run") == expected
