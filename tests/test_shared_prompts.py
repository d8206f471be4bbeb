"""The fast form is the plain form: shared prompts, rows in use, compiled layers change the time and nothing else."""
import json
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, tiny_model, tiny_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode

import eval as evaluation
import model as model_file
import train_rm
from data import collate, encode_preferences, pack, pad_right, parse_preference, step_batches, toy_preferences
from eval import score_groups, score_sequences
from model import RowsInUse

SMALL = ["--toy-pairs", "400", "--max-steps", "12", "--batch-size", "16", "--hidden-size", "16", "--vocab-size", "400",
         "--logging-steps", "1", "--lr", "3e-3"]
SETTINGS = [{}, {"num_key_value_heads": 4, "mlp_bias": True}, {"model_type": "qwen3"}, {"num_hidden_layers": 1},
            {"model_type": "mistral", "sliding_window": 3},
            {"model_type": "smollm3", "num_hidden_layers": 3, "no_rope_layer_interval": 2, "use_sliding_window": True,
             "sliding_window": 4}]


def random_groups(seed: int, most: int = 5) -> list[list[np.ndarray]]:
    """Trees of 1 to 5 sequences with a common beginning of 0 to 9 tokens, some of them the beginning of another one."""
    rng = random.Random(seed)
    tokens = lambda n: np.array([rng.randrange(3, 400) for _ in range(n)], dtype=np.int32)
    groups = []
    for _ in range(6):
        prompt, K = tokens(rng.choice([0, 1, 5, 9])), rng.randint(1, most)
        group = [np.concatenate((prompt, tokens(rng.randint(1, 8)))) for _ in range(K)]
        if K > 1 and rng.random() < 0.5:
            group[1] = np.concatenate((group[0], tokens(rng.randint(1, 4))))  # response 1 is a prefix of response 2
        if K > 2 and rng.random() < 0.3:
            group[2] = group[0].copy()  # the same twice
        groups.append(group)
    return groups


def step_losses(folder) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def plain_rewards(model, groups):
    return model(*pad_right([s for group in groups for s in group], 0))


def shared_rewards(model, groups):
    input_ids, trees = pack(groups)
    return model(input_ids, None, trees)


@pytest.mark.parametrize("small_tree", [0, 128])  # every sequence by itself; each tree under one mask
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_shared_prompts_give_the_rewards_and_gradients_of_the_plain_form(seed, settings, small_tree, monkeypatch):
    monkeypatch.setattr(model_file, "SMALL_TREE", small_tree)
    model, groups = tiny_model(seed, **settings), random_groups(seed)
    results = []
    for rewards in (plain_rewards, shared_rewards):
        model.zero_grad()
        r = rewards(model, groups)
        (r.sin() * torch.arange(1, len(r) + 1)).sum().backward()  # every reward matters, and each differently
        results.append((r.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}))
    (plain, plain_grads), (shared, shared_grads) = results
    torch.testing.assert_close(shared, plain, atol=1e-5, rtol=1e-5)
    for name, grad in plain_grads.items():
        torch.testing.assert_close(shared_grads[name] / grad.abs().max(), grad / grad.abs().max(), atol=1e-5, rtol=1e-5)


def test_every_token_of_a_group_is_computed_once():
    a, b, c = np.array([5, 6, 7, 8]), np.array([5, 6, 9]), np.array([5, 6])
    input_ids, trees = pack([[a, b, c], [b]])
    assert input_ids.tolist() == [[5, 6, 7, 8, 9, 5, 6, 9]]
    assert trees.position_ids.tolist() == [0, 1, 2, 3, 2, 0, 1, 2]
    assert trees.branch.tolist() == [0, 0, 1, 1, 2, 0, 0, 0]
    assert trees.last.tolist() == [3, 4, 1, 7] and trees.parts == [[2, 2, 1, 0], [3, 0]] and trees.longest == 4


