"""What several benchmarks need: processes of their own, a clock, result files, tables."""
import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for data, model, eval, train_rm and extras

LLAMA = {
    "model_type": "llama",
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
NUMBERS = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads",
           "num_key_value_heads", "head_dim", "vocab_size")
LLAMAS = {  # name -> NUMBERS
    "tiny": (64, 2, 128, 4, 2, 16, 512),
    "1m": (64, 2, 128, 1, 1, 64, 16384),
    "10m": (320, 5, 640, 5, 5, 64, 16384),
    "30m": (512, 8, 1024, 8, 8, 64, 16384),
    "30m-152k": (512, 8, 1024, 8, 8, 64, 151936),
    "100m": (768, 12, 2048, 12, 12, 64, 16384),
    "0.5b": (896, 24, 4864, 14, 2, 64, 151936),
    "1.5b": (1536, 28, 8960, 12, 2, 128, 151936),  # this and the next as Qwen2.5 has them
    "3b": (2048, 36, 11008, 16, 2, 128, 151936),
    "llama-3-8b": (4096, 32, 14336, 32, 8, 128, 128256),
}
QWEN = {
    "model_type": "qwen3",
    "max_position_embeddings": 40960,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
}
SHAPES = {"qwen3-0.6b": QWEN}
for name, numbers in LLAMAS.items():
    SHAPES[name] = LLAMA | dict(zip(NUMBERS, numbers))

# ---------------------------------------------------------------- processes


def spawn(python: str, script: Path, worker: str, settings: dict, cwd=None) -> dict:
    """Run a worker of a script in a fresh process, so that its memory and caches are its own.

    The script is called with "worker", the worker's name and its settings as JSON; its last line
    is the result. Without a GPU where the settings say device "cpu".
    """
    environment = dict(os.environ)
    if settings.get("device") == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    settings = settings | {"spawned": time.time()}
    done = subprocess.run(
        [python, str(script), "worker", worker, json.dumps(settings)],
        check=False,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
    )
    if done.returncode == -9:  # what Linux does to a process when there is no memory left
        return {"did_not_run": "out of memory: killed"}
    if done.returncode:
        sys.exit(f"{worker} failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    last_line = done.stdout.strip().splitlines()[-1]
    return json.loads(last_line)


def asked_to_work(workers: dict) -> bool:
    """Whether this process is one that spawn started; then its work is done here."""
    if sys.argv[1:2] != ["worker"]:
        return False
    name, settings = sys.argv[2:]
    result = workers[name](json.loads(settings))
    print(json.dumps(result))
    return True


class StepClock:
    """The time and the peak memory at the end of every optimizer step, in any training loop.

    A step lasts from the end of one update to the end of the next. So loading, tokenizing, the
    first step (and compiling) and saving are left out.
    """

    def __init__(self):
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.ends, self.peak_mb = [], 0.0
        register_optimizer_step_post_hook(self.tick)

    def tick(self, *_):
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
            self.peak_mb = torch.cuda.max_memory_allocated() / 1e6
        else:
            self.peak_mb = peak_mb()
        self.ends.append(time.time())

    def seconds(self) -> list[float]:
        """Of each step but the first."""
        seconds = []
        for before, after in zip(self.ends, self.ends[1:]):
            seconds.append(after - before)
        return seconds


def peak_mb() -> float:
    """The largest resident memory of this process so far."""
    # Not getrusage: a process starts there with the memory of the one that started it.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError("/proc/self/status has no VmHWM")


def machine() -> str:
    """The GPU if there is one, else the processor."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.split(":")[1].strip()
    return f"{name}, {os.cpu_count()} cores"


def losses_of_run(run: Path) -> list[float]:
    """The loss of each line that train_rm.py logged."""
    losses = []
    for text in (run / "metrics.jsonl").read_text("utf-8").splitlines():
        line = json.loads(text)
        if "loss" in line:
            losses.append(line["loss"])
    return losses


# ---------------------------------------------------------------- options, results, tables


def new_parser(doc: str) -> argparse.ArgumentParser:
    """A command line whose help is the script's docstring; all have --tables."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", action="store_true", help="print what README and docs quote")
    return parser


def read_json(file: Path):
    """What a JSON file holds."""
    return json.loads(file.read_text("utf-8"))


def load_results(file: Path) -> dict:
    """The results that a file has so far."""
    if not file.exists():
        return {}
    return read_json(file)


def keep(file: Path, name: str, entry: dict) -> None:
    """Write one result of several, in place of an earlier one of its name."""
    entry = how_made() | entry
    write(file, load_results(file) | {name: entry})
    print(json.dumps({name: entry}, indent=1))


def how_made() -> dict:
    """Machine, date and command of a result."""
    script, *words = sys.argv
    words = ["python", f"benchmarks/{Path(script).name}", *map(short, words)]
    return {
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(words),
    }


def short(word: str) -> str:
    """A word of a command, without the folders that only this machine has."""
    kept = 2 if ".jsonl" in word else 1  # a data set's name is that of its folder
    return "/".join(Path(word).parts[-kept:])


def write(file: Path, results: dict) -> None:
    """A result file."""
    text = json.dumps(results, indent=1) + "\n"
    file.write_text(text, "utf-8")


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    head, *body = ["| " + " | ".join(cells) + " |" for cells in (columns, *rows)]
    rule = "|" + "---|" * len(columns)
    return "\n".join([head, rule, *body])


def largest_difference(a: list[float], b: list[float]) -> float:
    """Of two lists of equal length."""
    differences = [abs(x - y) for x, y in zip(a, b, strict=True)]
    return max(differences)
