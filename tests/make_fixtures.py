"""Write tests/fixtures/: tiny random models, and what transformers computes with them.

Not run by the tests. In an environment of its own:  pip install transformers==5.23.0 torch && python tests/make_fixtures.py
With names (python tests/make_fixtures.py gemma2 gpt2) only these are written; a fixture's numbers do not depend on it for MORE_CASES.
Every fixture is a ...ForSequenceClassification folder as transformers saves it, with expected.safetensors beside it.
"""
import shutil
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent.parent))
from model import RewardModel

HERE = Path(__file__).parent / "fixtures"
SMALL = dict(vocab_size=48, hidden_size=24, intermediate_size=40, num_hidden_layers=2, max_position_embeddings=64,
             num_labels=1, pad_token_id=0, bos_token_id=1, eos_token_id=2)
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16)
YARN = dict(rope_type="yarn", rope_theta=1000.0, factor=4.0, original_max_position_embeddings=16)
CASES = {
    # grouped heads, head_dim other than hidden_size / heads, tied embeddings, llama3 rope, several files
    "llama": (dict(num_attention_heads=4, num_key_value_heads=2, head_dim=10, tie_word_embeddings=True,
                   rope_parameters=LLAMA3), "8KB"),
    # biases everywhere Llama can have them
    "llama-bias": (dict(num_attention_heads=3, num_key_value_heads=1, attention_bias=True, mlp_bias=True), "1GB"),
    "mistral": (dict(num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=None), "1GB"),
    "qwen2": (dict(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True), "1GB"),  # bias on q, k, v only
    "qwen3": (dict(num_attention_heads=4, num_key_value_heads=2, head_dim=12), "1GB"),  # norms on queries and keys
    # sliding windows shorter than the texts: in all layers; behind the first; by layer_types
    "mistral-window": (dict(num_attention_heads=4, num_key_value_heads=2, sliding_window=7), "1GB"),
    "qwen2-window": (dict(num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=3, use_sliding_window=True,
                          sliding_window=5, max_window_layers=1), "1GB"),
    "qwen3-window": (dict(num_attention_heads=4, num_key_value_heads=2, head_dim=12, use_sliding_window=True,
                          sliding_window=9, layer_types=["sliding_attention", "full_attention"]), "1GB"),
    # layers without positions; those slide
    "smollm3": (dict(num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=4, no_rope_layer_interval=2,
                     use_sliding_window=True, sliding_window=6), "1GB"),
    # the other rope rules
    "llama-linear": (dict(num_attention_heads=2, rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0)),
                     "1GB"),
    "llama-dynamic": (dict(num_attention_heads=2, rope_parameters=dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0)),
                      "1GB"),
    "llama-yarn": (dict(num_attention_heads=2, rope_parameters=YARN), "1GB"),
    "qwen2-yarn": (dict(num_attention_heads=2, num_key_value_heads=1, rope_parameters=YARN | dict(
        beta_fast=16.0, beta_slow=2.0, attention_factor=0.8)), "1GB"),
}

# Decoders of extras/families/. Each has a seed of its own, so one can be added without changing the others.
MORE_CASES = {
    # a quarter of 8 numbers turns; attention and MLP side by side
    "gpt_neox": (dict(num_attention_heads=3, rope_parameters=dict(rope_type="default", rope_theta=1000.0,
                                                                  partial_rotary_factor=0.25)), "1GB"),
    # one after the other, no attention biases, the other GELU; all turns; several files, tied
    "gpt_neox-serial": (dict(num_attention_heads=2, use_parallel_residual=False, attention_bias=False, hidden_act="gelu_fast",
                             tie_word_embeddings=True, rope_parameters=dict(
                                 rope_type="linear", rope_theta=1000.0, partial_rotary_factor=1.0, factor=4.0)), "20KB"),
    "gpt2": (dict(num_attention_heads=4, n_inner=40), "1GB"),
    "gpt2-untied": (dict(num_attention_heads=2, tie_word_embeddings=False), "20KB"),
    "olmo2": (dict(num_attention_heads=4, num_key_value_heads=2), "1GB"),
    "olmo2-bias": (dict(num_attention_heads=4, attention_bias=True, tie_word_embeddings=True), "20KB"),
    # windows shorter than the texts; a soft cap that is reached; a scale that is not 1 / √head_dim
    "gemma2": (dict(num_attention_heads=4, num_key_value_heads=2, head_dim=10, sliding_window=7, attn_logit_softcapping=1.0,
                    query_pre_attn_scalar=7, num_hidden_layers=3), "1GB"),
    "gemma2-untied": (dict(num_attention_heads=2, num_key_value_heads=1, head_dim=6, sliding_window=5, attention_bias=True,
                           attn_logit_softcapping=None, tie_word_embeddings=False), "20KB"),
    "gemma3_text": (dict(num_attention_heads=4, num_key_value_heads=1, head_dim=10, sliding_window=7, query_pre_attn_scalar=7,
                         num_hidden_layers=3, sliding_window_pattern=2, rope_parameters=dict(
                             full_attention=dict(rope_type="linear", rope_theta=1000.0, factor=4.0),
                             sliding_attention=dict(rope_type="default", rope_theta=10.0))), "20KB"),
    "phi3": (dict(num_attention_heads=4, num_key_value_heads=2, sliding_window=17), "1GB"),
    "phi3-tied": (dict(num_attention_heads=3, tie_word_embeddings=True), "20KB"),
    # a rope of its own, for texts of up to 40 tokens; half of 8 numbers turns
    "phi3-longrope": (dict(num_attention_heads=3, original_max_position_embeddings=40, rope_parameters=dict(
        rope_type="longrope", rope_theta=100.0, partial_rotary_factor=0.5, short_factor=[1.5, 3.0], long_factor=[4.0, 9.0])),
        "1GB"),
    # 3 of 5 experts; the first layer has none
    "qwen3_moe": (dict(num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=5, num_experts_per_tok=3,
                       moe_intermediate_size=12, norm_topk_prob=True, decoder_sparse_step=2, num_hidden_layers=3), "1GB"),
    "qwen3_moe-plain": (dict(num_attention_heads=2, num_key_value_heads=2, head_dim=6, num_experts=4, num_experts_per_tok=2,
                             moe_intermediate_size=8, norm_topk_prob=False, mlp_only_layers=[1]), "20KB"),
}

