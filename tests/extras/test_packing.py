"""A packed batch changes the time that a step takes, and nothing else (extras/packing.py)."""
import random

import numpy as np
import pytest
import torch
from conftest import tiny_model

import data
from data import Example
from extras import packing
from extras.families import AttentionWithoutPositions
from model import PADDED

SETTINGS = [
    {},  # 4 query heads share 2 key/value heads
    {"num_key_value_heads": 4, "mlp_bias": True},
    {"num_key_value_heads": 1},
    {"model_type": "qwen3"},  # norms of queries and keys
    {"num_hidden_layers": 1},
]


def random_tokens(rng, count):
    tokens = []
    for _ in range(count):
        tokens.append(rng.randrange(3, 400))
    return tokens


def example_of(prompt, *responses, **fields):
    """An example: token lists of a prompt and of its responses, the best one first."""
    sequences = []
    for response in responses:
        sequences.append(np.array(prompt + response, dtype=np.int32))
    scores = list(range(len(responses), 0, -1))
    return Example(sequences, scores, len(prompt), **fields)


def random_examples(seed, count=6):
    """Prompts of 0 to 9 tokens with 1 to 5 responses. Some of these begin alike, or are equal."""
    rng = random.Random(seed)
    examples = []
    for _ in range(count):
        prompt = random_tokens(rng, rng.choice([0, 1, 5, 9]))
        responses = []
        for _ in range(rng.randint(1, 5)):
            responses.append(random_tokens(rng, rng.randint(1, 8)))
        if len(responses) > 1 and rng.random() < 0.5:
            responses[1] = responses[0] + random_tokens(rng, rng.randint(1, 4))
        if len(responses) > 2 and rng.random() < 0.3:
            responses[2] = list(responses[0])
        examples.append(example_of(prompt, *responses, margin=rng.random()))
    return examples


def long_example():
    """40 tokens of prompt, and three responses of 40."""
    rng = random.Random(99)
    prompt, *responses = [random_tokens(rng, 40) for _ in range(4)]
    return example_of(prompt, *responses)


# ---------------------------------------------------------------- how a batch lies in the row


def test_a_prompt_stands_once_and_nothing_else_is_shared():
    first = example_of([5, 6], [7, 8], [7, 9])  # the responses begin alike
    second = example_of([5, 6], [7, 8])  # the prompt of another row
    batch = packing.collate([first, second], 0)
    row = [5, 6, 7, 8, 7, 9, 5, 6, 7, 8]
    assert batch.input_ids.tolist() == [row]
    assert batch.attention_mask.tolist() == [[1] * len(row)]


def test_positions_of_a_response_continue_where_its_prompt_ends():
    first = example_of([5, 6, 7], [8, 9], [10])
    second = example_of([], [11, 12], [13, 14])
    batch = packing.collate([first, second], 0)
    positions = batch.form.positions(batch.input_ids).tolist()
    expected = [0, 1, 2, 3, 4, 3, 0, 1, 0, 1]
    assert positions == expected, (
        "a position is the index of a token in its own sequence: not its index in the row, and "
        "not its index in the response"
    )


@pytest.mark.parametrize("collate", [data.collate, packing.collate])
@pytest.mark.parametrize("seed", range(3))
def test_start_to_last_is_exactly_the_response(seed, collate):
    examples = random_examples(seed)
    batch = collate(examples, 0)
    inputs = batch.inputs()
    form = inputs.get("form", PADDED)
    last = form.last(batch.attention_mask)  # (R, S)
    found = []
    for row, starts, ends in zip(batch.input_ids, batch.start, last):
        for start, end in zip(starts, ends):
            response = row[start : end + 1]
            found.append(response.tolist())
    expected = []
    for example in examples:
        for sequence in example.sequences:
            response = sequence[example.start :]
            expected.append(response.tolist())
    assert found == expected, (
        "start..last is not the response: a reward is read at another token than the last one, or "
        "the beginning of the response is counted as prompt"
    )


