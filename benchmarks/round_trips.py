"""Trained on here, saved, opened by transformers and PEFT: are the rewards the same there?

    python benchmarks/round_trips.py --transformers PYTHON
    python benchmarks/round_trips.py --tables       what docs/results.md quotes

PYTHON is the interpreter of an environment with transformers and PEFT. Every model of
tests/fixtures is trained for a few steps: all its weights, and with --lora-rank 2. transformers
opens the run folder, PEFT the adapter/ of the second run on the model that it started from. Both
write the texts with the chat template that they find there, and score them in one padded batch.
What they give is compared with our rewards for the same rows, and goes to round_trips.json.

transformers has no bias on the head, and no heads of two maps. The bias is added by hand, and such
a head computed by hand, from the tensors of the run folder.
"""
import contextlib
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path

from common import ROOT, asked_to_work, how_made, largest_difference, new_parser, read_json, spawn
from common import table, write

HERE = Path(__file__).resolve()
RESULTS = HERE.with_suffix(".json")
FIXTURES = ROOT / "tests" / "fixtures"
READINGS = FIXTURES / "readings"
STEPS = 4
# No space: transformers cuts Qwen 2's texts at spaces, whatever tokenizer.json says.
LETTERS = "abcdefghijklmnopqrstuvwxyz_.?"
TEMPLATE = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
GROUPS = {
    "family": "families, random weights",
    "moe": "Qwen 3 MoE with dense layers too",
    "head": "heads: LLaMA-Factory's, two maps",
    "reading": "trained elsewhere",
}


# ---------------------------------------------------------------- what is trained


def cases(folder: Path) -> list[dict]:
    """Every model to start from: its group, name and folder."""
    found = []
    for config in sorted(FIXTURES.glob("*/config.json")):
        group = "moe" if config.parent.name.startswith("qwen3_moe") else "family"
        found.append((group, config.parent))
    found.append(("head", FIXTURES / "round-trips" / "qwen2-llamafactory"))
    found.append(("head", two_maps(folder / "source" / "two-maps")))
    for rows in sorted(READINGS.glob("*/rows.json")):
        found.append(("reading", rows.parent))
    prepared = []
    for group, source in found:
        start = folder / "start" / source.name
        shutil.copytree(source, start)
        if not (start / "tokenizer.json").exists():
            write_tokenizer(start)
        prepared.append({"group": group, "name": source.name, "folder": start})
    return prepared


def two_maps(folder: Path) -> Path:
    """The fixture qwen2 with a head of linear, ReLU, linear, as Qwen2.5-Math-RM stores it."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(FIXTURES / "qwen2", folder)
    tensors = load_file(folder / "model.safetensors")
    size = tensors.pop("score.weight").shape[1]
    torch.manual_seed(0)
    for part, rows in (("score.0", size), ("score.2", 1)):
        tensors[f"{part}.weight"] = torch.randn(rows, size) / size**0.5
        tensors[f"{part}.bias"] = torch.randn(rows)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_tokenizer(folder: Path) -> None:
    """A token for each letter, for models of 48 tokens. 0, 1, 2 are those of the fixtures."""
    import tokenizers

    specials = ["<pad>", "<s>", "</s>"]
    vocabulary = {token: number for number, token in enumerate([*specials, *LETTERS])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<pad>"))
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens(specials)
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")


def pairs_for(max_length: int) -> list[dict]:
    """Pairs of different lengths that fit: a window of 5 tokens leaves room for three letters."""
    if max_length < 20:
        texts = [("a", "b", "cd"), ("b", "e", "fg"), ("c", "hi", "j"), ("d", "k", "l")]
    else:
        texts = [
            ("is_it_so?", "yes_it_is.", "no"),
            ("who?", "you", "not_me."),
            ("where_is_the_cat?", "on_the_mat.", "i_do_not_know"),
            ("why?", "a_b_c_d_e_f.", "it_is_late"),
        ]
    names = ("prompt", "chosen", "rejected")
    return [dict(zip(names, row)) for row in texts]


# ---------------------------------------------------------------- ours


def train(case: dict, folder: Path, options: list[str]) -> dict | None:
    """Train on a model: what to open there, with our rewards. None where nothing is to open."""
    import train_rm
    from model import open_model

    run = folder / f"{case['name']}{''.join(options)}"
    base = READINGS / "lora-base" if case["name"] == "lora" else None
    model = open_model(case["folder"], base=base)
    pairs = pairs_for(model.config.max_length)
    file = run.with_suffix(".jsonl")
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), "utf-8")
    argv = ["--model", case["folder"], "--data", file, "--eval-data", file, "--output", run]
    argv += ["--max-steps", STEPS, "--batch-size", 2, "--lr", 0.01, "--device", "cpu", *options]
    argv += ["--base", base] if base else []
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = train_rm.main([str(word) for word in argv])
    if status:
        sys.exit(f"{case['name']}: train_rm.py failed\n{said.getvalue()}")

    rows = rows_of(pairs)
    opened = {"folder": str(run), "rows": rows, "two_maps": case["name"] == "two-maps"}
    rewards, before = our_rewards(run, rows, None), our_rewards(case["folder"], rows, base)
    opened |= {"rewards": rewards, "moved": largest_difference(rewards, before)}
    if options:
        opened |= {"folder": str(run / "adapter"), "base": str(case["folder"])}
        if not (run / "adapter").is_dir():
            return None
    return opened


def rows_of(pairs: list[dict]) -> list[dict]:
    """Both responses of every pair, to be scored."""
    rows = []
    for pair in pairs:
        for side in ("chosen", "rejected"):
            rows.append({"prompt": pair["prompt"], "response": pair[side]})
    return rows


def our_rewards(folder: Path, rows: list[dict], base: Path | None) -> list[float]:
    """As eval.py's score gives them."""
    from eval import score
    from model import RewardModel

    with contextlib.redirect_stderr(io.StringIO()):
        return score(RewardModel.from_pretrained(folder, base=base), rows)


