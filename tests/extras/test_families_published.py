"""Published models of the other families: their configs build the parameters that they have.

The settings are those of each config.json on the Hugging Face hub, without the ones that change
no arithmetic. The counts are those of the checkpoints, without the language-model head.
"""
import pytest
import torch

from extras import families

GEMMA = {
    "attention_bias": False, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "num_hidden_layers": 26, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6,
}
PHI3 = {
    "model_type": "phi3", "attention_bias": False, "hidden_act": "silu", "hidden_size": 3072,
    "intermediate_size": 8192, "num_hidden_layers": 32, "rms_norm_eps": 1e-5,
    "original_max_position_embeddings": 4096, "rope_theta": 10000.0,
}
PUBLISHED = {
    "EleutherAI/pythia-70m": (44_670_976, 2048, {
        "model_type": "gpt_neox", "hidden_act": "gelu", "hidden_size": 512,
        "intermediate_size": 2048, "layer_norm_eps": 1e-5, "max_position_embeddings": 2048,
        "num_attention_heads": 8, "num_hidden_layers": 6, "rotary_emb_base": 10000,
        "rotary_pct": 0.25, "use_parallel_residual": True, "vocab_size": 50304,
    }),
    "openai-community/gpt2": (124_439_808, 1024, {
        "model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
        "vocab_size": 50257,
    }),
    "allenai/OLMo-2-0425-1B": (1_279_395_840, 4096, {
        "model_type": "olmo2", "attention_bias": False, "hidden_act": "silu", "hidden_size": 2048,
        "intermediate_size": 8192, "max_position_embeddings": 4096, "num_attention_heads": 16,
        "num_hidden_layers": 16, "num_key_value_heads": 16, "rms_norm_eps": 1e-6,
        "rope_scaling": None, "rope_theta": 500000, "vocab_size": 100352,
    }),
    "google/gemma-2-2b": (2_614_341_888, 8192, GEMMA | {
        "model_type": "gemma2", "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
        "hidden_act": "gelu_pytorch_tanh", "hidden_size": 2304, "intermediate_size": 9216,
        "max_position_embeddings": 8192, "num_attention_heads": 8, "num_key_value_heads": 4,
        "rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 256000,
    }),
    "google/gemma-3-1b-pt": (999_885_952, 32768, GEMMA | {
        "model_type": "gemma3_text", "attn_logit_softcapping": None, "hidden_size": 1152,
        "final_logit_softcapping": None, "intermediate_size": 6912,
        "max_position_embeddings": 32768, "num_attention_heads": 4, "num_key_value_heads": 1,
        "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000,
        "sliding_window": 512, "sliding_window_pattern": 6, "vocab_size": 262144,
    }),
    "microsoft/Phi-3-mini-4k-instruct": (3_722_578_944, 2047, PHI3 | {
        "max_position_embeddings": 4096, "num_attention_heads": 32, "num_key_value_heads": 32,
        "rope_scaling": None, "sliding_window": 2047, "vocab_size": 32064,
    }),
    "microsoft/Phi-4-mini-instruct": (3_836_021_760, 4096, PHI3 | {
        "max_position_embeddings": 131072, "num_attention_heads": 24, "num_key_value_heads": 8,
        "partial_rotary_factor": 0.75, "sliding_window": 262144, "vocab_size": 200064,
        "rope_scaling": {  # other numbers, as many
            "type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48,
        },
    }),
    "Qwen/Qwen3-30B-A3B": (30_220_957_696, 40960, {
        "model_type": "qwen3_moe", "attention_bias": False, "decoder_sparse_step": 1,
        "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 6144,
        "max_position_embeddings": 40960, "mlp_only_layers": [], "moe_intermediate_size": 768,
        "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128,
        "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 1000000.0,
        "sliding_window": None, "use_sliding_window": False, "vocab_size": 151936,
    }),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_build_the_parameters_of_the_published_checkpoints(name):
    parameters, max_length, config_json = PUBLISHED[name]
    with torch.device("meta"):
        model = families.build(config_json, "config.json")
    assert sum(parameter.numel() for parameter in model.model.parameters()) == parameters
    assert model.config.max_length == max_length


def test_every_family_but_smollm3_has_a_published_config():
    found = {config_json["model_type"] for _, _, config_json in PUBLISHED.values()}
    assert found == families.MORE_FAMILIES.keys() - {"smollm3"}
