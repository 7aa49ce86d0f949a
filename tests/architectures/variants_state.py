"""Variants of models whose layers keep states of several kinds. Data only; see variants_a.py."""

from typing import Any

from variants_a import BIAS, COMMON, LINEAR, ROPE, SIZES, TIED, model, old, without

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
}
