"""The scoring contract: a text has one reward, in any batch, read at its last valid token."""
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, save_run, tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from data import pad_right
from loss import bradley_terry_loss
from model import PADDED, CheckpointError, RewardModel, RMSNorm
from model import open_model, read_config, read_json, rotary_tables

END, PAD = 2, 0
AT_A_PAD = "the reward moved when pads were added: is it read at a pad, or does attention see pads?"


def random_texts(*lengths, seed=0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(3, 400, length) for length in lengths]


def text(*ids) -> np.ndarray:
    return np.array(ids)


def alone(model, ids) -> torch.Tensor:
    """The reward of one text, without any padding.  (1,)"""
    input_ids = torch.from_numpy(ids)[None]
    return model(input_ids, torch.ones_like(input_ids))


def keep_embeddings(model) -> list[torch.Tensor]:
    """A list that will hold the embedded tokens of every forward pass, with their gradients."""
    kept = []

    def keep(module, inputs, output):
        output.retain_grad()
        kept.append(output)

    model.model.embed_tokens.register_forward_hook(keep)
    return kept


# ---------------------------------------------------------------- read at the last valid token


def test_the_last_valid_token_is_the_sum_of_the_mask_minus_one():
    mask = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1]])
    last = PADDED.last(mask)
    assert last.tolist() == [[0], [1], [2]], "lengths 1, 2, 3 end at index 0, 1, 2"


def test_the_reward_is_the_head_applied_to_the_last_valid_hidden_state():
    model, texts = tiny_model(), random_texts(1, 6, 19, 20)
    input_ids, mask = pad_right(texts, PAD)
    rewards = model(input_ids, mask)
    assert rewards.shape == (4,), "one number for each sequence: (N, 1) would be broadcast later"
    hidden = model.model(input_ids, PADDED)
    weight, bias = model.score.weight[0], model.score.bias[0]
    assert bias != 0
    for row, ids in enumerate(texts):
        by_hand = hidden[row, len(ids) - 1] @ weight + bias
        message = "not wᵀ h + b at the last valid token: is another token read, or b left out?"
        assert_close(rewards[row], by_hand, atol=1e-6, rtol=0, msg=message)


def test_every_reward_goes_through_the_gather(monkeypatch):
    class Reached(Exception):
        pass

    def stop(*arguments, **options):
        raise Reached("gather")

    monkeypatch.setattr(torch, "gather", stop)
    with pytest.raises(Reached, match="gather"):
        alone(tiny_model(), text(5, 6, END))


def test_the_reward_is_right_where_the_pad_is_the_end_token():
    model = tiny_model()
    texts = [text(7, 9, END), text(7, 9, 11, 13, 4, END)]
    by_end = model(*pad_right(texts, END))
    by_other = model(*pad_right(texts, PAD))
    message = "is the last token looked for by its id? Only the mask knows the length"
    assert_close(by_end, by_other, atol=1e-6, rtol=0, msg=message)
    assert_close(by_end[:1], alone(model, texts[0]), atol=1e-5, rtol=0, msg=message)


def test_an_end_token_inside_the_prompt_does_not_end_the_text():
    # The rule "first end token" would give both responses the reward of their shared prompt.
    model = tiny_model()
    chosen = text(5, END, 6, END, 8, END)
    rejected = text(5, END, 6, END, 9, END)
    rewards = model(*pad_right([chosen, rejected], PAD))
    assert (rewards[0] - rewards[1]).abs() > 1e-3
    assert_close(rewards[:1], alone(model, chosen), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mask", [
    [[0, 1, 1]],
    [[1, 0, 1]],
    [[0, 0, 0]],
    [[1, 1, 1], [0, 1, 1]],
])
def test_a_mask_that_is_not_ones_then_zeros_is_refused(mask):
    mask = torch.tensor(mask)
    with pytest.raises(ValueError, match="ones then zeros"):
        tiny_model()(torch.zeros_like(mask), mask)
        pytest.fail("with pads on the left, Σ mask − 1 points into the text, or at a pad")


# ---------------------------------------------------------------- one text, one reward


def test_the_reward_is_the_same_alone_and_in_a_padded_batch():
    model, texts = tiny_model(), random_texts(1, 2, 9, 31, 64)
    together = model(*pad_right(texts, PAD))
    for row, ids in enumerate(texts):
        assert_close(together[row : row + 1], alone(model, ids), atol=1e-5, rtol=0, msg=AT_A_PAD)


