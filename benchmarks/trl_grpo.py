"""Our run folder as the reward model of somebody else's reinforcement learning: TRL's GRPO.

    python train_rm.py
    python benchmarks/trl_grpo.py runs/toy --trl PYTHON

PYTHON is the interpreter of an environment with TRL. TRL opens the folder by itself (transformers'
AutoModelForSequenceClassification) and rewards what a small untrained policy writes; what it gave for every completion is
held against ours on the same token ids. Figures go to benchmarks/trl_grpo.json. (The policy is random and two
steps long: this shows that the rewards are the same, not that anything is learned.)
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).with_suffix(".json")
PROMPTS = ["Which colour is grass?", "What is the capital of Peru?", "What is the opposite of hot?", "What is a young dog called?"]


def worker(run: str, folder: str) -> None:
    """In TRL's environment: two steps of GRPO; token ids and the rewards they got go to a file."""
    import torch
    import transformers
    import trl
    from datasets import Dataset

    tokenizer = transformers.AutoTokenizer.from_pretrained(run)
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                                      num_attention_heads=2, max_position_embeddings=256, eos_token_id=tokenizer.eos_token_id,
                                      pad_token_id=tokenizer.pad_token_id, bos_token_id=None)
    torch.manual_seed(0)
    policy, scored = transformers.LlamaForCausalLM(config), []

    def spy(input_ids, attention_mask=None, **more):
        out = forward(input_ids=input_ids, attention_mask=attention_mask, **more)
        for ids, mask, logits in zip(input_ids, attention_mask, out.logits):
            scored.append({"input_ids": ids[mask.bool()].tolist(), "theirs": logits[0].item()})
        return out

    settings = trl.GRPOConfig(output_dir=f"{folder}/grpo", per_device_train_batch_size=8, num_generations=4, max_steps=2,
                              max_completion_length=24, report_to="none", use_cpu=True, bf16=False, save_strategy="no", logging_steps=1)
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": prompt}]} for prompt in PROMPTS])
    trainer = trl.GRPOTrainer(model=policy, reward_funcs=run, args=settings, train_dataset=data, processing_class=tokenizer)
    reward_model = trainer.accelerator.unwrap_model(trainer.reward_funcs[0])
    forward, reward_model.forward = reward_model.forward, spy
    trainer.train()
    logged = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    versions = {"trl": trl.__version__, "transformers": transformers.__version__}
    Path(folder, "scored.json").write_text(json.dumps({"rows": scored, "logged": logged, "versions": versions}))


def main(run: str, python: str) -> None:
    sys.path.insert(0, str(ROOT))
    from eval import score
    from model import RewardModel

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, __file__, "worker", str(Path(run).resolve()), folder], check=True, stdout=subprocess.DEVNULL)
        seen = json.loads(Path(folder, "scored.json").read_text())
    ours = score(RewardModel.from_pretrained(run).eval(), [{"input_ids": row["input_ids"]} for row in seen["rows"]])
    theirs = [row["theirs"] for row in seen["rows"]]
    result = {"completions": len(ours), "largest_difference": max(abs(a - b) for a, b in zip(ours, theirs)),
              "mean_reward_ours": sum(ours) / len(ours), "mean_reward_logged_by_trl": sum(seen["logged"]) / len(seen["logged"]),
              "versions": seen["versions"], "command": "python benchmarks/trl_grpo.py runs/toy --trl PYTHON"}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(*sys.argv[2:])
    elif len(sys.argv) == 4 and sys.argv[2] == "--trl":
        main(sys.argv[1], sys.argv[3])
    else:
        sys.exit(__doc__)
