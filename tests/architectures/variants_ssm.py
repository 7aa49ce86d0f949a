"""Variants of state space models and of hybrids with them. Data only; see variants_a.py."""

from typing import Any

from variants_a import ROPE, model, without

Config = dict[str, Any]

MAMBA = model(
    "mamba",
    {
        "vocab_size": 160,
        "hidden_size": 48,
        "state_size": 6,
        "num_hidden_layers": 2,
        "layer_norm_epsilon": 1e-3,
        "expand": 2,
        "conv_kernel": 3,
        "time_step_rank": 5,
    },
)
FALCON_MAMBA = MAMBA | {"model_type": "falcon_mamba", "mixer_rms_eps": 1e-2}
MAMBA2 = model(
    "mamba2",
    {
        "vocab_size": 160,
        "hidden_size": 48,
        "state_size": 6,
        "num_hidden_layers": 2,
        "layer_norm_epsilon": 1e-3,
        "num_heads": 6,
        "head_dim": 16,
        "n_groups": 3,
        "conv_kernel": 3,
        "chunk_size": 8,
    },
)
SIZES: Config = {
    "vocab_size": 160,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-3,
    "max_position_embeddings": 128,
}
JAMBA = model(
    "jamba",
    SIZES,
    {
        "num_hidden_layers": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "attn_layer_period": 3,
        "attn_layer_offset": 0,
        "mamba_d_state": 6,
        "mamba_d_conv": 3,
        "mamba_expand": 2,
        "mamba_dt_rank": 5,
    },
)
MIXER: Config = {
    "mamba_n_heads": 6,
    "mamba_d_head": 16,
    "mamba_n_groups": 3,
    "mamba_d_state": 6,
    "mamba_d_conv": 3,
    "mamba_expand": 2,
}
BAMBA = model("bamba", SIZES, MIXER, {"num_hidden_layers": 3, "attn_layer_indices": [1], "rope_parameters": ROPE})
GRANITE = model(
    "granitemoehybrid",
    SIZES,
    MIXER,
    {
        "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "embedding_multiplier": 3.5,
        "logits_scaling": 1.7,
        "residual_multiplier": 0.7,
        "attention_multiplier": 0.3,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 24,
    },
)
FALCON_H1 = model(
    "falcon_h1",
    SIZES,
    MIXER,
    {
        "num_hidden_layers": 2,
        "head_dim": 16,
        "mamba_d_ssm": 96,
        "rope_parameters": ROPE,
        "lm_head_multiplier": 0.7,
        "embedding_multiplier": 2.5,
        "mlp_multipliers": [1.3, 0.8],
        "key_multiplier": 0.6,
        "attention_in_multiplier": 1.2,
        "attention_out_multiplier": 0.9,
        "ssm_multipliers": [0.5, 1.1, 1.2, 0.9, 0.7],
        "ssm_in_multiplier": 1.4,
        "ssm_out_multiplier": 0.8,
    },
)
NEMOTRON_H = model(
    "nemotron_h",
    {
        "vocab_size": 160,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "layer_norm_epsilon": 1e-3,
        "max_position_embeddings": 128,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "mamba_num_heads": 6,
        "mamba_head_dim": 16,
        "n_groups": 3,
        "ssm_state_size": 6,
        "conv_kernel": 3,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 16,
        "moe_shared_expert_intermediate_size": 24,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 1.7,
    },
)
RWKV = model(
    "rwkv",
    {
        "vocab_size": 160,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "attention_hidden_size": 40,
        "intermediate_size": 56,
        "layer_norm_epsilon": 1e-3,
        "rescale_every": 2,
        "context_length": 128,
    },
)

