"""data.py: files of human choices in, batches of token ids out.  Read after model.py.

One row of preference data says: for this prompt, this response was chosen over that one. Four
things happen to it before a model sees it, and each has its classic mistake:

    read      JSON -> Row: a prompt and its responses as chat messages, and what orders them
    render    messages -> text: a model has to be trained on the very text that it scores later
    encode    text -> ids: one BOS where the model expects one, one end token, the reward read there
    batch     all responses of some rows, padded on the right, and which two of them are a pair

Nothing is left out silently: rows read = rows kept + rows left out, counted by reason.

Most rows hold two responses: one pair. A row of K responses gives all pairs that are not tied, and
together they weigh as much as one pair, so a prompt counts once (Ouyang et al. 2022, eq 1: the
1 / (K choose 2)).

Shapes: R sequences in a batch, each in a row of its own: two for a pair
        T tokens of the longest   B pairs in a batch
"""
import collections
import dataclasses
import functools
import gzip
import hashlib
import itertools
import json
import math
import re
import string
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
import torch
from torch import Tensor
from tqdm import tqdm

Messages = list[dict]  # [{"role": "user", "content": "…"}, …]


class DataError(ValueError):
    """A file, row or tokenizer that cannot be used. One line names file, row and field."""

    reason = "malformed"  # one of REASONS, where the row is left out


class TemplateRefusal(DataError):
    """A row that the chat template does not take."""

    reason = "refused by the template"


# ---------------------------------------------------------------- read: JSON -> Row


@dataclasses.dataclass
class Row:
    """Responses to one prompt, and what is known about them."""

    prompt: Messages  # empty where texts are compared that answer nothing
    responses: list[Messages]  # what follows the prompt: usually one turn of the assistant
    scores: list[float]  # only their order counts; empty where nothing orders the responses
    where: str  # "file:line"
    raw: dict  # the row as it was read; it may have an id, a source, a subset
    margin: float = 0.0  # by how much the better response of a pair should win, in nats
    gold: list[float] = dataclasses.field(default_factory=list)  # the true rewards, if known
    tools: list | None = None  # functions that the assistant may call, for the chat template
    notes: list[str] = dataclasses.field(default_factory=list)  # what the audit should mention


# The fields of a native row. A row with another field goes through extras/layouts/.
NATIVE = {
    "prompt", "chosen", "rejected", "response", "responses", "scores", "ranks", "margin",
    "gold_chosen", "gold_rejected", "id", "source", "subset", "tools",
}


def parse_row(raw: dict, where: str = "row", layout: dict | None = None) -> Row:
    """One JSON object -> Row. Training, report, score and rank all read a row here.

        prompt                        text, or messages
        chosen, rejected              text, or messages that start with the assistant's
        responses, scores or ranks    K responses; rank 1 is the best (the command rank needs none)
        response                      one response, for the command score
        margin, id, source, subset    optional

    Args:   layout: what --prompt-field and other options say about rows in another layout.
    Raises: DataError naming row and field.
    """
    row, notes = raw, []
    if layout or not is_native(raw):
        from extras import layouts

        row = layouts.to_native(raw, where, layout, notes)
    prompt = to_messages(row["prompt"], "user", where, "prompt")
    fields, scores = responses_of(row, where)
    responses = []
    for field, value in fields.items():
        responses.append(read_response(value, prompt, where, field))
    read = Row(prompt, responses, scores, where, raw)
    read.gold = gold_of(row, where)
    read.tools = row.get("tools")
    read.notes = notes
    if row.get("margin") is not None:
        read.margin = to_number(row["margin"], where, "margin")
    return read


def is_native(row):
    """Whether the row is as parse_row describes it, and nothing in it has to be translated."""
    if not row.get("prompt") or not row.keys() <= NATIVE or "tools" in row:
        return False
    responses = [row[field] for field in ("chosen", "rejected", "response") if field in row]
    if isinstance(row.get("responses"), list):
        responses += row["responses"]
    if not responses or any(map(is_dialogue, responses)):
        return False
    first = first_of(row["prompt"])
    if isinstance(first, str):
        return not is_transcript(first)
    # ShareGPT says "from" for the role, and "human" for the user.
    return not isinstance(first, dict) or first.get("role") in ("system", "user", "assistant")


def is_dialogue(response):
    """Whether a response is more than an answer: a whole dialogue, or several answers."""
    if isinstance(response, str):
        return is_transcript(response)
    first = first_of(response)
    # An answer may begin with what a tool said. A dialogue begins with the system or the user.
    return not isinstance(first, dict) or first.get("role") not in ("assistant", "tool")


def is_transcript(text):
    """Whether a text has several turns in it: Anthropic's, HelpSteer2's, or messages as JSON."""
    return text.lstrip().startswith(("Human:", "[{")) or MARKS.search(text) is not None


# How transcripts mark who speaks. In a text that is one turn they are worth a note.
MARKS = re.compile(r"<extra_id_\d>|\n\n(Human|Assistant):|### (Human|Assistant|User):")


def first_of(value):
    """The first item of a list; another value as it is."""
    return value[0] if isinstance(value, list) and value else value


