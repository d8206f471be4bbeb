"""data.py: files of human choices in, batches of token ids out.  Read after model.py.

One row of preference data says: for this prompt, this response was chosen over that one. Before a model sees it, four
things happen, and each has its classic mistake:

    read      several layouts in the wild -> Preference: a prompt and its responses, as chat messages, best first
    render    messages -> text by the tokenizer's own chat template: the model must be trained on the very text it
              will later score
    encode    text -> ids: one BOS if the template writes one, one end token, and the reward is read at that end token
    batch     all responses of some rows, padded on the right, and which ones are pairs; or, faster and the same, all in
              one row in which a prompt stands once for all its responses

Nothing is left out silently: read = kept + the rows left out, by reason.

Most rows hold two responses, chosen and rejected: one pair. A row of K responses with scores or ranks is all pairs of
them that are not tied, each of weight 1 / number of pairs, so that a prompt counts once (Ouyang et al. 2022, eq 1).

Shapes: R rows   n pairs in them   S sequences (of chosen and rejected alone: n = R, S = 2R)   T tokens
        B pairs and N sequences in a batch
"""
import array
import contextlib
import dataclasses
import datetime
import functools
import gzip
import hashlib
import io
import itertools
import json
import math
import mmap
import os
import random
import re
import shutil
import signal
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Iterable, Iterator, NamedTuple

import numpy as np
import tokenizers
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor
from tqdm import tqdm

Messages = list[dict]  # [{"role": "user", "content": "…"}, …]


class DataError(ValueError):
    """A file, row or tokenizer that cannot be used; the message is one line naming file, row and field."""


# ---------------------------------------------------------------- reading


@dataclasses.dataclass
class Preference:
    """One row: responses to one prompt, and which of them was preferred to which."""

    prompt: Messages  # may be empty: some data compare texts that answer nothing
    responses: list[Messages]  # what follows the prompt, usually one assistant turn each; best first
    scores: list[float]  # only their order counts; chosen and rejected: 1 and 0
    margin: float = 0.0  # by how much the better of a pair should win, in nats
    gold: list[float] | None = None  # the true rewards, where somebody knows them (the toy world)
    where: str = ""  # "file:row", for messages
    tags: dict = dataclasses.field(default_factory=dict)  # its id, source, subset, where the row has them

    def pairs(self) -> list[tuple[int, int]]:
        """(better, worse) of all pairs of responses that are not tied."""
        indices = range(len(self.scores))
        return [(i, j) for i in indices for j in indices if self.scores[i] > self.scores[j]]

    @functools.cached_property
    def key(self) -> int:
        """64 bits of what must not stand on both sides of a split: the prompt, or without one the texts themselves."""
        return _bits(json.dumps(self.prompt or sorted(map(_text, self.responses))))

    def to_row(self) -> dict:
        """A row that parse_preference reads back as this."""
        row = {"prompt": self.prompt, "margin": self.margin} | self.tags
        if self.scores != [1, 0]:
            return row | {"responses": self.responses, "scores": self.scores}
        row |= dict(zip(("chosen", "rejected"), self.responses))
        return row | (dict(zip(("gold_chosen", "gold_rejected"), self.gold)) if self.gold else {})


# What is fetched of a model on the hub: never pickled weights, code, or a second copy of the weights for other tools.
MODEL_FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
               "chat_template.jinja", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json",
               "value_head.safetensors"]


def fetch(repo: str, files: list[str], kind: str = "model", revision: str | None = None) -> Path:
    """The folder in huggingface_hub's cache that holds these files of owner/name, fetched where they are missing.

    Raises: DataError in one line where there is no such thing, no permission or no connection.
    """
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(repo, repo_type=kind, revision=revision, allow_patterns=files))
    except errors.GatedRepoError:
        why = "its owner asks you to accept terms on its page, and then to log in: hf auth login"
    except errors.RepositoryNotFoundError:
        why = f"no such {kind} (or a private one: hf auth login)"
    except errors.RevisionNotFoundError:
        why = f"no revision {revision!r}"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        why = "the hub cannot be reached, and nothing of it is in the cache"
    except Exception as e:  # whatever a network can do
        why = (str(e) or repr(e)).splitlines()[0]
    raise DataError(f"{repo} on the hub: {why}")


def model_folder(name: str, revision: str | None = None) -> Path:
    """A local folder as it is; what looks like owner/name, and cannot be a path here, from the hub."""
    path = Path(name)
    if path.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) or path.parent.exists():
        if revision:
            raise DataError(f"--revision {revision}: {name} is a local folder, not a model on the hub")
        if not path.is_dir():
            raise DataError(f"{name}: no such folder")
        return path
    return fetch(name, MODEL_FILES, revision=revision)


def data_files(path: str | Path) -> list[Path]:
    """The files meant by a path: itself; all .jsonl or .json, gzipped or not, of a folder; those of a data set on the
    hub, as hub:owner/name/file or hub:owner/name@revision/file."""
    if str(path).startswith("hub:"):
        parts = re.fullmatch(r"hub:([^/]+/[^/@]+)(?:@([^/]+))?/(.+)", str(path))
        if not parts or ".." in parts[3].split("/"):
            raise DataError(f"{path}: not hub:owner/name/file")
        repo, revision, file = parts.groups()
        folder = fetch(repo, [file, file.rstrip("/") + "/*.json*"], "dataset", revision)
        if not (folder / file).exists():
            raise DataError(f"{path}: no such file in that data set")
        path = folder / file
    path = Path(path)
    if path.suffix == ".parquet":
        raise DataError(f"{path}: parquet is not read; convert it: datasets.load_dataset(…).to_json('pairs.jsonl')")
    if not path.is_dir():
        return [path]
    files = sorted(f for f in path.iterdir() if re.search(r"\.jsonl?(\.gz)?$", f.name))
    if not files:
        raise DataError(f"{path}: no .json, .jsonl, .json.gz or .jsonl.gz in this folder")
    return files


def read_rows(path: str | Path) -> Iterator[tuple[str, dict]]:
    """Yield ("file:row", object) of all data_files of a path."""
    for file in data_files(path):
        with text_lines(file) as lines:
            yield from parse_lines(lines, str(file))


@contextlib.contextmanager
def text_lines(path: str | Path | None):
    """The lines of a text file, gzipped or not, or of standard input. Whatever goes wrong while they are read is a
    DataError in one line."""
    try:
        if path is None:
            yield sys.stdin
        else:
            unzip = gzip.open if Path(path).suffix == ".gz" else open
            with unzip(path, "rt", encoding="utf-8-sig", newline="\n") as lines:
                yield lines
    except UnicodeDecodeError as e:
        raise DataError(f"{path or 'standard input'}: not UTF-8 text ({e.reason})") from None
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"{path or 'standard input'}: {getattr(e, 'strerror', None) or e}") from None