@pytest.mark.parametrize("small_tree", [0, 128])
def test_no_gradient_flows_from_one_response_to_another(small_tree, monkeypatch):
    monkeypatch.setattr(model_file, "SMALL_TREE", small_tree)
    model, (a, b) = tiny_model(), ([5, 6, 7, 20, 21, 22], [5, 6, 7, 30, 31])
    input_ids, trees = pack([[np.array(a), np.array(b)], [np.array([40, 41]), np.array([40, 42])]])
    embedded = model.model.embed_tokens(input_ids).detach().requires_grad_()
    model.model.embed_tokens.forward = lambda ids: embedded
    rewards = model(input_ids, None, trees)
    for i, seen in enumerate([[0, 1, 2, 3, 4, 5], [0, 1, 2, 6, 7], [8, 9], [8, 10]]):  # places in the row
        (grad,) = torch.autograd.grad(rewards[i], embedded, retain_graph=True)
        assert grad[0].abs().sum(-1).nonzero()[:, 0].tolist() == seen  # exactly zero elsewhere


def test_rewards_do_not_depend_on_what_is_grouped_or_batched_together(monkeypatch):
    model, packed = tiny_model(), []
    monkeypatch.setattr(evaluation, "pack", lambda groups: packed.append(groups) or pack(groups))
    prompt = np.arange(20, 40)
    groups = [*random_groups(7), [np.concatenate((prompt, np.full(5, 50 + i))) for i in range(60)]]
    sequences = [s for group in groups for s in group]
    plain = score_sequences(model, sequences, 0)
    one_by_one = np.array([shared_rewards(model, [[s]]).item() for s in sequences])
    np.testing.assert_allclose(one_by_one, plain, atol=1e-5)
    for limit in (1, 40, 100, 8192):
        packed.clear()
        np.testing.assert_allclose(score_groups(model, groups, limit), plain, atol=1e-5)
        sizes = [pack(trees)[0].numel() for trees in packed]
        assert all(size <= limit or (len(trees) == 1 and len(trees[0]) == 1) for size, trees in zip(sizes, packed))
        assert (len(packed) == 1) == (limit == 8192)


def test_low_precision_scoring_is_near_float32_and_not_it():
    model, groups = tiny_model(), random_groups(1)
    exact, low = score_groups(model, groups), score_groups(model, groups, dtype=torch.bfloat16)
    assert 0 < np.abs(low - exact).max() < 0.1
    np.testing.assert_allclose(low, score_sequences(model, [s for g in groups for s in g], 0, dtype=torch.bfloat16), atol=0.05)


def test_an_empty_sequence_is_refused():
    with pytest.raises(ValueError, match="empty sequence"):
        pack([[np.array([5, 6])], [np.array([5]), np.array([], dtype=np.int32)]])


# ---------------------------------------------------------------- torch.compile


