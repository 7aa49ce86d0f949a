"""Variants of models with recurrent layers between those of attention. Data only; see variants_a.py."""

from typing import Any

from variants_a import BIAS, COMMON, ROPE, SIZES, TIED, UNTIED, model, old, without

Config = dict[str, Any]

CONV_SIZES: Config = {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}
LFM2 = model(
    "lfm2", without(COMMON, "rms_norm_eps", "head_dim"), CONV_SIZES, {"norm_eps": 1e-3, "block_multiple_of": 8}
)

DELTA: Config = {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "head_dim": 16,
    "linear_conv_kernel_dim": 3,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "rope_parameters": ROPE | {"partial_rotary_factor": 0.5},
}
EXPERTS: Config = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
}
# of every default but the sizes: a period of four layers, the widths of the heads
PERIOD: Config = {"num_hidden_layers": 4, "linear_num_key_heads": 1, "linear_num_value_heads": 2}
QWEN3_NEXT = model("qwen3_next", COMMON, DELTA, EXPERTS, {"mlp_only_layers": [0]})
QWEN3_5 = model("qwen3_5_text", COMMON, DELTA)
QWEN3_5_MOE = model("qwen3_5_moe_text", without(COMMON, "intermediate_size"), DELTA, EXPERTS)

LFM2_MOE = model(
    "lfm2_moe",
    without(COMMON, "rms_norm_eps", "head_dim"),
    CONV_SIZES,
    {"norm_eps": 1e-3, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "num_dense_layers": 1},
)
LFM3 = model(
    "lfm3",
    without(COMMON, "rms_norm_eps"),
    {
        "head_dim": 16,
        "norm_eps": 1e-3,
        "conv_L_cache": 3,
        "num_hidden_layers": 4,
        "layer_types": ["conv", "sliding_attention", "full_attention", "conv"],
        "sliding_window": 8,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1234.5},
            "full_attention": {"rope_type": "proportional", "rope_theta": 4321.5, "partial_rotary_factor": 0.25},
        },
    },
)
LATENT: Config = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 20,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "moe_intermediate_size": 24,
    "n_group": 2,
    "topk_group": 1,
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "routed_scaling_factor": 1.5,
}
KIMI = model(
    "kimi_linear",
    without(COMMON, "head_dim", "rope_parameters"),
    LATENT,
    {"num_local_experts": 8, "num_experts_per_tok": 3, "linear_head_dim": 8, "linear_num_heads": 4},
)
BAILING = model(
    "bailing_hybrid",
    COMMON,
    LATENT,
    {"num_experts": 8, "num_experts_per_token": 3, "head_dim": 8, "first_k_dense_replace": 1},
)

VARIANTS: dict[str, Config] = {
    "lfm2": LFM2,
    "lfm2_bias": LFM2 | {"conv_bias": True, "conv_L_cache": 4, "block_ffn_dim_multiplier": 1.5},
    "lfm2_indices": old(
        without(LFM2, "layer_types"), full_attn_idxs=[1], block_auto_adjust_ff_dim=False, tie_embedding=False
    ),
    "lfm2_widths": LFM2 | UNTIED | {"block_ffn_dim_multiplier": 2, "block_ff_dim": 51},
    "lfm2_bare": model(
        "lfm2", SIZES, {"num_attention_heads": 8, "layer_types": ["conv", "full_attention"], "intermediate_size": 300}
    ),
    "qwen3_next": QWEN3_NEXT,
    "qwen3_next_bias": QWEN3_NEXT
    | BIAS
    | {"decoder_sparse_step": 2, "norm_topk_prob": False, "linear_num_value_heads": 2, "hidden_act": "gelu"},
    "qwen3_next_interval": old(
        without(QWEN3_NEXT, "layer_types", "mlp_only_layers"),
        full_attention_interval=2,
        partial_rotary_factor=0.75,
        tie_word_embeddings=True,
    ),
    "qwen3_next_bare": model("qwen3_next", SIZES, PERIOD, EXPERTS),
    "qwen3_5_text": QWEN3_5,
    "qwen3_5_text_interval": old(without(QWEN3_5, "layer_types"), full_attention_interval=3, attention_bias=True),
    "qwen3_5_text_sections": QWEN3_5
    | TIED
    | {
        "linear_num_key_heads": 4,
        "rope_parameters": ROPE | {"mrope_section": [2, 1, 1], "mrope_interleaved": True, "partial_rotary_factor": 0.5},
    },
    "qwen3_5_text_bare": model("qwen3_5_text", SIZES, PERIOD),
    "qwen3_5_moe_text": QWEN3_5_MOE,
    "qwen3_5_moe_text_bare": model("qwen3_5_moe_text", without(SIZES, "intermediate_size"), PERIOD, EXPERTS),
    "lfm2_moe": LFM2_MOE,
    "lfm2_moe_no_bias": LFM2_MOE
    | {"use_expert_bias": False, "norm_topk_prob": False, "routed_scaling_factor": 2.5, "tie_embedding": False},
    "lfm2_moe_bare": model(
        "lfm2_moe",
        SIZES,
        {"num_attention_heads": 8, "num_hidden_layers": 3, "num_experts": 8, "moe_intermediate_size": 24},
        {"layer_types": ["conv", "full_attention", "conv"]},
    ),
    "lfm3": LFM3,
    "lfm3_plain": LFM3 | BIAS | UNTIED | {"use_sandwich_norm": False, "use_attention_gate": False, "conv_bias": True},
    "lfm3_bare": model("lfm3", SIZES, {"num_hidden_layers": 5, "num_attention_heads": 4}),
    "kimi_linear": KIMI,
    "kimi_linear_published": without(KIMI, "layer_types", "n_group", "num_local_experts", "num_experts_per_tok")
    | {
        "linear_attn_config": {
            "full_attn_layers": [2],
            "kda_layers": [1, 3],
            "head_dim": 12,
            "num_heads": 2,
            "short_conv_kernel_size": 3,
        },
        "num_expert_group": 2,
        "num_experts": 8,
        "num_experts_per_token": 2,
        "num_shared_experts": 2,
        "moe_renormalize": False,
        "first_k_dense_replace": 2,
        "q_lora_rank": 14,
        "mla_use_nope": True,
    },
    "kimi_linear_bare": model(
        "kimi_linear",
        SIZES,
        {"num_hidden_layers": 5, "num_key_value_heads": 4, "num_local_experts": 8, "moe_intermediate_size": 24},
    ),
    "bailing_hybrid": BAILING,
    "bailing_hybrid_softplus": without(BAILING, "layer_types")
    | BIAS
    | {
        "kda_safe_gate": False,
        "layer_group_size": 2,
        "q_lora_rank": 14,
        "mlp_layer_types": ["sparse", "dense", "sparse"],
        "short_conv_kernel_size": 3,
    },
    "bailing_hybrid_bare": model(
        "bailing_hybrid",
        SIZES,
        {"num_hidden_layers": 6, "num_key_value_heads": 4, "num_experts": 16, "moe_intermediate_size": 24},
    ),
}
