"""Speed and memory of training and scoring, beside TRL, LLaMA-Factory and transformers where they are installed.

    python benchmarks/speed.py train --data PAIRS.jsonl.gz --trl PYTHON --llamafactory PYTHON --shape 30m --dtype float32
    python benchmarks/speed.py score --data PAIRS.jsonl.gz --transformers PYTHON  texts, and the best of n responses to one prompt
    python benchmarks/speed.py growth                             cost against sequence length and model size
    python benchmarks/speed.py start                              seconds from `python train_rm.py` to its first step
    python benchmarks/speed.py same --data TRAIN --eval-data TEST the plain and the fast form learn the same, three seeds
    python benchmarks/speed.py train --data PAIRS.jsonl.gz --shape qwen3-0.6b --dtype bf16 --device cuda    on a GPU

PYTHON is the interpreter of an environment where that package is installed. Every measurement is a process of its own;
ours and the peers' take turns, --repeats times, on the same weights, token ids, pairs per step, dtype and optimizer. A
step's time is taken between the ends of two optimizer steps, so loading, tokenizing, the first step (and compiling) and
saving are left out. Medians and versions go to benchmarks/speed.json;  --tables  prints what the README quotes.
"""
import argparse
import hashlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "speed.json"
sys.path.insert(0, str(ROOT))

LLAMA = {"model_type": "llama", "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8,
         "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 2048,
         "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False}
DIFFERENCE = "largest difference of a step's loss"
SHAPES = {
    "30m": LLAMA | {"vocab_size": 16384},
    "30m-152k": LLAMA | {"vocab_size": 151936},
    "qwen3-0.6b": {"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
                   "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
                   "max_position_embeddings": 40960, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "hidden_act": "silu",
                   "tie_word_embeddings": True},
}


# ---------------------------------------------------------------- what every measurement starts from


def prepare(folder: Path, shape: dict, data: str, n: int, max_length: int) -> None:
    """Weights, tokenizer and n pairs in a folder: as ids for the peers, as text for train_rm.py."""
    import numpy as np
    import torch

    from data import Tokenizer, encode_preferences, epoch_order, read_preferences
    from model import RewardModel

    preferences, _ = read_preferences(data)
    texts = [m["content"] for p in preferences for messages in (p.prompt, *p.responses) for m in messages]
    tokenizer = Tokenizer.train([*texts, "User: Assistant: System:"], 16384)
    fits = [p for p in preferences if encode_preferences([p], tokenizer, max_length, drop_long=True)[1]["kept"]][: n + 2]
    if len(fits) < n + 2:
        sys.exit(f"{data}: {len(fits)} usable pairs, {n + 2} are needed")
    torch.manual_seed(0)
    shape = shape | {"eos_token_id": tokenizer.end_id, "bos_token_id": None, "pad_token_id": tokenizer.pad_id}
    RewardModel.from_scratch(shape).save_pretrained(folder / "model", tokenizer.pad_id)
    tokenizer.save(folder / "model", max_length)
    pairs, _ = encode_preferences(fits[:n], tokenizer, max_length)
    ids = [[pairs.sequence(2 * i).tolist(), pairs.sequence(2 * i + 1).tolist()] for i in range(n)]
    (folder / "ids.json").write_text(json.dumps(ids))
    # train_rm.py shuffles, the peers are told not to: written so that its order of seed 0 is theirs.
    rows = np.empty(n, dtype=object)
    rows[epoch_order(n, 0, 0)] = [p.to_row() for p in fits[:n]]
    for name, part in (("pairs", rows), ("held_out", [p.to_row() for p in fits[n:]])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))


def digest(ids: list) -> str:
    return hashlib.sha256(json.dumps(sorted(ids)).encode()).hexdigest()[:12]


class Clock:
    """Notes the time and the peak memory at the end of every optimizer step, whoever's loop it is."""

    def __init__(self, spawned: float):
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.ends, self.peak_mb, self.spawned = [], 0.0, spawned
        register_optimizer_step_post_hook(self.tick)

    def tick(self, *_):
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
            self.peak_mb = torch.cuda.max_memory_allocated() / 1e6
        else:
            self.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        self.ends.append(time.time())

    def result(self, losses: list[float], ids: list, **versions) -> dict:
        steps = [b - a for a, b in zip(self.ends, self.ends[1:])]
        return {"step_seconds": steps, "first_step_after": self.ends[0] - self.spawned, "peak_mb": self.peak_mb,
                "losses": losses, "tokens": digest(ids), "versions": versions}