def responses_of(row, where):
    """The responses of a native row by field, and their scores: higher is better."""
    kinds = [field for field in ("chosen", "response", "responses") if field in row]
    if len(kinds) > 1:
        raise DataError(f"{where}: both {kinds[0]!r} and {kinds[1]!r}: which of them counts?")
    if "responses" not in row and (row.get("scores") or row.get("ranks")):
        raise DataError(f"{where}: 'scores' or 'ranks' without 'responses'")
    if not row.keys() & {"response", "responses"}:
        for field in ("chosen", "rejected"):
            if field not in row:
                raise DataError(f"{where}: no field {field!r} (found: {', '.join(row)})")
        return {"chosen": row["chosen"], "rejected": row["rejected"]}, [1.0, 0.0]
    if "response" in row:
        return {"response": row["response"]}, []
    values = row["responses"]
    if not isinstance(values, list) or not values:
        raise DataError(f"{where}: field 'responses' is not a non-empty list")
    fields = {f"responses[{i}]": value for i, value in enumerate(values)}
    return fields, scores_of(row, len(values), where)


def read_response(value, prompt, where, field):
    """A response as messages. They have to follow the prompt, and to end with the assistant's."""
    response = to_messages(value, "assistant", where, field)
    if response and response[-1]["role"] != "assistant":
        last = response[-1]["role"]
        raise DataError(f"{where}: field {field!r} ends with a turn of {last!r}")
    if response and prompt and prompt[-1]["role"] == response[0]["role"]:
        by = "the assistant" if response[0]["role"] == "assistant" else repr(response[0]["role"])
        raise DataError(f"{where}: field 'prompt' already ends with a turn of {by}")
    return response


def gold_of(row, where):
    """The true rewards of a pair, where the row has them."""
    if "gold_chosen" not in row or "chosen" not in row:
        return []
    fields = ("gold_chosen", "gold_rejected")
    return [to_number(row.get(field), where, field) for field in fields]


def scores_of(row, count, where):
    """The numbers that order the responses, or none."""
    if row.get("scores") is not None and row.get("ranks") is not None:
        raise DataError(f"{where}: both 'scores' and 'ranks': which of them counts?")
    for field, sign in (("scores", 1), ("ranks", -1)):  # rank 1 is the best
        numbers = row.get(field)
        if numbers is None:
            continue
        if not isinstance(numbers, list) or len(numbers) != count:
            raise DataError(f"{where}: field {field!r} is not a list of one number a response")
        return [sign * to_number(number, where, field) for number in numbers]
    return []


