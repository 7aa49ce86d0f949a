"""Variants of models whose layers keep states of several kinds. Data only; see variants_a.py."""

from typing import Any

from variants_a import BIAS, COMMON, LINEAR, ROPE, SIZES, TIED, UNTIED, model, old, without

Config = dict[str, Any]

OLMO = model(
    "olmo_hybrid",
    without(COMMON, "head_dim"),
    {
        "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 12,
        "linear_conv_kernel_dim": 3,
    },
)
XLSTM = model(
    "xlstm",
    {
        "vocab_size": 160,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_heads": 3,
        "norm_eps": 1e-3,
        "eps": 1e-2,
        "qk_dim_factor": 0.5,
        "v_dim_factor": 1.5,
        "ffn_proj_factor": 1.25,
        "ffn_round_up_to_multiple_of": 4,
        "gate_soft_cap": 2.5,
        "output_logit_soft_cap": 3.5,
        "pad_token_id": 0,
    },
)
ZAMBA = model(
    "zamba",
    {
        "vocab_size": 160,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-3,
        "max_position_embeddings": 128,
        "n_mamba_heads": 2,
        "mamba_d_state": 6,
        "mamba_d_conv": 3,
        "mamba_expand": 2,
        "mamba_dt_rank": 5,
        "pad_token_id": 0,
    },
)
ZAMBA2 = model(
    "zamba2",
    {
        "vocab_size": 160,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "num_attention_heads": 6,
        "num_mem_blocks": 2,
        "rms_norm_eps": 1e-3,
        "max_position_embeddings": 128,
        "n_mamba_heads": 6,
        "mamba_ngroups": 3,
        "mamba_d_state": 6,
        "mamba_d_conv": 3,
        "mamba_expand": 2,
        "time_step_min": 0.8,
        "adapter_rank": 3,
        "use_shared_attention_adapter": True,
        "chunk_size": 8,
        "pad_token_id": 0,
    },
)

VARIANTS: dict[str, Config] = {
    "olmo_hybrid": OLMO,
    "olmo_hybrid_no_rope": OLMO
    | BIAS
    | {
        "linear_allow_neg_eigval": False,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 12,
        "hidden_act": "gelu",
        "rope_parameters": ROPE | {"rope_theta": None},
    },
    "olmo_hybrid_old": old(without(OLMO, "layer_types", "linear_value_head_dim"), **TIED, linear_key_head_dim=4),
    "olmo_hybrid_linear": OLMO | {"rope_parameters": LINEAR, "head_dim": 24, "linear_value_head_dim": 24},
    "olmo_hybrid_bare": model("olmo_hybrid", SIZES, {"num_hidden_layers": 4}),
    "xlstm": XLSTM,
    "xlstm_bias": XLSTM | {"use_bias": True, "chunk_size": 8, "num_heads": 2},
    "xlstm_old_names": without(XLSTM, "num_hidden_layers")
    | {"embedding_dim": 48, "num_blocks": 3, "mode": "train", "chunk_size": 4, "weight_mode": "single"},
    "xlstm_wide_keys": XLSTM | {"qk_dim_factor": 2.0, "v_dim_factor": 1.0, "num_heads": 4, "torch_dtype": "bfloat16"},
    "xlstm_bare": model("xlstm", {"vocab_size": 160, "hidden_size": 64, "num_hidden_layers": 2, "pad_token_id": 0}),
    "zamba": ZAMBA,
    "zamba_bias": ZAMBA
    | UNTIED
    | {
        "mamba_proj_bias": True,
        "mamba_conv_bias": False,
        "hidden_act": "relu",
        "hidden_mamba_act": "gelu",
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
        "n_mamba_heads": 3,
    },
    "zamba_old": without(ZAMBA, "layers_block_type", "mamba_dt_rank")
    | {
        "num_hidden_layers": 5,
        "attn_layer_period": 1,
        "attn_layer_offset": 0,
        "torch_dtype": "bfloat16",
        "use_mamba_kernels": False,
        "attention_hidden_size": 96,
    },
    "zamba_layer_types": without(ZAMBA, "layers_block_type")
    | {
        "num_hidden_layers": 3,
        "layer_types": ["mamba", "hybrid", "hybrid"],
        "mamba_d_state": 4,
        "mamba_dt_rank": "auto",
        "n_mamba_heads": 1,
    },
    "zamba_bare": model("zamba", SIZES, {"hidden_size": 32, "num_hidden_layers": 8, "num_attention_heads": 16}),
    "zamba2": ZAMBA2,
    "zamba2_rope": ZAMBA2
    | {
        "num_hidden_layers": 4,
        "layers_block_type": ["hybrid", "linear_attention", "hybrid", "hybrid"],
        "use_mem_rope": True,
        "rope_parameters": LINEAR,
        "use_shared_attention_adapter": False,
        "num_mem_blocks": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "zamba2_bias": ZAMBA2 | {"add_bias_linear": True, "hidden_act": "silu", "num_mem_blocks": 1, "time_step_min": 0.3},
    "zamba2_old": old(without(ZAMBA2, "layers_block_type"))
    | {
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "hybrid", "hybrid"],
        "use_mem_rope": True,
        "rope_scaling": None,
        "hybrid_layer_ids": [1, 2],
        "mamba_headdim": 16,
        "attention_head_dim": 16,
        "num_key_value_heads": 6,
    },
    "zamba2_bare": model(
        "zamba2",
        {"vocab_size": 160, "hidden_size": 64, "num_hidden_layers": 2, "layers_block_type": ["mamba", "hybrid"]},
        {"pad_token_id": 0},
    ),
}
