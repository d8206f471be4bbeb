"""chat_template.py: tokenizers that come with a chat template of their own.

A chat model has learned from text only. Its dialogues were turned into text by a *chat template*,
a small program in the language jinja2, which stands in the folder of its tokenizer:

    {% for m in messages %}<|im_start|>{{ m.role }}         <|im_start|>user
    {{ m.content }}<|im_end|>                        ->     Hi<|im_end|>
    {% endfor %}                                            <|im_start|>assistant
                                                            Hello.<|im_end|>

A reward model that starts from a chat model has to be given the very text that its template
writes. With another text nothing fails: the rewards are only worse. The traps, by their symptoms:

    two BOS       Llama 2's template writes <s>, and its tokenizer puts another <s> before every
                  text. No text that the model learned from had two. So the template alone
                  decides, and Tokenizer.encode adds none.
    end token     Qwen's base tokenizer names <|endoftext|> as its eos, but its turns end in
                  <|im_end|>. With the eos there would be two end tokens, and the reward would be
                  read at one that never ends an answer. So we render a dialogue and look.
    newline       Most templates write a newline after the end token. It would be the last token,
                  but only for those who do not strip the text. So a sequence stops at the end
                  token. The template that is saved with a reward model stops there too, because
                  transformers and vLLM render with the template alone.
    think block   Qwen3's template writes an empty <think></think> before the last answer, and
                  deletes the thoughts of earlier ones. So the text of a prompt is not always the
                  beginning of the text of prompt and response. Tokenizer.encode_row therefore
                  takes what all of them have in common.

A template is somebody else's program. jinja2's sandbox lets it compute with its arguments, but not
change them, read files, or reach Python. It does not limit time or memory.

It costs less than 0.1 ms a dialogue, once, when a file is tokenized. There is no option: it is used
where a tokenizer's folder has a chat template. tests/extras/test_chat_template.py shows that texts
and ids are those of transformers (apply_chat_template, whose rules these are), up to the end token.
"""
import datetime
import json
import re

import jinja2
import numpy as np
import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data import DataError, Messages, Tokenizer

SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
PROBE = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]


class TemplateTokenizer(Tokenizer):
    """A Tokenizer whose text, BOS and end token are those of the folder's chat template."""

    def __init__(self, backend: tokenizers.Tokenizer, config: dict, where="tokenizer"):
        self.source = find_template(config, where)
        self.template = compile_template(self.source, where)
        self.values = special_tokens(config) | {"tools": None, "documents": None}
        super().__init__(backend, config, where)

    def render(self, messages: Messages, add_generation_prompt: bool = False) -> str:
        """The template's text for these messages, the same as transformers'.  Raises: DataError."""
        values = self.values | {
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self.template.render(values)
        except Exception as e:  # somebody else's program may raise anything
            reason = one_line(e)
            raise DataError(f"{self.where}: the chat template refuses it ({reason})") from None

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Rendered texts -> ids, int32. What a template writes after the end token is cut."""
        cut = []
        for text in texts:
            stripped = text.rstrip()
            cut.append(stripped if stripped.endswith(self.end_token) else text)
        return super().encode(cut)

    def find_bos(self) -> str:
        """The BOS token if the template writes one, else ""."""
        bos = self.names.get("bos_token", "")
        return bos if self.render(PROBE).startswith(bos) else ""

    def find_end_token(self) -> str:
        """The token that the template closes an answer with, else the eos_token.

        Raises: DataError where there is neither.
        """
        text = self.render(PROBE).rstrip()
        endings = []
        for token in self.backend.get_added_tokens_decoder().values():
            if token.special and text.endswith(token.content):
                endings.append(token.content)
        if endings:
            return max(endings, key=len)
        return super().find_end_token()

    def chat_template(self) -> str:
        """The template, changed so that an answer ends at the end token, and nothing follows."""
        text = self.render(PROBE)
        if text.endswith(self.end_token):
            return self.source
        if text.rstrip().endswith(self.end_token):
            closed = "text.rstrip()"
        else:
            closed = "text + eos_token"
        answered = "messages and messages[-1]['role'] == 'assistant' and not add_generation_prompt"
        # The plus signs keep white space that jinja2 would trim beside these two tags.
        return (
            "{% set text +%}" + self.source.removesuffix("\n") + "{%+ endset %}"
            "{% if " + answered + " %}{{ " + closed + " }}{% else %}{{ text }}{% endif %}"
        )


def find_template(config: dict, where: str) -> str:
    """The source of the chat template. Of several named ones, the one called "default"."""
    template = config["chat_template"]
    if isinstance(template, list):
        named = {}
        for entry in template:
            named[entry["name"]] = entry["template"]
        if "default" not in named:
            raise DataError(f"{where}: no chat template is named 'default', of {', '.join(named)}")
        template = named["default"]
    if not isinstance(template, str):
        raise DataError(f"{where}: chat_template is {str(template)[:30]!r}, not text")
    return template


def special_tokens(config: dict) -> dict[str, str]:
    """{"bos_token": "<s>", …}: a template may use all special tokens that have a name."""
    tokens = {}
    for name in SPECIAL:
        token = config.get(f"{name}_token")
        if isinstance(token, dict):  # {"content": "<s>", "lstrip": false, …}
            token = token["content"]
        if token:
            tokens[f"{name}_token"] = token
    return tokens


def compile_template(source: str, where: str) -> jinja2.Template:
    """A template with the functions, filters and rules for white space that transformers has.

    Raises: DataError where it is not valid.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    # {% generation %} marks what the assistant says, for those who train on these tokens alone.
    # Here it is only a scope for variables, which jinja2 calls {% with %}.
    source = re.sub(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})", r"\1\2with\3", source)
    try:
        return environment.from_string(source)
    except (jinja2.TemplateError, TypeError, RecursionError) as e:
        raise DataError(f"{where}: the chat template is not valid ({one_line(e)})") from None


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """A value as JSON. jinja2's own filter writes < as \\u003c, and é as \\u00e9."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def raise_exception(message: str):
    """How a template refuses a dialogue."""
    raise jinja2.TemplateError(message)


def strftime_now(form: str) -> str:
    """The date of today: some templates write it into the system turn."""
    return datetime.datetime.now().strftime(form)


def one_line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or repr(error)