def parse_lines(lines: Iterable[str], name: str) -> Iterator[tuple[str, dict]]:
    """One JSON object per line, or one JSON array of objects over all lines -> ("name:row", object)."""
    number, anything_yet = 0, False
    try:
        numbered = enumerate(lines, 1)
        for number, line in numbered:
            line = line.removeprefix("\ufeff") if number == 1 else line
            if not line.strip():
                continue
            if line.lstrip().startswith("[") and not anything_yet:  # one array of all rows
                values = enumerate(json.loads(line + "".join(rest for _, rest in numbered)), 1)
            else:
                values = [(number, json.loads(line.strip()))]
            anything_yet = True
            for row, value in values:
                if not isinstance(value, dict):
                    raise DataError(f"{name}:{row}: not a JSON object")
                yield f"{name}:{row}", value
    except (DataError, UnicodeDecodeError):
        raise
    except json.JSONDecodeError as e:
        raise DataError(f"{name}:{number + e.lineno - 1}: not JSON ({e.msg}, column {e.colno})") from None
    except (RecursionError, ValueError) as e:  # nested too deep, a number of thousands of digits
        raise DataError(f"{name}:{number}: not JSON that can be read ({e})") from None


class Preferences:
    """The preferences of some rows. They are read anew whenever somebody goes through them, so that memory does not
    grow with the files (but a .json array is read as a whole); `malformed` is then the number of rows that were none.

    Raises: DataError at the first such row, unless skip_bad_rows. Broken JSON always stops: what follows it is anyone's
            guess.
    """

    def __init__(self, paths: list, skip_bad_rows: bool = False):
        self.paths, self.skip_bad_rows, self.malformed = paths, skip_bad_rows, 0

    def __iter__(self) -> Iterator[Preference]:
        self.malformed = 0
        for where, row in itertools.chain.from_iterable(map(read_rows, self.paths)):
            try:
                yield parse_preference(row, where)
            except DataError:
                if not self.skip_bad_rows:
                    raise
                self.malformed += 1


class Side:
    """Those of some preferences whose prompt is among the keys, or is not."""

    def __init__(self, preferences: Iterable[Preference], keys: Callable[[], set[int]], inside: bool):
        self.preferences, self.keys, self.inside, self.malformed = preferences, keys, inside, 0

    def __iter__(self) -> Iterator[Preference]:
        keys = self.keys()
        for p in self.preferences:
            if (p.key in keys) == self.inside:
                yield p
        if not self.inside:  # what is no preference belongs to no side; it is counted once
            self.malformed = getattr(self.preferences, "malformed", 0)


def read_preferences(path: str | Path, skip_bad_rows: bool = False) -> tuple[list[Preference], int]:
    """All preferences of a file or folder at once, and how many rows were none."""
    preferences = Preferences([path], skip_bad_rows)
    return list(preferences), preferences.malformed


def parse_preference(row: dict, where: str = "row") -> Preference:
    """One row in any of the layouts people publish, told apart by its fields:

    prompt, chosen, rejected as strings                             UltraFeedback, ETHICS; prompt may be ""
    prompt, chosen, rejected as messages                            TRL conversational, explicit prompt
    chosen, rejected as messages that both start with the prompt    TRL conversational, implicit prompt
    chosen, rejected as "\\n\\nHuman: … \\n\\nAssistant: …"             Anthropic HH
    instruction, input, system, history + chosen, rejected          LLaMA-Factory, alpaca ranking
    conversations + chosen, rejected as {"from", "value"}           LLaMA-Factory, ShareGPT ranking
    any of these prompts, responses, and scores or ranks            K responses, rank 1 the best; equal ones are ties
    chosen, rejected as lists of strings                            RewardBench 2

    Raises: DataError naming row and field.
    """
    sides = _sides(row, where)
    prompt: Messages = []
    field = next((f for f in ("prompt", "conversations", "messages") if row.get(f) is not None), None)
    if field:
        prompt = to_messages(_parse_transcript(row[field]), "user", where, field)
        if prompt and not prompt[-1]["content"]:  # "… \n\nAssistant:", to be continued
            prompt.pop()
    elif row.get("instruction") is not None:
        turns = row.get("history") or []
        if not isinstance(turns, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
            raise DataError(f"{where}: field 'history' is not a list of [question, answer]")
        for asked, answered in turns:
            prompt += to_messages(asked, "user", where, "history")
            prompt += to_messages(answered, "assistant", where, "history")
        asked = "\n".join(str(row[f]) for f in ("instruction", "input") if row.get(f))
        prompt += to_messages(asked, "user", where, "instruction")
    responses = [to_messages(_parse_transcript(value), "assistant", where, field) for field, value, _ in sides]

    # Responses that begin with somebody else's turn hold the whole dialogue, and the prompt is what they share. (Some
    # files repeat it in a `prompt` field.) Each keeps at least its last turn.
    def is_whole(response):
        if response[0]["role"] in ("assistant", "tool"):
            return False
        # Behind an answer (or nothing but a system turn) a turn of the user can go on with the dialogue.
        return not prompt or prompt[-1]["role"] == "user" or response[: len(prompt)] == prompt

    whole = [is_whole(response) for response in responses if response]
    if any(whole) and not all(whole):
        raise DataError(f"{where}: one of 'chosen' and 'rejected' holds the whole dialogue, the other only an answer"
                        if len(sides) == 2 else f"{where}: some responses hold the whole dialogue, others an answer")
    if all(whole) or not prompt:
        shared, shortest = 0, min(map(len, responses))
        while shared < shortest - 1 and all(response[shared] == responses[0][shared] for response in responses):
            shared += 1
        prompt, responses = responses[0][:shared], [response[shared:] for response in responses]
    if row.get("system") and (not prompt or prompt[0]["role"] != "system"):
        prompt = to_messages(row["system"], "system", where, "system") + prompt
    for response, (field, _, _) in zip(responses, sides):
        if response and response[-1]["role"] != "assistant":
            last = response[-1]["role"]
            raise DataError(f"{where}: field {field!r} ends with a turn of {last!r}, not of the assistant")
    margin, gold = 0.0 if row.get("margin") is None else _number(row["margin"], where, "margin"), None
    if "gold_chosen" in row and "chosen" in row and len(sides) == 2:
        gold = [_number(row.get(field), where, field) for field in ("gold_chosen", "gold_rejected")]
    scores = [score for _, _, score in sides]
    best_first = sorted(range(len(scores)), key=lambda i: -scores[i])  # stable: chosen stays before rejected
    tags = {tag: row[tag] for tag in ("id", "source", "subset") if row.get(tag) is not None}
    responses, scores = ([values[i] for i in best_first] for values in (responses, scores))
    return Preference(prompt, responses, scores, margin, gold, where, tags)


def _sides(row: dict, where: str) -> list[tuple[str, object, float]]:
    """(field, response, score) of every response of a row; chosen ones score 1, rejected ones 0."""
    if row.get("responses") is not None and row.get("chosen") is None:
        measure = "scores" if row.get("scores") is not None else "ranks"
        responses, values = row["responses"], row.get(measure)
        if not isinstance(responses, list) or len(responses) < 2:
            raise DataError(f"{where}: field 'responses' is not a list of two or more")
        if values is None:
            raise DataError(f"{where}: no field 'scores' or 'ranks' beside 'responses' (found: {', '.join(row)})")
        if not isinstance(values, list) or len(values) != len(responses):
            raise DataError(f"{where}: field {measure!r} is not a list of one number for each response")
        sign = 1 if measure == "scores" else -1  # rank 1 is the best
        values = [sign * _number(value, where, measure) for value in values]
        return [(f"responses[{i}]", r, value) for i, (r, value) in enumerate(zip(responses, values))]
    sides = []
    for field, score in (("chosen", 1.0), ("rejected", 0.0)):
        if field not in row:
            raise DataError(f"{where}: no field {field!r} (found: {', '.join(row) or 'nothing'})")
        several = isinstance(row[field], list) and row[field] and all(isinstance(text, str) for text in row[field])
        sides += [(field, value, score) for value in (row[field] if several else [row[field]])]
    return sides


ROLES = {"human": "user", "gpt": "assistant", "observation": "tool", "function_call": "assistant"}  # ShareGPT's names


def to_messages(value, role: str, where: str, field: str) -> Messages:
    """A string (by `role`), one message or a list of them -> messages with role and content; "" -> none."""
    if isinstance(value, str):
        value = [{"role": role, "content": value}] if value.strip() else []
    messages = []
    for item in value if isinstance(value, list) else [value]:
        speaker = item.get("role", item.get("from")) if isinstance(item, dict) else None
        content = item.get("content", item.get("value")) if isinstance(item, dict) else None
        if not isinstance(speaker, str) or not isinstance(content, str):
            raise DataError(f"{where}: field {field!r} is neither text nor messages of a role and text content"
                            + (" (several responses in it: as strings)" if isinstance(item, list) else ""))
        if not _is_text(content + speaker):
            raise DataError(f"{where}: field {field!r} holds half of a surrogate pair, which is not text")
        messages.append({"role": ROLES.get(speaker, speaker), "content": content})
    return messages


def _parse_transcript(value):
    """Anthropic's "\\n\\nHuman: … \\n\\nAssistant: …" -> messages; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("Human:"):
        return value
    parts = re.split(r"(?:^|\n\n)(Human|Assistant):", value.strip("\n"))[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2])]


def _number(value, where: str, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e30:  # NaN neither
        raise DataError(f"{where}: field {field!r} is {str(value)[:30]!r}, not a number that float32 holds")
    return float(value)


def _is_text(text: str) -> bool:
    """False where JSON held half of a surrogate pair, which no tokenizer and no file takes."""
    return text.isascii() or not re.search("[\ud800-\udfff]", text)


def _text(messages: Messages) -> str:
    return "\n".join(m["content"] for m in messages)


def _bits(text: str) -> int:
    """64 bits that stand for a text: a million of them fit into memory, and two texts share theirs by no chance that
    matters."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def split_by_prompt(preferences: Iterable[Preference], eval_fraction: float, seed: int) -> tuple[Side, Side]:
    """Train and held-out pairs with no prompt in both: on prompts it trained on, a model looks better than it is.

    Which is which is found out when somebody goes through one of them; then, raises: DataError where there are too few
    prompts for two sides.
    """

    @functools.cache
    def held_out() -> set[int]:
        keys = sorted({p.key for p in preferences})
        random.Random(seed).shuffle(keys)
        if len(keys) <= (n := max(1, round(len(keys) * eval_fraction))):
            raise DataError(f"{len(keys)} different prompts are too few to hold some out; give --eval-data")
        return set(keys[:n])

    return Side(preferences, held_out, False), Side(preferences, held_out, True)


# ---------------------------------------------------------------- rendering and encoding

# Used where a tokenizer folder has no chat template, and saved with the model so that others render the same text.
# "Assistant:" has no space behind it: tokenizers put a word and the space before it into one token.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ '\\n' if not loop.first else '' }}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nAssistant:' if messages else 'Assistant:' }}{% endif %}"
)


