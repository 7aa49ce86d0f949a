"""Variants of families with sparse attention, gated norms or several streams. Data only; see variants_a.py."""

from typing import Any

from variants_a import BIAS, ROPE, TIED, model, old, without
from variants_mla import COMMON, EXPERTS, HEADS, INDEX, MSCALES, SIZES

Config = dict[str, Any]

AXK2 = model("axk2", COMMON, EXPERTS, INDEX, {"mlp_layer_types": ["dense", "sparse"], "gated_norm_rank": 5})
PICKS: Config = {
    "index_n_heads": 2,
    "index_head_dim": 12,
    "index_block_size": 4,
    "index_topk_blocks": 3,
    "index_local_blocks": 1,
}
MINIMAX_M3 = model(
    "minimax_m3_vl_text",
    without(SIZES, "intermediate_size"),
    PICKS,
    {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 20,
        "dense_intermediate_size": 56,
        "shared_intermediate_size": 24,
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
        "routed_scaling_factor": 1.7,
        "swiglu_limit": 1.5,
        "swiglu_alpha": 1.3,
        "rms_norm_eps": 1e-3,
        "max_position_embeddings": 128,
        "rope_parameters": ROPE | {"partial_rotary_factor": 0.5},
        "mlp_layer_types": ["dense", "sparse"],
        "layer_types": ["full_attention", "minimax_m3_sparse"],
    },
)

VARIANTS: dict[str, Config] = {
    "axk2": AXK2,
    "axk2_old_yarn": old(
        without(AXK2, "mlp_layer_types", "n_group", "topk_group"),
        num_hidden_layers=3,
        first_k_dense_replace=2,
        moe_layer_freq=2,
        layer_types=["indexed_attention"] * 3,
        hidden_act="gelu",
        norm_topk_prob=False,
        rope_scaling=without(MSCALES, "rope_theta", "rope_type") | {"type": "yarn"},
    )
    | BIAS
    | TIED,
    "axk2_closed": without(AXK2, "mlp_layer_types") | {"num_experts_per_tok": 4, "topk_group": 1, "n_group": 2},
    "axk2_bare": model("axk2", SIZES, HEADS, {"moe_intermediate_size": 8, "gated_norm_rank": 4}),
    "minimax_m3_vl_text": MINIMAX_M3,
    "minimax_m3_vl_text_old": old(
        without(MINIMAX_M3, "layer_types", "mlp_layer_types", "num_local_experts", *PICKS),
        num_experts=8,
        num_hidden_layers=3,
        moe_layer_freq=[0, 1, 0],
        hidden_act="swigluoai",
        rotary_dim=8,
        partial_rotary_factor=0.5,
        sparse_attention_config={
            "sparse_attention_freq": [1, 0, 1],
            "sparse_num_index_heads": 1,
            "sparse_index_dim": 8,
            "sparse_block_size": 5,
            "sparse_topk_blocks": 2,
            "sparse_local_block": 2,
        },
    )
    | TIED,
    "minimax_m3_vl_text_far": MINIMAX_M3
    | {"layer_types": ["minimax_m3_sparse"] * 2, "index_local_blocks": 0, "index_topk_blocks": 2},
    "minimax_m3_vl_text_bare": model(
        "minimax_m3_vl_text",
        SIZES,
        {"num_local_experts": 6, "head_dim": 8, "dense_intermediate_size": 24, "shared_intermediate_size": 8},
    ),
}
