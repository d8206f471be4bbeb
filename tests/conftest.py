"""What several test files need: tiny models and tokenizers, run folders, and the optional shared data."""
import contextlib
import io
import json
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
FIXTURES = ROOT / "tests" / "fixtures"
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests"))

import pytest
import tokenizers
import torch

from data import Tokenizer, open_tokenizer
from model import RewardModel

# For tests on real data and real tokenizers, which are not part of this repository.
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="needs ../shared: data and weights used in development"
)

TINY = {
    "model_type": "llama",
    "vocab_size": 400,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "initializer_range": 0.3,  # large enough that every token changes the reward
}


def tiny_model(seed: int = 0, **settings) -> RewardModel:
    """A random decoder whose head has a bias too: a forgotten bias must not hide behind a zero."""
    torch.manual_seed(seed)
    model = RewardModel.from_scratch(TINY | settings).eval()
    torch.nn.init.constant_(model.score.bias, 0.25)
    return model


def tiny_tokenizer(template=None, bos=False, specials=(), **config) -> Tokenizer:
    """A byte-level tokenizer with <pad> 0, <s> 1, </s> 2. With bos it prepends <s> by itself."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>", *specials],
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    texts = ["the cat sat on the mat and the dog did not"] * 3
    backend.train_from_iterator(texts, trainer)
    if bos:
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    config = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} | config
    if template is not None:
        config["chat_template"] = template
    return open_tokenizer(backend, config, "tokenizer")


def save_run(folder: Path, model: RewardModel, tokenizer: Tokenizer, max_length=128) -> Path:
    """A run folder as training leaves it, without the training."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, tokenizer.pad_id, model.state_dict())
    tokenizer.save(folder, max_length)
    return folder


def copy_run(source: Path, target: Path) -> Path:
    """A copy of a run folder, to be damaged."""
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file():
            (target / file.name).write_bytes(file.read_bytes())
    return target


def write_rows(path: Path, rows) -> Path:
    """JSON lines."""
    lines = [json.dumps(row) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict]:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


SENT = []  # signals that a test sent to this process itself


def command(main, *args, stdin="") -> tuple[int, str, str]:
    """A script's main in this process (a new Python needs seconds): status, stdout, stderr."""
    out, err, before = io.StringIO(), io.StringIO(), sys.stdin
    sys.stdin = io.StringIO(stdin)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main([str(arg) for arg in args])
    except SystemExit as e:  # argparse
        status = e.code
    finally:
        sys.stdin = before
    if status == 128 + signal.SIGTERM and not SENT:
        # Training caught a signal that was meant for pytest: pass it on, so that pytest ends too.
        signal.raise_signal(signal.SIGTERM)
    SENT.clear()
    return status, out.getvalue(), err.getvalue()
