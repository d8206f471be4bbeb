"""tokenizer_folders.py: tokenizers whose folder says more than tokenizer.json.

A tokenizer of the Hugging Face hub is a folder with a history. Older libraries wrote their settings
into other files, and newer ones still obey them:

    tokenizer.json              the vocabulary and the rules; data.py needs no more, mostly
    tokenizer_config.json       names of special tokens; since 2023 all added tokens too
    special_tokens_map.json     names of special tokens, where the file above has no list of them
    added_tokens.json           added tokens, in the same case
    chat_template.jinja, additional_chat_templates/
                                chat templates; then those of tokenizer_config.json do not count

The traps, by their symptoms:

    come apart     A chat token stands in one of these files alone. tokenizer.json does not know it,
                   so "<|im_end|>" becomes "<", "|", "im", … The model has learned it as one id.
    other words    transformers 5 takes only the vocabulary from the tokenizer.json of a Llama or
                   GPT-2 class, and cuts words by the rules of the class.
    no file        Some folders have a vocabulary that only other libraries read.

The rules are those of transformers 5. It costs nothing. There is no option: data.is_plain_folder
decides. tests/extras/test_tokenizer_folders.py compares ids with transformers' in forty states.
"""
from pathlib import Path

import tokenizers

from data import OTHER_RULES, DataError, read_object


def read(folder: Path, config: dict) -> tuple[tokenizers.Tokenizer, dict]:
    """The tokenizer of a folder, and its settings as data.Tokenizer takes them.

    Raises: DataError where there is no tokenizer.json, or a file beside it is broken.
    """
    if not (folder / "tokenizer.json").exists():
        raise DataError(no_tokenizer(folder))
    backend = tokenizers.Tokenizer.from_str((folder / "tokenizer.json").read_text("utf-8"))
    config = read_settings(folder, config)
    if not is_our_own(config["model"]):
        split_as_the_class_does(backend, config)
    add_missing_tokens(backend, config)
    # Flags such as lstrip are in tokenizer.json from now on. transformers wants texts here.
    more = list(map(content_of, more_tokens(config)))
    config |= {name: content_of(token) for name, token in named_tokens(config).items()}
    if more:
        config.pop("extra_special_tokens", None)
        config["additional_special_tokens"] = more
    return backend, config


def is_our_own(model: dict) -> bool:
    """Whether train_rm.py wrote this folder: its tokenizer.json has the rules it was trained with.

    Folders from before November 2026 may still name a class whose rules differ.
    """
    return model.get("id2label") == {"0": "reward"}


def no_tokenizer(folder):
    """Why a folder without a tokenizer.json cannot be used, and what to do."""
    others = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "tekken.json")
    found = [name for name in others if (folder / name).exists()]
    if not found:
        return f"{folder}: no tokenizer.json"
    return (
        f"{folder}: no tokenizer.json, only {', '.join(found)}; write one with transformers: "
        "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
    )


def read_settings(folder: Path, config: dict) -> dict:
    """What a folder says about its tokenizer. Where files differ, transformers' rules hold."""
    config = dict(config)
    if "added_tokens_decoder" not in config:  # the two files that were there before it
        config |= read_object(folder / "special_tokens_map.json")
        special = [*named_tokens(config).values(), *more_tokens(config)]
        special = list(map(content_of, special))
        decoder = {}
        for content, token_id in read_object(folder / "added_tokens.json").items():
            decoder[str(token_id)] = {"content": content, "special": content in special}
        if decoder:
            config["added_tokens_decoder"] = decoder
    templates = {}
    if (folder / "chat_template.jinja").exists():
        templates["default"] = (folder / "chat_template.jinja").read_text("utf-8")
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[file.stem] = file.read_text("utf-8")
    if templates:  # then those of tokenizer_config.json do not count
        named = [{"name": name, "template": source} for name, source in templates.items()]
        config["chat_template"] = named
    return config


def split_as_the_class_does(backend, config):
    """The rules by which two classes of tokenizers cut text into words.

    transformers 5 takes only the vocabulary from the tokenizer.json of these classes. So a saved
    folder names another class: one whose tokenizer.json holds the rules.
    """
    if config.get("tokenizer_class") not in OTHER_RULES:
        return
    name = config["tokenizer_class"].removesuffix("Fast")
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if config["model"].get("model_type") in ("mistral", "qwen2"):  # their class is not asked for
        return
    prefix = config.get("add_prefix_space")
    rules = tokenizers.pre_tokenizers
    if name == "GPT2Tokenizer":
        backend.normalizer = None
        backend.pre_tokenizer = rules.ByteLevel(add_prefix_space=bool(prefix))
    elif "ByteLevel" not in f"{backend.pre_tokenizer} {backend.decoder}":
        prepend = "always" if config.get("legacy") else "first"
        if prefix is False:
            prepend = "never"
        backend.normalizer = None
        backend.pre_tokenizer = rules.Metaspace("▁", prepend_scheme=prepend, split=False)


def add_missing_tokens(backend, config):
    """Tokens that tokenizer.json does not have, in the order in which transformers adds them.

    Some tokenizer.json hold "</s>" as ordinary text, which would come apart into "<", "/", …
    """
    tokens = []
    decoder = config.get("added_tokens_decoder") or {}
    for token_id in sorted(decoder, key=int):
        tokens.append(tokenizers.AddedToken(**decoder[token_id]))
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    known |= {token.content for token in tokens}
    for token in [*named_tokens(config).values(), *more_tokens(config)]:
        flags = {"special": True}
        if isinstance(token, dict):
            flags |= {name: flag for name, flag in token.items() if name != "__type"}
        else:
            flags["content"] = token
        if flags["content"] not in known:
            tokens.append(tokenizers.AddedToken(**flags))
    backend.add_tokens(tokens)


def named_tokens(config):
    """All tokens that have a name, such as bos_token: each a text, or a dict with its flags."""
    more = config.get("extra_special_tokens")
    more = more if isinstance(more, dict) else {}
    standard = [f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
    others = [name for name in config if name.endswith("_token")]
    named = {}
    for name in [*standard, *others, *more]:
        token = more.get(name) or config.get(name)
        if isinstance(content_of(token), str) and token:
            named[name] = token
    return named


def more_tokens(config):
    """Special tokens without a name: each a text, or a dict with its flags."""
    more = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    return [] if isinstance(more, dict) else more


def content_of(token):
    """The text of a token that may be {"content": "<s>", "lstrip": false, …}."""
    return token["content"] if isinstance(token, dict) and "content" in token else token