def main(names: list[str]) -> None:
    torch.manual_seed(0)
    if not names:
        for name, case in CASES.items():
            write_fixture(name, *case)
        round_trips()
    for name, case in MORE_CASES.items():
        torch.manual_seed(sum(name.encode()))
        if not names or name in names:
            write_fixture(name, *case, std=0.2)
    print({"transformers": transformers.__version__, "torch": torch.__version__})


def write_fixture(name: str, settings: dict, shard: str, std: float = 0.3) -> None:
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    config = transformers.AutoConfig.for_model(name.split("-")[0], **(SMALL | settings))
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval().float()
    middle = 0.0 if name.startswith("gemma") else 0.5  # Gemma adds 1 to its norms' weights
    for parameter in model.parameters():  # biases and norms too, and large enough that a mistake shows
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1) * middle, std=std)
    model.save_pretrained(folder, max_shard_size=shard)

    lengths = torch.tensor([40, 1, 17])
    input_ids = torch.randint(3, 48, (3, 40))
    attention_mask = (torch.arange(40) < lengths[:, None]).long()
    input_ids[attention_mask == 0] = 0
    with torch.no_grad():
        out = model(input_ids=input_ids, attention_mask=attention_mask)
        hidden = model.base_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    hidden = hidden * attention_mask[..., None]  # after the final norm; pads are nobody's business
    save_file(dict(input_ids=input_ids, attention_mask=attention_mask, hidden=hidden.contiguous(),
                   rewards=out.logits[:, 0].contiguous()), folder / "expected.safetensors")


def round_trips() -> None:
    """Fixtures that went through both: what each other's files are worth."""
    theirs = transformers.AutoModelForSequenceClassification

    # transformers -> ours -> transformers, which writes it again. The rewards are those of the fixture qwen3.
    with tempfile.TemporaryDirectory() as folder:
        ours = RewardModel.from_pretrained(HERE / "qwen3")
        ours.save_pretrained(folder, 0, ours.state_dict())
        again = theirs.from_pretrained(folder)
    shutil.rmtree(HERE / "round-trips" / "qwen3-through-both", ignore_errors=True)
    again.save_pretrained(HERE / "round-trips" / "qwen3-through-both")

    # LLaMA-Factory's layout (a language model, the head with its bias beside it) -> ours -> transformers.
    folder = HERE / "round-trips" / "qwen2-llamafactory"
    shutil.rmtree(folder, ignore_errors=True)
    config = transformers.AutoConfig.from_pretrained(HERE / "qwen2", tie_word_embeddings=False)
    language_model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in language_model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1) * 0.5, std=0.3)
    language_model.save_pretrained(folder)
    head = {"v_head.summary.weight": torch.randn(1, 24), "v_head.summary.bias": torch.tensor([0.75])}
    save_file(head, folder / "value_head.safetensors")
    inputs = {k: v for k, v in load_file(HERE / "qwen2" / "expected.safetensors").items() if k in ("input_ids", "attention_mask")}
    with torch.no_grad(), tempfile.TemporaryDirectory() as through:
        hidden = language_model.model(**inputs).last_hidden_state
        last = hidden[torch.arange(3), inputs["attention_mask"].sum(-1) - 1]  # (3, D)
        rewards = (last @ head["v_head.summary.weight"].T + head["v_head.summary.bias"])[:, 0]
        ours = RewardModel.from_pretrained(folder)
        ours.save_pretrained(through, 0, ours.state_dict())
        without_bias = theirs.from_pretrained(through)(**inputs).logits[:, 0]
    save_file(inputs | {"rewards": rewards, "rewards_in_transformers": without_bias.contiguous()}, folder / "expected.safetensors")


if __name__ == "__main__":
    main(sys.argv[1:])