# ---------------------------------------------------------------- one training run each, in a process of its own


def train_ours(folder: Path, s: dict) -> dict:
    clock = Clock(s["spawned"])
    import torch

    import train_rm

    seen, encode = [], train_rm.encode_preferences

    def spy(*args):
        pairs, audit = encode(*args)
        seen.append([[pairs.sequence(2 * i).tolist(), pairs.sequence(2 * i + 1).tolist()] for i in range(len(pairs))])
        return pairs, audit

    train_rm.encode_preferences = spy
    dtype = {"float32": [], "bf16": ["--bf16"]}[s["dtype"]]
    status = train_rm.main([
        "--model", str(folder / "model"), "--data", str(folder / "pairs.jsonl"), "--eval-data",
        str(folder / "held_out.jsonl"), "--output", str(folder / "run"), "--batch-size", str(s["batch"] * s["accumulation"]),
        "--gradient-accumulation-steps", str(s["accumulation"]), "--lr", str(s["lr"]), "--lr-scheduler", "constant",
        "--warmup-ratio", "0", "--weight-decay", "0", "--logging-steps", "1", "--eval-steps", "100000",
        "--max-length", str(s["max_length"]), "--device", s["device"], *dtype, *s.get("options", []),
    ])
    if status:
        sys.exit(status)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return clock.result([line["loss"] for line in lines if "loss" in line], seen[0], torch=torch.__version__)


def train_trl(folder: Path, s: dict) -> dict:
    clock = Clock(s["spawned"])
    import torch
    import transformers
    import trl
    from datasets import Dataset

    ids = json.loads((folder / "ids.json").read_text())
    config = trl.RewardConfig(
        output_dir=str(folder / "trl"), max_length=s["max_length"], per_device_train_batch_size=s["batch"],
        gradient_accumulation_steps=s["accumulation"], learning_rate=s["lr"], lr_scheduler_type="constant",
        num_train_epochs=1, logging_steps=1, save_strategy="no", report_to="none", bf16=s["dtype"] == "bf16",
        gradient_checkpointing=False, use_cpu=s["device"] == "cpu", train_sampling_strategy="sequential",
    )
    data = Dataset.from_list([{"chosen_ids": chosen, "rejected_ids": rejected} for chosen, rejected in ids])
    trainer = trl.RewardTrainer(model=str(folder / "model"), args=config, train_dataset=data)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return clock.result(losses, ids, trl=trl.__version__, transformers=transformers.__version__, torch=torch.__version__)


def train_llamafactory(folder: Path, s: dict) -> dict:
    import importlib.machinery
    import types

    try:
        import torchaudio  # noqa: F401
    except ImportError:  # imported by LLaMA-Factory whether there is sound or not
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
        sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    clock = Clock(s["spawned"])
    import torch
    import transformers
    from datasets import Dataset
    from llamafactory.extras.env import VERSION
    from llamafactory.train.rm import workflow
    from llamafactory.train.tuner import run_exp

    ids = json.loads((folder / "ids.json").read_text())
    features = [{f"{side}_{key}": value for side, sequence in zip(("chosen", "rejected"), pair) for key, value in
                 (("input_ids", sequence), ("attention_mask", [1] * len(sequence)), ("labels", sequence))}
                | {"images": None, "videos": None, "audios": None} for pair in ids]
    workflow.get_dataset = lambda *args, **kwargs: {"train_dataset": Dataset.from_list(features)}  # the same ids
    found: dict = {}

    class Done(transformers.TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):  # saving is not timed, and fails for some models
            losses = [line["loss"] for line in state.log_history if "loss" in line]
            found.update(clock.result(losses, ids, llamafactory=VERSION, transformers=transformers.__version__,
                                      torch=torch.__version__))
            print(json.dumps(found), flush=True)
            os._exit(0)

    run_exp(dict(
        stage="rm", do_train=True, finetuning_type="full", template="empty", dataset="pairs", cutoff_len=s["max_length"],
        model_name_or_path=str(folder / "model"), output_dir=str(folder / "llamafactory"), overwrite_output_dir=True,
        per_device_train_batch_size=s["batch"], gradient_accumulation_steps=s["accumulation"], learning_rate=s["lr"],
        lr_scheduler_type="constant", num_train_epochs=1, logging_steps=1, save_strategy="no", report_to="none",
        bf16=s["dtype"] == "bf16", use_cpu=s["device"] == "cpu", disable_shuffling=True, remove_unused_columns=False,
        disable_gradient_checkpointing=True,
    ), callbacks=[Done()])
    return found