def to_messages(value, role, where, field):
    """Text (said by `role`), one message, or a list of messages -> messages. Blank text: none.

    A message keeps all its fields (tool_calls, reasoning_content, …): chat templates read them.
    """
    if isinstance(value, str):
        value = [{"role": role, "content": value}] if value.strip() else []
    messages = []
    for message in value if isinstance(value, list) else [value]:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DataError(f"{where}: field {field!r} is neither text nor chat messages")
        # Role and content first: equal prompts have equal hashes, in whatever order they came.
        read = {"role": message["role"], "content": content_of(message, where, field)}
        for name, more in message.items():
            if name not in read and more is not None:  # tables have null where nothing is
                read[name] = more
        try:
            json.dumps(read, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            problem = "half of a surrogate pair, or a byte that is not UTF-8"
            raise DataError(f"{where}: field {field!r} holds {problem}") from None
        messages.append(read)
    return messages


def content_of(message, where, field):
    """The text of a message: a text, or parts [{"type": "text", "text": …}, …] put together."""
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return ""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = []
    for part in parts:
        part = part if isinstance(part, dict) else {}
        text, kind = part.get("text"), part.get("type")
        if part.get("image") or part.get("image_url"):
            kind = "image"
        if kind != "text" and isinstance(kind, str):
            raise DataError(f"{where}: field {field!r} has a part {kind!r}; only text is read here")
        if not isinstance(text, str):
            raise DataError(f"{where}: field {field!r} is neither text nor chat messages")
        texts.append(text)
    return "".join(texts)


def to_number(value, where, field):
    """A number that float32 can hold.  Raises: DataError."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not abs(value) < 1e30:  # NaN is not below 1e30 either
        shown = repr(str(value)[:30])
        more = " (it is text)" if isinstance(value, str) else ""
        problem = f"is {shown}, not a number that float32 holds{more}"
        raise DataError(f"{where}: field {field!r} {problem}")
    return float(value)


def read_rows(paths, skip_bad_rows=False, audit=None, layout=None):
    """The rows of some files, one after the other: memory does not grow with the files.

    Raises: DataError at the first bad row; with skip_bad_rows the audit counts it instead.
            Broken JSON always stops: nobody knows what the lines after it mean.
    """
    for path in paths:
        for where, raw in grouped(json_rows(path), skip_bad_rows, audit):
            try:
                yield parse_row(raw, where, layout)
            except DataError as e:
                if not skip_bad_rows:
                    raise
                if audit:
                    audit.leave_out(e)


def grouped(rows, skip_bad_rows, audit):
    """The rows of a file as they are. Rows of one answer and its grade are grouped by prompt."""
    first = next(rows)  # json_rows gives at least one
    rows = itertools.chain([first], rows)
    if "response" in first[1]:
        from extras import grouping

        if grouping.is_scored_answer(first[1]):
            return grouping.group(rows, skip_bad_rows, audit)
    return rows


def layout_options(args):
    """What the command line says about rows in another layout: only the options that are given."""
    given = {}
    for name in ("prompt_field", "chosen_field", "rejected_field", "margin_from_scores"):
        value = getattr(args, name, None)
        if value is not None and value is not False:
            given[name.removesuffix("_field")] = value
    return given


def json_rows(path):
    """("file:line", object) of each line of a .jsonl or .jsonl.gz file.  Raises: DataError."""
    name = str(path)
    if name.lower().endswith((".jsonl", ".jsonl.gz")) and not name.startswith("hub:"):
        open_file = gzip.open if name.lower().endswith(".gz") else open
        where = None  # the last row that was given: nobody may get it twice
        try:
            with open_file(path, "rt", encoding="utf-8-sig", newline="\n") as lines:
                start = up_to_text(lines)
                first = "".join(start[-1:]).strip("\ufeff \t\n")
                if first.startswith("{") and "\r" not in first.rstrip("\r"):
                    for where, row in parse_lines(itertools.chain(start, lines), name):
                        yield where, row
                    return
        except (UnicodeDecodeError, gzip.BadGzipFile) as e:
            if where:
                raise DataError(f"{where} is the last row that can be read ({e})") from None
            # else sources says what it is
        except (OSError, EOFError, zlib.error) as e:
            raise DataError(f"{path}: {getattr(e, 'strerror', None) or e}") from None
    from extras import sources  # folders, tables, arrays, files on the hub, and what is no data

    yield from sources.json_rows(name)


def up_to_text(lines):
    """The lines up to the first one with text: it decides what a file holds.

    They are kept, because a pipe can be read only once.
    """
    start = []
    for line in lines:
        start.append(line)
        if line.strip():
            break
    return start


def load_json(text):
    """The value of a JSON text.  Raises: ValueError where a key is there twice, and at NaN."""
    return json.loads(text, **STRICT)


def each_key_once(pairs):
    """The (key, value) of an object -> the object. Python's own reader keeps the last of two."""
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return value


def refuse_constant(name):
    raise ValueError(f"{name} is not JSON")


def finite_float(text):
    """1e999 would become infinity, and JSON cannot write that again."""
    if math.isinf(float(text)):
        raise ValueError(f"{text} is too large a number")
    return float(text)


STRICT = {
    "object_pairs_hook": each_key_once,
    "parse_constant": refuse_constant,
    "parse_float": finite_float,
}


def parse_lines(lines, name):
    """Lines of one JSON object each -> ("name:line", object).  Raises: DataError."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = load_json(line.removeprefix("\ufeff"))
        except (ValueError, RecursionError) as e:
            advice = ""
            if line.rstrip().endswith(("{", "[", ",")):
                advice = "; JSON over several lines is read from a file named .json"
            raise DataError(f"{name}:{number}: not JSON ({e}){advice}") from None
        if not isinstance(value, dict):
            raise DataError(f"{name}:{number}: not a JSON object (an array belongs in .json)")
        yield f"{name}:{number}", value


# ---------------------------------------------------------------- the held-out split


def prompt_hash(row, seed=0):
    """A 64-bit hash of the prompt. Without a prompt: of the responses, in any order."""
    identity = row.prompt
    if not identity:
        identity = sorted(json.dumps(response) for response in row.responses)
    return text_hash(json.dumps([seed, identity]))


def text_hash(text):
    """64 bits for a text. That any two of a million are equal has a chance of 3 in 100 million."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def held_out_prompts(rows, fraction, seed):
    """The hashes of the prompts to hold out: the smallest round(fraction · prompts), at least one.

    A row follows its prompt, so no prompt is trained on and evaluated on: a model looks better
    than it is on prompts that it has seen. A row that is added moves hardly any other.

    Raises: DataError where there are too few prompts for two sides.
    """
    hashes = np.array([prompt_hash(row, seed) for row in rows], dtype=np.uint64)
    prompts = np.unique(hashes)  # sorted
    count = max(1, round(fraction * len(prompts)))
    if len(prompts) <= count:
        raise DataError(f"too few prompts to hold some out: {len(prompts)}; give --eval-data")
    return set(prompts[:count].tolist())


# ---------------------------------------------------------------- render and encode: the tokenizer

# To learn a tokenizer from one word (or gap) of a million characters takes more than a minute.
LONG_WORD = re.compile(r"(\S{1000}|\s{1000})")

# What render writes, for tools that render with a chat template (transformers, vLLM). "Assistant:"
# has no space after it: tokenizers put the space before a word into the token of that word.
CHAT_TEMPLATE = (
    "{{ BOS }}{% for message in messages %}{{ '\n' if not loop.first else '' }}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\nAssistant:' if messages else 'Assistant:' }}"
    "{% else %}{{ eos_token }}{% endif %}"
)


OUR_TEMPLATES = [CHAT_TEMPLATE.replace("BOS", bos) for bos in ("bos_token", "''")]


def is_plain(messages):
    """Whether these messages have no tool calls, thoughts or other fields."""
    return all(message.keys() == {"role", "content"} for message in messages)


# transformers does not take the rules of these classes from tokenizer.json.
OTHER_RULES = ("LlamaTokenizer", "LlamaTokenizerFast", "GPT2Tokenizer", "GPT2TokenizerFast")
PROBE = "aB é 日本 🙂"  # what a tokenizer that keeps everything keeps


def turn_text(message):
    """One turn: "User: …". CHAT_TEMPLATE says the same to other tools: change both."""
    return f"{message['role'].capitalize()}: {message['content']}"


class Tokenizer:
    """tokenizer.json: messages -> text -> ids, in exactly one way. Every text ends like this:

        User: Which colour is grass?
        Assistant: It is green.<eos>          the reward is read at the end token, <eos>

    A folder with a chat template of its own is rendered by extras/chat_template.py.
    pad_id fills a batch. It is never the end token.
    """

    rendering = "without a chat template, as 'User: …'"  # for the log
    as_rendered = False  # True: nothing is cut or added, see extras/chat_template.py

    def __init__(self, backend, config, where="tokenizer"):
        if config.get("split_special_tokens"):
            raise DataError(f"{where}: split_special_tokens is true, so no token ends a text")
        # Some tokenizer.json have padding and truncation baked in, which would cut texts silently.
        if backend.padding:
            config = {"pad_token": backend.padding["pad_token"]} | config
        backend.no_padding()
        backend.no_truncation()
        self.backend, self.config, self.where = backend, config, where
        self.names = special_tokens(config)
        # Some hold "</s>" as ordinary text, which would come apart into "<", "/", …
        known = {token.content for token in backend.get_added_tokens_decoder().values()}
        backend.add_special_tokens([token for token in self.names.values() if token not in known])
        special = [t.content for t in backend.get_added_tokens_decoder().values() if t.special]
        self.special = re.compile("|".join(map(re.escape, special)) or "(?!)")  # never
        self.bos = self.find_bos()
        self.end_token = self.find_end_token()
        self.end_id = backend.token_to_id(self.end_token)
        if not self.as_rendered and self.encode(["x"])[0][-1] != self.end_id:
            raise DataError(f"{where}: {self.end_token!r} does not come out as one token")
        self.pad_id = self.find_pad_id()
        self.saved_pad_id = self.pad_id  # config.json's; transformers reads the reward before it
        self.is_lossless = False
        self.is_lossless = self.keeps(PROBE, self.encode([PROBE])[0])
        self.max_length = int(config.get("model_max_length") or 2**31)
        if self.max_length <= 0:
            raise DataError(f"{where}: model_max_length is {self.max_length}")

    def render(self, messages, add_generation_prompt=False, tools=None):
        """The text of a dialogue; add_generation_prompt: up to where the answer begins."""
        lines = list(map(turn_text, messages))
        if add_generation_prompt:
            return self.bos + "\n".join([*lines, "Assistant:"])
        return self.bos + "\n".join(lines) + self.end_token

    def encode(self, texts):
        """Rendered texts -> ids, int32, with one end token and nothing after it."""
        with_end = []
        for text in texts:
            with_end.append(text if text.endswith(self.end_token) else text + self.end_token)
        encodings = self.backend.encode_batch_fast(with_end, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def encode_row(self, row: Row) -> tuple[list[np.ndarray], int, list[str]]:
        """The sequences of a row, where the response starts in each, and notes for the audit.

        The start is the number of leading ids that all sequences share with the prompt alone. (The
        text of the prompt would not do: a template may rewrite it. Qwen3's puts a think block
        before the last answer.)  Raises: TemplateRefusal.
        """
        prompt_text, texts = self.render_row(row)
        prompt, *sequences = self.encode([prompt_text, *texts])
        start = common_prefix([prompt, *sequences])  # the end token of the prompt alone differs
        notes = self.changes(row, prompt_text, texts)
        if not all(map(self.keeps, texts, sequences)):
            notes.append("a text has characters that the tokenizer cannot write")
        return sequences, start, notes

    def keeps(self, text, ids):
        """Whether the ids still have all characters of the text. Many tokenizers keep any text."""
        if self.is_lossless:
            return True
        decoded = self.backend.decode(ids.tolist(), skip_special_tokens=False)
        return {*text} <= {*decoded, *string.whitespace}

    def render_row(self, row):
        """The text of the prompt alone, and of the prompt with each response."""
        try:
            prompt_text = ""
            if row.prompt:
                prompt_text = self.render(row.prompt, add_generation_prompt=True, tools=row.tools)
            texts = []
            for response in row.responses:
                texts.append(self.render(row.prompt + response, tools=row.tools))
            return prompt_text, texts
        except DataError as e:
            raise TemplateRefusal(f"{row.where}: {e}") from None

    def changes(self, row, prompt_text, texts):
        """Notes on what the texts do not hold as the row has it.

        render writes who speaks and what is said. Tools, tool calls and thoughts are lost.
        """
        notes = []
        if row.tools or not is_plain(row.prompt):
            notes.append("the prompt has tools or thoughts, which are not written")
        if not all(map(is_plain, row.responses)):
            notes.append("a response has tool calls or thoughts, which are not written")
        return notes

    def shorten(
        self, sequences: list[np.ndarray], start: int, max_length: int
    ) -> tuple[list[np.ndarray], int]:
        """Make sequences that share a prompt fit, and say where the response starts now.

        The prompt loses its oldest tokens, the same ones in all sequences. BOS and the assistant's
        header stay. Responses are never cut: half a response teaches the wrong reward.

        Raises: LeftOut where the responses alone are too long.
        """
        excess = max(map(len, sequences)) - max_length
        if excess <= 0:
            return sequences, start
        bos = int(self.bos != "" and sequences[0][0] == self.backend.token_to_id(self.bos))
        if excess >= start - bos - self.header_tokens():
            raise LeftOut("too long")
        shortened = []
        for sequence in sequences:
            shortened.append(np.concatenate((sequence[:bos], sequence[bos + excess :])))
        return shortened, start - excess

    def header_tokens(self):
        """Tokens between the prompt and the response, those of "\nAssistant:"."""
        question = "Who goes there?"
        messages = [{"role": "user", "content": question}]
        _, _, header = self.render(messages, add_generation_prompt=True).rpartition(question)
        return len(self.backend.encode(header, add_special_tokens=False).ids)

    def find_bos(self):
        """The BOS token if this tokenizer puts one before a text, else "".

        It is written once, by render, and encode adds none. A doubled BOS is a text that the
        model never saw.
        """
        bos = self.names.get("bos_token", "")
        adds_bos = self.config.get("add_bos_token")
        if self.config.get("chat_template") in OUR_TEMPLATES:  # a folder that `save` wrote
            adds_bos = "bos_token" in self.config["chat_template"]
        elif adds_bos is None:
            adds_bos = self.backend.token_to_id(bos) in self.backend.encode("").ids
        return bos if adds_bos else ""

    def find_end_token(self):
        """The token that ends every text."""
        if "eos_token" not in self.names:
            named = self.config.get("eos_token")
            cause = f"eos_token {named!r} is not in the vocabulary" if named else "no eos_token"
            raise DataError(f"{self.where}: {cause}, so no place to read the reward at")
        return self.names["eos_token"]

    def find_pad_id(self):
        """A token for padding that no text ends with, and that the model has an embedding for.

        transformers finds the last token by comparing ids with the pad's: a pad that is the end
        token too moves the reward. (Some pads were added without a row in the embedding.)
        """
        candidates = [self.names.get(f"{name}_token") for name in ("pad", "unk", "bos")]
        ids = [self.backend.token_to_id(token) for token in candidates if token]
        vocab_size = self.config.get("model", {}).get("vocab_size") or 2**31
        for pad_id in (*ids, 0, 1):  # of any two ids one is not the end token
            if pad_id != self.end_id and pad_id < vocab_size:
                return pad_id

    @classmethod
    def from_folder(cls, folder, chat_template=None, head_config=None):
        """Load tokenizer.json and its settings.  Raises: DataError.

        chat_template: a file, or the name of one of several templates of the folder.
        head_config: config.json of a model whose value head is trained already. The reward is
            then read where that head has learned to be read.
        """
        folder = Path(folder)
        config = read_object(folder / "tokenizer_config.json")
        config |= {"model": read_object(folder / "config.json"), "chosen_template": chat_template}
        config["head_config"] = head_config
        try:
            if is_plain_folder(folder, config):
                text = (folder / "tokenizer.json").read_text("utf-8")
                backend = tokenizers.Tokenizer.from_str(text)
            else:
                from extras import tokenizer_folders

                backend, config = tokenizer_folders.read(folder, config)
            return open_tokenizer(backend, config, str(folder))
        except (DataError, KeyboardInterrupt):
            raise
        except BaseException as e:  # the library raises plain Exception, and panics
            reason = getattr(e, "strerror", None) or e
            raise DataError(f"{folder}/tokenizer.json cannot be used ({reason})") from None

    @classmethod
    def train(cls, texts, vocab_size):
        """Byte-level BPE, learned from these texts (Sennrich et al. 2016; Radford et al. 2019)."""
        backend = tokenizers.Tokenizer(tokenizers.models.BPE())
        backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=["<pad>", "<eos>"],
            show_progress=False,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        )
        pieces = itertools.chain.from_iterable(map(LONG_WORD.split, texts))
        backend.train_from_iterator(filter(None, pieces), trainer)
        names = {"pad_token": "<pad>", "eos_token": "<eos>"}
        return cls(backend, {"tokenizer_class": "PreTrainedTokenizerFast"} | names)

    def chat_template(self):
        """The chat template that gives other tools the text of render, end token included."""
        return CHAT_TEMPLATE.replace("BOS", "bos_token" if self.bos else "''")

    def save(self, folder, max_length):
        """Write tokenizer.json and tokenizer_config.json, with template and length limit."""
        config = self.config | {
            "chat_template": self.chat_template(),
            "model_max_length": max_length,
            "padding_side": "right",
        }
        # The template writes BOS and end token. A tool that adds them too would double them.
        config |= self.names | {"add_bos_token": False, "add_eos_token": False}
        if self.saved_pad_id is not None:
            config["pad_token"] = self.backend.id_to_token(self.saved_pad_id)
        for of_this_program in ("model", "chosen_template", "head_config"):
            config.pop(of_this_program, None)
        tokenizer_json = json.loads(self.backend.to_str()) | {"post_processor": None}
        # Not backend.save: on a full disk it raises a bare Exception, not an OSError.
        text = json.dumps(tokenizer_json, indent=2, ensure_ascii=False)
        (Path(folder) / "tokenizer.json").write_text(text, "utf-8")
        text = json.dumps(config, indent=2) + "\n"  # escaped: a template may hold half a character
        (Path(folder) / "tokenizer_config.json").write_text(text, "utf-8")


def read_object(path):
    """A JSON object, or an empty one where there is no such file.  Raises: DataError."""
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as e:
        raise DataError(f"{path}: not a JSON object ({e})") from None


def is_plain_folder(folder, config):
    """Whether tokenizer.json and tokenizer_config.json say everything, and there is both."""
    others = {"special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
              "additional_chat_templates"}
    settings = {"added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"}
    files = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if "tokenizer.json" not in files or files & others or config.keys() & settings:
        return False
    return config.get("tokenizer_class") not in OTHER_RULES


def special_tokens(config):
    """{"bos_token": "<s>", …}: each is a text in the settings, or {"content": "<s>", …}."""
    names = {}
    for name, token in config.items():
        token = token.get("content") if isinstance(token, dict) else token
        if name.endswith("_token") and isinstance(token, str) and token:
            names[name] = token
    return names


def open_tokenizer(backend, config, where):
    """A Tokenizer; extras/chat_template.py's where the folder has a chat template of its own."""
    template = config.get("chat_template")
    if not config.get("chosen_template") and (not template or template in OUR_TEMPLATES):
        tokenizer = Tokenizer(backend, config, where)
        if config.get("head_config") and not template:
            tokenizer.rendering += "; nothing says which texts its trained head has learned to read"
        return tokenizer
    from extras import chat_template

    return chat_template.TemplateTokenizer(backend, config, where)


def common_prefix(sequences):
    """How many leading ids all these sequences share."""
    first, shared = sequences[0], min(map(len, sequences))
    for other in sequences[1:]:
        differs = np.flatnonzero(first[:shared] != other[:shared])
        if len(differs):
            shared = int(differs[0])
    return shared


# ---------------------------------------------------------------- rows -> examples, and the audit


class Example(NamedTuple):
    """One row, tokenized: K sequences that share a prompt."""

    sequences: list[np.ndarray]  # K of (tokens,) int32
    scores: list[float]  # K, or none where nothing orders them
    start: int  # where the response begins in each sequence: the tokens of the prompt
    margin: float = 0.0
    gold: list[float] = []  # K true rewards, or none
    prompt: int = 0  # a hash: equal for equal prompts
    row: Row | None = None  # where it comes from, while that is in memory
    shortened: bool = False  # whether the prompt lost its beginning
    notes: list[str] = []  # what the audit should mention

    def pairs(self) -> list[tuple[int, int]]:
        """(better, worse) of all pairs of sequences that are not tied."""
        pairs = []
        for i in range(len(self.scores)):
            for j in range(len(self.scores)):
                if self.scores[i] > self.scores[j]:
                    pairs.append((i, j))
        return pairs


class LeftOut(Exception):
    """A row that nothing can be learned from. The text is one of REASONS."""


def examples_of(rows, tokenizer, max_length, audit, skip_bad_rows=False):
    """Rows -> examples to learn from or to evaluate on. The audit counts every row.

    Raises: DataError at a row that nothing orders, or that the chat template refuses; with
            skip_bad_rows the audit counts it instead.
    """
    # delay, leave: a bar for long work only. disable=None: on a terminal only.
    for row in tqdm(rows, "tokenizing", unit=" rows", delay=3, leave=False, disable=None):
        try:
            example = tokenize(row, tokenizer, max_length)
            audit.notes.update(example.notes)  # also where the next line leaves it out
            check_order(example)
        except LeftOut as reason:
            audit.left_out[str(reason)] += 1
        except DataError as e:
            if not skip_bad_rows:
                raise
            audit.leave_out(e)
        else:
            audit.add(example)
            yield example


def check_order(example: Example):
    """Raises: LeftOut where nothing can be learned from it; DataError where nothing orders it."""
    if not example.scores:
        where = example.row.where
        raise DataError(f"{where}: no field 'scores' or 'ranks' to order the responses by")
    if len(example.scores) < 2:
        raise LeftOut("one response only")
    pairs = example.pairs()
    if not pairs:
        raise LeftOut("all tied")
    for better, worse in pairs:
        if np.array_equal(example.sequences[better], example.sequences[worse]):
            raise LeftOut("identical responses")


def tokenize(row: Row, tokenizer: Tokenizer, max_length: int) -> Example:
    """Row -> Example. Scoring and ranking need no more.  Raises: LeftOut."""
    for response in row.responses:
        if not response or not (response[-1]["content"].strip() or is_call(response[-1])):
            raise LeftOut("empty response")
    sequences, start, changes = tokenizer.encode_row(row)
    notes = row.notes + changes + odd_texts(row, tokenizer)
    shorter, new_start = tokenizer.shorten(sequences, start, max_length)
    return Example(
        sequences=shorter,
        scores=row.scores,
        start=new_start,
        margin=row.margin,
        gold=row.gold,
        prompt=prompt_hash(row),
        row=row,
        shortened=new_start < start,
        notes=notes,
    )


def is_call(message):
    """Whether the assistant calls a tool, or refuses, instead of saying something."""
    return bool(message.get("tool_calls") or message.get("refusal"))


def odd_texts(row, tokenizer):
    """Notes on texts that are read as they are, and may not be what they seem."""
    notes = []
    if not row.prompt:
        notes.append("there is no prompt")
    if repeats_prompt(row):
        notes.append("a response begins with its whole prompt")
    texts = []
    for messages in (row.prompt, *row.responses):
        texts += [message["content"] for message in messages]
    if any(map(tokenizer.special.search, texts)):
        notes.append("a text holds special tokens, such as an end token, which are read as such")
    if any(map(MARKS.search, texts)):
        notes.append("a turn holds marks of several speakers, such as Human:, and is read as one")
    return notes


def repeats_prompt(row):
    """Whether a response begins with the whole prompt, as some programs write completions."""
    if not row.prompt:
        return False
    prompt = row.prompt[-1]["content"].strip()
    return any(response[0]["content"].strip().startswith(prompt) for response in row.responses)


REASONS = ("malformed", "refused by the template", "empty response", "one response only",
           "all tied", "identical responses", "too long")


class Audit:
    """What was read, kept and left out, and what the labels look like."""

    def __init__(self):
        self.left_out = dict.fromkeys(REASONS, 0)
        self.counts = collections.Counter()
        self.lengths = collections.Counter()  # rows by the tokens of their longest sequence
        self.prompts, self.pairs = set(), set()  # hashes
        self.notes = collections.Counter()  # rows by what is unusual about them

    def leave_out(self, error):
        """Count a bad row. The first one of a kind is shown."""
        if not self.left_out[error.reason]:
            self.notes[f"{error.reason}, the first: {error}"] = 1
        self.left_out[error.reason] += 1

    def add(self, example):
        """Count a row that is kept."""
        lengths = list(map(len, example.sequences))
        responses = example.row.responses
        self.lengths[max(lengths)] += 1
        self.prompts.add(example.prompt)
        self.counts["shortened"] += example.shortened
        self.counts["tokens"] += sum(lengths)
        self.counts["prompt tokens"] += example.start * len(lengths)
        for better, worse in example.pairs():
            self.count_pair(example.prompt, responses[better], responses[worse])
            difference = np.sign(lengths[better] - lengths[worse])
            self.counts["longer wins"] += (1 + difference) / 2  # equal lengths: half

    def count_pair(self, prompt, better, worse):
        """One more pair. Was it, or its reverse, there before?"""
        pair = text_hash(json.dumps([prompt, better, worse]))
        reverse = text_hash(json.dumps([prompt, worse, better]))
        self.counts["pairs"] += 1
        self.counts["duplicates"] += pair in self.pairs
        self.counts["contradictions"] += reverse in self.pairs
        self.pairs.add(pair)

    def summary(self):
        """The figures, for options.json."""
        kept, counts = self.lengths.total(), self.counts
        return {
            "read": kept + sum(self.left_out.values()),
            "kept": kept,
            "left_out": self.left_out,
            "pairs": counts["pairs"],
            "prompts": len(self.prompts),
            "duplicates": counts["duplicates"],
            "contradictions": counts["contradictions"],
            "prompt_shortened": counts["shortened"],
            "notes": dict(self.notes),
            "median_tokens": int(np.median(list(self.lengths.elements()) or [0])),
            "most_tokens": max(self.lengths, default=0),
            "longer_wins": float(counts["longer wins"] / max(1, counts["pairs"])),
            "prompt_share": counts["prompt tokens"] / max(1, counts["tokens"]),
        }


def describe_audit(name, a):
    """An audit's summary, a, in a few lines for a terminal."""
    left_out = f"{a['read'] - a['kept']} left out"
    reasons = [f"{count} {reason}" for reason, count in a["left_out"].items() if count]
    if reasons:
        left_out += f" ({', '.join(reasons)})"
    lines = [
        f"{name}: {a['read']} rows read = {a['kept']} kept + {left_out}",
        f"{a['pairs']} pairs of {a['prompts']} prompts; {a['duplicates']} duplicates, "
        f"{a['contradictions']} contradictions (kept), {a['prompt_shortened']} prompts shortened",
        f"tokens: median {a['median_tokens']}, most {a['most_tokens']}; the longer response wins "
        f"{a['longer_wins']:.1%}",
        f"prompts are {a['prompt_share']:.0%} of all tokens; --pack computes each once",
    ]
    return "\n  ".join(lines + note_lines(a.get("notes", {})))


UNREAD = "field that nobody read: "  # notes that begin so share one line


def note_lines(notes):
    """ "3 rows: the template changed the response …" for each note and its count."""
    lines, unread = [], []
    for note, count in notes.items():
        rows = "1 row" if count == 1 else f"{count} rows"
        if note.startswith(UNREAD):
            unread.append(f"{note.removeprefix(UNREAD)} ({rows})")
        else:
            lines.append(f"{rows}: {note}")
    if unread:
        lines.append(f"fields that nobody read: {', '.join(unread)}")
    return lines


# ---------------------------------------------------------------- tokens in the run folder

# What is known of each sequence, beside its ids.
RECORD = np.dtype([
    ("row", "i8"),  # the number of its row: 0, 1, …
    ("offset", "i8"),  # where its ids begin in ids.bin
    ("tokens", "i8"),
    ("start", "i8"),  # where its response begins
    ("score", "f8"),
    ("margin", "f8"),
    ("gold", "f8"),  # NaN where it is not known
    ("prompt", "u8"),
    ("held_out", "?"),
])


def write_tokens(folder, train, held_out):
    """Write examples into a folder, to be mapped into memory: 4 bytes a token.

    ids.bin has the ids of all sequences, one after the other; records.bin has a RECORD for each;
    rows.txt says where each row comes from.
    """
    number = offset = 0  # of rows and of ids so far
    with (
        open(folder / "ids.bin", "wb") as ids,
        open(folder / "records.bin", "wb") as records,
        open(folder / "rows.txt", "w", encoding="utf-8", errors="replace") as origins,
    ):
        for is_held_out, examples in ((False, train), (True, held_out)):
            for example in examples:
                for record in records_of(example, number, offset, is_held_out):
                    records.write(record.tobytes())
                for sequence in example.sequences:
                    ids.write(sequence.tobytes())
                    offset += len(sequence)
                origins.write(example.row.where + "\n")
                number += 1


def records_of(example, number, offset, is_held_out):
    """A RECORD for each sequence of an example."""
    gold = example.gold or [math.nan] * len(example.sequences)
    for sequence, score, truth in zip(example.sequences, example.scores, gold):
        place = (number, offset, len(sequence), example.start)
        known = (score, example.margin, truth, example.prompt, is_held_out)
        yield np.array(place + known, RECORD)
        offset += len(sequence)


class Examples:
    """The examples of a folder that write_tokens wrote. Their ids stay in the file until needed."""

    def __init__(self, folder):
        self.folder = folder
        damaged = DataError(f"{folder}: ids.bin or records.bin is damaged; delete the folder")
        try:
            self.ids = np.memmap(folder / "ids.bin", np.int32, "r")
        except ValueError:  # half an id
            raise damaged from None
        self.records = np.fromfile(folder / "records.bin", RECORD)
        tokens, start = self.records["tokens"], self.records["start"]
        ends = np.cumsum(tokens)  # the sequences stand one behind the other
        is_whole = len(self.ids) == tokens.sum()
        is_whole &= np.array_equal(self.records["offset"], ends - tokens)
        is_whole &= bool((np.diff(self.records["row"]) >= 0).all())
        if not is_whole or (start < 0).any() or (start >= tokens).any():
            raise damaged
        _, self.begins = np.unique(self.records["row"], return_index=True)
        scores = self.records["score"]
        highest, lowest = (f.reduceat(scores, self.begins) for f in (np.maximum, np.minimum))
        if not (highest > lowest).all():  # a row without a pair was never written
            raise damaged
        self.ends = np.append(self.begins[1:], len(tokens))
        self.lengths = np.maximum.reduceat(tokens, self.begins)  # of the longest sequence of a row

    def __len__(self):
        return len(self.begins)

    def __getitem__(self, number):
        records = self.records[self.begins[number] : self.ends[number]]
        sequences = []
        for record in records:
            offset = record["offset"]
            sequences.append(self.ids[offset : offset + record["tokens"]])
        gold = records["gold"].tolist()
        if math.isnan(gold[0]):
            gold = []
        start, margin, prompt = (records[0][key].item() for key in ("start", "margin", "prompt"))
        return Example(sequences, records["score"].tolist(), start, margin, gold, prompt)

    def numbers(self, held_out):
        """The numbers of the rows to train on, or of those that are held out."""
        return np.flatnonzero(self.records["held_out"][self.begins] == held_out)

    def where(self, numbers):
        """ "file:line" of these rows."""
        lines = (self.folder / "rows.txt").read_text("utf-8").splitlines()
        return [lines[number] for number in numbers]


# ---------------------------------------------------------------- which rows a step learns from


def rows_of_step(row_numbers, step, batch_size, seed):
    """The numbers of the rows that one optimizer step learns from. They follow from the step alone.

    So a resumed run needs no other memory of where it was. An epoch is a permutation of all rows,
    cut into ceil(rows / batch_size) steps of equal size, give or take one: 65 rows by 64 are 33
    and 32.
    """
    count = len(row_numbers)
    steps = math.ceil(count / batch_size)  # of an epoch
    epoch, step_of_epoch = divmod(step, steps)
    order = epoch_order(count, seed, epoch)
    first = step_of_epoch * count // steps
    end = (step_of_epoch + 1) * count // steps
    return row_numbers[order[first:end]]


@functools.lru_cache(maxsize=1)
def epoch_order(count, seed, epoch):
    """The order of an epoch: a permutation that depends on seed and epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def micro_batches(row_numbers, lengths, accumulation, process, processes):
    """This process's share of a step's rows, cut into micro-batches.

    The rows are sorted by length and dealt to the processes like cards, so that all have about
    the same to do. Each process cuts its rows into runs of similar length: little padding. All
    have equally many micro-batches, since sharded models need as many forward passes everywhere.

    Raises: DataError where there are fewer rows than processes.
    """
    count = len(row_numbers)
    if count < processes:
        raise DataError(f"{count} rows in a step, {processes} processes: raise --batch-size")
    longest_first = row_numbers[np.argsort(-lengths[row_numbers], kind="stable")]
    mine = longest_first[process::processes]
    # At least one row in every micro-batch of every process.
    return np.array_split(mine, min(accumulation, count // processes))


# ---------------------------------------------------------------- batches


@dataclasses.dataclass
class Batch:
    """Sequences as the model takes them, padded on the right, and the pairs among them."""

    input_ids: Tensor  # (R, T)
    attention_mask: Tensor  # (R, T)
    start: Tensor  # (R, 1) where each response begins. The reward does not need it; pooling would
    chosen: Tensor  # (B,) which of the sequences is the better one of each pair
    rejected: Tensor  # (B,) and which is the worse one
    margin: Tensor  # (B,) nats
    weight: Tensor  # (B,) they sum to 1 over all batches of a step

    def inputs(self):
        """What the model is called with: model(**batch.inputs())."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}

    def to(self, device):
        """The same batch on a device."""
        moved = {name: value.to(device) for name, value in vars(self).items()}
        return dataclasses.replace(self, **moved)


def batch_function(pack):
    """What makes a batch of examples: collate, or extras/packing.py's with --pack.

    Every batch is made by this function: in training, evaluation, report, score and rank.
    """
    if pack:
        from extras import packing

        return packing.collate
    return collate


def collate(examples: list[Example], pad_id: int, rows_in_step: int = 1) -> Batch:
    """Examples -> one batch, each sequence in a row of its own."""
    sequences, starts = [], []
    for example in examples:
        sequences += example.sequences
        starts += [example.start] * len(example.sequences)
    input_ids, attention_mask = pad_right(sequences, pad_id)
    start = torch.tensor(starts)[:, None]  # (R, 1)
    return Batch(input_ids, attention_mask, start, **pairs_of(examples, rows_in_step))


def pairs_of(examples, rows_in_step):
    """chosen, rejected, margin and weight of all pairs of a batch, (B,) each.

    The pairs of a row weigh 1 / rows_in_step together. So Σ weight · loss, added up over all
    micro-batches and processes, is the mean loss of the step, however the step was cut.
    """
    chosen, rejected, margin, weight = [], [], [], []
    before = 0  # sequences of earlier examples
    for example in examples:
        pairs = example.pairs()
        for better, worse in pairs:
            chosen.append(before + better)
            rejected.append(before + worse)
            margin.append(example.margin)
            weight.append(1 / (len(pairs) * rows_in_step))
        before += len(example.sequences)
    return {
        "chosen": torch.tensor(chosen, dtype=torch.long),
        "rejected": torch.tensor(rejected, dtype=torch.long),
        "margin": torch.tensor(margin, dtype=torch.float32),
        "weight": torch.tensor(weight, dtype=torch.float32),
    }


def pad_right(sequences, pad_id):
    """Sequences -> input_ids and attention_mask, (R, T) int64, padded on the right."""
    longest = max(map(len, sequences))
    input_ids = torch.full((len(sequences), longest), pad_id)  # (R, T)
    attention_mask = torch.zeros_like(input_ids)  # (R, T)
    for index, sequence in enumerate(sequences):
        input_ids[index, : len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
        attention_mask[index, : len(sequence)] = 1
    return input_ids, attention_mask
