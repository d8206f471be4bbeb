"""model_card.py: README.md of a run folder, for whoever gets the model.

A reward model travels without its history. Who finds the folder a year later, or on the Hugging
Face hub, should know what it was trained on, how good it was, where its reward is read, and how to
load it. Two things are asked most, because nothing fails where they are done wrong:

    reading place    A reward is a property of a model AND of the token that it is read at. Read one
                     token earlier or later it is another number, and often a plausible one.
    the data         tokens/ and held_out.jsonl hold the training texts. They may not be yours to
                     publish, so leave them out of an upload.

The lines between the two --- are what the hub reads (its page for model cards lists the keys).

It costs nothing. Every run writes it at the end; `python extras/model_card.py RUN` writes it again.
tests/extras/test_model_card.py compares its figures with the run's.
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # as a script: model.py is there

from model import CheckpointError, read_json

CARD = """\
---
library_name: transformers
pipeline_tag: text-classification
tags: [reward-model]
---
# {name}: a reward model

Trained by train_rm.py from {base} on {pairs} pairs of {prompts} prompts ({data}).
A reward is in nats. Only the difference of two responses to one prompt means something: it is the
log-odds that the first one is preferred.

The model of step {step} was kept. Where a run has several evaluations, that is the one with the
lowest loss on these pairs, so the figures lean to the good side.

| on {held_out_pairs} held-out pairs | |
|---|---|
| accuracy | {accuracy:.3f} ({low:.3f} to {high:.3f}) |
| what length alone scores | {longer_wins_accuracy:.3f} |
| loss, nats | {loss:.3f} |
| mean and deviation of all rewards | {mean_reward:.3f}, {std_reward:.3f} |

The reward is read at the last token of a text, {last!r}. A text looks like this:

    {text!r}

With this project: `python eval.py score {name}`. With transformers:

    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained({name!r})
    tokenizer = AutoTokenizer.from_pretrained({name!r})
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    reward = model(**inputs).logits[0, 0]

Training data: rows read = rows kept + rows left out, by reason:

    {audit}

options.json has all options and versions, report.json all figures, metrics.jsonl the curve.
**tokens/ and held_out.jsonl hold the texts of the data. Leave them out when you upload the model.**
"""
DIALOGUE = [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]


def write(run: Path, tokenizer, describe_audit) -> None:
    """README.md from options.json, report.json and tokens/audit.json."""
    options = read_json(run / "options.json")["options"]
    report = json.loads((run / "report.json").read_text("utf-8"))
    figures = {name: value for name, value in report.items() if isinstance(value, (int, float))}
    low, high = report["accuracy_ci95"]
    text = tokenizer.render(DIALOGUE)
    last = tokenizer.backend.id_to_token(int(tokenizer.encode([text])[0][-1]))
    audit = run / "tokens" / "audit.json"
    train = {"pairs": "the", "prompts": "its"}
    described = "in the run that --data names"
    if audit.exists():
        try:
            train = read_json(audit)["train"]
            described = describe_audit("train", train).replace("\n", "\n    ")
        except (AttributeError, KeyError, TypeError, ValueError):
            raise CheckpointError(f"{audit} is damaged, so there is no model card") from None
    figures |= {
        "name": run.name,
        "base": without_folder(options.get("model") or "scratch"),
        "data": ", ".join(map(without_folder, options.get("data") or ["the toy world"])),
        "pairs": train["pairs"],
        "prompts": train["prompts"],
        "held_out_pairs": report["pairs"],
        "low": low,
        "high": high,
        "last": last,
        "text": text,
        "audit": described,
    }
    (run / "README.md").write_text(CARD.format(**figures), "utf-8", "replace")


def without_folder(name: str) -> str:
    """The last part of a path: the folders of somebody's machine say nothing to others."""
    return Path(name).name if Path(name).exists() else name


if __name__ == "__main__":
    from data import Tokenizer, describe_audit

    folder = Path(sys.argv[1])
    write(folder, Tokenizer.from_folder(folder), describe_audit)