Encoded = tuple[np.ndarray, tokenizers.Encoding]
SPECIAL_TOKENS = [f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]


class Tokenizer:
    """tokenizer.json with its chat template: messages -> text -> ids, in exactly one way.

    end_token   what every sequence ends with and where its reward is read: the token the chat template closes an
                assistant turn with, else the tokenizer's eos_token.
    """

    def __init__(self, backend: tokenizers.Tokenizer, config: dict, where: str = "tokenizer", vocab_size: int = 2**31):
        backend.no_padding()  # some tokenizer.json carry padding and truncation baked in, which would
        backend.no_truncation()  # silently cut texts
        self.backend, self.config, self.where = backend, config, where
        name = lambda key: (v := config.get(key)) and (v["content"] if isinstance(v, dict) else v)
        self.names = {k: name(k) for k in SPECIAL_TOKENS if name(k)}
        # Some tokenizer.json hold these tokens as ordinary ones: "</s>" in a text would come apart into "<", "/", …
        backend.add_special_tokens([v for v in self.names.values() if backend.token_to_id(v) is not None])
        special = {t.content: i for i, t in backend.get_added_tokens_decoder().items() if t.special}
        ids = {k: backend.token_to_id(v) for k, v in self.names.items()}

        # BOS exactly once: where the chat template writes it, and not from the tokenizer besides. That is what
        # transformers does with a rendered dialogue. Only our own template asks the tokenizer whether it uses a BOS.
        template, self.bos_id = config.get("chat_template"), ids.get("bos_token")
        if isinstance(template, list):  # several named ones
            template = next((t["template"] for t in template if t.get("name") == "default"), None)
        if not template:
            adds_bos = config.get("add_bos_token")
            if adds_bos is None:
                adds_bos = self.bos_id in backend.encode("").ids
            template = "{{ bos_token }}" + PLAIN_TEMPLATE if adds_bos and self.bos_id is not None else PLAIN_TEMPLATE
        if not isinstance(template, str):
            raise DataError(f"{where}: chat_template is {str(template)[:30]!r}, not text")
        self._template, self.template_source = None, template

        # The end token. Probe the template: Qwen's base tokenizer has eos <|endoftext|> but turns end in <|im_end|>.
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
        self._probe = self.render(turns)
        bos = self.names.get("bos_token", "")
        self.bos = bos if self._probe.startswith(bos) else ""  # what a rendered dialogue starts with
        endings = [t for t in special if self._probe.rstrip().endswith(t)]
        self.end_token = max(endings, key=len) if endings else self.names.get("eos_token")
        self.end_id = None if self.end_token is None else backend.token_to_id(self.end_token)
        if self.end_id is None:
            raise DataError(f"{where}: no eos_token, and its chat template closes no turn: nowhere to read the reward")
        # Padding. transformers finds the last token by comparing ids with the pad's, so the pad it is told about must
        # never be the last token; any other does that the model has an embedding for (some pads were added without).
        pads = [ids.get("pad_token"), ids.get("unk_token"), self.bos_id, *special.values(), 0 if self.end_id else 1]
        self.pad_id = next(i for i in pads if i is not None and i != self.end_id and i < vocab_size)

        if self.encode(["x"])[0][0][-1] != self.end_id:
            raise DataError(f"{where}: {self.end_token!r} does not come out of the tokenizer as one token")

        header = self.render(turns[:1], add_generation_prompt=True)[len(self.render(turns[:1])) :]
        self.header_tokens = len(backend.encode(header, add_special_tokens=False).ids)
        self.max_length = min(int(config.get("model_max_length") or 2**31), 2**31)  # absurdly large means "unknown"
        if self.max_length <= 0:
            raise DataError(f"{where}: model_max_length is {self.max_length}")

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Tokenizer":
        """Load tokenizer.json, tokenizer_config.json, special_tokens_map.json, chat_template.jinja of a folder."""
        folder, config = Path(folder), {}
        try:
            backend = tokenizers.Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
            for file in ("special_tokens_map.json", "tokenizer_config.json"):
                if (folder / file).exists():
                    config |= json.loads((folder / file).read_text(encoding="utf-8"))
            if (folder / "chat_template.jinja").exists():
                config["chat_template"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
            model = json.loads((folder / "config.json").read_text("utf-8")) if (folder / "config.json").exists() else {}
            return cls(backend, config, str(folder), model.get("vocab_size", 2**31))
        except DataError:
            raise
        except OSError as e:
            raise DataError(f"{e.filename}: {e.strerror}") from None
        except Exception as e:  # the tokenizers library raises plain Exception, and a setting may be of any type
            raise DataError(f"{folder}: the tokenizer cannot be read ({e})") from None

    @classmethod
    def train(cls, texts: list[str], vocab_size: int) -> "Tokenizer":
        """A byte-level BPE tokenizer (Sennrich et al. 2016; Radford et al. 2019) learned from these texts."""
        backend = tokenizers.Tokenizer(tokenizers.models.BPE())
        backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size, min_frequency=2, special_tokens=["<pad>", "<eos>"], show_progress=False,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        )
        backend.train_from_iterator(texts, trainer)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "<eos>"}
        return cls(backend, config)

    def save(self, folder: str | Path, max_length: int) -> None:
        """Write tokenizer.json and tokenizer_config.json, with the chat template and length limit that were used."""
        folder = Path(folder)
        # Not backend.save: on a full disk it raises a bare Exception, not an OSError.
        (folder / "tokenizer.json").write_text(self.backend.to_str(pretty=True), encoding="utf-8")
        config = self.config | {
            "chat_template": self.closing_template(), "model_max_length": max_length, "padding_side": "right",
            "pad_token": self.backend.id_to_token(self.pad_id),
        }
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")

    def closing_template(self) -> str:
        """The chat template, made to end at the end token by itself.

        Others render with the template alone: were the rest left to `encode`, the same dialogue would have another last
        token there, and another reward.
        """
        if self._probe.endswith(self.end_token):
            return self.template_source
        closed = "text.rstrip()" if self._probe.rstrip().endswith(self.end_token) else "text + eos_token"
        return (
            # The plus signs keep what jinja2 would trim around these two blocks.
            f"{{% set text +%}}{self.template_source.removesuffix(chr(10))}{{%+ endset %}}"
            "{% if messages and messages[-1]['role'] == 'assistant' and not add_generation_prompt %}"
            f"{{{{ {closed} }}}}{{% else %}}{{{{ text }}}}{{% endif %}}"
        )

    def render(self, messages: Messages, add_generation_prompt: bool = False) -> str:
        """The chat template's text for these messages, as transformers renders it (in jinja2's sandbox)."""
        return self._render_all([(messages, add_generation_prompt)])[0]

    def _render_all(self, dialogues: list[tuple[Messages, bool]]) -> list[str]:
        """render() of each, under one time limit: setting it costs as much as a short text."""
        if self._template is None:
            self._template = compile_template(self.template_source, self.where)
        values = {"tools": None, "documents": None} | self.names
        try:
            with time_limit(RENDER_SECONDS):
                texts = [self._template.render(values, messages=messages, add_generation_prompt=add)
                         for messages, add in dialogues]
        except Exception as e:  # a template is somebody else's program: it may raise anything
            raise DataError(f"{self.where}: the chat template refuses this dialogue ({str(e) or repr(e)})") from None
        if not all(map(_is_text, texts)):
            raise DataError(f"{self.where}: the chat template makes half of a surrogate pair, which is not text")
        return texts

    def encode(self, texts: list[str]) -> list[Encoded]:
        """Rendered texts -> (ids as int32, the library's encoding).

        The BOS is what the template wrote. One end token with nothing behind it: a template's closing newline is cut,
        or the reward would be read there.
        """
        closed = []
        for text in texts:
            stripped = text.rstrip()
            closed.append(stripped if stripped.endswith(self.end_token) else text + self.end_token)
        encodings = self.backend.encode_batch(closed, add_special_tokens=False)
        return [(np.array(e.ids, dtype=np.int32), e) for e in encodings]

    def render_responses(self, prompt: Messages, responses: list[Messages]) -> tuple[list[str], int]:
        """The text of prompt + response for each response, and how many leading characters are prompt.

        Templates may rewrite a dialogue (Qwen3 puts a think block before the last answer), so the prompt is what the
        rendering of the prompt alone and all the full ones have in common. Raises: DataError.
        """
        dialogues = [(prompt + response, False) for response in responses]
        if not prompt:
            return self._render_all(dialogues), 0
        begun, *texts = self._render_all([(prompt, True), *dialogues])
        return texts, len(os.path.commonprefix([begun, *texts]))

    def split_prompt(self, encoded: list[Encoded], prompt_chars: int) -> tuple[list[np.ndarray], int]:
        """The ids of some responses to one prompt, and how many leading ones are prompt: the same ids in all of them,
        whatever the tokenizer merges where prompt and response meet."""
        sequences, starts = [ids for ids, _ in encoded], []
        for _, encoding in encoded:
            # The first token that holds a character of the response. (Some characters belong to no token.)
            holding = (encoding.char_to_token(i) for i in range(prompt_chars, encoding.offsets[-1][1]))
            start = next((token for token in holding if token is not None), len(encoding.ids))
            starts.append(start)
        return sequences, min(*starts, common_prefix(sequences))

    def truncate(self, ids: list[np.ndarray], prompt_tokens: int, max_length: int):
        """Fit sequences that share a prompt into max_length -> (ids, prompt_tokens), or None where that cannot be.

        The prompt loses its oldest tokens (BOS and the assistant's header stay), the same ones on all sides. Responses
        are never cut: half a response teaches the wrong reward.
        """
        excess = max(map(len, ids)) - max_length
        if excess <= 0:
            return ids, prompt_tokens
        bos = int(ids[0][0] == self.bos_id)
        if excess >= prompt_tokens - bos - self.header_tokens:
            return None
        return [np.concatenate((s[:bos], s[bos + excess :])) for s in ids], prompt_tokens - excess


