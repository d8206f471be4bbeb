"""Chat templates as programs: transformers' rules for them, a clock that stands still, a sandbox."""
import time

import pytest
from test_chat_template import CONTENTS, assistant, tokenizer_with, user

from data import DataError, Tokenizer
from extras.jinja_templates import compile_template


def test_the_clock_of_a_template_stands_still(tmp_path, monkeypatch):
    dated = "{{ strftime_now('%d %b %Y %H:%M:%S.%f') }}" + CONTENTS
    tokenizer = tokenizer_with(dated)
    text = tokenizer.render([user("x")])
    tokenizer.save(tmp_path, 256)
    time.sleep(0.01)
    assert tokenizer.render([user("x")]) == text
    assert Tokenizer.from_folder(tmp_path).render([user("x")]) == text, "another reward tomorrow"
    with pytest.raises(DataError, match="a form that it computes"):
        tokenizer_with("{{ strftime_now('%d' ~ '%m') }}" + CONTENTS)


def test_generation_tags_leave_the_text_as_it_is():
    body = (
        "{% for m in messages %}{% if m.role == 'assistant' %}@{{ m.content }}</s>#"
        "{% else %}[{{ m.content }}]{% endif %}{% endfor %}"
    )
    dialogue = [user("a"), assistant("b")]
    plain = tokenizer_with(body.replace("@", "").replace("#", ""))
    for start, end in (("{% ", " %}"), ("{%- ", " -%}"), ("{%+", "+%}")):
        opened = body.replace("@", f"{start}generation{end}")
        marked = tokenizer_with(opened.replace("#", f"{start}endgeneration{end}"))
        assert marked.render(dialogue) == plain.render(dialogue) == "[a]b</s>"
        assert marked.end_token == "</s>"


def test_a_generation_block_is_a_scope_as_in_transformers():
    scoped = tokenizer_with(
        "{% set x = 'A' %}{% generation %}{% set x = 'B' %}{% endgeneration %}{{ x }}"
        "{% for m in messages %}{{ m.content }}{% endfor %}</s>"
    )
    assert scoped.render([user("a")]) == "Aa</s>"


def test_tojson_and_the_clock_are_those_of_transformers():
    tokenizer = tokenizer_with(
        "{{ {'b': '<', 'a': 'é'} | tojson(sort_keys=true, indent=1) }}{{ strftime_now('%Y') }}"
        + CONTENTS
    )
    expected = '{\n "a": "é",\n "b": "<"\n}' + time.strftime("%Y") + "x</s>"
    assert tokenizer.render([user("x")]) == expected


def test_tools_and_documents_are_there_and_none():
    tokenizer = tokenizer_with("{{ tools is none }} {{ documents is none }}" + CONTENTS)
    assert tokenizer.render([user("x")]) == "True Truex</s>"


def test_loops_may_break_and_white_space_around_tags_is_trimmed():
    template = compile_template("{% for i in 'abc' %}\n  {% if i == 'b' %}{% break %}{% endif %}\n"
                                "{{ i }}\n{% endfor %}", "t")
    assert template.render() == "a\n"


@pytest.mark.parametrize("template, message", [
    ("{{ messages.append(1) }}", "unsafe"),
    ("{{ messages[0].update(role='x') }}", "unsafe"),
    ("{{ messages.__class__.__init__.__globals__ }}", "unsafe"),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    ("{{ cycler.__init__.__globals__.os.system('true') }}", "unsafe"),
    ("{{ raise_exception.__globals__ }}{{ raise_exception.__globals__.x }}", "unsafe"),
    ("{% include '/etc/passwd' %}", "no loader"),
    ("{% import 'os' as os %}", "no loader"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ("{% for i in range(10 ** 7) %}{% endfor %}", "Range too big"),
    ("{{ 1 // 0 }}", "division"),
    ("{{ 'x' * 10 ** 9 }}", "too long"),
    ("{{ 10 ** 9 * [messages] }}", "too long"),
    ("{{ 9 ** 9 ** 9 }}", "too large"),
    ("{{ lipsum() }}", "undefined"),
    ("{{ ['a', 'b'] | random }}", "not valid"),
    ("{{ raise_exception('one\n  two') }}", "one two"),
    ("{% for m in messages %}{{ m", "not valid"),
    ("{% nothing %}", "not valid"),
])
def test_a_template_that_reaches_out_or_fails_is_refused_in_one_line(template, message):
    with pytest.raises(DataError, match="tokenizer: the chat template .*" + message) as error:
        tokenizer_with(template)
    assert "\n" not in str(error.value)
