"""eval.py: what a reward model is worth, and how to use one.  Read after data.py.

    python eval.py report RUN --data pairs.jsonl     accuracy and its error bar, loss, what length alone would score,
                                                     calibration, parts, mistakes, pictures
    python eval.py score  RUN < texts.jsonl          a reward for every row
    python eval.py rank   RUN < candidates.jsonl     responses of each row, best first, or the winner of n

RUN is any folder with config.json, tokenizer.json and safetensors, or owner/name on the Hugging Face hub. Whatever the
command, and in training too, a text becomes a reward in one way: Tokenizer renders and encodes it, and the reward is
read at its end token.

From Python:  model = RewardModel.from_pretrained("runs/toy")
              score(model, [{"prompt": "Which colour is grass?", "response": "It is green."}])  # one reward a row

How to read a reward: it is in nats and has no zero point. Only the difference of two responses to the SAME prompt means
something: the log-odds that the first is preferred, P = σ(r_1 − r_2).

Exit status: 0, 2 for a mistake in what was given (one line says which), 130 after Ctrl-C.
"""
import argparse
import contextlib
import itertools
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Iterable, Iterator

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from data import DataError, Pairs, Preferences, Tokenizer, common_prefix, describe_audit, encode_preferences
from data import model_folder, pack, pad_right, parse_lines, read_rows, text_lines, to_messages
from loss import bradley_terry_loss, pairwise_accuracy
from model import CheckpointError, RewardModel, is_sharded

# ---------------------------------------------------------------- the one scoring call