@pytest.mark.parametrize("seed", range(3))
def test_pairs_and_weights_are_those_of_the_padded_form(seed):
    examples = random_examples(seed)
    padded = data.collate(examples, 0, rows_in_step=7)
    packed = packing.collate(examples, 0, rows_in_step=7)
    for name in ("chosen", "rejected", "margin", "weight"):
        assert torch.equal(getattr(packed, name), getattr(padded, name)), name


def test_the_form_goes_to_the_device_with_its_batch():
    batch = packing.collate(random_examples(0), 0).to("meta")
    form = batch.form
    tensors = [batch.input_ids, batch.start, batch.weight]
    tensors += [form.end, form.position_ids, form.unpack, form.pack]
    for tensor in tensors:
        assert tensor.is_meta, "a tensor of the batch stays on the CPU"


@pytest.mark.parametrize("sequences", [[[5, 6, 7], [5, 6]], [[5, 6]], [[5]], [[]]])
def test_an_empty_response_is_refused(sequences):
    sequences = [np.array(ids) for ids in sequences]
    scores = [0] * len(sequences)
    example = Example(sequences, scores, start=2)
    with pytest.raises(ValueError, match="empty response"):
        packing.collate([example], 0)


def test_sequences_that_do_not_share_the_prompt_are_refused():
    sequences = [np.array([5, 6, 7]), np.array([5, 8, 9])]
    example = Example(sequences, [1, 0], start=2)
    with pytest.raises(ValueError, match="not one prompt"):
        packing.collate([example], 0)


# ---------------------------------------------------------------- what a token sees

PICTURE = """
x.........
xx........
xxx.......
xxxx......
xx..x.....
xx...x....
xx...xx...
.......x..
.......xx.
.......x.x
"""


def picture_of(visible):
    """A line for each query of a mask (T, T), with an x for each key that it sees."""
    lines = []
    for query in visible.tolist():
        line = ""
        for sees in query:
            line += "x" if sees else "."
        lines.append(line)
    return "\n".join(lines)


def test_a_token_sees_its_prompt_and_its_own_response_and_nothing_else():
    first = example_of([5, 6], [7, 8], [9], [10, 11])
    second = example_of([5], [6], [7])
    batch = packing.collate([first, second], 0)
    T = batch.input_ids.shape[1]
    # All scores are 0 and values are unit vectors: the result is each token's attention weights.
    zeros = torch.zeros(1, 1, T, T)
    units = torch.eye(T).view(1, 1, T, T)
    weights = batch.form.attend(zeros, zeros, units)  # (1, 1, T, T)
    seen = picture_of(weights[0, 0] > 0)
    assert seen == PICTURE.strip(), (
        "does a response see another response, its own future, or only a part of its prompt?\n"
        f"A row of this picture is what one token sees:\n{seen}\nexpected:{PICTURE}"
    )


def test_no_gradient_flows_from_one_response_to_another(monkeypatch):
    model = tiny_model()
    first = example_of([5, 6, 7], [20, 21, 22], [30, 31])
    second = example_of([40], [41], [42])
    batch = packing.collate([first, second], 0)
    embedded = model.model.embed_tokens(batch.input_ids).detach().requires_grad_()
    monkeypatch.setattr(model.model.embed_tokens, "forward", lambda ids: embedded)
    rewards = model(**batch.inputs())
    sequences = [[0, 1, 2, 3, 4, 5], [0, 1, 2, 6, 7], [8, 9], [8, 10]]  # indices in the row
    for reward, own in zip(rewards, sequences):
        (gradient,) = torch.autograd.grad(reward, embedded, retain_graph=True)  # (1, T, D)
        is_used = gradient[0].any(-1)  # (T,)
        used = is_used.nonzero().flatten()
        assert used.tolist() == own, "a reward depends on other tokens than those of its sequence"


# ---------------------------------------------------------------- equal to the padded form


