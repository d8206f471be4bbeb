r"""jinja_templates.py: chat templates as programs: found in a folder, made harmless, and compiled.

A chat template is text with statements in it, in the language jinja2. extras/chat_template.py says
what they are for. This file makes one ready to run, with the rules that transformers has:

    white space     a statement alone on its line leaves no empty line and no indentation behind
    functions       raise_exception(why) refuses a dialogue; strftime_now(form) gives the date
    filters         tojson writes é and < as they are
    generation      {% generation %} … {% endgeneration %} mark what the assistant says

The traps, by their symptoms:

    the clock       Llama 3.2 and SmolLM3 write the date of today into the system turn. The same
                    text has another reward tomorrow, and nobody knows why. So a template's clock
                    stands still: strftime_now("%d %b %Y") becomes the text "26 Nov 2026" before
                    the template is compiled, and that template is saved with the reward model.
    named ones      A folder may hold several templates. The one called "default" is taken, and for
                    rows with tools the one called "tool_use". Without a "default" you have to
                    choose: --chat-template NAME. Where there are files (chat_template.jinja is
                    the default, additional_chat_templates/NAME.jinja the others), those in
                    tokenizer_config.json do not count.

A template is somebody else's program. jinja2's sandbox lets it compute with its arguments, but not
change them, read files, or reach Python. It does not limit time or memory.

tests/extras/test_jinja_templates.py compares the rules with those of transformers.
"""
import datetime
import json
import re
from pathlib import Path

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data import DataError

CLOCK = re.compile(r"""\bstrftime_now\(\s*(['"])([^'"]*)\1\s*\)""")


def find_templates(config: dict, where: str) -> dict[str, str]:
    """The sources of the templates "default" and, where there is one, "tool_use".

    config["chosen_template"] is what --chat-template gave: a file, or one of the names.

    Raises: DataError where none can be taken for the default.
    """
    named = named_templates(config, where)
    chosen = config.get("chosen_template")
    if chosen:
        return {"default": named.get(chosen) or read_template(chosen)}
    if "default" not in named:
        names = ", ".join(named)
        raise DataError(f"{where}: choose a chat template with --chat-template: {names}")
    return {name: named[name] for name in ("default", "tool_use") if name in named}


def named_templates(config: dict, where: str) -> dict[str, str]:
    """All sources of a folder by name.  Raises: DataError."""
    templates = config.get("chat_template")
    if not isinstance(templates, list):
        templates = [{"name": "default", "template": templates}] if templates else []
    named = {}
    for entry in templates:
        if not isinstance(entry, dict) or not isinstance(entry.get("template"), str):
            shown = str(config["chat_template"])[:30]
            raise DataError(f"{where}: chat_template is {shown!r}, not text")
        named[entry["name"]] = entry["template"]
    return named


def read_template(path: str | Path) -> str:
    """A template from a file.  Raises: DataError."""
    try:
        source = Path(path).read_text("utf-8")
        if Path(path).suffix == ".json":  # as old folders have it: {"chat_template": "…"}
            source = json.loads(source)["chat_template"]
        return source
    except (KeyError, TypeError):
        raise DataError(f"--chat-template {path}: no 'chat_template' in this JSON") from None
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or "not UTF-8 text"
        raise DataError(f"--chat-template {path}: {reason}") from None


def stop_the_clock(source: str, now: datetime.datetime) -> str:
    """The template with the date of now in place of every strftime_now("…")."""

    def date(match):
        return json.dumps(now.strftime(match[2]))

    return CLOCK.sub(date, source)


MOST = 10**6  # letters, or items, of a product


class Sandbox(ImmutableSandboxedEnvironment):
    """It also refuses products that would fill the memory: 'x' * 10 ** 9, or 9 ** 9 ** 9."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context, operator, left, right):
        """left * right, or left ** right."""
        for value, times in ((left, right), (right, left)):
            if hasattr(value, "__len__") and isinstance(times, int) and len(value) * times > MOST:
                raise jinja2.TemplateError("a product that is too long")
        if operator == "**" and (abs(left) > MOST or abs(right) > 64):
            raise jinja2.TemplateError("a power that is too large")
        return super().call_binop(context, operator, left, right)


def compile_template(source: str, where: str) -> jinja2.Template:
    """A template with the functions, filters and rules for white space that transformers has.

    Raises: DataError where it is not valid.
    """
    environment = Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    # With these two a text would be another one each time that it is rendered.
    del environment.globals["lipsum"], environment.filters["random"]
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


def strftime_now(form: str):
    """A date whose form is computed: stop_the_clock has left it. It would change every day."""
    raise jinja2.TemplateError(f"it writes the date in a form that it computes ({form!r})")


def one_line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or repr(error)
