"""Write tests/fixtures/tokenizers.json: tokenizer folders in unusual states, and what transformers makes of them.

Not run by the tests, which only take build() from here. In an environment of its own:
    pip install transformers==5.23.0 && python tests/make_tokenizers.py [folder with hf_metadata/ and weights/]
A state is what differs from the folder of BASE, a small byte-level tokenizer that is kept in tokenizer.json.
"""
import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent / "fixtures"
NOW = (2026, 2, 3)
BASE = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }} <|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
MARKS = ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]


def token(content, **flags):
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"content": content} | plain | flags


def marks(first=400, **flags):
    return {str(first + 7 * i): token(mark, **flags) for i, mark in enumerate(MARKS)}


def bos_and_eos(*ends):
    """A post_processor that puts these around a text."""
    single = [{"SpecialToken": {"id": t, "type_id": 0}} for t in ends]
    single.insert(1, {"Sequence": {"id": "A", "type_id": 0}})
    ids = {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in (("<s>", 1), ("</s>", 2))}
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": ids}


def named(**templates):
    return [{"name": name, "template": source} for name, source in templates.items()]


S, U, A = (lambda text, role=role, **more: {"role": role, "content": text} | more for role in ("system", "user", "assistant"))
CALL = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "é"}}}]
TEXT_CALL = [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": "x\\ny"}'}}]
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds <a>.", "parameters": PARAMETERS}}]
DIALOGUES = [
    {"messages": [U("Is grass green?"), A("It is.")]},
    {"messages": [S("Be  brief."), U(" Hi <s>\n\n 12  3"), A("Yes ", name="Al"), U("é ﬁ?"), A("\n No. ")]},
]
TOOL_DIALOGUES = [
    {"messages": [U("1+2?"), A("", tool_calls=CALL), {"role": "tool", "name": "add", "content": "3"}, A("3!")], "tools": TOOLS},
    {"messages": [U("1+2?"), A("So:", tool_calls=TEXT_CALL)], "tools": TOOLS},
    {"messages": [U("Hi"), A("Hello.", reasoning_content="Hm."), U("Bye"), A("Bye.", thinking="So soon?")]},
    {"messages": [U("Hi"), A("<think>\nA\n</think>\n\nYes."), U("So?"), A("<think>\nB\n</think>\n\nNo.")]},
    {"messages": [U("1+2?"), A(None, tool_calls=TEXT_CALL)], "tools": TOOLS},
]
PARTS_DIALOGUE = {"messages": [U([{"type": "text", "text": "Hi "}, {"type": "text", "text": "you"}]), A("Yes.")]}
PARTS = (
    "{% for m in messages %}[{{ m.role }}]{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{{ part.text }}{% endfor %}{% endif %}{% for call in m.tool_calls %}{{ call.function.name }} {{ call.function.arguments "
    "if call.function.arguments is string else call.function.arguments | tojson }}{% endfor %}{% if m.reasoning_content %}"
    "({{ m.reasoning_content }}){% endif %}{{ eos_token }}{% endfor %}"
)
STRICT = (
    "{% if messages | length != 2 %}{{ raise_exception('two turns') }}{% endif %}"
    "{{ bos_token }}{{ messages[0].content }}[/]{{ messages[1].content }}{{ eos_token }}"
)


def metaspace():
    """What Llama 2's tokenizer.json looks like: spaces as ▁, put before every piece of text."""
    letters = "▁ abcdefghijklmnopqrstuvwxyzABIYHN0123<>|[]/?!.\n"
    pairs = [("▁", "b"), ("i", "s"), ("▁", "is"), ("e", "r"), ("s", "er"), ("u", "ser")]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *("".join(pair) for pair in pairs)]
    model = {"type": "BPE", "vocab": {word: i for i, word in enumerate(words)}, "merges": pairs, "unk_token": "<unk>", "fuse_unk": True,
             "byte_fallback": True}
    spaces = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    return {
        "version": "1.0", "truncation": None, "padding": None, "decoder": None, "pre_tokenizer": None, "model": model,
        "added_tokens": [token(t) | {"id": i} for i, t in enumerate(words[:3])],
        "normalizer": {"type": "Sequence", "normalizers": spaces}, "post_processor": bos_and_eos("<s>"),
    }


