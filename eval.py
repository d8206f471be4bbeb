"""eval.py: what a reward model is worth, and how to use one.  Read after data.py.

    python eval.py report RUN --data pairs.jsonl     accuracy and its error bar, loss, what length alone would score
    python eval.py score  RUN < texts.jsonl          a reward for every row
    python eval.py rank   RUN < candidates.jsonl     responses of each row, best first

RUN is any folder with config.json, tokenizer.json and safetensors, or owner/name on the Hugging Face hub. Whatever the
command, and in training too, a text becomes a reward in one way: Tokenizer renders and encodes it, and the reward is
read at its end token.

From Python:  model = RewardModel.from_pretrained("runs/toy")
              score(model, [{"prompt": "Which colour is grass?", "response": "It is green."}])  # one reward a row

How to read a reward: it is in nats and has no zero point. Only the difference of two responses to the SAME prompt means
something: the log-odds that the first is preferred, P = σ(r_1 − r_2).
"""
import argparse
import contextlib
import itertools
import json
import math
import os
import sys
from pathlib import Path
from typing import Iterable, Iterator

import numpy as np
import torch
import torch.distributed as dist

from data import DataError, Pairs, Tokenizer, common_prefix, describe_audit, encode_preferences, pack, pad_right
from data import model_folder, parse_lines, read_preferences, read_rows, to_messages
from loss import bradley_terry_loss, pairwise_accuracy
from model import CheckpointError, RewardModel

# ---------------------------------------------------------------- the one scoring call


@torch.inference_mode()
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


@torch.inference_mode()
def score_groups(
    model, groups: list[list[np.ndarray]], tokens_per_batch: int = 8192, dtype: torch.dtype | None = None
) -> np.ndarray:
    """The same rewards for sequences in groups that begin alike (responses to one prompt), in the order given: (n,).

    In the shared-prompt form (data.pack), so that the prompt is computed once for all its responses, and no padding.
    """
    device, rewards, trees = next(model.parameters()).device, [np.zeros(0, dtype=np.float32)], []
    for group in groups:
        shared = common_prefix(group)
        for tree in _cut(group, tokens_per_batch - shared, lambda s: len(s) - shared):
            trees.append((tree, shared + sum(len(s) - shared for s in tree)))
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        for batch in _cut(trees, tokens_per_batch, lambda tree_and_tokens: tree_and_tokens[1]):
            input_ids, packed = pack([tree for tree, _ in batch])
            rewards.append(model(input_ids.to(device), None, packed.to(device)).cpu().numpy())
    return np.concatenate(rewards)


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
    if not np.isfinite(rewards).all():
        raise DataError(f"{(~np.isfinite(rewards)).any(1).sum()} pairs have a reward that is not a finite number")
    r_chosen, r_rejected = torch.from_numpy(rewards).unbind(1)  # (n,) each
    accuracy, ties = pairwise_accuracy(r_chosen, r_rejected)
    right = np.sign(rewards[:, 0] - rewards[:, 1]) / 2 + 0.5  # 1, ½ for a tie, 0
    longer = np.sign(np.diff(pairs.lengths(), axis=1)[:, 0])  # +1 where the rejected side is longer
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
    }
    if pairs.gold is not None:
        right_label = 1 / (1 + np.exp(pairs.gold[:, 1] - pairs.gold[:, 0]))  # P(the label says what it says)
        result["ceiling_accuracy"] = float(np.maximum(right_label, 1 - right_label).mean())  # Bayes: E max(p, 1−p)
        result["gold_correlation"] = within_group_correlation(rewards, pairs.gold, pairs.prompt_group)
    return result


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
    scale = math.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale else 0.0


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
    if result["accuracy_where_chosen_is_shorter"] is not None:
        lines.append(("  chosen is shorter", f"{result['accuracy_where_chosen_is_shorter']:.3f}",
                      f"accuracy on the {result['pairs_where_chosen_is_shorter']} pairs where length misleads"))
    lines += [
        ("ties", str(result["ties"]), "pairs with two equal rewards; more than a few mean something is broken"),
        ("loss", f"{result['loss']:.4f}", f"nats; a coin has log 2 = {math.log(2):.4f}"),
        ("mean margin", f"{result['mean_margin']:+.3f}", f"nats; chosen {result['mean_chosen']:+.3f}, "
                                                         f"rejected {result['mean_rejected']:+.3f}"),
    ]
    if "gold_correlation" in result:
        lines.append(("gold correlation", f"{result['gold_correlation']:.3f}",
                      "learned with true rewards, within prompts"))
    return "\n".join(f"{name:<22} {value:>8}   {meaning}" for name, value, meaning in lines)