def rewards_and_gradients(model, batch):
    """The rewards of a batch, and the gradient of a sum to which each contributes differently."""
    model.zero_grad()
    rewards = model(**batch.inputs())
    factors = torch.arange(1, len(rewards) + 1)
    total = (rewards.sin() * factors).sum()
    total.backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        gradients[name] = parameter.grad.clone()
    return rewards.detach(), gradients


def check_same(model, examples):
    """Raises: AssertionError unless packed and padded batches have equal rewards and gradients."""
    padded, expected = rewards_and_gradients(model, data.collate(examples, 0))
    packed, gradients = rewards_and_gradients(model, packing.collate(examples, 0))
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=1e-5, msg=lambda m: (
        "a packed sequence has another reward than alone. If a test of positions, of start..last "
        f"or of what a token sees fails too, that is the reason. {m}"
    ))
    for name, gradient in expected.items():
        size = gradient.abs().max()
        torch.testing.assert_close(
            gradients[name] / size, gradient / size, atol=1e-5, rtol=1e-5,
            msg=lambda m, name=name: f"equal rewards, but another gradient of {name}: {m}",
        )


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_rewards_and_gradients_are_those_of_the_padded_form(
    seed, settings
):
    check_same(tiny_model(seed, **settings), random_examples(seed))


def test_short_and_long_examples_share_a_batch():
    examples = random_examples(0)
    examples.append(long_example())
    examples += random_examples(1)
    check_same(tiny_model(), examples)


def test_layers_without_positions_can_be_packed():
    model = tiny_model()
    model.model.layers[1].self_attn = AttentionWithoutPositions(model.config)
    check_same(model, random_examples(0))


def test_gradient_checkpointing_works_on_a_packed_batch():
    model = tiny_model()
    batch = packing.collate([*random_examples(0), long_example()], 0)
    rewards, gradients = rewards_and_gradients(model, batch)
    model.model.gradient_checkpointing = True
    again, recomputed = rewards_and_gradients(model, batch)
    assert torch.equal(again, rewards)
    for name, gradient in gradients.items():
        assert torch.equal(recomputed[name], gradient), f"{name}: recomputed with another form?"


@torch.no_grad()
def test_rewards_do_not_depend_on_what_is_packed_together():
    model = tiny_model()
    examples = [*random_examples(7), long_example()]
    together = model(**packing.collate(examples, 0).inputs())
    one_by_one = []
    for example in examples:
        batch = packing.collate([example], 0)
        rewards = model(**batch.inputs())
        one_by_one += rewards.tolist()
    alone = torch.tensor(one_by_one)
    torch.testing.assert_close(
        together, alone, atol=1e-5, rtol=0,
        msg=lambda m: f"the reward of an example changes with its neighbours in the row: {m}",
    )


@torch.no_grad()
def test_a_response_that_gives_nan_leaves_the_others_as_they_are():
    model, examples = tiny_model(), random_examples(7)
    expected = model(**packing.collate(examples, 0).inputs())
    model.model.embed_tokens.weight[2] = float("nan")  # the tokens of these examples begin at 3
    broken = example_of([5, 6, 7], [8, 2], [9, 10])
    rewards = model(**packing.collate([broken, *examples], 0).inputs())
    assert rewards[0].isnan() and rewards[1].isfinite(), "two responses of a prompt mix"
    torch.testing.assert_close(rewards[2:], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_low_precision_rewards_are_near_those_in_float32_and_not_rounded():
    model = tiny_model()
    batch = packing.collate([*random_examples(1), long_example()], 0)
    exact = model(**batch.inputs())
    with torch.autocast("cpu", torch.bfloat16):
        low = model(**batch.inputs())
    assert 0 < (low - exact).abs().max() < 0.1
    assert low.dtype == torch.float32
    assert not torch.equal(low, low.bfloat16().float()), "the head ran in bfloat16"


def test_both_forms_reach_the_one_gather(monkeypatch):
    model = tiny_model()

    def broken(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(torch, "gather", broken)
    for collate in (data.collate, packing.collate):
        with pytest.raises(ZeroDivisionError):
            model(**collate(random_examples(0), 0).inputs())
