"""Write tests/fixtures/adapters/: LoRA adapters as PEFT saves them, and the rewards that PEFT computes with them.

Not run by the tests. In an environment of its own:
    pip install transformers==5.23.0 peft==0.21.2 torch && python tests/make_adapters.py
Their bases are fixtures of make_fixtures.py, so an adapter here is a few kilobytes.
"""
import json
import os
import shutil
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = Path("tests/fixtures")  # the path that the adapters name: from the root of this repository
REGEX = r"model\.layers\.\d+\.(self_attn\.[qv]_proj|mlp\.(up|down)_proj)"
CASES = {  # base, settings
    "head": ("qwen2", dict(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"])),
    "patterns": ("llama-bias", dict(  # a regular expression; other ranks and sizes for some matrices; α/√r
        r=4, lora_alpha=6, use_rslora=True, target_modules=REGEX,
        rank_pattern={"q_proj": 2, r"layers\.1\.mlp\..*": 3}, alpha_pattern={r"^model\.layers\.0\.self_attn\.v_proj": 20})),
    "some-layers": ("qwen2", dict(  # two limits, and two more parts that are trained as a whole
        r=2, lora_alpha=3, target_modules=["q_proj", "k_proj", "gate_proj", "down_proj"], layers_to_transform=[1],
        exclude_modules=["k_proj"], modules_to_save=["score", "norm", "embed_tokens"])),
    "all-linear": ("llama-bias", dict(r=1, lora_alpha=2, target_modules="all-linear")),
    "llamafactory": ("round-trips/qwen2-llamafactory", dict(r=2, lora_alpha=4, target_modules="all-linear")),
    "gpt2": ("gpt2", dict(r=2, lora_alpha=4, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "gpt_neox": ("gpt_neox", dict(r=2, lora_alpha=4, target_modules=["query_key_value", "dense_h_to_4h"])),
}


def main() -> None:
    os.chdir(ROOT)
    torch.manual_seed(0)
    for name, (base, settings) in CASES.items():
        folder = FIXTURES / "adapters" / name
        shutil.rmtree(folder, ignore_errors=True)
        expected = load_file(FIXTURES / base / "expected.safetensors")
        inputs = {key: expected[key] for key in ("input_ids", "attention_mask")}
        is_language_model = name == "llamafactory"
        auto = transformers.AutoModelForCausalLM if is_language_model else transformers.AutoModelForSequenceClassification
        kind = "CAUSAL_LM" if is_language_model else "SEQ_CLS"
        theirs = auto.from_pretrained(FIXTURES / base, dtype=torch.float32)
        model = peft.get_peft_model(theirs, peft.LoraConfig(task_type=kind, **settings)).eval()
        for parameter in model.parameters():
            if parameter.requires_grad:  # B too, which starts at 0
                torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1) * 0.5, std=0.3)
        with torch.no_grad():
            if is_language_model:
                head = {"v_head.summary.weight": torch.randn(1, 24), "v_head.summary.bias": torch.tensor([0.5])}
                hidden = model(**inputs, output_hidden_states=True).hidden_states[-1]
                last = hidden[torch.arange(3), inputs["attention_mask"].sum(-1) - 1]  # (3, D)
                rewards = (last @ head["v_head.summary.weight"].T + head["v_head.summary.bias"])[:, 0]
            else:
                rewards = model(**inputs).logits[:, 0]
        model.peft_config["default"].base_model_name_or_path = str(FIXTURES / base)
        model.save_pretrained(folder)
        (folder / "README.md").unlink()
        if is_language_model:
            save_file(head, folder / "value_head.safetensors")
        save_file(inputs | {"rewards": rewards.contiguous()}, folder / "expected.safetensors")
        saved = json.loads((folder / "adapter_config.json").read_text())
        print(name, rewards.tolist(), {key: saved[key] for key in ("target_modules", "modules_to_save", "fan_in_fan_out")})
    print({"peft": peft.__version__, "transformers": transformers.__version__, "torch": torch.__version__})


if __name__ == "__main__":
    main()