def digits():
    rules = [{"type": "Digits", "individual_digits": True}]
    rules.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True})
    return {"normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": rules}}


LLAMA2 = PLAIN.replace("{% for", "{{ bos_token }}{% for", 1)
SP = {"tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>", "pad_token": "<unk>", "chat_template": LLAMA2}
PADDING = {"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
TRUNCATION = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
# name: {"config": …, "tokenizer": …} change tokenizer_config.json (None: there is none) and tokenizer.json;
# "files" are further ones; "choose" is what --chat-template gives; "dialogues": "tools" are more of them.
STATES = {
    "chat tokens in added_tokens_decoder alone": {"config": {"chat_template": CHAT, "added_tokens_decoder": marks(9996)}},
    "their flags lstrip, rstrip, normalized": {"config": {"chat_template": CHAT, "added_tokens_decoder": marks(
        lstrip=True, rstrip=True, normalized=True, special=False)}},
    "flags of a token that is there": {"config": {"chat_template": PLAIN, "added_tokens_decoder": {"2": token("</s>", lstrip=True)}}},
    "single_word tokens": {"config": {"chat_template": PLAIN, "added_tokens_decoder": {"500": token("green", single_word=True)}}},
    "additional_special_tokens": {"config": {"chat_template": CHAT, "additional_special_tokens": MARKS}},
    "additional_special_tokens as dicts": {"config": {"chat_template": CHAT, "additional_special_tokens": [
        token(mark, rstrip=True) | {"__type": "AddedToken"} for mark in MARKS]}},
    "extra_special_tokens, a list": {"config": {"chat_template": CHAT, "extra_special_tokens": MARKS}},
    "extra_special_tokens, named": {"config": {
        "chat_template": CHAT.replace("<|end|>", "{{ end_token }}{{ image_token }}"), "image_token": "<|image|>",
        "extra_special_tokens": {"end_token": "<|end|>", "user_token": "<|user|>"}}},
    "both lists and a decoder": {"config": {
        "chat_template": CHAT, "additional_special_tokens": ["<|end|>"], "extra_special_tokens": ["<|user|>"],
        "added_tokens_decoder": {"400": token("<|system|>")}}},
    "special tokens as dicts": {"config": {
        "chat_template": PLAIN, "eos_token": token("</s>", lstrip=True) | {"__type": "AddedToken"}}},
    "special tokens that are ordinary words": {"config": {"chat_template": PLAIN + "{{ sep_token }}", "sep_token": "green"},
                                               "ordinary": ["</s>", "<pad>"]},
    "a pad_token that is new, before more": {"config": {
        "chat_template": CHAT, "pad_token": "[PAD]", "cls_token": "[CLS]", "additional_special_tokens": MARKS}},
    "chat_template.jinja beside another": {"config": {"chat_template": PLAIN}, "files": {"chat_template.jinja": "#" + PLAIN}},
    "chat_template.jinja beside named ones": {
        "config": {"chat_template": named(default=PLAIN, tool_use="!" + PLAIN)}, "files": {"chat_template.jinja": "#" + PLAIN},
        "dialogues": "tools"},
    "additional_chat_templates": {
        "files": {"chat_template.jinja": PLAIN, "additional_chat_templates/tool_use.jinja": PARTS}, "dialogues": "tools"},
    "additional_chat_templates without a default": {
        "config": {"chat_template": PLAIN}, "files": {"additional_chat_templates/rag.jinja": PARTS}, "dialogues": "tools"},
    "additional_chat_templates, one chosen": {
        "files": {"chat_template.jinja": PLAIN, "additional_chat_templates/rag.jinja": "#" + PLAIN}, "choose": "rag"},
    "named templates": {"config": {"chat_template": named(default=PLAIN, tool_use=PARTS)}, "dialogues": "tools"},
    "named templates without a default": {"config": {"chat_template": named(rag=PLAIN, tool_use=PARTS)}},
    "named templates, one chosen": {"config": {"chat_template": named(rag="#" + PLAIN, tool_use=PARTS)}, "choose": "rag"},
    "special_tokens_map.json beside a config": {
        "config": {"chat_template": PLAIN, "eos_token": "<pad>"},
        "files": {"special_tokens_map.json": {"eos_token": token("</s>", lstrip=True), "additional_special_tokens": ["[user]"]}}},
    "a named token that is new, with flags": {
        "config": {"chat_template": CHAT},
        "files": {"special_tokens_map.json": {"sep_token": token("<|end|>", lstrip=True)}}},
    "special_tokens_map.json beside added_tokens_decoder": {
        "config": {"chat_template": PLAIN, "added_tokens_decoder": {"2": token("</s>")}},
        "files": {"special_tokens_map.json": {"eos_token": "<pad>", "additional_special_tokens": ["[user]"]}}},
    "special_tokens_map.json alone": {
        "config": None, "files": {"chat_template.jinja": LLAMA2, "config.json": {"model_type": "llama"},
                                  "special_tokens_map.json": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}}},
    "added_tokens.json": {"config": {"chat_template": CHAT, "additional_special_tokens": MARKS[:2]},
                          "files": {"added_tokens.json": {mark: 330 + i for i, mark in enumerate(MARKS)}}},
    "add_bos_token true": {"config": {"chat_template": PLAIN, "add_bos_token": True}, "tokenizer": {"post_processor": None}},
    "add_bos_token false": {"config": {"chat_template": LLAMA2, "add_bos_token": False}},
    "truncation and padding baked in": {
        "config": {"chat_template": PLAIN}, "tokenizer": {"truncation": TRUNCATION, "padding": PADDING}},
    "a post_processor that adds both ends": {
        "config": {"chat_template": LLAMA2}, "tokenizer": {"post_processor": bos_and_eos("<s>", "</s>")}},
    "tool calls, thoughts, parts": {"config": {"chat_template": PARTS}, "dialogues": "tools", "more": [PARTS_DIALOGUE]},
    "exactly user and assistant": {"config": {"chat_template": STRICT}},
    "a newline behind the end": {"config": {"chat_template": PLAIN.replace("eos_token }}", "eos_token }}\n  ")}},
    "today's date": {"config": {"chat_template": "{{ strftime_now('%d %b %Y') }}" + PLAIN}},
    "generation tags": {"config": {"chat_template": PLAIN.replace("{{ m.content }}{{ eos_token }}", (
        "\n  {% generation %}\n{{ m.content }}{{ eos_token }}\n {%- endgeneration %}\n"))}},
    "white space around tags": {"config": {"chat_template": PLAIN.replace("{% endfor", "\n  {% if 1 %}\n  x\n  {%- endif %}\n\n{% endfor")}},
    "LlamaTokenizer": {"config": SP, "whole": "metaspace"},
    "LlamaTokenizer, legacy": {"config": SP | {"legacy": True}, "whole": "metaspace"},
    "LlamaTokenizer, no space before": {"config": SP | {"add_prefix_space": False}, "whole": "metaspace"},
    "LlamaTokenizer of a Mistral": {"config": SP, "files": {"config.json": {"model_type": "mistral"}}, "whole": "metaspace"},
    "LlamaTokenizer, byte-level": {"config": {"tokenizer_class": "LlamaTokenizerFast", "chat_template": PLAIN}},
    "PreTrainedTokenizerFast with Llama's file": {"config": SP | {"tokenizer_class": "PreTrainedTokenizerFast"}, "whole": "metaspace"},
    "GPT2Tokenizer with other rules": {"config": {"tokenizer_class": "GPT2Tokenizer", "chat_template": PLAIN}, "tokenizer": digits()},
    "split_special_tokens": {"config": {"chat_template": PLAIN, "split_special_tokens": True}},
}