# ---------------------------------------------------------------- scoring, ours and transformers' in one process


def score_both(folder: Path, s: dict) -> dict:
    """Seconds for the same rewards, ours and (where it is installed) transformers', taking turns; and their distance."""
    import numpy as np
    import torch

    from eval import score_groups, score_sequences
    from model import RewardModel

    try:
        import transformers
    except ImportError:
        transformers = None
    torch.set_grad_enabled(False)
    model, rng = RewardModel.from_pretrained(folder / "model").eval(), np.random.default_rng(0)
    ids = lambda n: rng.integers(5, 10000, n).astype(np.int32)
    prompt = ids(400)
    work = {f"best of {n}": [[np.concatenate((prompt, ids(rng.integers(30, 51)))) for _ in range(n)]] for n in (4, 16, 64)}
    pairs = json.loads((folder / "ids.json").read_text())[:32]
    work["64 texts"] = [[np.array(side, dtype=np.int32)] for pair in pairs for side in pair]
    pad = json.loads((folder / "model" / "config.json").read_text())["pad_token_id"]
    if transformers:
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()

    def peer(sequences):
        rewards = []
        for start in range(0, len(sequences), 16):
            batch = sequences[start : start + 16]
            width = max(map(len, batch))
            rows = torch.tensor([s.tolist() + [pad] * (width - len(s)) for s in batch])
            mask = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in batch])
            rewards.append(theirs(input_ids=rows, attention_mask=mask).logits[:, 0])
        return torch.cat(rewards).numpy()

    result = {}
    for name, groups in work.items():
        sequences = [s for group in groups for s in group]
        ours = (lambda: score_groups(model, groups)) if len(groups) == 1 else (lambda: score_sequences(model, sequences, pad))
        seconds, rewards = {"ours": [], "transformers": []}, {}
        for _ in range(s["repeats"] + 1):  # the first one warms up
            for who, call in (("ours", ours), ("transformers", lambda: peer(sequences)))[: 2 if transformers else 1]:
                began = time.perf_counter()
                rewards[who] = call()
                seconds[who].append(time.perf_counter() - began)
        entry = {who: statistics.median(times[1:]) for who, times in seconds.items() if times}
        if transformers:
            entry["largest_difference"] = float(np.abs(rewards["ours"] - rewards["transformers"]).max())
            entry["ratio"] = statistics.median(b / a for a, b in list(zip(*seconds.values()))[1:])
        result[name] = entry
    return {"work": result, "versions": {"torch": torch.__version__} | (
        {"transformers": transformers.__version__} if transformers else {})}


# ---------------------------------------------------------------- the floor: matrix products alone


