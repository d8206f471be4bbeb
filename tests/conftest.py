"""What several test files need: the project's folder on the path, tiny models and tokenizers, the optional shared data."""
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT))

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file

from data import Tokenizer, toy_preferences
from model import RewardModel

# For tests on real data and real tokenizers, which a clone does not carry.
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared: data and weights used in development")

TINY = {
    "model_type": "llama", "vocab_size": 400, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 256,
    "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "hidden_act": "silu", "initializer_range": 0.3,
}


def tiny_model(seed: int = 0, **settings) -> RewardModel:
    """A random decoder with weights large enough that every token matters."""
    torch.manual_seed(seed)
    return RewardModel.from_scratch(TINY | settings).eval()


def tiny_tokenizer(template: str | None = None, bos: bool = False, specials: tuple[str, ...] = (), **config) -> Tokenizer:
    """A byte-level tokenizer that knows every byte, with <s>, </s> and <pad>; with bos, one that prepends <s> by itself."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>", "<s>", "</s>", *specials], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(["the cat sat on the mat and the dog did not"] * 3, trainer)
    if bos:
        backend.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    config = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} | config
    return Tokenizer(backend, config | ({"chat_template": template} if template else {}))


def save_run(folder: Path, model: RewardModel, tokenizer: Tokenizer, max_length: int = 128) -> Path:
    """A run folder as training leaves it, without the training."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, tokenizer.pad_id)
    tokenizer.save(folder, max_length)
    return folder


@pytest.fixture(scope="session", autouse=True)
def background(request, tmp_path_factory):
    """For test_scaling.py: a folder to train from, and ranks.py and crash.py, which work in it while other tests run."""
    if not any(item.path.name == "test_scaling.py" for item in request.session.items):
        yield None
        return
    folder = tmp_path_factory.mktemp("scaling")
    rows = list(toy_preferences(17, 0))
    bad = [*rows[:12], rows[12] | {"rejected": "It is @."}, *rows[13:]]
    for name, content in (("d", rows), ("e", toy_preferences(6, 9)), ("bad", bad)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    for name in ("tiny", "in bf16"):  # the second as large models are stored
        save_run(folder / name, tiny_model(), tiny_tokenizer(), 256)
    tensors = load_file(folder / "tiny" / "model.safetensors")
    save_file({name: t.bfloat16() for name, t in tensors.items()}, folder / "in bf16" / "model.safetensors")
    (folder / "crash").mkdir()
    for name in ("tiny", "d.jsonl", "e.jsonl"):
        (folder / "crash" / name).symlink_to(folder / name)
    started = [subprocess.Popen([sys.executable, str(ROOT / "tests" / script), str(where)], stderr=subprocess.PIPE, text=True,
                                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
               for script, where in (("ranks.py", folder), ("crash.py", folder / "crash"))]
    yield folder, *started
    for process in started:
        process.kill()
        process.wait()
