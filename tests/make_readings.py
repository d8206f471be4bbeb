"""Write tests/fixtures/readings/: tiny reward models that TRL trained, and the rewards that they give there.

Not run by the tests. In an environment of its own:
    pip install transformers==5.23.0 trl==1.16.0 peft==0.21.2 torch && python tests/make_readings.py
Each model was taught to be read at another token. rows.json has the rewards of texts as the model's chat template
writes them, in one padded batch: of transformers, of PEFT, and for LLaMA-Factory's layout by the attention mask.
"""
import json
import os
import shutil
import tempfile
from pathlib import Path

import peft
import tokenizers
import torch
import transformers
import trl
from datasets import Dataset
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
READINGS = Path("tests/fixtures/readings")  # the path that the adapter names: from the root of this repository
MARKS = ["<unk>", "</s>", "<|im_start|>", "<|im_end|>"]
# Qwen's form: a newline after the end token.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Nothing after the end token.
PLAIN = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
COLOURS = {"grass": "green", "snow": "white", "coal": "black", "the sea": "blue", "a lemon": "yellow", "blood": "red"}
SHAPE = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
             head_dim=8, max_position_embeddings=128, initializer_range=0.3, bos_token_id=None, tie_word_embeddings=True)
LORA = dict(r=2, lora_alpha=8, task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"], modules_to_save=["score"])


def pairs() -> list[dict]:
    """A true answer, and one that is wrong or unsure."""
    found = []
    for number, (thing, colour) in enumerate(COLOURS.items()):
        question = [{"role": "user", "content": f"Which colour is {thing}?"}]
        wrong = [*COLOURS.values()][number - 1]
        answer, more = f"It is {colour}.", [{"role": "user", "content": "Sure?"}]
        found.append((question, answer, f"It is {wrong}."))
        found.append((question, f"I think that {thing} is {colour}, mostly.", "No idea."))
        dialogue = [*question, {"role": "assistant", "content": answer}, *more]
        found.append((dialogue, f"Yes, {colour}.", f"No, {wrong}!"))
    return [{"prompt": p, "chosen": assistant(a), "rejected": assistant(b)} for p, a, b in found]


def assistant(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def make_tokenizer(template: str, **names):
    """Letters and a few words. It knows no byte, so its file stays small."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    pattern = tokenizers.Regex(r"\n| ?[^\s]+|\s")
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(pattern, "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=100, special_tokens=MARKS, show_progress=False)
    texts = ["user: assistant:\n"]
    for pair in pairs():
        for message in pair["prompt"] + pair["chosen"] + pair["rejected"]:
            texts.append(message["content"])
    backend.train_from_iterator(texts, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **names)
    tokenizer.chat_template = template
    return tokenizer


@torch.enable_grad()
def train(folder: Path, tokenizer, base: Path | None = None) -> None:
    """TRL's RewardTrainer; a tokenizer without a pad gets its eos as one, as TRL does it."""
    torch.manual_seed(sum(folder.name.encode()))
    if base is None:
        about = dict(vocab_size=len(tokenizer), num_labels=1, eos_token_id=tokenizer.eos_token_id)
        config = transformers.LlamaConfig(**about, **SHAPE)
        model = transformers.LlamaForSequenceClassification(config)
    else:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    with tempfile.TemporaryDirectory() as scratch:
        settings = trl.RewardConfig(
            output_dir=scratch, max_steps=40, per_device_train_batch_size=9, learning_rate=1e-2,
            lr_scheduler_type="constant", report_to=[], save_strategy="no", bf16=False, use_cpu=True,
            logging_steps=20, gradient_checkpointing=False)
        trainer = trl.RewardTrainer(
            model=model, args=settings, train_dataset=Dataset.from_list(pairs()), processing_class=tokenizer,
            peft_config=peft.LoraConfig(**LORA) if base else None)
        trainer.train()
        trainer.save_model(folder)
    for name in ("training_args.bin", "README.md"):
        (folder / name).unlink(missing_ok=True)


def padded(folder: Path) -> dict:
    """The texts of all rows as the chat template writes them, in one batch."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [tokenizer.apply_chat_template(row["prompt"] + assistant(row["response"]), tokenize=False) for row in rows()]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}


def rows() -> list[dict]:
    """Two responses to each of three prompts."""
    found = []
    for pair in pairs()[3:6]:
        for side in ("chosen", "rejected"):
            found.append({"prompt": pair["prompt"], "response": pair[side][0]["content"]})
    return found


def write_rewards(folder: Path, rewards: torch.Tensor) -> None:
    """rows.json: the rows, each with its reward. They must differ, or they prove little."""
    assert rewards.std() > 0.1, f"{folder}: {rewards}"
    lines = [json.dumps(row | {"reward": reward}) for row, reward in zip(rows(), rewards.tolist())]
    (folder / "rows.json").write_text("[\n " + ",\n ".join(lines) + "\n]\n", "utf-8")
    print(folder.name, [round(reward, 3) for reward in rewards.tolist()])


@torch.no_grad()
def transformers_rewards(folder: Path) -> torch.Tensor:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    return model.eval()(**padded(folder)).logits[:, 0]


# ---------------------------------------------------------------- the five folders


def newline() -> None:
    """The newline after <|im_end|> is the last token, and TRL reads there."""
    folder = READINGS / "newline"
    train(folder, make_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<unk>"))
    write_rewards(folder, transformers_rewards(folder))


def pad_is_eos() -> None:
    """The tokenizer has no pad, so TRL takes the eos: the last token that is no pad is the one before </s>."""
    folder = READINGS / "pad-is-eos"
    train(folder, make_tokenizer(PLAIN, eos_token="</s>"))
    write_rewards(folder, transformers_rewards(folder))


@torch.no_grad()
def lora() -> None:
    """The same with an adapter: its tokenizer has the pad, and the base's config.json has none."""
    folder, base = READINGS / "lora", READINGS / "lora-base"
    tokenizer = make_tokenizer(PLAIN, eos_token="</s>")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **SHAPE)
    transformers.LlamaForCausalLM(config).save_pretrained(base)
    (base / "generation_config.json").unlink()
    train(folder, tokenizer, base)
    pad_id = transformers.AutoTokenizer.from_pretrained(folder).pad_token_id
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=pad_id)
    model = peft.PeftModel.from_pretrained(model, folder).eval().float()
    write_rewards(folder, model(**padded(folder)).logits[:, 0])