def floor(folder: Path, s: dict) -> dict:
    """Seconds a step's matrix products alone take: every linear layer, forward and both backward products, on the real
    tokens with each prompt once, the last layer only where a sequence ends."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    from data import pack

    shape, device = json.loads((folder / "model" / "config.json").read_text()), s["device"]
    dtype = {"float32": torch.float32, "bf16": torch.bfloat16}[s["dtype"]]
    pairs = [[np.array(side) for side in pair] for pair in json.loads((folder / "ids.json").read_text())]
    D, I, P = shape["hidden_size"], shape["intermediate_size"], shape["head_dim"]
    wide, narrow = shape["num_attention_heads"] * P, shape["num_key_value_heads"] * P
    early, late = [(D, wide), (D, narrow), (D, narrow)], [(wide, D), (D, I), (D, I), (I, D)]

    wait = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)

    def seconds(tokens: int, sizes: list) -> float:
        total = 0.0
        for n, m in sizes:
            x, w = torch.randn(tokens, n, dtype=dtype, device=device), torch.randn(m, n, dtype=dtype, device=device)
            g = torch.randn(tokens, m, dtype=dtype, device=device)
            wait()
            began = time.perf_counter()
            F.linear(x, w), g @ w, g.T @ x
            wait()
            total += time.perf_counter() - began
        return total

    def micro_batch(tokens: int) -> float:
        whole_layers = (shape["num_hidden_layers"] - 1) * seconds(tokens, early + late)
        return whole_layers + seconds(tokens, early) + seconds(2 * s["batch"], late)

    starts = range(0, len(pairs) - s["batch"] + 1, s["batch"])
    sizes = [pack(pairs[i : i + s["batch"]])[0].numel() for i in starts]
    micro_batch(sizes[0])  # warm up
    return {"seconds_per_pair": sum(map(micro_batch, sizes)) / len(sizes) / s["batch"], "tokens_per_pair":
            sum(sizes) / len(sizes) / s["batch"]}


# ---------------------------------------------------------------- taking turns, and what is kept

WORKERS = {"ours": train_ours, "compiled": train_ours, "trl": train_trl, "llamafactory": train_llamafactory,
           "floor": floor, "score": score_both}


def spawn(python: str, worker: str, folder: Path, settings: dict) -> dict:
    """One measurement in a process of its own; its last line is the result."""
    command = [python, str(Path(__file__)), "worker", worker, str(folder), json.dumps(settings | {"spawned": time.time()})]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        sys.exit(f"{worker} failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def machine() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def keep(name: str, entry: dict) -> None:
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[name] = entry | {"machine": machine(), "command": "python benchmarks/speed.py " + " ".join(
        Path(a).name if "/" in a else a for a in sys.argv[1:])}
    RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
    print(json.dumps({name: results[name]}, indent=1))


def command_train(args) -> None:
    runners = {"ours": sys.executable, "compiled": args.compile and sys.executable, "trl": args.trl,
               "llamafactory": args.llamafactory}
    runners = {who: python for who, python in runners.items() if python}
    settings = {"batch": args.batch, "accumulation": args.accumulation, "dtype": args.dtype, "device": args.device,
                "lr": 1e-5, "max_length": args.max_length}
    runs, floors = {who: [] for who in runners}, []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), SHAPES[args.shape], args.data, args.pairs, args.max_length)
        for turn in range(args.repeats):
            for who, python in runners.items():
                options = {"options": ["--compile"]} if who == "compiled" else {}
                runs[who].append(spawn(python, who, Path(folder), settings | options))
                speed = args.batch * args.accumulation / statistics.mean(runs[who][-1]["step_seconds"])
                print(f"turn {turn + 1}  {who:<13} {speed:.2f} pairs/s", file=sys.stderr)
            floors.append(spawn(sys.executable, "floor", Path(folder), settings))
    assert len({run["tokens"] for who in runs for run in runs[who]}) == 1, "not the same token ids"
    per_pair = {who: [statistics.mean(r["step_seconds"]) / args.batch / args.accumulation for r in runs[who]] for who in runs}
    entry = {"floor_pairs_per_second": 1 / statistics.median(f["seconds_per_pair"] for f in floors),
             "tokens_per_pair_each_once": floors[0]["tokens_per_pair"], "steps_timed": len(runs["ours"][0]["step_seconds"]),
             "settings": settings, "who": {}}
    for who, turns in runs.items():
        e = entry["who"][who] = {
            "pairs_per_second": 1 / statistics.median(per_pair[who]), "turns": [1 / t for t in per_pair[who]],
            "peak_mb": statistics.median(t["peak_mb"] for t in turns), "versions": turns[0]["versions"],
            "first_step_after": statistics.median(t["first_step_after"] for t in turns), "losses": turns[0]["losses"],
        }
        e["share_of_floor"] = e["pairs_per_second"] / entry["floor_pairs_per_second"]
        for form in {"ours", "compiled"} & runs.keys() - {who}:
            if who in ("trl", "llamafactory"):  # turn by turn, so that a machine that drifts does not decide
                e[f"{form}_is_faster_by"] = statistics.median(b / a for a, b in zip(per_pair[form], per_pair[who]))
    keep(f"train {args.shape} {args.dtype} {args.device}", entry)


def command_score(args) -> None:
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), SHAPES[args.shape], args.data, 32, 512)
        keep("score", spawn(args.transformers or sys.executable, "score", Path(folder), {"repeats": args.repeats}))


def command_growth(args) -> None:
    """Random pairs, half of each prompt: pairs per second and peak memory of a step of 4 pairs."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for layers, width in ((2, 128), (4, 256), (8, 512), (12, 768)):
            for length in (128, 256, 512, 1024):
                shape = LLAMA | {"vocab_size": 16384, "hidden_size": width, "intermediate_size": 2 * width,
                                 "num_hidden_layers": layers, "num_attention_heads": width // 64,
                                 "num_key_value_heads": width // 64}
                if (width, length) in ((128, 1024), (256, 1024), (512, 128)) or length == 256 or width == 512:
                    rows.append({"layers": layers, "hidden_size": width, "tokens_per_response_with_prompt": length}
                                | spawn(sys.executable, "grow", Path(folder), {"shape": shape, "length": length}))
                    print(rows[-1], file=sys.stderr)
    keep("growth", {"rows": rows})


def random_pairs(n: int, length: int, vocabulary: int):
    """n pairs whose two sequences have this length each, half of it their prompt; a data.Pairs."""
    import numpy as np

    from data import Pairs

    rng, half, each = np.random.default_rng(0), length // 2, np.arange(n)
    prompts = rng.integers(0, vocabulary, (n, half))
    sides = [np.concatenate((prompts[s // 2], rng.integers(0, vocabulary, length - half))) for s in range(2 * n)]
    return Pairs(np.concatenate(sides).astype(np.int32), np.arange(2 * n + 1) * length, np.arange(n + 1) * 2,
                 np.arange(n + 1), 2 * each, 2 * each + 1, np.full(n, half), np.zeros(n, np.float32), each)


def grow(folder: Path, s: dict) -> dict:
    import numpy as np
    import torch

    import train_rm
    from data import collate
    from model import RewardModel, RowsInUse

    torch.manual_seed(0)
    model, pairs = RewardModel.from_scratch(s["shape"]), random_pairs(4, s["length"], 16000)
    parameters = sum(p.numel() for p in model.parameters())
    model.model.embed_tokens = RowsInUse(model.model.embed_tokens, torch.from_numpy(np.unique(pairs.ids)).long())
    args = train_rm.parse_options(["--lr", "1e-5"])
    optimizer, scaler = train_rm.make_optimizer(model, args), torch.amp.GradScaler("cpu", enabled=False)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        train_rm.accumulate_gradients(model, [collate(pairs, np.arange(4), 0, True)], 4, args, scaler)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - began)
    return {"parameters": parameters, "pairs_per_second": 4 / statistics.median(times[1:]),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000}


def command_start(args) -> None:
    """From the command line to the end of the first optimizer step."""
    entry = {}
    for name, options in (("the default run, 48,000 pairs", []), ("the default run's model, 2,000 pairs", ["--toy-pairs", "2000"])):
        with tempfile.TemporaryDirectory() as folder:
            settings = {"options": [*options, "--max-steps", "1", "--output", f"{folder}/run"]}
            turns = [spawn(sys.executable, "start", Path(folder), settings) for _ in range(args.repeats)]
        entry[name] = statistics.median(t["first_step_after"] for t in turns)
    keep("start", {"seconds": entry})


def start(folder: Path, s: dict) -> dict:
    clock = Clock(s["spawned"])
    import train_rm

    status = train_rm.main(s["options"])
    return {"first_step_after": clock.ends[0] - s["spawned"], "status": status}


def command_same(args) -> None:
    """Three seeds, --no-shared-prompts against the default, on real pairs: held-out accuracy and loss."""
    entry: dict = {"options": args.options, "seeds": []}
    for seed in range(3):
        both = {}
        for form in ("--no-shared-prompts", "--shared-prompts"):
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                subprocess.run([sys.executable, str(ROOT / "train_rm.py"), "--data", args.data, "--eval-data",
                                args.eval_data, "--seed", str(seed), "--output", f"{folder}/run", "--logging-steps", "1",
                                form, *args.options.split()], check=True, stdout=subprocess.DEVNULL)
                report = json.loads(Path(folder, "run", "report.json").read_text())
                lines = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
                both[form] = {"accuracy": report["accuracy"], "loss": report["loss"], "seconds": time.perf_counter() - began,
                              "losses": [line["loss"] for line in lines if "loss" in line]}
        plain, fast = (both[form].pop("losses") for form in ("--no-shared-prompts", "--shared-prompts"))
        both[DIFFERENCE] = max(abs(a - b) for a, b in zip(plain, fast))
        both["steps"] = len(plain)
        entry["seeds"].append(both)
    keep("same", entry)


WORKERS |= {"grow": grow, "start": start}


def tables() -> dict[str, str]:
    """What the README quotes, by name, in Markdown."""
    results = json.loads(RESULTS.read_text())
    train = ["| shape, dtype | minRM | TRL | LLaMA-Factory | times TRL | times LLaMA-Factory | of the floor | peak MB: minRM / "
             "TRL / LLaMA-Factory |", "|---|---|---|---|---|---|---|---|"]
    for name, entry in results.items():
        kind, *what = name.split()
        if kind != "train" or "cpu" not in what:
            continue
        for form in ("ours", "compiled"):
            who = entry["who"]
            if form not in who:
                continue
            speeds = [f"{who[w]['pairs_per_second']:.2f}" if w in who else "" for w in (form, "trl", "llamafactory")]
            times = [f"{who[w][f'{form}_is_faster_by']:.1f}" if w in who else "" for w in ("trl", "llamafactory")]
            memory = " / ".join(f"{who[w]['peak_mb']:,.0f}" for w in (form, "trl", "llamafactory") if w in who)
            label = ", ".join(what[:2]) + (", `--compile`" if form == "compiled" else "")
            train.append(f"| {label} | {' | '.join(speeds + times)} | {who[form]['share_of_floor']:.0%} | {memory} |")
    score = ["| work | minRM, seconds | transformers, seconds | times | largest difference of a reward |", "|---|---|---|---|---|"]
    for name, e in results["score"]["work"].items():
        score.append(f"| {name} | {e['ours']:.2f} | {e['transformers']:.2f} | {e['ratio']:.1f} | {e['largest_difference']:.0e} |")
    same = ["| seed | accuracy, plain | accuracy, fast | loss, plain | loss, fast | largest difference of a step's loss |",
            "|---|---|---|---|---|---|"]
    for seed, e in enumerate(results["same"]["seeds"]):
        plain, fast = e["--no-shared-prompts"], e["--shared-prompts"]
        same.append(f"| {seed} | {plain['accuracy']:.3f} | {fast['accuracy']:.3f} | {plain['loss']:.4f} | {fast['loss']:.4f} | "
                    f"{e[DIFFERENCE]:.0e} |")
    growth = ["| parameters | tokens of prompt + response | pairs per second | peak MB |", "|---|---|---|---|"]
    for e in results["growth"]["rows"]:
        growth.append(f"| {e['parameters'] / 1e6:.1f}M | {e['tokens_per_response_with_prompt']} | {e['pairs_per_second']:.2f} | "
                      f"{e['peak_mb']:,.0f} |")
    apart = max(abs(a - b) for entry in results.values() if "trl" in entry.get("who", {}) and "float32" in str(entry["settings"])
                for a, b in zip(entry["who"]["ours"]["losses"], entry["who"]["trl"]["losses"]))
    whole, small = results["start"]["seconds"].values()
    return {name: "\n".join(rows) for name, rows in (
        ("train", train), ("score", score), ("same", same), ("growth", growth),
        ("losses", [f"Step by step our float32 losses are TRL's, to {apart:.0e}."]),
        ("start", [f"From `python train_rm.py` to the end of its first step: {whole:.1f} s, most of it for making, rendering and "
                   f"tokenizing 48,000 pairs;", f"{small:.1f} s with `--toy-pairs 2000` (`python benchmarks/speed.py start`)."]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="print the tables of the README")
    commands = parser.add_subparsers(dest="command")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--repeats", type=int, default=3, help="turns of each; the median is kept")
    common.add_argument("--shape", choices=SHAPES, default="30m")
    on_pairs = argparse.ArgumentParser(add_help=False)
    on_pairs.add_argument("--data", required=True, help="preference pairs, in any layout train_rm.py reads")
    p = commands.add_parser("train", parents=[common, on_pairs])
    p.add_argument("--trl", metavar="PYTHON")
    p.add_argument("--llamafactory", metavar="PYTHON")
    p.add_argument("--compile", action="store_true", help="measure --compile too")
    p.add_argument("--dtype", choices=["float32", "bf16"], default="float32")
    p.add_argument("--device", default="cpu")
    p.add_argument("--pairs", type=int, default=64)
    p.add_argument("--batch", type=int, default=4, help="pairs in a forward pass")
    p.add_argument("--accumulation", type=int, default=2, help="forward passes in a step")
    p.add_argument("--max-length", type=int, default=512)
    p.set_defaults(run=command_train)
    p = commands.add_parser("score", parents=[common, on_pairs])
    p.add_argument("--transformers", metavar="PYTHON")
    p.set_defaults(run=command_score)
    commands.add_parser("growth", parents=[common]).set_defaults(run=command_growth)
    commands.add_parser("start", parents=[common]).set_defaults(run=command_start)
    p = commands.add_parser("same", parents=[common, on_pairs])
    p.add_argument("--eval-data", required=True)
    p.add_argument("--options", default="", help="further options of train_rm.py, in one string")
    p.set_defaults(run=command_same)
    args = parser.parse_args()
    if args.tables:
        print("\n\n".join(tables().values()))
    elif args.command:
        args.run(args)
    else:
        parser.print_help()


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        print(json.dumps(WORKERS[sys.argv[2]](Path(sys.argv[3]), json.loads(sys.argv[4]))))
    else:
        main()