def build(state: dict, folder: Path) -> Path:
    """Write the folder of a state."""
    whole = json.loads((HERE / "tokenizer.json").read_text("utf-8"))
    if state.get("whole") == "metaspace":
        whole = metaspace()
    ordinary = state.get("ordinary", [])
    whole["added_tokens"] = [t for t in whole["added_tokens"] if t["content"] not in ordinary]
    files = {"tokenizer.json": whole | state.get("tokenizer", {})}
    if state.get("config", {}) is not None:
        files["tokenizer_config.json"] = BASE | state.get("config", {})
    for name, content in (files | state.get("files", {})).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return folder


def dialogues_of(state: dict) -> list:
    further = TOOL_DIALOGUES if state.get("dialogues") == "tools" else []
    return DIALOGUES + further + state.get("more", [])


def frozen_time():
    """A class datetime whose now() is NOW."""
    import datetime

    class Frozen(datetime.datetime):
        @classmethod
        def now(cls):
            return cls(*NOW)

    return Frozen


def theirs_of(folder: Path, dialogues: list, template: str | None = None) -> list:
    """What transformers makes of each dialogue: text and ids, or its refusal."""
    import transformers
    from transformers.utils import chat_template_utils

    chat_template_utils.datetime = frozen_time()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    cases = []
    for dialogue in dialogues:
        given = {"conversation": dialogue["messages"], "tools": dialogue.get("tools"), "chat_template": template}
        try:
            text = tokenizer.apply_chat_template(**given, tokenize=False)
            ids = tokenizer.apply_chat_template(**given, return_dict=False)
            assert ids == tokenizer.encode(text, add_special_tokens=False)
            cases.append({"text": text, "ids": " ".join(map(str, ids))})
        except Exception as e:  # a template may refuse
            cases.append({"refused": str(e)})
    return cases


