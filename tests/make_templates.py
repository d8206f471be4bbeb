"""Write tests/fixtures/templates.json: chat templates as their authors publish them, and what transformers makes of them.

Not run by the tests. In an environment of its own, with two folders that hold the tokenizer_config.json of those models:
    pip install transformers==5.23.0 && python tests/make_templates.py Qwen2.5-0.5B-Instruct/ Qwen3-1.7B/
The ids are of a small tokenizer that knows every family's marks, kept beside them in tokenizer.json. It puts a BOS before
every text by itself, as Llama's does, so that a second one would show.
"""
import json
import sys
from pathlib import Path

import tokenizers
import transformers

HERE = Path(__file__).parent / "fixtures"
ZEPHYR = (  # TinyLlama's too
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}"
    "{% endif %}{% endfor %}"
)
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLLM2 = CHATML.replace(
    "messages %}", "messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}", 1
)
S, U, A = (lambda text, role=role: {"role": role, "content": text} for role in ("system", "user", "assistant"))
DIALOGUES = [
    [U("Which colour is grass?"), A("It is green.")],
    [S("Be brief."), U(" Two words,\nplease: 1 < 2? "), A("Yes, é. ")],
    [U("Hi"), A("<think>\nA greeting.\n</think>\n\nHello."), U("And \"you\" & me?"), A("Fine.\n")],
    [U("Hi"), A("Hello."), U("Bye"), A("<think>\nSo soon?\n</think>\n\nBye.")],
]
SPECIALS = ["<pad>", "<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>",
            "<|start_header_id|>", "<|end_header_id|>"]


def small_tokenizer() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIALS, show_progress=False,
                                             initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    backend.train_from_iterator(["the assistant and the user: is it green? [INST] [/INST] brief hello system"] * 3, trainer)
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return backend


def main(qwen25: str, qwen3: str) -> None:
    published = lambda folder: json.loads((Path(folder) / "tokenizer_config.json").read_text("utf-8"))["chat_template"]
    families = {  # template, BOS, EOS
        "llama3": (LLAMA3, "<|begin_of_text|>", "<|eot_id|>"),
        "qwen2.5": (published(qwen25), None, "<|im_end|>"),
        "qwen3": (published(qwen3), None, "<|im_end|>"),
        "smollm2": (SMOLLM2, "<|im_start|>", "<|im_end|>"),
        "mistral": (MISTRAL, "<s>", "</s>"),
        "zephyr": (ZEPHYR, "<s>", "</s>"),
        "chatml": (CHATML, "<s>", "<|im_end|>"),
    }
    backend, rendered = small_tokenizer(), {}
    backend.save(str(HERE / "tokenizer.json"))
    for name, (template, bos, eos) in families.items():
        theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token="<pad>")
        theirs.chat_template = template
        cases = []
        for messages in DIALOGUES:
            try:
                cases.append({
                    "messages": messages,
                    "text": theirs.apply_chat_template(messages, tokenize=False),
                    "ids": theirs.apply_chat_template(messages, tokenize=True, return_dict=False),
                    "prompt": theirs.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True),
                })
            except Exception as e:  # a template may refuse
                cases.append({"messages": messages, "refused": str(e)})
        rendered[name] = {"template": template, "bos_token": bos, "eos_token": eos, "cases": cases}
    source = "templates of Qwen2.5-0.5B-Instruct and Qwen3-1.7B are Qwen's (Apache 2.0), the others stand in make_templates.py"
    made_with = {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__}
    text = json.dumps({"made_with": made_with, "source": source, "templates": rendered}, indent=1, ensure_ascii=False)
    (HERE / "templates.json").write_text(text + "\n", encoding="utf-8")
    print(made_with, {name: [c.get("refused", "ok") for c in family["cases"]] for name, family in rendered.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