# ---------------------------------------------------------------- the commands


def command_report(args, model, tokenizer, max_length: int, options: dict) -> None:
    """Pairs of a file -> a table on standard output and, with --output, every figure as JSON."""
    with replacing(args.output) if args.output else contextlib.nullcontext() as file:
        preferences, malformed = read_preferences(args.data, args.skip_bad_rows)
        pairs, audit = encode_preferences(preferences, tokenizer, max_length, False, malformed, args.skip_bad_rows)
        print(describe_audit(args.data, audit), file=sys.stderr)
        if not len(pairs):
            raise DataError(f"{args.data}: no pairs left to evaluate")
        check_ids(pairs.ids, model, args.data)
        result = report(score_pairs(model, pairs, **options), pairs)
        print(describe(result))
        if file:
            file.write(json.dumps(result | {"data": args.data, "run": args.run, "audit": audit}, indent=2) + "\n")


def command_score(args, model, tokenizer, max_length: int, options: dict) -> None:
    """Rows in, the same rows out in the same order, each with its reward. Memory holds one chunk of them."""
    mean, std = normalisation(model) if args.normalized else (0.0, 1.0)
    with replacing(args.output) as out:
        for chunk in chunks(input_rows(args.input)):
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
    """Rows with responses in, the same rows out, the responses best first."""
    with replacing(args.output) as out:
        for chunk in chunks(input_rows(args.input), size=64):
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
                out.write(as_json(row | ranked | {"order": order}) + "\n")
            out.flush()


def as_json(row: dict) -> str:
    """One line, readable where it can be: a field we never looked at may hold half of a surrogate pair."""
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return json.dumps(row)


def input_rows(path: str | None) -> Iterator[tuple[str, dict]]:
    """Rows of a file or of standard input, which is read as it comes and scored in chunks."""
    return read_rows(path) if path else parse_lines(sys.stdin, "standard input")


def chunks(rows: Iterable, size: int = 512) -> Iterator[list]:
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


@contextlib.contextmanager
def replacing(path: str | None):
    """A file that takes its name only when it is complete; standard output without a path."""
    if path is None:
        yield sys.stdout
        return
    temporary = Path(f"{path}.tmp")
    if Path(path).is_dir() or not Path(path).absolute().parent.is_dir():
        raise DataError(f"--output {path}: not a file in an existing folder")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
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


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0, or 2 for a mistake in what was given."""
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
    p.add_argument("--data", required=True, metavar="FILE", help="pairs, in any layout train_rm.py reads")
    p.add_argument("--skip-bad-rows", action="store_true", help="leave malformed rows out and count them")
    p.set_defaults(run_command=command_report)
    p = commands.add_parser("score", parents=[common], help="a reward for every row")
    p.add_argument("--input", metavar="FILE", help="JSON lines, each with messages, or prompt and response, or text "
                   "(already rendered), or input_ids; standard input without it")
    p.add_argument("--normalized", action="store_true", help="(reward - mean) / std, by the held-out pairs of a run "
                   "trained with --normalize: PPO likes rewards around 0 of size about 1")
    p.add_argument("--show-token", action="store_true", help="add which token the reward was read at")
    p.set_defaults(run_command=command_score)
    p = commands.add_parser("rank", parents=[common], help="order the responses of every row, best first")
    p.add_argument("--input", metavar="FILE", help="JSON lines, each with prompt (or messages) and responses; standard "
                   "input without it. `responses` comes back sorted, with `rewards` and their `order` before, "
                   "counted from 0")
    p.set_defaults(run_command=command_rank)
    args = parser.parse_args(argv)
    try:
        folder = model_folder(args.run, args.revision)
        model = RewardModel.from_pretrained(folder).to(pick_device(args.device)).eval()
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