@pytest.mark.parametrize("width", [10, 11, 40, 127])
def test_the_reward_is_the_same_at_any_padding_width(width):
    model, [ids] = tiny_model(), random_texts(10)
    input_ids = torch.full((1, width), PAD)
    input_ids[0, :10] = torch.from_numpy(ids)
    mask = torch.zeros_like(input_ids)
    mask[0, :10] = 1
    assert_close(model(input_ids, mask), alone(model, ids), atol=1e-5, rtol=0, msg=AT_A_PAD)


def test_the_order_in_the_batch_changes_nothing():
    model, texts = tiny_model(), random_texts(5, 30, 12, 21)
    forwards = model(*pad_right(texts, PAD))
    backwards = model(*pad_right(texts[::-1], PAD))
    assert_close(forwards, backwards.flip(0), atol=1e-5, rtol=0)


def test_the_number_of_threads_changes_nothing():
    model, texts = tiny_model(hidden_size=256, intermediate_size=512), random_texts(90, 120, 33, 64)
    threads, rewards = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            rewards.append(model(*pad_right(texts, PAD)))
    finally:
        torch.set_num_threads(threads)
    for others in rewards[1:]:
        assert_close(others, rewards[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_row_that_gives_nan_leaves_the_other_rows_as_they_are():
    model, texts = tiny_model(), random_texts(30, 12, 21)
    expected = model(*pad_right(texts, PAD))
    model.model.embed_tokens.weight[2] = float("nan")  # no token of these texts
    texts.insert(1, np.append(texts[0], 2).astype(texts[0].dtype))
    rewards = model(*pad_right(texts, PAD))
    assert rewards[1].isnan(), "a NaN was hidden: nobody would notice a broken model"
    others = rewards[[0, 2, 3]]
    assert_close(others, expected, atol=1e-5, rtol=0, msg="the NaN of one row is in others too")


def test_pads_have_no_gradient_and_no_effect():
    model, texts = tiny_model(), random_texts(4, 12)
    input_ids, mask = pad_right(texts, PAD)
    embedded = keep_embeddings(model)
    rewards = model(input_ids, mask)
    rewards.sum().backward()
    gradient = embedded[0].grad.abs().sum(-1)  # (R, T)
    assert (gradient[mask == 0] == 0).all(), "a pad changes the reward: does attention see it?"
    assert (gradient[mask == 1] > 0).all(), "a token does not change the reward"
    input_ids[mask == 0] = 399
    assert_close(model(input_ids, mask), rewards, atol=1e-6, rtol=0)


def test_one_response_never_sees_the_other():
    model = tiny_model()
    embedded = keep_embeddings(model)
    r_chosen, r_rejected = model(*pad_right(random_texts(8, 8), PAD))
    r_rejected.backward()
    of_chosen, of_rejected = embedded[0].grad.abs().sum((1, 2))
    assert of_chosen == 0
    assert of_rejected > 0


def test_any_token_and_any_order_of_tokens_counts():
    model, [ids] = tiny_model(), random_texts(12)
    reward = alone(model, ids)
    for position in range(12):
        changed = ids.copy()
        changed[position] = (changed[position] + 1) % 400
        assert (alone(model, changed) - reward).abs() > 1e-6, position
    backwards = ids[::-1].copy()
    assert (alone(model, backwards) - reward).abs() > 1e-6


def test_two_passes_in_training_agree_because_nothing_is_dropped_out():
    model = tiny_model(attention_dropout=0.5).train()
    batch = pad_right(random_texts(8, 9), PAD)
    assert torch.equal(model(*batch), model(*batch)), "dropout makes both rewards of a pair noisy"


# ---------------------------------------------------------------- precision


def test_under_bfloat16_autocast_the_head_still_computes_in_float32():
    model, batch = tiny_model(), pad_right(random_texts(8, 30, 17, 5), PAD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rewards = model(*batch)
    problem = "the head ran in bfloat16: close pairs would tie"
    assert rewards.dtype == torch.float32, problem
    rounded = rewards.bfloat16().float()
    assert not torch.equal(rewards, rounded), problem
    assert_close(rewards, model(*batch), atol=0.05, rtol=0)


def test_the_norm_of_bfloat16_states_is_computed_in_float32():
    torch.manual_seed(0)
    x = (torch.randn(4, 64) * 3).bfloat16()
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt()
    found = RMSNorm(64, 1e-5)(x).double()
    rounding = exact.abs() * 2**-8  # half a step of bfloat16, which has 8 binary digits
    assert ((found - exact).abs() <= rounding * 1.01).all(), "squares are added up in bfloat16"


def test_positions_are_computed_in_float32():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cos, sin = rotary_tables(read_config(TINY), torch.arange(258))
    assert cos[257, 0].item() == pytest.approx(math.cos(257), abs=1e-4)
    assert sin[257, 0].item() == pytest.approx(math.sin(257), abs=1e-4)


# ---------------------------------------------------------------- a new head


def test_a_new_head_gives_rewards_of_size_1_and_a_loss_near_log_2():
    torch.manual_seed(1)
    model = RewardModel.from_scratch(TINY | {"initializer_range": 0.02, "hidden_size": 256})
    prompt, chosen, rejected = random_texts(30, 3, 3)
    pair = [text(*prompt, *chosen, END), text(*prompt, *rejected, END)]
    batch = pad_right(pair, PAD)
    rewards = torch.empty(200, 2)  # of 200 heads
    for i in range(200):
        model.init_head()
        rewards[i] = model(*batch).detach()
    assert model.score.bias.item() == 0
    assert 0.8 < rewards.std().item() < 1.2
    losses = bradley_terry_loss(rewards[:, 0], rewards[:, 1])
    assert losses.mean().item() == pytest.approx(math.log(2), abs=0.03)


def test_two_seeds_give_two_heads():
    assert not torch.equal(tiny_model(0).score.weight, tiny_model(1).score.weight)


# ---------------------------------------------------------------- saving and loading


@pytest.fixture
def run(tmp_path) -> Path:
    """A run folder that holds tiny_model()."""
    return save_run(tmp_path / "run", tiny_model(), tiny_tokenizer())


def edit(folder: Path, new=(), without=()) -> None:
    """Change the tensors of a folder."""
    state = load_file(folder / "model.safetensors")
    for name in without:
        del state[name]
    save_file(state | dict(new), folder / "model.safetensors")


def mapped_files() -> list[tuple[int, int, str]]:
    """(start, end, path) of the files that are mapped into this process's memory."""
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6:
            start, end = fields[0].split("-")
            mapped.append((int(start, 16), int(end, 16), fields[5]))
    return mapped


def test_rewards_survive_saving_and_loading_bit_for_bit(run):
    batch = pad_right(random_texts(8, 30), PAD)
    model = RewardModel.from_pretrained(run)
    assert model.head_origin == "kept"
    message = "the opened model has other rewards: was a new head drawn when it was loaded?"
    assert torch.equal(model(*batch), tiny_model()(*batch)), message


def test_a_checkpoint_of_several_files_is_the_same_model(tmp_path, monkeypatch):
    monkeypatch.setattr("model.SHARD_BYTES", 5000)
    run = save_run(tmp_path, tiny_model(), tiny_tokenizer())
    files = sorted(file.name for file in run.glob("model-*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    batch = pad_right(random_texts(8, 30), PAD)
    model = RewardModel.from_pretrained(run)
    assert torch.equal(model(*batch), tiny_model()(*batch))


def test_a_bias_of_zero_is_left_out_because_transformers_has_none(tmp_path):
    for bias in (0.0, 1.5):
        model = tiny_model()
        torch.nn.init.constant_(model.score.bias, bias)
        run = save_run(tmp_path, model, tiny_tokenizer())
        is_saved = "score.bias" in load_file(run / "model.safetensors")
        assert is_saved == (bias != 0), "a bias other than 0 has to be saved, and one of 0 left out"
        assert RewardModel.from_pretrained(run).score.bias.item() == bias


def test_the_saved_config_has_one_label_and_no_sigmoid(run):
    config_json = read_json(run / "config.json")
    assert config_json["architectures"] == ["LlamaForSequenceClassification"]
    message = "without one label transformers makes a head of two, and its numbers are random"
    assert config_json.get("id2label") == {"0": "reward"}, message
    assert config_json.get("num_labels") == 1, message
    assert config_json["problem_type"] == "regression"
    assert config_json["pad_token_id"] not in (None, END)


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_gets_a_new_head_only_when_asked(run, tied):
    edit(run, without=["score.weight", "score.bias"])
    if not tied:
        edit(run, new={"lm_head.weight": torch.randn(400, 16)})
    with pytest.raises(CheckpointError, match="a language model without a reward head"):
        RewardModel.from_pretrained(run)
    model = open_model(run, fresh_head=True)
    assert model.head_origin == "new"
    assert model.score.weight.std() > 0
    assert model.score.bias.item() == 0
    assert "lm_head.weight" not in model.state_dict()


def test_a_head_in_the_checkpoint_is_kept_when_training_starts_from_it(run):
    model = open_model(run, fresh_head=True)
    assert torch.equal(model.score.weight, tiny_model().score.weight)
    assert model.score.bias.item() == 0.25


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
def test_weights_are_mapped_until_they_are_taken(run):
    model = open_model(run)
    for taken in (False, True):
        if taken:
            model.take_weights("cpu")
        files = mapped_files()
        for name, parameter in model.named_parameters():
            address = parameter.data_ptr()
            inside = [path for start, end, path in files if start <= address < end]
            from_file = str(run / "model.safetensors") in inside
            assert from_file != taken, f"{name} is in {inside}"


def test_weights_start_at_64_bytes_wherever_they_are_in_their_file(run):
    edit(run)
    in_file = {p.data_ptr() % 64 for p in open_model(run).parameters()}
    assert in_file != {0}, "this file proves nothing: all its tensors are aligned"
    in_memory = {p.data_ptr() % 64 for p in RewardModel.from_pretrained(run).parameters()}
    assert in_memory == {0}, "kernels sum in another order: a resumed run differs in the last bit"


def test_bfloat16_files_are_float32_in_memory_but_for_frozen_weights(run):
    rounded = {}
    for name, tensor in tiny_model().state_dict().items():
        rounded[name] = tensor.bfloat16()
    edit(run, new=rounded)
    model = open_model(run)
    table = model.model.embed_tokens.weight.requires_grad_(False)
    model.take_weights("cpu")
    for name, parameter in model.named_parameters():
        frozen = parameter is table
        assert parameter.dtype == (torch.bfloat16 if frozen else torch.float32), name
        assert torch.equal(parameter.float(), rounded[name].float()), name
    # A table in bfloat16 changes nothing but memory: hidden states are float32 from there on.
    ids = text(5, 6, END)
    message = "is the sum that every layer adds to kept in bfloat16, the type of the table?"
    assert torch.equal(alone(model, ids), alone(RewardModel.from_pretrained(run), ids)), message


@pytest.mark.parametrize("change, message", [
    ({"without": ["model.norm.weight"]}, "missing:? model.norm.weight$"),
    ({"new": {"model.layers.0.extra": torch.ones(2)}}, "not expected:? model.layers.0.extra$"),
    ({"new": {"model.norm.weight": torch.ones(7)}}, r"model.norm.weight: .*\[7\].*\[16\]"),
    ({"new": {"score.weight": torch.ones(2, 16)}}, r"score.weight: .*\[2, 16\].*\[1, 16\]"),
    ({"new": {"score.weight": torch.ones(1, 16).char()}}, "score.weight is torch.int8: quantised"),
    ({"new": {"extra": torch.ones(1)}, "without": ["model.norm.weight"]},
     "missing:? model.norm.weight[,;] not expected:? extra$"),
])
def test_tensors_that_do_not_fit_are_named_in_one_line(run, change, message):
    edit(run, **change)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_model(run)
        pytest.fail("a tensor is missing or left over, and the model opens: a part of it is random")
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_named(run):
    file = run / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="model.safetensors: not a complete safetensors file"):
        open_model(run)


@pytest.mark.parametrize("name", ["../model.safetensors", "/model.safetensors", "weights.bin"])
def test_an_index_cannot_point_out_of_its_folder_or_at_a_pickle(run, name):
    (run / "model.safetensors").rename(run.parent / "model.safetensors")
    index = {"weight_map": {"model.norm.weight": name}}
    (run / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="is not a file name in this folder"):
        open_model(run)


@pytest.mark.parametrize("index", [{}, {"weight_map": ["a"]}, {"weight_map": {"a": 3}}])
def test_an_index_without_file_names_is_named(run, index):
    (run / "model.safetensors").unlink()
    (run / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="model.safetensors.index.json: "):
        open_model(run)


def test_pickled_weights_are_never_read(run):
    (run / "model.safetensors").rename(run / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no model.safetensors "):
        open_model(run)