@torch.no_grad()
def score_sequences(
    model, sequences: list[np.ndarray], pad_id: int, tokens_per_batch: int = 8192, dtype: torch.dtype | None = None
) -> np.ndarray:
    """Rewards of token sequences, (n,) float32, in the order given.

    Batches hold sequences of similar length, up to tokens_per_batch tokens with padding; which ones share a batch does
    not change a reward, but for float rounding. dtype: bfloat16 or float16 autocast; None computes in float32.
    """
    device = next(model.parameters()).device
    rewards = np.zeros(len(sequences), dtype=np.float32)
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        while order:
            size = max(1, tokens_per_batch // len(sequences[order[0]]))
            batch, order = order[:size], order[size:]
            input_ids, attention_mask = pad_right([sequences[i] for i in batch], pad_id)
            rewards[batch] = model(input_ids.to(device), attention_mask.to(device)).cpu().numpy()
    return rewards


@torch.no_grad()
def score_groups(
    model, groups: list[list[np.ndarray]], tokens_per_batch: int = 8192, dtype: torch.dtype | None = None
) -> np.ndarray:
    """The same rewards for sequences in groups that begin alike (responses to one prompt), in the order given: (n,).

    In the shared-prompt form (data.pack), so that the prompt is computed once for all its responses, and no padding.
    A sharded model is put together in every forward pass, so all ranks make as many as the one with the most work.
    """
    device, rewards, trees = next(model.parameters()).device, [np.zeros(0, dtype=np.float32)], []
    for group in groups:
        shared = common_prefix(group)
        for tree in _cut(group, tokens_per_batch - shared, lambda s: len(s) - shared):
            trees.append((tree, shared + sum(len(s) - shared for s in tree)))
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        batches, idle = list(_cut(trees, tokens_per_batch, lambda tree_and_tokens: tree_and_tokens[1])), 0
        if is_sharded(model.score.weight):
            most = torch.tensor(len(batches), device=device)
            dist.all_reduce(most, dist.ReduceOp.MAX)
            idle = int(most) - len(batches)
        for batch in batches + idle * [[([np.array([0])], 1)]]:
            input_ids, packed = pack([tree for tree, _ in batch])
            rewards.append(model(input_ids.to(device), None, packed.to(device)).cpu().numpy())
    return np.concatenate(rewards[: len(rewards) - idle])


def _cut(items: Iterable, limit: int, cost) -> Iterator[list]:
    """Consecutive runs of items whose costs sum to the limit at most, or of one item."""
    run, total = [], 0
    for item in items:
        if run and total + cost(item) > limit:
            yield run
            run, total = [], 0
        run.append(item)
        total += cost(item)
    if run:
        yield run


def score(model: RewardModel, rows: list[dict], tokenizer: Tokenizer | None = None, max_length: int | None = None,
          **options) -> list[float]:
    """Rewards (nats) of rows with `messages`, or `prompt` and `response`, or `text` (rendered), or `input_ids`.

    Without a tokenizer, that of the folder the model was loaded from is read. A prompt that makes a row too long loses
    its oldest tokens, as in training; nothing else is cut. (A pair's sides lose the same: see Tokenizer.truncate.)
    Raises: DataError naming the row where one is malformed, too long, or its reward is not a finite number.
    """
    tokenizer = tokenizer or Tokenizer.from_folder(model.folder)
    max_length = usable_length(model, tokenizer, max_length)
    sequences = [sequence_of(row, tokenizer, model, max_length, f"row {i + 1}") for i, row in enumerate(rows)]
    rewards = score_sequences(model, sequences, tokenizer.pad_id, **options)
    return finite(rewards, [f"row {i + 1}" for i in range(len(rows))])


def finite(rewards: np.ndarray, places: list[str]) -> list[float]:
    """The rewards as Python numbers.  Raises: DataError naming the place of the first that is not a finite number."""
    for i in np.flatnonzero(~np.isfinite(rewards)):
        raise DataError(f"{places[i]}: the reward is {rewards[i]}: the model's numbers are broken")
    return rewards.tolist()


def usable_length(model: RewardModel, tokenizer: Tokenizer, asked: int | None) -> int:
    """Tokens per sequence: those asked for, else those the model was trained on (saved as model_max_length) or takes.

    Raises: DataError where more is asked for than the model takes.
    """
    limit = model.config.max_position_embeddings
    if asked and asked > limit:
        raise DataError(f"--max-length {asked} is more than the {limit} tokens this model takes")
    return asked or min(limit, tokenizer.max_length)


def sequence_of(row: dict, tokenizer: Tokenizer, model: RewardModel, max_length: int, where: str) -> np.ndarray:
    """The token ids of one row to score.  Raises: DataError."""
    if "input_ids" in row:  # taken as they are: no BOS, no end token is added
        ids, vocab = row["input_ids"], model.config.vocab_size
        if not isinstance(ids, list) or not ids or not all(type(i) is int and 0 <= i < vocab for i in ids):
            raise DataError(f"{where}: field 'input_ids' is not a non-empty list of token ids from 0 to {vocab - 1}")
        sequences = [np.array(ids, dtype=np.int32)]
    elif "text" in row:
        if not isinstance(row["text"], str) or not to_messages(row["text"], "assistant", where, "text"):
            raise DataError(f"{where}: field 'text' is not a non-empty string")
        text = row["text"] if row["text"].startswith(tokenizer.bos) else tokenizer.bos + row["text"]
        sequences = [tokenizer.encode([text])[0][0]]
    else:
        prompt, response = prompt_and_response(row, where)
        return sequences_of(prompt, [response], tokenizer, model, max_length, where)[0]
    if len(sequences[0]) > max_length:
        raise DataError(f"{where}: {len(sequences[0])} tokens do not fit into --max-length {max_length}")
    return check_ids(sequences[0], model, where)


def sequences_of(prompt, responses, tokenizer: Tokenizer, model: RewardModel, max_length: int, where: str) -> list:
    """The token ids of some responses to one prompt. If one is too long, the prompt is shortened for all of them alike:
    responses can only be compared under the same prompt.  Raises: DataError."""
    try:
        texts, prompt_chars = tokenizer.render_responses(prompt, responses)
    except DataError as e:
        raise DataError(f"{where}: {e}") from None
    sequences, prompt_tokens = tokenizer.split_prompt(tokenizer.encode(texts), prompt_chars)
    fitted = tokenizer.truncate(sequences, prompt_tokens, max_length)
    if fitted is None:
        longest = max(map(len, sequences))
        raise DataError(f"{where}: {longest} tokens, too few of them prompt, do not fit into --max-length {max_length}")
    return [check_ids(ids, model, where) for ids in fitted[0]]


def prompt_and_response(row: dict, where: str) -> tuple[list, list]:
    """The two parts of a row to score, as messages.  Raises: DataError."""
    field = "messages" if "messages" in row else "response"
    if field not in row:
        found = ", ".join(row) or "nothing"
        raise DataError(f"{where}: needs messages, or prompt and response, or text, or input_ids (found: {found})")
    turns = to_messages(row[field], "assistant" if field == "response" else "user", where, field)
    if not turns or turns[-1]["role"] != "assistant" or not turns[-1]["content"].strip():
        raise DataError(f"{where}: field {field!r} does not end with something said by the assistant")
    if field == "messages":
        return turns[:-1], turns[-1:]
    return to_messages(row.get("prompt", ""), "user", where, "prompt"), turns


def check_ids(ids: np.ndarray, model: RewardModel, where: str) -> np.ndarray:
    """Token ids that the embedding has rows for; a tokenizer of another model is the usual cause of others."""
    if len(ids) and ids.max() >= model.config.vocab_size:
        raise DataError(f"{where}: token id {ids.max()} is beyond the model's vocabulary of {model.config.vocab_size}; "
                        "do tokenizer.json and config.json belong together?")
    return ids


# ---------------------------------------------------------------- pairs -> report


def score_pairs(model, pairs: Pairs, **options) -> np.ndarray:
    """Rewards of chosen and rejected, (n, 2). Under torch.distributed every rank scores its share, each row once."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    mine = range(pairs.rows)[rank::ranks]
    rewards = torch.zeros(len(pairs.offsets) - 1)  # (S,)
    places = np.concatenate([np.arange(pairs.row_sequences[r], pairs.row_sequences[r + 1]) for r in mine] or [[]])
    rewards[places.astype(np.int64)] = torch.from_numpy(score_groups(model, [pairs.row(r) for r in mine], **options))
    if ranks > 1:  # zeros elsewhere, so a sum puts the shares together
        rewards = rewards.to(next(model.parameters()).device)
        dist.all_reduce(rewards)
    return pairs.of_pairs(rewards.cpu().numpy())


def report(rewards: np.ndarray, pairs: Pairs) -> dict:
    """Every figure of the evaluation, in full precision. Each pair counts once, those of a row of K responses too.

    Args:    rewards: (n, 2) of chosen and rejected.
    Raises:  DataError without pairs, or where a reward is not a finite number (NaN compares as "not larger" and would
             pass for a wrong answer).
    """
    if not len(rewards):
        raise DataError("no pairs to evaluate")
    if len(broken := np.flatnonzero(~np.isfinite(rewards).all(1))):
        where = pairs.tags(pairs.row_of_pair()[broken[0]]).get("where", f"pair {broken[0]}")
        raise DataError(f"{len(broken)} pairs have a reward that is not a finite number, the first at {where}")
    r_chosen, r_rejected = torch.from_numpy(rewards).unbind(1)  # (n,) each
    accuracy, ties = pairwise_accuracy(r_chosen, r_rejected)
    right = np.sign(rewards[:, 0] - rewards[:, 1]) / 2 + 0.5  # 1, ½ for a tie, 0
    gaps, lengths = rewards[:, 0].astype(np.float64) - rewards[:, 1], pairs.lengths()  # (n,), (n, 2)
    longer = np.sign(lengths[:, 1] - lengths[:, 0])  # +1 where the rejected side is longer
    shorter = right[longer > 0]
    each = np.full(len(pairs.offsets) - 1, np.nan)  # (S,): a response that is in several pairs has one reward
    each[pairs.chosen], each[pairs.rejected] = rewards.T
    result = {
        "pairs": len(rewards),
        "prompts": len(np.unique(pairs.prompt_group)),
        "accuracy": accuracy.item(),
        "accuracy_ci95": bootstrap_interval(right, pairs.prompt_group),
        "ties": int(ties),
        "loss": bradley_terry_loss(r_chosen, r_rejected, reduction="none").double().mean().item(),
        "loss_of_a_coin": math.log(2),
        "mean_margin": float((rewards[:, 0] - rewards[:, 1]).mean(dtype=np.float64)),
        "mean_chosen": float(rewards[:, 0].mean(dtype=np.float64)),
        "mean_rejected": float(rewards[:, 1].mean(dtype=np.float64)),
        "mean_reward": float(np.nanmean(each)),
        "std_reward": float(np.nanstd(each)),
        "longer_wins_accuracy": float((0.5 - longer / 2).mean()),
        "pairs_where_chosen_is_shorter": len(shorter),
        "accuracy_where_chosen_is_shorter": float(shorter.mean()) if len(shorter) else None,
        "length_correlation": correlation(each[~np.isnan(each)], np.diff(pairs.offsets)[~np.isnan(each)]),
        "margin_length_correlation": correlation(gaps, lengths[:, 0] - lengths[:, 1]),
        "calibration": calibration(gaps),
        "quantiles": {name: dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values())).tolist()))
                      for name, values in (("chosen", rewards[:, 0]), ("rejected", rewards[:, 1]), ("margin", gaps))},
        "by_length": by_length(right, lengths.max(1)),
    }
    wins = best_wins(gaps, pairs)
    result["rows_with_a_best"], result["best_wins"] = int((~np.isnan(wins)).sum()), _mean(wins)
    for tag in ("source", "subset"):
        of_row = np.array([str(tags.get(tag, "")) for tags in map(pairs.tags, range(pairs.rows))])
        of_pair = of_row[pairs.row_of_pair()]
        if names := sorted(set(of_row) - {""}):  # rows without one belong to no part
            result[f"by_{tag}"] = {
                name: {"pairs": int((of_pair == name).sum()), "accuracy": float(right[of_pair == name].mean()),
                       "best_wins": _mean(wins[of_row == name])} for name in names}
    if pairs.gold is not None:
        right_label = 1 / (1 + np.exp(pairs.gold[:, 1] - pairs.gold[:, 0]))  # P(the label says what it says)
        result["ceiling_accuracy"] = float(np.maximum(right_label, 1 - right_label).mean())  # Bayes: E max(p, 1−p)
        p = np.clip(right_label, 1e-12, 1 - 1e-12)
        result["ceiling_loss"] = float(-(p * np.log(p) + (1 - p) * np.log(1 - p)).mean())  # E H(p)
        result["gold_correlation"] = within_group_correlation(rewards, pairs.gold, pairs.prompt_group)
    return result


QUANTILES = {"p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}


def _mean(values: np.ndarray) -> float | None:
    """The mean of those that are numbers, or None."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson's, or None where one of the two does not vary."""
    a, b = a - a.mean(dtype=np.float64), b - b.mean(dtype=np.float64)
    scale = math.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale else None


def calibration(gaps: np.ndarray, bins: int = 10) -> dict:
    """Is a gap worth what it says? The model gives the side it likes better the chance σ(|gap|), its confidence.

    ece          expected calibration error: Σ_b n_b/n · |accuracy_b − mean confidence_b| over bins of equal width from
                 ½ to 1 (Guo et al. 2017, eq 3). With few pairs it is above 0 by chance alone.
    temperature  the T for which −log σ(gap / T) is least on these pairs: above 1, the model is surer than it is right.
                 None where there is none from 1e-9 to 1e9: all right (T = 0 is best), or no better than a coin (T = ∞).
    table        of each bin that has pairs: from, to, pairs, confidence, accuracy

    Args:  gaps: (n,) r_w − r_l, nats.
    """
    sure, right = 1 / (1 + np.exp(-np.abs(gaps))), np.sign(gaps) / 2 + 0.5  # (n,) each; a tie is half right
    place, table = np.minimum(((sure - 0.5) * 2 * bins).astype(int), bins - 1), []
    for b in np.unique(place).tolist():
        inside = place == b
        table.append({"from": 0.5 + b / bins / 2, "to": 0.5 + (b + 1) / bins / 2, "pairs": int(inside.sum()),
                      "confidence": float(sure[inside].mean()), "accuracy": float(right[inside].mean())})
    ece = sum(row["pairs"] * abs(row["accuracy"] - row["confidence"]) for row in table) / len(gaps)
    # The loss is convex in 1/T, and its slope is −Σ gap · σ(−gap/T): where that changes sign is the minimum.
    slope = lambda inverse: -(gaps / (1 + np.exp(np.clip(gaps * inverse, -700, 700)))).sum()
    low, high, temperature = 1e-9, 1e9, None
    if slope(low) < 0 < slope(high):
        for _ in range(100):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if slope(middle) < 0 else (low, middle)
        temperature = 1 / middle
    return {"ece": float(ece), "temperature": temperature, "table": table}


def by_length(right: np.ndarray, tokens: np.ndarray, parts: int = 4) -> list[dict]:
    """Accuracy of the shortest quarter of the pairs, the next, …; by the tokens of the longer side."""
    edges = np.quantile(tokens, np.arange(1, parts) / parts)
    place = np.searchsorted(edges, tokens)  # pairs of one length stay together, so quarters are not quite equal
    inside = [place == i for i in np.unique(place)]
    return [{"from": int(tokens[part].min()), "to": int(tokens[part].max()), "pairs": int(part.sum()),
             "accuracy": float(right[part].mean())} for part in inside]


def best_wins(gaps: np.ndarray, pairs: Pairs) -> np.ndarray:
    """(R,) of each row 1 if its best response has the highest reward, 1/m if it shares that with m − 1 others, else 0
    (RewardBench 2's rule; of a pair that is its accuracy). NaN where a row has no single best one."""
    row = pairs.row_of_pair()
    of_best = pairs.chosen == pairs.row_sequences[row]  # responses are sorted: the first is a best one
    count = lambda which: np.bincount(row[which], minlength=pairs.rows)
    beaten, tied = count(of_best & (gaps < 0)) > 0, count(of_best & (gaps == 0))
    single = count(of_best) == np.diff(pairs.row_sequences) - 1
    return np.where(single, np.where(beaten, 0.0, 1 / (1 + tied)), np.nan)


def worst_mistakes(rewards: np.ndarray, pairs: Pairs, tokenizer: Tokenizer, n: int = 5) -> list[dict]:
    """The n pairs that the model is surest about and wrong, as texts."""
    gaps, rows = rewards[:, 0] - rewards[:, 1], pairs.row_of_pair()
    worst = [i for i in np.argsort(gaps, kind="stable")[:n] if gaps[i] < 0]
    text = lambda ids: tokenizer.backend.decode(ids.tolist())
    return [{"where": pairs.tags(rows[i])["where"], "margin": float(gaps[i]),
             "prompt": text(pairs.sequence(pairs.chosen[i])[: pairs.prompt_tokens[rows[i]]]),
             **{side: text(pairs.sequence(s)[pairs.prompt_tokens[rows[i]] :])
                for side, s in (("chosen", pairs.chosen[i]), ("rejected", pairs.rejected[i]))}} for i in worst]


def predictions(rewards: np.ndarray, pairs: Pairs, tokenizer: Tokenizer) -> Iterator[dict]:
    """One row a pair: where it stands, its id, source, subset, both rewards, and the tokens they were read at."""
    for i, row in enumerate(pairs.row_of_pair()):
        place = [int(s - pairs.row_sequences[row]) for s in (pairs.chosen[i], pairs.rejected[i])]
        last = [int(pairs.sequence(s)[-1]) for s in (pairs.chosen[i], pairs.rejected[i])]
        yield pairs.tags(row) | {
            "pair": place,  # of the row's responses, best first
            "chosen": float(rewards[i, 0]), "rejected": float(rewards[i, 1]),
            "scored_tokens": [{"id": t, "token": tokenizer.backend.id_to_token(t)} for t in last]}


def bootstrap_interval(right: np.ndarray, group: np.ndarray, draws: int = 1000, seed: int = 0) -> list[float]:
    """95% interval of the mean of `right`, by drawing whole prompts with replacement (Efron 1979).

    Pairs of one prompt are not independent. Counting them as if they were makes error bars too short, on data with few
    prompts by a factor of several.
    """
    _, group = np.unique(group, return_inverse=True)
    sums, counts = np.bincount(group, right), np.bincount(group)  # per prompt
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(draws):
        weight = np.bincount(rng.integers(len(counts), size=len(counts)), minlength=len(counts))
        means.append((weight @ sums) / (weight @ counts))
    return [float(q) for q in np.quantile(means, [0.025, 0.975])]


def within_group_correlation(a: np.ndarray, b: np.ndarray, group: np.ndarray) -> float:
    """Pearson correlation of two (n, 2) arrays after taking off each prompt's mean: the loss never sees that mean."""
    _, group = np.unique(group, return_inverse=True)
    count = 2 * np.bincount(group)
    a, b = (x - (np.bincount(group, x.sum(1)) / count)[group][:, None] for x in (a.astype(np.float64), b))
    return correlation(a, b) or 0.0


def describe(result: dict) -> str:
    """The report as a table for a terminal."""
    low, high = result["accuracy_ci95"]
    few = " (too few for the interval to be trusted)" if result["prompts"] < 20 else ""
    lines = [
        ("accuracy", f"{result['accuracy']:.3f}", f"95% interval {low:.3f} to {high:.3f}, {result['pairs']} pairs, "
                                                  f"{result['prompts']} prompts{few}; a tie counts half"),
        ("  the longer one wins", f"{result['longer_wins_accuracy']:.3f}", "what length alone would score"),
    ]
    if "ceiling_accuracy" in result:
        lines.insert(1, ("  ceiling", f"{result['ceiling_accuracy']:.3f}",
                         "what the true rewards score on average: labels are noisy"))
    if result["rows_with_a_best"] and result["pairs"] > result["rows_with_a_best"]:  # some rows are more than a pair
        lines.append(("  the best one wins", f"{result['best_wins']:.3f}",
                      f"of {result['rows_with_a_best']} rows with a best response (RewardBench 2's rule)"))
    if result["accuracy_where_chosen_is_shorter"] is not None:
        lines.append(("  chosen is shorter", f"{result['accuracy_where_chosen_is_shorter']:.3f}",
                      f"accuracy on the {result['pairs_where_chosen_is_shorter']} pairs where length misleads"))
    lines += [
        ("ties", str(result["ties"]), "pairs with two equal rewards; more than a few mean something is broken"),
        ("loss", f"{result['loss']:.4f}", f"nats; a coin has log 2 = {math.log(2):.4f}"),
        ("mean margin", f"{result['mean_margin']:+.3f}", f"nats; chosen {result['mean_chosen']:+.3f}, "
                                                         f"rejected {result['mean_rejected']:+.3f}"),
    ]
    c, r = result["calibration"], result["length_correlation"]
    lines += [
        ("calibration error", f"{c['ece']:.3f}", "between how sure it is, σ(|gap|), and how often it is right"),
        ("temperature", f"{c['temperature']:.2f}" if c["temperature"] else "none",
         "divides rewards for the least loss; above 1: too sure of itself"),
        ("length correlation", f"{r:+.3f}" if r is not None else "none", "of rewards with tokens"),
    ]
    if "gold_correlation" in result:
        lines.append(("gold correlation", f"{result['gold_correlation']:.3f}",
                      "learned with true rewards, within prompts"))
    return "\n".join(f"{name:<22} {value:>8}   {meaning}" for name, value, meaning in lines)


def describe_parts(result: dict, mistakes: list[dict]) -> str:
    """What the table leaves out: by confidence, by length, by source and subset, and the worst mistakes."""
    lines = ["", "how sure     pairs   confidence   accuracy"]
    lines += [f"{b['from']:.2f}–{b['to']:.2f} {b['pairs']:>9} {b['confidence']:>12.3f} {b['accuracy']:>10.3f}"
              for b in result["calibration"]["table"]]
    lines += ["", "tokens of the longer side   pairs   accuracy"]
    lines += [f"{b['from']:>10} to {b['to']:<10} {b['pairs']:>9} {b['accuracy']:>10.3f}" for b in result["by_length"]]
    for tag in ("source", "subset"):
        if parts := result.get(f"by_{tag}"):
            printable = {name: name if name.isprintable() else json.dumps(name) for name in parts}
            width = max(map(len, [tag, "their mean", *printable.values()]))
            lines += ["", f"{tag:<{width}}   pairs   accuracy   the best one wins"]
            shown = lambda value: "–" if value is None else f"{value:.3f}"
            lines += [f"{printable[name]:<{width}} {p['pairs']:>7} {p['accuracy']:>10.3f} {shown(p['best_wins']):>19}"
                      for name, p in parts.items()]
            means = [_mean(np.array([p[of] for p in parts.values()], dtype=float)) for of in ("accuracy", "best_wins")]
            lines.append(f"{'their mean':<{width}} {'':>7} {shown(means[0]):>10} {shown(means[1]):>19}")
    short = lambda text: json.dumps(text if len(text) <= 300 else text[:140] + " … " + text[-140:], ensure_ascii=False)
    lines += ["", "surest and wrong:"] * bool(mistakes)
    for m in mistakes:
        lines.append(f"{m['where']}  margin {m['margin']:+.2f}")
        lines += [f"  {part:<9} {short(m[part])}" for part in ("prompt", "chosen", "rejected")]
    return "\n".join(lines)


def beside_each_other(names: list[str], results: list[dict]) -> str:
    """The main figures of several data files, a line a file."""
    width = max(map(len, names))
    lines = [f"{'':<{width}}   pairs   accuracy   95% interval     longer wins   loss     calibration error"]
    for name, r in zip(names, results):
        low, high = r["accuracy_ci95"]
        lines.append(f"{name:<{width}} {r['pairs']:>7} {r['accuracy']:>10.3f}   {low:.3f} to {high:.3f} "
                     f"{r['longer_wins_accuracy']:>13.3f} {r['loss']:>8.4f} {r['calibration']['ece']:>15.3f}")
    return "\n".join(lines)


# ---------------------------------------------------------------- pictures (matplotlib, an optional extra)


def pyplot():
    """matplotlib, drawing to files.  Raises: DataError where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise DataError("--plot needs matplotlib, an optional extra: pip install matplotlib") from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def plot(file: str, rewards: np.ndarray, pairs: Pairs, result: dict, metrics: list[dict]) -> None:
    """The report as pictures: rewards, calibration, length, truth where it is known, and the learning curve."""
    panels = [plot_rewards, plot_calibration, plot_length] + [plot_truth] * (pairs.gold is not None)
    panels += [plot_curve] * any("loss" in line for line in metrics)
    columns = 2 if len(panels) < 5 else 3
    figure, axes = pyplot().subplots(2, columns, figsize=(4.5 * columns, 8), layout="constrained")
    for axis, panel in itertools.zip_longest(axes.flat, panels):
        panel(axis, rewards, pairs, result, metrics) if panel else axis.set_axis_off()
    with replacing(file, binary=True) as out:
        figure.savefig(out, format=Path(file).suffix[1:], dpi=150)


def learning_curve(folder: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl, as far as they are whole (a killed run leaves half a line)."""
    lines, file = [], folder / "metrics.jsonl"
    with contextlib.suppress(DataError):
        lines += (row for _, row in read_rows(file) if "step" in row) if file.exists() else []
    return lines


def plot_rewards(axis, rewards, pairs, result, metrics) -> None:
    """Two histograms, chosen and rejected."""
    edges = np.histogram_bin_edges(rewards, bins=40)
    axis.hist(rewards[:, 0], edges, color="0.75", label="chosen")
    axis.hist(rewards[:, 1], edges, histtype="step", color="black", label="rejected")
    axis.set(title="Rewards", xlabel="reward, nats", ylabel="responses")
    axis.legend()


def plot_calibration(axis, rewards, pairs, result, metrics) -> None:
    """How sure against how often right; on the line they are the same."""
    table = result["calibration"]["table"]
    axis.plot([0.5, 1], [0.5, 1], color="0.6", linestyle="dashed", label="as sure as it is right")
    axis.plot([b["confidence"] for b in table], [b["accuracy"] for b in table], "o-", color="black", label="this model")
    for b in table:
        axis.annotate(f"{b['pairs']}", (b["confidence"], b["accuracy"]), xytext=(4, -10), textcoords="offset points",
                      fontsize=7)
    axis.set(title=f"Calibration (error {result['calibration']['ece']:.3f}; numbers: pairs)",
             xlabel="confidence σ(|gap|)", ylabel="accuracy")
    axis.legend()


def plot_length(axis, rewards, pairs, result, metrics) -> None:
    """Rewards against tokens: a slope is a taste for length."""
    lengths = pairs.lengths()
    for side, marker, color in ((0, ".", "0.6"), (1, "x", "black")):
        axis.scatter(lengths[:2000, side], rewards[:2000, side], s=8, marker=marker, linewidths=0.6, color=color,
                     label=("chosen", "rejected")[side])
    r = result["length_correlation"]
    axis.set(title="Length" + ("" if r is None else f" (correlation {r:+.2f})"), xlabel="tokens", ylabel="reward, nats")
    axis.legend()


def plot_truth(axis, rewards, pairs, result, metrics) -> None:
    """Learned against true rewards, where those are known."""
    shift = rewards.mean() - pairs.gold.mean()  # a reward has no zero point
    axis.scatter(pairs.gold[:2000], rewards[:2000] - shift, s=6, color="black", alpha=0.3)
    ends = [pairs.gold.min(), pairs.gold.max()]
    axis.plot(ends, ends, color="0.6", linestyle="dashed", label="learned = true")
    axis.set(title=f"Learned and true (within prompts: {result['gold_correlation']:.3f})", xlabel="true reward, nats",
             ylabel="learned reward, shifted, nats")
    axis.legend()


def plot_curve(axis, rewards, pairs, result, metrics) -> None:
    """Loss by step, held against a coin and, where it is known, the best possible (metrics: lines of metrics.jsonl)."""
    trained, evaluated = ([line for line in metrics if key in line] for key in ("loss", "eval_loss"))
    axis.plot([m["step"] for m in trained], [m["loss"] for m in trained], color="0.6", label="training")
    held_out = [m["eval_loss"] for m in evaluated]
    axis.plot([m["step"] for m in evaluated], held_out, "o-", color="black", label="held out")
    axis.axhline(math.log(2), color="black", linestyle="dotted", label="a coin, log 2")
    if result and "ceiling_loss" in result:
        axis.axhline(result["ceiling_loss"], color="black", linestyle="dashed", label="the best possible")
    axis.set(title="Learning curve", xlabel="step", ylabel="loss, nats")
    axis.legend()


# ---------------------------------------------------------------- the commands


def command_report(args, model, tokenizer, max_length: int, options: dict) -> None:
    """Pairs of some files -> tables on standard output; with --output every figure, with --predictions every pair."""
    files = [path for path in (args.output, args.predictions, args.plot, *args.data) if path]
    if len({os.path.realpath(path) for path in files}) < len(files):
        raise DataError("--data, --output, --predictions and --plot: each has to be a file of its own")
    if args.plot:  # better now than after the work
        pyplot()
        if len(args.data) > 1 or Path(args.plot).suffix not in (".png", ".pdf", ".svg"):
            raise DataError(f"--plot {args.plot}: draws one file of --data, as .png, .pdf or .svg")
        check_writable(args.plot)
    with replacing(args.output) as figures, replacing(args.predictions) as rows:
        encoded, results = [], []
        for path in args.data:  # all of them first: a mistake in the last costs no work
            preferences = Preferences([path], args.skip_bad_rows)
            pairs, audit = encode_preferences(preferences, tokenizer, max_length, False, args.skip_bad_rows)
            print(describe_audit(path, audit), file=sys.stderr)
            if not len(pairs):
                raise DataError(f"{path}: no pairs left to evaluate")
            check_ids(pairs.ids, model, path)
            encoded.append((path, pairs, audit))
        for path, pairs, audit in encoded:
            rewards = score_pairs(model, pairs, **options)
            result, mistakes = report(rewards, pairs), worst_mistakes(rewards, pairs, tokenizer, args.mistakes)
            print(*[path][: len(args.data) - 1], describe(result), describe_parts(result, mistakes), "", sep="\n")
            results.append(result | {"data": path, "run": args.run, "audit": audit, "mistakes": mistakes})
            if args.predictions:
                rows.writelines(as_json({"data": path} | row) + "\n" for row in predictions(rewards, pairs, tokenizer))
            if args.plot:
                plot(args.plot, rewards, pairs, result, learning_curve(Path(model.folder)))
        if len(results) > 1:
            print(beside_each_other(args.data, results))
        if args.output:
            figures.write(json.dumps(results[0] if len(results) == 1 else results, indent=2) + "\n")


def command_score(args, model, tokenizer, max_length: int, options: dict) -> None:
    """Rows in, the same rows out in the same order, each with its reward. Memory holds one chunk of them."""
    mean, std = normalisation(model) if args.normalized else (0.0, 1.0)
    with output_file(args) as (out, done):
        for chunk in chunks(behind(done, input_rows(args.input, args.text), args.output)):
            sequences = [sequence_of(row, tokenizer, model, max_length, where) for where, row in chunk]
            places = [where for where, _ in chunk]
            rewards = finite(score_sequences(model, sequences, tokenizer.pad_id, **options), places)
            for (_, row), ids, reward in zip(chunk, sequences, rewards):
                row = row | {"reward": (reward - mean) / std}
                if args.show_token:
                    token = tokenizer.backend.id_to_token(int(ids[-1]))
                    row["scored_token"] = {"position": len(ids) - 1, "id": int(ids[-1]), "token": token}
                out.write(as_json(row) + "\n")
            out.flush()


def normalisation(model: RewardModel) -> tuple[float, float]:
    """Mean and standard deviation of the rewards on held-out pairs, as `train_rm.py --normalize` leaves them in
    config.json (under OpenRLHF's names).  Raises: DataError where they are missing or of no use."""
    mean, std = (model.config.raw.get(key) for key in ("mean", "std"))
    if not all(isinstance(x, (int, float)) and math.isfinite(x) for x in (mean, std)) or not std > 0:
        raise DataError(f"{model.folder}/config.json: no usable mean and std; train with --normalize")
    return float(mean), float(std)


def command_rank(args, model, tokenizer, max_length: int, options: dict) -> None:
    """Rows with responses in, the same rows out, the responses best first, or only the best one."""
    with output_file(args) as (out, done):
        for chunk in chunks(behind(done, input_rows(args.input), args.output), size=64):
            groups = []
            for where, row in chunk:
                responses = row.get("responses")
                if not isinstance(responses, list) or not responses:
                    raise DataError(f"{where}: field 'responses' is not a non-empty list (found: {', '.join(row)})")
                if "prompt" not in row and "messages" not in row:
                    raise DataError(f"{where}: no field 'prompt' or 'messages' (found: {', '.join(row)})")
                prompt = to_messages(row.get("messages", row.get("prompt")), "user", where, "prompt or messages")
                if prompt and prompt[-1]["role"] == "assistant":
                    raise DataError(f"{where}: the prompt already ends with a turn of the assistant")
                candidates = [prompt_and_response({"response": response}, f"{where}: response {i}")[1]
                              for i, response in enumerate(responses, 1)]
                groups.append(sequences_of(prompt, candidates, tokenizer, model, max_length, where))
            places = [where for (where, _), group in zip(chunk, groups) for _ in group]
            rewards = iter(finite(score_groups(model, groups, **options), places))
            for (_, row), group in zip(chunk, groups):
                scores = list(itertools.islice(rewards, len(group)))
                order = sorted(range(len(group)), key=lambda i: -scores[i])  # stable: ties keep their order
                ranked = {"responses": [row["responses"][i] for i in order], "rewards": [scores[i] for i in order]}
                if args.best:
                    rest = {key: value for key, value in row.items() if key != "responses"}
                    row = rest | {"response": ranked["responses"][0], "reward": ranked["rewards"][0], "index": order[0]}
                else:
                    row = row | ranked | {"order": order}
                out.write(as_json(row) + "\n")
            out.flush()


def as_json(row: dict) -> str:
    """One line, readable where it can be: a field we never looked at may hold half of a surrogate pair."""
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return json.dumps(row)


def input_rows(path: str | None, plain: bool = False) -> Iterator[tuple[str, dict]]:
    """Rows of a file or of standard input, which is read as it comes and scored in chunks; plain: every line a text."""
    if path and not plain:
        yield from read_rows(path)
        return
    name = path or "standard input"
    with text_lines(path) as lines:
        if plain:
            texts = ((f"{name}:{i}", line.rstrip("\r\n").removeprefix("\ufeff")) for i, line in enumerate(lines, 1))
            yield from ((where, {"text": text}) for where, text in texts if text.strip())
        else:
            yield from parse_lines(lines, name)


def chunks(rows: Iterable, size: int = 512) -> Iterator[list]:
    """Lists of rows, with progress on standard error: a bar on a terminal, else a line every ten seconds."""
    rows, done, began = iter(rows), 0, time.monotonic()
    said = began
    with tqdm(unit=" rows", disable=not sys.stderr.isatty()) as bar:
        while chunk := list(itertools.islice(rows, size)):
            yield chunk
            done += len(chunk)
            bar.update(len(chunk))
            if bar.disable and time.monotonic() - said > 10:
                said = time.monotonic()
                print(f"{done:,} rows done, {done / (said - began):,.0f} a second", file=sys.stderr)


@contextlib.contextmanager
def output_file(args):
    """The file to write to, and the rows it has already: (how many, the last one). With --append it is written as the
    work goes on, a row for a row, so that a killed run can be gone on with. The half row that a kill may leave at its
    end is cut off, and nothing else ever is."""
    if not args.append:
        with replacing(args.output) as out:
            yield out, (0, None)
        return
    if args.output is None:
        raise DataError("--append needs --output")
    if args.input and os.path.realpath(args.input) == os.path.realpath(args.output):
        raise DataError(f"--output {args.output}: is the input too")
    rows, last, half = 0, None, b""
    try:
        with open(args.output, "a+b") as file:
            file.seek(0)
            for line in file:
                rows, last, half = (rows + 1, line, b"") if line.endswith(b"\n") else (rows, last, line)
            last = json.loads(last) if last else None
            rewarded = isinstance(last, dict) and {"reward", "rewards"} & last.keys()
            if (rows and not rewarded) or (half and not half.startswith(b"{")):
                raise ValueError("not ours")
            file.truncate(file.tell() - len(half))
    except OSError as e:
        raise DataError(f"--output {args.output}: {e.strerror or e}") from None
    except ValueError:
        raise DataError(f"--output {args.output}: holds something else than rewarded rows; left as it is") from None
    if rows:
        print(f"{args.output}: {rows:,} rows are there, going on behind them", file=sys.stderr)
    with open(args.output, "a", encoding="utf-8") as out:
        yield out, (rows, last)
        out.flush()
        os.fsync(out.fileno())


def behind(done: tuple[int, dict | None], rows: Iterator, output: str) -> Iterator:
    """The input without the rows that the output has.  Raises: DataError where the two do not belong together."""
    count, last = done
    skipped = row = None
    for skipped, (_, row) in enumerate(itertools.islice(rows, count), 1):
        pass
    ours = {"reward", "rewards", "responses", "order", "response", "index", "scored_token"}
    if count and (skipped != count or any(last.get(key) != row[key] for key in row.keys() - ours)):
        raise DataError(f"--append: row {count} of {output} is not row {count} of the input")
    return rows


def check_writable(path: str) -> None:
    """Raises: DataError where no file can be made at this path."""
    if Path(path).is_dir() or not Path(path).absolute().parent.is_dir():
        raise DataError(f"{path}: not a file in an existing folder")


@contextlib.contextmanager
def replacing(path: str | None, binary: bool = False):
    """A file that takes its name only when it is complete; standard output without a path."""
    if path is None:
        yield sys.stdout
        return
    check_writable(path)
    path = os.path.realpath(path)  # a link stays a link
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe, /dev/null: there is nothing to replace
        with open(path, "wb") if binary else open(path, "w", encoding="utf-8") as file:
            yield file
        return
    temporary = Path(f"{path}.tmp")
    try:
        with open(temporary, "wb") if binary else open(temporary, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def number(kind: type, above: float = -math.inf, at_least: float = -math.inf, below: float = math.inf):
    """An argparse type: a number of this kind within bounds, or one line saying which bounds."""
    limits = (("more than", above), ("at least", at_least), ("less than", below))
    bounds = " and ".join(f"{name} {limit}" for name, limit in limits if math.isfinite(limit))

    def parse(text: str):
        value = kind(text)
        if not (above < value < below and at_least <= value):
            raise argparse.ArgumentTypeError(f"must be {bounds or 'finite'}, not {text}")
        return value

    parse.__name__ = kind.__name__  # argparse says "invalid int value" of what is no number at all
    return parse


def pick_device(name: str | None) -> torch.device:
    """The device asked for, else the best there is.  Raises: DataError where it does not exist."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("is none of cpu, cuda, mps")
        torch.empty(0, device=device)
        return device
    except (RuntimeError, AssertionError) as e:
        raise DataError(f"--device {name}: {str(e).splitlines()[0]}") from None


def speak_utf8() -> None:
    """Standard input and output in UTF-8, whatever the locale says: a table with a σ must not end a long run."""
    for stream, errors in ((sys.stdin, "strict"), (sys.stdout, "replace"), (sys.stderr, "replace")):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors=errors)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0, 2 for a mistake in what was given, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="eval.py"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="report | score | rank")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("run", metavar="RUN", help="folder with config.json, tokenizer.json and safetensors, or "
                        "owner/name on the hub")
    common.add_argument("--revision", help="branch, tag or commit of a RUN on the hub (default: main)")
    common.add_argument("--output", metavar="FILE", help="score, rank: write here, not to standard output; report: "
                        "also write every figure here as JSON. The file appears when it is complete")
    common.add_argument("--max-length", type=number(int, above=0), metavar="TOKENS",
                        help="tokens per sequence (default: what the model was trained on)")
    common.add_argument("--tokens-per-batch", type=number(int, above=0), metavar="TOKENS", default=8192,
                        help="tokens per forward pass: score counts padding, report and rank a prompt once for all its "
                        "responses (default: %(default)s)")
    common.add_argument("--bf16", action="store_true", help="compute in bfloat16 autocast: faster on GPUs, less exact")
    common.add_argument("--device", help="cpu, cuda, cuda:1 … (default: cuda where there is one)")
    p = commands.add_parser("report", parents=[common], help="evaluate on preference pairs")
    p.add_argument("--data", required=True, nargs="+", action="extend", metavar="FILE", help="pairs, in any layout "
                   "train_rm.py reads; several are reported one by one and side by side")
    p.add_argument("--predictions", metavar="FILE", help="write a line a pair: id, both rewards, the tokens they were "
                   "read at")
    p.add_argument("--mistakes", type=number(int, at_least=0), default=3, metavar="N", help="show the N pairs that the "
                   "model is surest about and wrong (default: %(default)s)")
    p.add_argument("--plot", metavar="FILE", help="draw rewards, calibration, length, learning curve (.png, .pdf or "
                   ".svg; needs matplotlib)")
    p.add_argument("--skip-bad-rows", action="store_true", help="leave malformed rows out and count them")
    p.set_defaults(run_command=command_report)
    append = {"action": "store_true", "help": "write to --output as the work goes on; where that file has rows, leave "
              "out as many of the input and go on behind them: a killed run loses the work on a few hundred rows at "
              "most, and none is doubled"}
    p = commands.add_parser("score", parents=[common], help="a reward for every row")
    p.add_argument("--input", metavar="FILE", help="JSON lines, each with messages, or prompt and response, or text "
                   "(already rendered), or input_ids; standard input without it")
    p.add_argument("--text", action="store_true", help="every line of the input is a whole text, not JSON")
    p.add_argument("--append", **append)
    p.add_argument("--normalized", action="store_true", help="(reward - mean) / std, by the held-out pairs of a run "
                   "trained with --normalize: PPO likes rewards around 0 of size about 1")
    p.add_argument("--show-token", action="store_true", help="add which token the reward was read at")
    p.set_defaults(run_command=command_score)
    p = commands.add_parser("rank", parents=[common], help="order the responses of every row, best first")
    p.add_argument("--input", metavar="FILE", help="JSON lines, each with prompt (or messages) and responses; standard "
                   "input without it. `responses` comes back sorted, with `rewards` and their `order` before, "
                   "counted from 0")
    p.add_argument("--best", action="store_true", help="best of n: instead of `responses` only the winner, as "
                   "`response` with its `reward` and `index`")
    p.add_argument("--append", **append)
    p.set_defaults(run_command=command_rank)
    args = parser.parse_args(argv)
    speak_utf8()
    try:
        folder = model_folder(args.run, args.revision)
        model = RewardModel.from_pretrained(folder, device=pick_device(args.device)).eval()
        tokenizer = Tokenizer.from_folder(folder)
        max_length = usable_length(model, tokenizer, args.max_length)
        options = {"tokens_per_batch": args.tokens_per_batch, "dtype": torch.bfloat16 if args.bf16 else None}
        args.run_command(args, model, tokenizer, max_length, options)
        return 0
    except BrokenPipeError:  # the reader, `head` say, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (DataError, CheckpointError, OSError) as e:
        print(f"eval.py: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