RENDER_SECONDS = 10  # for all dialogues of a row


def compile_template(source: str, where: str):
    """A chat template with what transformers gives one: functions, filters, tags and rules for white space.

    A template is somebody else's program. jinja2's sandbox keeps it from reaching anything but its arguments.
    Raises: DataError where it is not valid.
    """
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["*", "**"])  # "x" * 10**10 has to be stopped before it is made

        def call_binop(self, context, operator, left, right):
            a, b = (len(x) if hasattr(x, "__len__") else abs(x) for x in (left, right))
            if (a * b if operator == "*" else a ** min(b, 64)) > 10**8:
                raise jinja2.TemplateError(f"{operator} of {a} and {b} is too much")
            return super().call_binop(context, operator, left, right)

    class Generation(jinja2.ext.Extension):
        """{% generation %} … {% endgeneration %} marks what the assistant says, for others' loss masks: just text."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("text"), [], [], body).set_lineno(line)

        def text(self, caller):
            return caller()

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    extensions = ["jinja2.ext.loopcontrols", Generation]
    env = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    env.filters["tojson"] = tojson
    env.globals |= {"raise_exception": raise_exception,
                    "strftime_now": lambda form: datetime.datetime.now().strftime(form)}
    try:
        return env.from_string(source)
    except (jinja2.TemplateError, TypeError, RecursionError) as e:
        raise DataError(f"{where}: the chat template is not valid ({e})") from None


@contextlib.contextmanager
def time_limit(seconds: float):
    """TimeoutError in what takes longer: an endless template, say. Signals reach the main thread only, and Windows has
    no such signal; elsewhere nothing is limited."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    late = []

    def on_alarm(number, frame):
        late.append(True)
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except Exception:
        if late:  # whatever became of our exception on its way: jinja2 can stumble over it
            raise TimeoutError(f"it took more than {seconds} seconds") from None
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def common_prefix(sequences: list[np.ndarray]) -> int:
    """How many leading ids all these sequences share."""
    first, shared = sequences[0], min(map(len, sequences))
    for other in sequences[1:]:
        differs = np.flatnonzero(first[:shared] != other[:shared])
        shared = int(differs[0]) if len(differs) else shared
    return shared