# Which folders of other people are compared, and the template of those that have none (a name in templates.json).
PUBLISHED = {
    "hf_metadata/minimind": None, "hf_metadata/mistral-7b-v0.1": "mistral", "hf_metadata/qwen2.5-0.5b-instruct": None,
    "hf_metadata/qwen3-1.7b": None, "hf_metadata/smollm2-135m-seqcls": "smollm2", "hf_metadata/tinyllama-1.1b-chat": "zephyr",
    "weights/babyllama-tok361-hf": "zephyr", "weights/stories260K-hf": "mistral",
}


def published_folder(shared: Path, name: str, folder: Path) -> Path:
    """A folder as it was published. That of Qwen3 has no tokenizer.json; Qwen2.5's has the same words."""
    files = {path.name: path for path in (shared / name).iterdir() if path.suffix == ".json"}
    files.setdefault("tokenizer.json", shared / "hf_metadata/qwen2.5-0.5b-instruct/tokenizer.json")
    for file, path in files.items():
        (folder / file).write_bytes(path.read_bytes())
    return folder


def main(shared: str = "") -> None:
    import tokenizers
    import transformers

    transformers.logging.set_verbosity_error()
    made_with = {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__}
    old = HERE / "tokenizers.json"
    found = {"made_with": made_with, "states": {}, "published": {}}
    if old.exists():
        found["published"] = json.loads(old.read_text("utf-8"))["published"]
    templates = json.loads((HERE / "templates.json").read_text("utf-8"))["templates"]
    for name, state in STATES.items():
        with tempfile.TemporaryDirectory() as folder:
            found["states"][name] = theirs_of(build(state, Path(folder)), dialogues_of(state), state.get("choose"))
        print(name, [c.get("refused", "ok") for c in found["states"][name]])
    for name, template in PUBLISHED.items() if shared else ():
        source = templates[template]["template"] if template else None
        with tempfile.TemporaryDirectory() as folder:
            folder = published_folder(Path(shared), name, Path(folder))
            found["published"][name] = theirs_of(folder, DIALOGUES + TOOL_DIALOGUES, source)
        print(name, [c.get("refused", "ok") for c in found["published"][name]])
    lines = [f'"made_with": {json.dumps(made_with)}']
    for part in ("states", "published"):
        cases = [f"{json.dumps(name)}: {json.dumps(found[part][name], ensure_ascii=False)}" for name in found[part]]
        lines.append(f'"{part}": {{\n' + ",\n".join(cases) + "\n}")
    old.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