VARIANTS: dict[str, Config] = {
    "mamba": MAMBA,
    "mamba_bare": model("mamba", {"vocab_size": 160, "hidden_size": 40, "num_hidden_layers": 2}),
    "mamba_bias_untied": MAMBA
    | {"use_bias": True, "use_conv_bias": False, "hidden_act": "gelu", "tie_word_embeddings": False},
    "mamba_wide": MAMBA | {"intermediate_size": 56, "time_step_rank": "auto", "use_mambapy": False},
    "falcon_mamba": FALCON_MAMBA,
    "falcon_mamba_bare": model("falcon_mamba", {"vocab_size": 160, "hidden_size": 40, "num_hidden_layers": 2}),
    "falcon_mamba_bias": FALCON_MAMBA | {"use_bias": True, "use_conv_bias": False, "tie_word_embeddings": False},
    "mamba2": MAMBA2,
    "mamba2_bare": model(
        "mamba2",
        {"vocab_size": 160, "hidden_size": 64, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 16},
    ),
    "mamba2_bias_tied": MAMBA2
    | {"use_bias": True, "use_conv_bias": False, "hidden_act": "gelu", "tie_word_embeddings": True},
    "mamba2_limits": MAMBA2 | {"time_step_limit": [1.2, 1.5], "n_groups": 1, "residual_in_fp32": False},
    "jamba": JAMBA,
    "jamba_bare": model(
        "jamba",
        {
            "vocab_size": 160,
            "hidden_size": 64,
            "intermediate_size": 40,
            "num_hidden_layers": 5,
            "num_attention_heads": 8,
        },
    ),
    "jamba_bias_tied": JAMBA
    | {
        "mamba_proj_bias": True,
        "mamba_conv_bias": False,
        "mamba_inner_layernorms": True,
        "hidden_act": "gelu",
        "num_experts": 1,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
    "bamba": BAMBA,
    "bamba_bare": model(
        "bamba",
        {
            "vocab_size": 160,
            "hidden_size": 64,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "attn_layer_indices": [1],
        },
    ),
    "bamba_bias_tied": BAMBA
    | {
        "attention_bias": True,
        "mlp_bias": True,
        "mamba_proj_bias": True,
        "mamba_conv_bias": False,
        "hidden_act": "gelu",
        "tie_word_embeddings": True,
        "time_step_limit": [1.2, 1.5],
    },
    "granitemoehybrid": GRANITE,
    "granitemoehybrid_bare": model(
        "granitemoehybrid",
        {
            "vocab_size": 160,
            "hidden_size": 64,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "layer_types": ["mamba", "attention"],
            "num_attention_heads": 8,
        },
    ),
    "granitemoehybrid_dense": GRANITE
    | {
        "attention_bias": True,
        "layer_types": ["mamba", "mamba", "attention"],
        "mamba_proj_bias": True,
        "mamba_conv_bias": False,
        "normalization_function": "rmsnorm",
        "num_local_experts": 0,
        "position_embedding_type": "rope",
        "rope_theta": 1234.5,
        "tie_word_embeddings": True,
        "time_step_limit": [1.2, 1.5],
    },
    "falcon_h1": FALCON_H1,
    "falcon_h1_bare": model(
        "falcon_h1",
        {
            "vocab_size": 160,
            "hidden_size": 64,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 8,
            "mamba_d_ssm": 128,
        },
    ),
    "falcon_h1_norm": FALCON_H1
    | {"mamba_rms_norm": True, "mamba_d_ssm": None, "projectors_bias": True, "tie_word_embeddings": True},
    "falcon_h1_norm_after": FALCON_H1
    | {
        "attention_bias": True,
        "hidden_act": "gelu",
        "mamba_conv_bias": False,
        "mamba_norm_before_gate": False,
        "mamba_proj_bias": True,
        "mamba_rms_norm": True,
        "mlp_bias": True,
        "time_step_limit": [0.9, 1.1],
    },
    "nemotron_h": NEMOTRON_H,
    "nemotron_h_bare": model(
        "nemotron_h",
        {
            "vocab_size": 160,
            "hidden_size": 48,
            "intermediate_size": 40,
            "mamba_num_heads": 16,
            "mamba_head_dim": 4,
            "moe_intermediate_size": 16,
            "moe_shared_expert_intermediate_size": 24,
            "ssm_state_size": 8,
        },
    ),
    "nemotron_h_latent": NEMOTRON_H
    | {
        "layers_block_type": ["moe", "linear_attention"],
        "mlp_bias": True,
        "mlp_hidden_act": "gelu",
        "moe_latent_size": 20,
        "norm_topk_prob": False,
        "use_bias": True,
        "use_conv_bias": False,
        "time_step_min": 1.3,
    },
    "nemotron_h_pattern": without(NEMOTRON_H, "layers_block_type")
    | {"hybrid_override_pattern": "M-M*", "num_hidden_layers": 4, "mamba_hidden_act": "gelu"},
    "rwkv": RWKV,
    "rwkv_bare": model("rwkv", {"vocab_size": 160, "hidden_size": 32, "num_hidden_layers": 2}),
    "rwkv_tied": RWKV | {"rescale_every": 0, "tie_word_embeddings": True},
}