# ---------------------------------------------------------------- theirs


def theirs(s: dict) -> dict:
    """In the other environment: the rewards of transformers and PEFT, for each folder."""
    import peft
    import torch
    import transformers

    versions = {"transformers": transformers.__version__, "peft": peft.__version__}
    rewards = []
    with torch.no_grad():
        for opened in s["opened"]:
            rewards.append(their_rewards(opened))
    return {"rewards": rewards, "versions": versions | {"torch": torch.__version__}}


def their_rewards(opened: dict) -> list[float]:
    """Of one folder: rendered by its chat template, padded on the right."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(opened["folder"])
    texts = []
    for row in opened["rows"]:
        messages = [{"role": "user", "content": row["prompt"]}]
        messages.append({"role": "assistant", "content": row["response"]})
        texts.append(tokenizer.apply_chat_template(messages, tokenize=False))
    options = {"padding": True, "padding_side": "right", "add_special_tokens": False}
    batch = tokenizer(texts, return_tensors="pt", **options)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if opened["two_maps"]:
        return two_maps_by_hand(opened, inputs)
    model = open_there(opened, tokenizer.pad_token_id).eval()
    rewards = model(**inputs).logits[:, 0] + bias_of(opened["folder"])
    return rewards.tolist()


def open_there(opened: dict, pad_token_id: int):
    """The model of a run folder; or of an adapter, on the base that it names."""
    import peft
    import torch
    import transformers

    auto = transformers.AutoModelForSequenceClassification
    if "base" not in opened:
        return auto.from_pretrained(opened["folder"], dtype=torch.float32)
    settings = {"num_labels": 1, "pad_token_id": pad_token_id, "dtype": torch.float32}
    base = auto.from_pretrained(opened["base"], **settings)
    return peft.PeftModel.from_pretrained(base, opened["folder"])


def two_maps_by_hand(opened: dict, inputs: dict) -> list[float]:
    """The decoder of transformers; linear, ReLU, linear at the last token."""
    import torch
    import transformers

    stored = tensors_of(opened["folder"])
    decoder = transformers.AutoModel.from_pretrained(opened["folder"], dtype=torch.float32).eval()
    hidden = decoder(**inputs).last_hidden_state  # (N, T, D)
    last = inputs["attention_mask"].sum(-1) - 1
    state = hidden[torch.arange(len(hidden)), last]  # (N, D)
    state = torch.relu(state @ stored["score.0.weight"].T + stored["score.0.bias"])
    return (state @ stored["score.2.weight"].T + stored["score.2.bias"])[:, 0].tolist()


def bias_of(folder: str) -> float:
    """The bias of the head, which transformers leaves out."""
    for name, tensor in tensors_of(folder).items():
        if name.endswith("score.bias"):
            return tensor.item()
    return 0.0


def tensors_of(folder: str) -> dict:
    """All tensors of a folder."""
    from safetensors.torch import load_file

    tensors = {}
    for file in Path(folder).glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


# ---------------------------------------------------------------- the comparison


def compare(python: str) -> dict:
    """For each model the largest difference of a reward, in the run folder and in adapter/."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        trained = []
        for case in cases(folder):
            for kind, options in (("run", []), ("adapter", ["--lora-rank", "2"])):
                print(case["name"], kind, file=sys.stderr, flush=True)
                trained.append((case, kind, train(case, folder, options)))
        to_open = [opened for _, _, opened in trained if opened]
        seen = spawn(python, HERE, "theirs", {"opened": to_open, "device": "cpu"})
    rewards = iter(seen["rewards"])
    results = {}
    for case, kind, opened in trained:
        entry = results.setdefault(case["name"], {"group": case["group"]})
        if opened is None:
            entry[kind] = None
            continue
        entry[kind] = {
            "largest_difference": largest_difference(opened["rewards"], next(rewards)),
            "training_moved_rewards_by": opened["moved"],
        }
    return {"models": results, "steps": STEPS, "versions": seen["versions"]}


def tables() -> dict[str, str]:
    """What docs/results.md says, from the result file."""
    models = read_json(RESULTS)["models"]
    lines = []
    for group, words in GROUPS.items():
        of_group = [entry for entry in models.values() if entry["group"] == group]
        cells = [words]
        for kind in ("run", "adapter"):
            found = [entry[kind]["largest_difference"] for entry in of_group if entry[kind]]
            cells += [str(len(found)), f"{max(found):.0e}" if found else ""]
        lines.append(cells)
    columns = ["models", "run folders", "largest difference", "adapters", "largest difference"]
    return {"round trips": table(columns, lines)}


def main() -> None:
    """The command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--transformers", metavar="PYTHON")
    args = parser.parse_args()
    if not args.tables:
        if not args.transformers:
            parser.error("--transformers is needed")
        results = compare(args.transformers) | how_made()
        write(RESULTS, results)
        print(json.dumps(results, indent=1))
    print("\n".join(tables().values()))


if __name__ == "__main__":
    if not asked_to_work({"theirs": theirs}):
        main()
