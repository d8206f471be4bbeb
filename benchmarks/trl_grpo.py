"""Our run folder as the reward model of somebody else's reinforcement learning: TRL's GRPO.

    python train_rm.py
    python benchmarks/trl_grpo.py runs/toy --trl PYTHON

PYTHON is the interpreter of an environment with TRL. TRL opens the folder by itself (transformers'
AutoModelForSequenceClassification) and rewards what a small untrained policy writes. What it gave
to each completion is compared with ours on the same token ids, and goes to trl_grpo.json. The
policy is random and makes two steps: this shows that the rewards are equal, not that it learns.
"""
import json
import sys
import tempfile
from pathlib import Path

from common import asked_to_work, how_made, largest_difference, spawn, write

HERE = Path(__file__).resolve()
RESULTS = HERE.with_suffix(".json")
PROMPTS = ["Which colour is grass?", "Which city governs Peru?", "How does sugar taste?",
           "Which month follows May?"]


def grpo(s: dict) -> dict:
    """In TRL's environment: two steps of GRPO -> token ids, and the rewards that they got."""
    import torch
    import transformers
    import trl
    from datasets import Dataset

    tokenizer = transformers.AutoTokenizer.from_pretrained(s["run"])
    settings = trl.GRPOConfig(
        output_dir=s["folder"],
        per_device_train_batch_size=8,
        num_generations=4,
        max_steps=2,
        max_completion_length=24,
        report_to="none",
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        logging_steps=1,
    )
    questions = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in PROMPTS]
    torch.manual_seed(0)
    trainer = trl.GRPOTrainer(
        model=random_policy(tokenizer),
        reward_funcs=s["run"],
        args=settings,
        train_dataset=Dataset.from_list(questions),
        processing_class=tokenizer,
    )
    scored = note_rewards(trainer.accelerator.unwrap_model(trainer.reward_funcs[0]))
    trainer.train()
    logged = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    versions = {"trl": trl.__version__, "transformers": transformers.__version__}
    return {"rows": scored, "logged": logged, "versions": versions}


def random_policy(tokenizer):
    """A language model that knows nothing."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    return transformers.LlamaForCausalLM(config)


def note_rewards(reward_model) -> list[dict]:
    """A list that grows by one entry for each text that the reward model is called with."""
    scored, forward = [], reward_model.forward

    def forward_and_note(input_ids, attention_mask=None, **more):
        out = forward(input_ids=input_ids, attention_mask=attention_mask, **more)
        for ids, mask, logits in zip(input_ids, attention_mask, out.logits):
            scored.append({"input_ids": ids[mask.bool()].tolist(), "reward": logits[0].item()})
        return out

    reward_model.forward = forward_and_note
    return scored


def our_rewards(run: str, sequences: list[list[int]]) -> list[float]:
    """Ours for the same token ids."""
    import numpy as np

    from data import Example
    from eval import Scorer
    from model import RewardModel

    examples = [Example([np.array(ids, dtype=np.int32)], [], 0) for ids in sequences]
    rewards = Scorer(RewardModel.from_pretrained(run)).rewards(examples)
    return [float(r[0]) for r in rewards]


def compare(run: str, python: str) -> dict:
    """The rewards of all completions, theirs and ours."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"run": str(Path(run).resolve()), "folder": folder, "device": "cpu"}
        seen = spawn(python, HERE, "grpo", settings)
    ours = our_rewards(run, [row["input_ids"] for row in seen["rows"]])
    theirs = [row["reward"] for row in seen["rows"]]
    return {
        "completions": len(ours),
        "largest_difference": largest_difference(ours, theirs),
        "mean_reward_ours": sum(ours) / len(ours),
        "mean_reward_logged_by_trl": sum(seen["logged"]) / len(seen["logged"]),
        "versions": seen["versions"],
    }


def main() -> None:
    """The command line."""
    if len(sys.argv) != 4 or sys.argv[2] != "--trl":
        sys.exit(__doc__)
    result = compare(sys.argv[1], sys.argv[3]) | how_made()
    write(RESULTS, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    if not asked_to_work({"grpo": grpo}):
        main()