@pytest.fixture
def traced(monkeypatch):
    """torch.compile that traces and guards as the real one, but generates no code: it needs no C++ compiler."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **k: compile_module(self, backend="eager", **k))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters["stats"]
    torch._dynamo.reset()


def test_compiled_layers_give_the_same_rewards_and_are_not_compiled_for_every_shape(traced):
    eager, compiled = tiny_model(num_hidden_layers=3), tiny_model(num_hidden_layers=3)
    compiled.compile_layers()
    graphs = []
    for seed in range(12):  # other trees, other sizes, another number of trees
        groups = random_groups(seed)[: 2 + seed % 4]
        rewards = shared_rewards(compiled, groups)
        torch.testing.assert_close(rewards, shared_rewards(eager, groups))
        rewards.sum().backward()
        graphs.append(traced["unique_graphs"])
    assert graphs[-1] == graphs[3] > 0


def test_a_compiled_run_learns_the_same_and_evaluates_without_compiling(tmp_path, traced):
    losses = []
    for options in ([], ["--compile"]):
        folder = tmp_path / str(len(losses))
        assert train_rm.main([*SMALL, "--max-steps", "9", "--eval-steps", "3", *options, "--output", str(folder)]) == 0
        losses.append(step_losses(folder))
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5)
    assert 0 < traced["unique_graphs"] <= 8  # a layer has a few pieces, in training only, the last one its own


def test_without_a_compiler_training_goes_on_and_says_so(tmp_path, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise RuntimeError("no C++ compiler\nlong story")

    monkeypatch.setattr(torch, "compile", broken)
    assert train_rm.main([*SMALL, "--max-steps", "2", "--compile", "--output", str(tmp_path / "run")]) == 0
    assert "no working compiler here, going on without (no C++ compiler)" in capsys.readouterr().out


# ---------------------------------------------------------------- the step


def toy_pairs(n):
    return encode_preferences([parse_preference(r) for r in toy_preferences(n, 0)], tiny_tokenizer(), 256)[0]


@pytest.mark.parametrize("form, shared, batches", [
    ([], True, 1), (["--tokens-per-batch", "400"], True, None), (["--gradient-accumulation-steps", "4"], True, 4),
    (["--no-shared-prompts", "--gradient-accumulation-steps", "4"], False, 4),
])
def test_every_form_takes_the_same_steps(tmp_path, form, shared, batches, monkeypatch):
    assert train_rm.main([*SMALL, "--no-shared-prompts", "--output", str(tmp_path / "plain")]) == 0
    seen, step = [], train_rm.accumulate_gradients
    monkeypatch.setattr(train_rm, "accumulate_gradients", lambda m, b, *rest: seen.append((m, b)) or step(m, b, *rest))
    assert train_rm.main([*SMALL, *form, "--output", str(tmp_path / "form")]) == 0
    plain, losses = step_losses(tmp_path / "plain"), step_losses(tmp_path / "form")
    assert len(plain) == len(seen) == 12 and plain[-1] < plain[0]
    np.testing.assert_allclose(losses, plain, atol=1e-4)
    # The form that was asked for is the one that ran.
    for trained, micro_batches in seen:
        assert isinstance(trained.model.embed_tokens, RowsInUse)
        assert all((b.trees is not None) == shared == (b.attention_mask is None) for b in micro_batches)
        assert batches is None or len(micro_batches) == batches
        assert batches or (len(micro_batches) > 1 and all(b.input_ids.numel() <= 400 for b in micro_batches))


def test_plain_micro_batches_hold_pairs_of_similar_length_and_shared_ones_the_same_work():
    pairs = toy_pairs(64)
    tokens = pairs.offsets[2::2] - pairs.offsets[:-1:2] - pairs.prompt_tokens
    dealt = [tokens[hand].sum() for hand in step_batches(pairs, 0, 64, 4)[0]]
    runs = [tokens[run] for run in step_batches(pairs, 0, 64, 4, shared_prompts=False)[0]]
    assert max(dealt) - min(dealt) < 0.1 * max(dealt)
    assert all(shorter.max() <= longer.min() for longer, shorter in zip(runs, runs[1:]))


@pytest.mark.parametrize("ranks, limit", [(1, 150), (2, 150), (2, 10), (1, 10**6)])
def test_micro_batches_hold_the_tokens_asked_for_or_one_pair(ranks, limit):
    pairs = toy_pairs(50)
    for step in range(4):  # the last one of two pairs
        shares = [step_batches(pairs, step, 16, 1, rank, ranks, tokens_per_batch=limit) for rank in range(ranks)]
        for hand in (hand for hands, _ in shares for hand in hands):
            tokens = collate(pairs, hand, 0, shared_prompts=True).input_ids.numel()
            assert tokens <= limit or len(hand) == 1
        whole = step_batches(pairs, step, 16)[0][0]
        assert sorted(i for hands, _ in shares for hand in hands for i in hand) == sorted(whole)


def test_weights_are_cast_once_a_step_not_once_a_micro_batch(monkeypatch):
    monkeypatch.setattr(model_file, "SMALL_TREE", 1000)  # torch's causal_lower_right cannot be watched in this way

    class Count(TorchDispatchMode):
        casts = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            is_cast = function is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.bfloat16
            self.casts += is_cast and args[0].shape == weight.shape and args[0].data_ptr() == weight.data_ptr()
            return function(*args, **(kwargs or {}))

    pairs, model = toy_pairs(16), tiny_model()
    weight = model.model.layers[0].mlp.up_proj.weight
    args = train_rm.parse_options(["--batch-size", "16", "--bf16"])
    batches = [collate(pairs, np.arange(i, i + 4), 0, shared_prompts=True) for i in (0, 4, 8, 12)]
    with Count() as count:
        train_rm.accumulate_gradients(model, batches, 16, args, torch.amp.GradScaler("cpu", enabled=False))
    assert count.casts == 1 and model.model.layers[0].mlp.up_proj.weight.grad.dtype == torch.float32
    head = model.score.weight.grad  # computed in float32, backward too
    assert not torch.equal(head, head.bfloat16().float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_input_of_several_linears_is_cast_once(dtype):
    model, kinds = tiny_model(), []
    for linear in (model.model.layers[0].self_attn.k_proj, model.model.layers[1].mlp.gate_proj):
        linear.register_forward_pre_hook(lambda module, inputs: kinds.append(inputs[0].dtype))
    with torch.autocast("cpu", dtype):
        shared_rewards(model, random_groups(0))
    assert kinds == [dtype, dtype]
    shared_rewards(model, random_groups(0))
    assert kinds[2:] == [torch.float32, torch.float32]


# ---------------------------------------------------------------- the embedding's rows


def test_training_only_the_rows_in_use_takes_the_same_steps():
    pairs, weights = toy_pairs(32), {}
    used = torch.from_numpy(np.unique(pairs.ids)).long()
    assert len(used) < TINY["vocab_size"]
    for rows_in_use in (False, True):
        model = tiny_model()
        before = model.model.embed_tokens.weight.detach().clone()
        if rows_in_use:
            model.model.embed_tokens = RowsInUse(model.model.embed_tokens, used)
            assert model.model.embed_tokens.weight.shape == (len(used), 16)
        args = train_rm.parse_options(["--weight-decay", "0"])
        optimizer = train_rm.make_optimizer(model, args)
        for step in range(5):
            batch = collate(pairs, np.arange(32), 0, shared_prompts=True)
            train_rm.accumulate_gradients(model, [batch], 32, args, torch.amp.GradScaler("cpu", enabled=False))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        embedding = model.model.embed_tokens
        weights[rows_in_use] = embedding.table(embedding.weight.detach()) if rows_in_use else embedding.weight.detach()
    assert not torch.equal(weights[True][used], before[used])
    unused = torch.ones(len(before), dtype=torch.bool).index_fill(0, used, False)
    assert torch.equal(weights[True][unused], before[unused])
    torch.testing.assert_close(weights[True], weights[False], atol=1e-5, rtol=1e-4)


def test_tokens_that_were_not_trained_are_still_read_and_saved(tmp_path):
    plain, model, ids = tiny_model(), tiny_model(), torch.tensor([[3, 50, 7]])
    model.model.embed_tokens = RowsInUse(model.model.embed_tokens, torch.tensor([3, 7]))
    assert torch.equal(model(ids, torch.ones_like(ids)), plain(ids, torch.ones_like(ids)))
    with torch.no_grad():
        model.model.embed_tokens.weight += 1
    model.save_pretrained(tmp_path, pad_token_id=0)
    saved = model_file.RewardModel.from_pretrained(tmp_path).model.embed_tokens.weight
    moved = (saved - plain.model.embed_tokens.weight).detach()
    assert moved[[3, 7]].eq(1).all() or torch.allclose(moved[[3, 7]], torch.ones(2, 16))
    assert moved.abs().sum(1).nonzero()[:, 0].tolist() == [3, 7]
    assert torch.equal(model(ids, torch.ones_like(ids)), F.linear(  # the model in memory is the one on disk
        model_file.RewardModel.from_pretrained(tmp_path).model(ids)[0, -1:], model.score.weight, model.score.bias)[0])