# ---------------------------------------------------------------- pairs as arrays, and the audit


@dataclasses.dataclass
class Pairs:
    """R tokenised rows in flat arrays, 4 bytes a token: their S sequences, and the n pairs among them, row by row.

    So some arrays are by sequence, some by row and some by pair, as their shapes say; len() is the number of pairs.
    """

    ids: np.ndarray  # (all tokens,) int32
    offsets: np.ndarray  # (S+1,) int64: sequence s is ids[offsets[s]:offsets[s+1]]
    row_sequences: np.ndarray  # (R+1,) row r has the sequences row_sequences[r] … row_sequences[r+1] − 1
    row_pairs: np.ndarray  # (R+1,) and these pairs
    chosen: np.ndarray  # (n,) of each pair the better sequence
    rejected: np.ndarray  # (n,) and the worse one
    prompt_tokens: np.ndarray  # (R,) how many leading tokens all sequences of a row share as prompt
    margin: np.ndarray  # (n,) float32, nats
    prompt_key: np.ndarray  # (R,) uint64, equal numbers: same prompt
    true_rewards: np.ndarray | None = None  # (S,) where all rows have them
    tag_text: bytes = b""  # JSON lines: of each row id, source, subset where it has them, and "where" it stands
    tag_offsets: np.ndarray | None = None  # (R+1,) row r's is tag_text[tag_offsets[r]:tag_offsets[r+1]]

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def rows(self) -> int:
        return len(self.prompt_tokens)

    @functools.cached_property
    def prompt_group(self) -> np.ndarray:
        """(n,) equal numbers: same prompt; numbered as they come."""
        _, first, group = np.unique(self.prompt_key, return_index=True, return_inverse=True)
        return np.repeat(np.argsort(np.argsort(first))[group], np.diff(self.row_pairs))

    def tags(self, r: int) -> dict:
        """What is known of row r: id, source, subset, and where it stands."""
        if self.tag_offsets is None:
            return {}
        return json.loads(bytes(self.tag_text[self.tag_offsets[r] : self.tag_offsets[r + 1]]))

    @property
    def gold(self) -> np.ndarray | None:
        """(n, 2) true rewards of chosen and rejected."""
        return None if self.true_rewards is None else self.of_pairs(self.true_rewards)

    def of_pairs(self, values: np.ndarray) -> np.ndarray:
        """(S,) values of sequences -> (n, 2) of the chosen and rejected one of every pair."""
        return np.stack([values[self.chosen], values[self.rejected]], axis=1)

    def sequence(self, s: int) -> np.ndarray:
        return self.ids[self.offsets[s] : self.offsets[s + 1]]

    def row(self, r: int) -> list[np.ndarray]:
        """The sequences of a row."""
        return [self.sequence(s) for s in range(self.row_sequences[r], self.row_sequences[r + 1])]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Equal for equal data, tokens and all."""
        digest = hashlib.sha256()
        for array in (self.ids, self.offsets, self.chosen, self.rejected, self.margin):
            for part in self.parts(array):
                digest.update(part.tobytes())
        return digest.hexdigest()

    @functools.cached_property
    def used_ids(self) -> np.ndarray:
        """The token ids that occur, in order."""
        used = np.zeros(1 + max((int(part.max()) for part in self.parts(self.ids)), default=-1), dtype=bool)
        for part in self.parts(self.ids):
            used[part] = True
        return np.flatnonzero(used)

    def parts(self, array: np.ndarray) -> Iterator[np.ndarray]:
        """An array in pieces, so that one that lies in a file is never in memory as a whole."""
        for start in range(0, len(array), 2**20):
            yield array[start : start + 2**20]
            self.release()

    def release(self) -> None:
        """Let go of the file's pages that were read. They stay in the system's cache as long as there is room, but do
        not count as this process's memory."""
        if isinstance(self.tag_text, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # array -> memoryview -> map
            self.ids.base.obj.madvise(mmap.MADV_DONTNEED)
            self.tag_text.madvise(mmap.MADV_DONTNEED)

    def save(self, folder: Path) -> None:
        """The arrays, beside ids.bin and tags.jsonl, which encode_preferences has written."""
        arrays = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        arrays |= {"used_ids": self.used_ids}
        kept = {name: a for name, a in arrays.items() if a is not None and name not in ("ids", "tag_text")}
        save_file(kept, folder / "arrays.safetensors")

    @classmethod
    def open(cls, folder: Path) -> "Pairs":
        """What encode_preferences left in a folder; token ids and tags stay in their files."""
        arrays = load_file(folder / "arrays.safetensors")
        used_ids = arrays.pop("used_ids")
        ids, tag_text = np.frombuffer(_mapped(folder / "ids.bin"), np.int32), _mapped(folder / "tags.jsonl")
        pairs = cls(ids, tag_text=tag_text, **arrays)
        pairs.used_ids = used_ids
        return pairs

    def row_of_pair(self) -> np.ndarray:
        """(n,) the row each pair is of."""
        return np.repeat(np.arange(self.rows), np.diff(self.row_pairs))

    def lengths(self) -> np.ndarray:
        """(n, 2) tokens of the chosen and rejected sequence."""
        return self.of_pairs(np.diff(self.offsets))


# The columns of Pairs as they grow, 64-bit integers but for float32 margins and unsigned keys, and how they start.
COLUMNS = {"offsets": ("q", [0]), "row_sequences": ("q", [0]), "row_pairs": ("q", [0]), "tag_offsets": ("q", [0]),
           "chosen": ("q", []), "rejected": ("q", []), "prompt_tokens": ("q", []), "margin": ("f", []),
           "prompt_key": ("Q", [])}
REASONS = ("malformed", "all tied", "refused by the template", "empty side", "identical sides", "too long")


def encode_preferences(
    preferences: Iterable[Preference], tokenizer: Tokenizer, max_length: int, drop_long: bool = False,
    skip_bad_rows: bool = False, folder: Path | None = None,
) -> tuple[Pairs, dict]:
    """Preferences -> Pairs and the audit: what was read, kept, left out and why, and what the labels look like.

    One row after the other, so that memory does not grow with the texts; with a folder token ids go to a file there.
    Raises: DataError naming a row the chat template refuses, unless skip_bad_rows.
    """
    left_out, truncated = dict.fromkeys(REASONS, 0), 0
    columns = {name: array.array(kind, start) for name, (kind, start) in COLUMNS.items()}
    texts_seen, gold = array.array("Q"), array.array("d")  # (S,) each; gold where all rows have it
    with _output(folder, "ids.bin") as ids_file, _output(folder, "tags.jsonl") as tags_file:
        for p, encoded, prompt_chars in encoded_rows(preferences, tokenizer, skip_bad_rows, left_out):
            ids, shared = tokenizer.split_prompt(encoded, prompt_chars)
            too_long = max(map(len, ids)) > max_length
            fitted = None if too_long and drop_long else tokenizer.truncate(ids, shared, max_length)
            if any(np.array_equal(ids[i], ids[j]) for i, j in p.pairs()):
                left_out["identical sides"] += 1
                continue
            if fitted is None:
                left_out["too long"] += 1
                continue
            truncated += too_long
            first, prompt, tags = columns["row_sequences"][-1], json.dumps(p.prompt), {"where": p.where} | p.tags
            for sequence, response in zip(fitted[0], p.responses):
                ids_file.write(sequence.tobytes())
                columns["offsets"].append(columns["offsets"][-1] + len(sequence))
                texts_seen.append(_bits(prompt + _text(response)))
            for i, j in p.pairs():
                columns["chosen"].append(first + i)
                columns["rejected"].append(first + j)
                columns["margin"].append(p.margin)
            gold.extend(p.gold or ())
            written = tags_file.write((json.dumps(tags, ensure_ascii=False) + "\n").encode())
            columns["row_sequences"].append(first + len(p.responses))
            columns["row_pairs"].append(len(columns["chosen"]))
            columns["prompt_tokens"].append(fitted[1])
            columns["prompt_key"].append(p.key)
            columns["tag_offsets"].append(columns["tag_offsets"][-1] + written)
        in_memory = [] if folder else [ids_file.getbuffer(), tags_file.getbuffer()]
    left_out["malformed"] = getattr(preferences, "malformed", 0)
    ids, tag_text = in_memory or [_mapped(folder / "ids.bin"), _mapped(folder / "tags.jsonl")]
    true_rewards = np.array(gold) if len(gold) == len(texts_seen) > 0 else None
    columns = {name: np.array(column) for name, column in columns.items()}
    pairs = Pairs(np.frombuffer(ids, np.int32), tag_text=tag_text, true_rewards=true_rewards, **columns)
    if folder:
        pairs.save(folder)
    return pairs, audit_of(pairs, np.array(texts_seen), left_out, truncated)


def encoded_rows(
    preferences: Iterable[Preference], tokenizer: Tokenizer, skip_bad_rows: bool, left_out: dict[str, int]
) -> Iterator[tuple[Preference, list[Encoded], int]]:
    """(preference, its responses encoded, prompt characters) of those that compare something and that the template
    takes; the others are counted. A thread encodes one block of rows while the next one is rendered."""

    def render():
        """(preference, texts, prompt characters)"""
        for p in preferences:
            if not all(response and response[-1]["content"].strip() for response in p.responses):
                left_out["empty side"] += 1  # the whole row, whatever else is in it; so with the other reasons
                continue
            if not p.pairs():
                left_out["all tied"] += 1
                continue
            try:
                yield p, *tokenizer.render_responses(p.prompt, p.responses)
            except DataError as e:
                if not skip_bad_rows:
                    raise DataError(f"{p.where}: {e}") from None
                left_out["refused by the template"] += 1

    rendered, waiting = render(), []
    bar = tqdm(desc="tokenizing", unit=" rows", delay=3, leave=False, disable=not sys.stderr.isatty())
    with bar, ThreadPoolExecutor(max_workers=1) as thread:
        while True:
            if block := list(itertools.islice(rendered, 256)):
                texts = [text for _, texts, _ in block for text in texts]
                waiting.append((block, thread.submit(tokenizer.encode, texts)))
            if not waiting:
                return
            if not block or len(waiting) > 1:
                before, encodings = waiting.pop(0)
                encoded = iter(encodings.result())
                for p, texts, prompt_chars in before:
                    yield p, list(itertools.islice(encoded, len(texts))), prompt_chars
                bar.update(len(before))


@contextlib.contextmanager
def _output(folder: Path | None, name: str):
    """A new file in the folder, or memory."""
    if folder is None:
        yield io.BytesIO()
    else:
        with open(folder / name, "wb") as file:
            yield file


def _mapped(path: Path):
    """A file as bytes that are read when they are asked for."""
    with open(path, "rb") as file:  # an empty one cannot be mapped
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""


def cached_preferences(folder: Path, *args, **options) -> tuple[Pairs, dict]:
    """encode_preferences, once for all processes and runs: what it makes is kept in this folder. The process that
    comes first does it and the others wait; if it dies, the next one does."""
    def write(temporary: Path):
        pairs, audit = encode_preferences(*args, folder=temporary, **options)
        about = {"audit": audit, "fingerprint": pairs.fingerprint}
        (temporary / "about.json").write_text(json.dumps(about), encoding="utf-8")

    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.with_suffix(".lock"), "w") as lock:
            with contextlib.suppress(ImportError):  # on Windows nobody waits, and each does it
                import fcntl

                fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed, or the process gone
            if not folder.exists():
                write_folder(folder, write)
    try:
        about, pairs = json.loads((folder / "about.json").read_text("utf-8")), Pairs.open(folder)
        pairs.fingerprint = about["fingerprint"]
        if len(pairs.ids) != pairs.offsets[-1] or len(pairs.tag_text) != pairs.tag_offsets[-1]:
            raise ValueError("a file of another length")
        return pairs, about["audit"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as e:
        raise DataError(f"{folder}: this cache is damaged ({e}); delete the folder") from None


def write_folder(folder: Path, write) -> None:
    """Call write(temporary folder), sync what it wrote, give it its name: complete or not there at all.

    Into a folder that exists the files move one by one in the order of their names, so model.safetensors comes behind
    the config it needs.
    """
    temporary = folder / "tmp" if folder.exists() else folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        write(temporary)
    except BaseException:  # a full disk, say: what was there before stays, and half a folder helps nobody
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    umask = os.umask(0)
    os.umask(umask)
    for file in temporary.iterdir():
        file.chmod(0o666 & ~umask)  # safetensors writes files that only their owner may read
        _sync(file)
    _sync(temporary)
    if folder.exists():
        for file in sorted(temporary.iterdir()):
            os.replace(file, folder / file.name)
        temporary.rmdir()
    else:
        os.rename(temporary, folder)
    _sync(folder.parent)  # the new name too


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def audit_of(pairs: Pairs, texts: np.ndarray, left_out: dict[str, int], truncated: int) -> dict:
    """What the kept rows look like, beside what was left out.  texts: (S,) 64 bits of prompt and response."""
    sides = np.ascontiguousarray(pairs.of_pairs(texts))  # (n, 2)
    both = np.dtype([("winner", np.uint64), ("loser", np.uint64)])
    different = np.unique(sides.view(both))
    reversed_ones = np.ascontiguousarray(different.view(np.uint64).reshape(-1, 2)[:, ::-1]).view(both)
    lengths = pairs.lengths()
    longer = np.sign(lengths[:, 0] - lengths[:, 1])
    tokens = {f"p{q}": int(np.percentile(lengths.max(1), q)) for q in (50, 90, 99, 100)} if pairs.rows else {}
    return {
        "read": pairs.rows + sum(left_out.values()),
        "kept": pairs.rows,
        "left_out": left_out,
        "pairs": len(pairs),
        "prompts": len(np.unique(pairs.prompt_key)),
        "duplicates": len(pairs) - len(different),
        "contradictions": int(np.isin(reversed_ones, different).sum()) // 2,
        "prompt_truncated": truncated,
        "longest_side_tokens": tokens,
        "longer_wins": float((longer > 0).mean() + (longer == 0).mean() / 2) if pairs.rows else None,
    }


def describe_audit(name: str, audit: dict) -> str:
    """The audit in two lines for a terminal."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in audit["left_out"].items() if count)
    of = "pairs" if audit["pairs"] == audit["kept"] else "rows"
    line = f"{name}: {audit['read']} {of} read = {audit['kept']} kept + {sum(audit['left_out'].values())} left out"
    line += (f" ({reasons})" if reasons else "") + (f"; {audit['pairs']} pairs" if of == "rows" else "")
    if not audit["kept"]:
        return line
    tokens = " / ".join(str(v) for v in audit["longest_side_tokens"].values())
    return (
        f"{line}; {audit['prompts']} prompts\n  {audit['duplicates']} duplicates, {audit['contradictions']} "
        f"contradictions (kept), {audit['prompt_truncated']} with a shortened prompt; tokens p50/p90/p99/max {tokens}; "
        f"the longer side wins {audit['longer_wins']:.1%}"
    )


# ---------------------------------------------------------------- batches


class Trees(NamedTuple):
    """How the tokens of one row hang together in the shared-prompt form, see `pack`."""

    position_ids: Tensor  # (T,)
    branch: Tensor  # (T,) 0 in a prompt, 1 … K in its responses
    last: Tensor  # (N,) where each sequence ends
    parts: list[list[int]]  # of each tree: tokens of its prompt, and of every rest behind it; T in all
    longest: int  # tokens of the longest sequence

    def to(self, device) -> "Trees":
        on = {name: getattr(self, name).to(device) for name in ("position_ids", "branch", "last")}
        return self._replace(**on)


class Batch(NamedTuple):
    """N sequences as the model takes them, padded on the right or, with trees, in one row; and B pairs of them."""

    input_ids: Tensor  # (N, T); or (1, T) with trees
    attention_mask: Tensor | None  # (N, T)
    trees: Trees | None
    chosen: Tensor  # (B,) which of the N is the better one of each pair
    rejected: Tensor  # (B,) and which the worse
    margin: Tensor  # (B,)
    weight: Tensor  # (B,) the pairs of one row weigh 1 together
    rows: int  # 0: it stands in for a rank that has nothing to do

    def to(self, device) -> "Batch":
        return Batch(*(part.to(device) if hasattr(part, "to") else part for part in self))


def pad_right(sequences: list[np.ndarray], pad_id: int) -> tuple[Tensor, Tensor]:
    """Sequences -> input_ids and attention_mask, (N, T) int64, padded on the right."""
    lengths = torch.tensor([len(s) for s in sequences])
    input_ids = torch.full((len(sequences), int(lengths.max())), pad_id)
    for row, sequence in zip(input_ids, sequences):
        row[: len(sequence)] = torch.from_numpy(np.asarray(sequence, dtype=np.int64))
    return input_ids, (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()


def collate(pairs: Pairs, rows: np.ndarray, pad_id: int, shared_prompts: bool = False) -> Batch:
    """These rows, with all their sequences and pairs, as one Batch."""
    groups, chosen, rejected, margin, weight, before = [pairs.row(r) for r in rows], [], [], [], [], 0
    for r, group in zip(rows, groups):
        mine = slice(pairs.row_pairs[r], pairs.row_pairs[r + 1])
        chosen.append(pairs.chosen[mine] - pairs.row_sequences[r] + before)
        rejected.append(pairs.rejected[mine] - pairs.row_sequences[r] + before)
        margin.append(pairs.margin[mine])
        weight.append(np.full(len(margin[-1]), 1 / len(margin[-1]), dtype=np.float32))
        before += len(group)
    of_pairs = [torch.from_numpy(np.concatenate(parts)) for parts in (chosen, rejected, margin, weight)]
    if shared_prompts:
        input_ids, trees = pack(groups)
        return Batch(input_ids, None, trees, *of_pairs, len(rows))
    return Batch(*pad_right([s for group in groups for s in group], pad_id), None, *of_pairs, len(rows))


# ---------------------------------------------------------------- speed: the shared-prompt form


def pack(groups: list[list[np.ndarray]]) -> tuple[Tensor, Trees]:
    """Groups of sequences that begin alike -> one row without padding, the beginning of each group in it once.

        [ prompt | rest of sequence 1 | … | rest of sequence K ][ next group … ]         one tree a group

    In the plain form a pair's prompt is computed twice and short pairs are padded to long ones. Here every token is
    computed once: positions go on from the prompt's end in each rest, and attention (model.TreeAttention) lets a token
    see the prompt and its own rest only, so rewards and gradients are those of the plain form. What is shared are the
    equal leading token ids, whatever they mean; none at all is fine, and so is a sequence that another one begins with.

    Returns: input_ids (1, T) int64, and the trees, `last` in the order of the sequences.
    Raises:  ValueError on an empty sequence.
    """
    if not all(len(s) for sequences in groups for s in sequences):
        raise ValueError("an empty sequence has no last token to read a reward at")
    ids, positions, branches, last, parts, end = [], [], [], [], [], 0
    for sequences in groups:
        shared = common_prefix(sequences)
        starts, ends = [0] + [shared] * len(sequences), [shared, *map(len, sequences)]
        for branch, (sequence, a, b) in enumerate(zip([sequences[0], *sequences], starts, ends)):
            ids.append(sequence[a:b])
            positions.append(np.arange(a, b))
            branches.append(np.full(b - a, branch))
        tokens = np.subtract(ends, starts)  # of the prompt and the rests
        place = end + np.cumsum(tokens) - 1  # of the last token of each
        last += np.where(tokens > 0, place, place[0])[1:].tolist()  # no rest: it ends where the prompt does
        parts.append(tokens.tolist())
        end += tokens.sum()
    row, position_ids, branch = (torch.from_numpy(np.concatenate(pieces).astype(np.int64))
                                 for pieces in (ids, positions, branches))
    longest = max(len(s) for sequences in groups for s in sequences)
    return row[None], Trees(position_ids, branch, torch.tensor(last), parts, longest)


@functools.lru_cache(maxsize=2)
def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of n rows in one epoch: a permutation that depends on seed and epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(n)


def step_batches(
    pairs: Pairs, step: int, batch_size: int, accumulation: int = 1, rank: int = 0, ranks: int = 1, seed: int = 0,
    tokens_per_batch: int | None = None, shared_prompts: bool = True,
) -> tuple[list[np.ndarray], int]:
    """This rank's micro-batches (arrays of row numbers) of optimizer step 0, 1, …, and how many rows the step has.

    A function of the step number alone, so resuming needs no cursor but the step. The rows of a step do not depend
    on accumulation and ranks, which only share them out, each row once: sorted by length, then dealt like cards, so
    that micro-batches and ranks have about the same to do. (Without shared prompts they are cut into runs of similar
    length, so that there is little padding.) With tokens_per_batch there are as many micro-batches as it takes for
    each to hold at most so many tokens, prompts counted once, or a single row. An epoch's last step may be smaller;
    all ranks have equally many micro-batches even then (sharded models are put together in every one), but the last
    one may be empty.
    """
    per_epoch = math.ceil(pairs.rows / batch_size)
    epoch, place = divmod(step, per_epoch)
    index = epoch_order(pairs.rows, seed, epoch)[place * batch_size : (place + 1) * batch_size]
    first, behind = pairs.row_sequences[index], pairs.row_sequences[index + 1]
    tokens = pairs.offsets[behind] - pairs.offsets[first] - (behind - first - 1) * pairs.prompt_tokens[index]
    order = np.argsort(-tokens, kind="stable")
    index, tokens = index[order], tokens[order]
    count = accumulation * ranks
    while tokens_per_batch and count < len(index) and tokens[::count].sum() > tokens_per_batch:  # the largest hand
        count += ranks
    hands = [index[i::count] for i in range(count)] if shared_prompts else np.array_split(index, count)
    return hands[rank::ranks][: math.ceil(min(count, len(index)) / ranks)], len(index)


# ---------------------------------------------------------------- the toy world

# A world whose true reward is known, so that what a reward model learned can be held against it. Held-out prompts are
# new wordings of the same 20 questions: it shows whether the reward is learned, not whether new facts are. A topic has
# its question, its answers, and what may be added. The additions are all of a length, and so are courtesy and
# rudeness, so that how long a response is says nothing about how good it is.
TOPICS = {
    "capital": ("What is the capital of {}?", "France Paris, Japan Tokyo, Egypt Cairo, Peru Lima, Cuba Havana",
                ["Its government meets there.", "Many trains go there.", "Its airport is large."]),
    "colour": ("Which colour is {}?", "grass green, snow white, blood red, coal black, gold yellow",
               ["Painters mix it often.", "You see it outdoors.", "Light makes it so."]),
    "opposite": ("What is the opposite of {}?", "hot cold, big small, fast slow, hard soft, early late",
                 ["Both words are common.", "The words are adjectives.", "Dictionaries list them together."]),
    "baby": ("What is a young {} called?", "dog puppy, cat kitten, cow calf, horse foal, sheep lamb",
             ["Its mother feeds it.", "It grows up quickly.", "It sleeps a lot."]),
}
ANSWERS = {topic: dict(f.split() for f in facts.split(", ")) for topic, (_, facts, _) in TOPICS.items()}
POLITE = ["Thank you for asking.", "I am happy to help.", "That is a good question."]
RUDE = ["You ask too much.", "I am tired of you.", "That is a stupid question."]
OPENERS = ["", "Hello.", "Good morning.", "Quick question.", "I am curious.", "I forgot this.", "Please help me.",
           "My teacher asked me.", "We play a quiz.", "My son wants to know."]
CLOSERS = ["", "Thanks.", "Please answer.", "Tell me.", "I have to know.", "Nobody here knows."]


def gold_reward(prompt: str, response: str) -> float:
    """The toy world's true reward, in nats. What is right depends on the prompt, and so does what is off the point."""
    for topic, (question, _, additions) in TOPICS.items():
        for thing, answer in ANSWERS[topic].items():
            if question.format(thing) in prompt:
                reward = 3.0 if f"It is {answer}." in response else -3.0
                reward += 1.5 * any(p in response for p in POLITE) - 1.5 * any(r in response for r in RUDE)
                for other, (_, _, sentences) in TOPICS.items():  # on the topic it explains, off the topic it rambles
                    reward += (1.0 if other == topic else -1.0) * sum(s in response for s in sentences)
                return reward
    raise ValueError(f"no question of the toy world: {prompt!r}")


def toy_prompt(rng: random.Random) -> tuple[str, str, str]:
    """A random prompt of the toy world, its topic and its right answer."""
    topic = rng.choice(list(TOPICS))
    thing, answer = rng.choice(list(ANSWERS[topic].items()))
    parts = rng.choice(OPENERS), TOPICS[topic][0].format(thing), rng.choice(CLOSERS)
    return " ".join(filter(None, parts)), topic, answer


def toy_response(topic: str, answer: str, rng: random.Random) -> str:
    """A random response: half of them are right, half of what they add is to the point."""
    if rng.random() < 0.5:
        other = topic if rng.random() < 0.5 else rng.choice([t for t in TOPICS if t != topic])
        answer = rng.choice([a for a in ANSWERS[other].values() if a != answer])
    parts = [rng.choice(rng.choice([POLITE, RUDE, [""], [""]])), f"It is {answer}."]
    for _ in range(rng.choice([0, 1, 2])):
        other = topic if rng.random() < 0.5 else rng.choice([t for t in TOPICS if t != topic])
        parts.append(rng.choice(TOPICS[other][2]))
    return " ".join(filter(None, parts))


def toy_preferences(n: int, seed: int, pairs_per_prompt: int = 8) -> Iterator[dict]:
    """n rows: prompt, chosen, rejected and both gold rewards; the label is drawn from σ(r*_a − r*_b)."""
    rng = random.Random(seed)
    for i in range(n):
        if i % pairs_per_prompt == 0:
            prompt, topic, answer = toy_prompt(rng)
        a = b = toy_response(topic, answer, rng)
        while b == a:
            b = toy_response(topic, answer, rng)
        gold = {response: gold_reward(prompt, response) for response in (a, b)}
        if rng.random() > 1 / (1 + math.exp(gold[b] - gold[a])):
            a, b = b, a
        yield {"prompt": prompt, "chosen": a, "rejected": b, "gold_chosen": gold[a], "gold_rejected": gold[b]}