@torch.no_grad()
def llamafactory() -> None:
    """A language model, the head beside it with a bias. Read at </s> by the mask, although that is the pad too."""
    folder = READINGS / "llamafactory"
    tokenizer = make_tokenizer(PLAIN, eos_token="</s>", pad_token="<unk>")
    with tempfile.TemporaryDirectory() as scratch:
        train(Path(scratch, folder.name), tokenizer)
        classifier = transformers.AutoModelForSequenceClassification.from_pretrained(Path(scratch, folder.name))
    language_model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id, **SHAPE)).eval()
    language_model.model.load_state_dict(classifier.model.state_dict())
    language_model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    weight, bias = classifier.score.weight.clone(), torch.tensor([0.25])
    save_file({"v_head.summary.weight": weight, "v_head.summary.bias": bias}, folder / "value_head.safetensors")
    batch = padded(folder)
    hidden = language_model(**batch, output_hidden_states=True).hidden_states[-1]
    last = hidden[torch.arange(len(hidden)), batch["attention_mask"].sum(-1) - 1]  # (6, D)
    write_rewards(folder, (last @ weight.T + bias)[:, 0])


def openrlhf() -> None:
    """The head has the name that config.json gives it. The text ends at </s>, and the pad is another token."""
    folder = READINGS / "openrlhf"
    train(folder, make_tokenizer(PLAIN, eos_token="</s>", pad_token="<unk>"))
    write_rewards(folder, transformers_rewards(folder))
    tensors = load_file(folder / "model.safetensors")
    tensors["value_head.weight"] = tensors.pop("score.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"architectures": ["RewardModel"], "value_head_prefix": "value_head", "mean": 0.0, "std": 1.0}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def main() -> None:
    os.chdir(ROOT)
    shutil.rmtree(READINGS, ignore_errors=True)
    for make in (newline, pad_is_eos, lora, llamafactory, openrlhf):
        make()
    print({name.__name__: name.__version__ for name in (trl, peft, transformers, torch)})


if __name__ == "__main__":
    main()
