"""Variants of families with sparse attention, gated norms or several streams. Data only; see variants_a.py."""

from typing import Any

from variants_a import BIAS, ROPE, TIED, YARN, model, old, without
from variants_delta import COMMON as DELTA_COMMON
from variants_delta import DELTA, PERIOD
from variants_delta import EXPERTS as DELTA_EXPERTS
from variants_delta import SIZES as DELTA_SIZES
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

QSA: Config = {
    "indexer_n_heads": 8,  # with few, scores are often all 0
    "indexer_kv_heads": 1,
    "indexer_head_dim": 12,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
}
QWEN4 = model(
    "qwen4_exp_text",
    without(DELTA_COMMON, "intermediate_size"),
    DELTA,
    DELTA_EXPERTS,
    QSA,
    {"hc_count": 3, "hc_lowrank": 5},
)
HY_V4 = model(
    "hy_v4",
    COMMON,
    EXPERTS,
    INDEX,
    {
        "num_hidden_layers": 3,
        "indexer_types": ["full", "shared", "full"],
        "mlp_layer_types": ["sparse", "dense", "sparse"],
        "hc_mult": 3,
        "hc_magnitude": 1.7,
        "hc_eps": 0.01,
        "swiglu_limit": 0.8,
    },
)

DEEPSEEK_V4 = model(
    "deepseek_v4",
    without(SIZES, "intermediate_size", "num_key_value_heads"),
    {
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
        "mlp_layer_types": ["hash_moe", "moe", "moe"],
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
        "sliding_window": 6,
        "head_dim": 16,
        "partial_rotary_factor": 0.25,
        "q_lora_rank": 24,
        "o_groups": 2,
        "o_lora_rank": 10,
        "index_n_heads": 12,
        "index_head_dim": 12,
        "index_topk": 3,
        "moe_intermediate_size": 16,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "routed_scaling_factor": 1.7,
        "swiglu_limit": 0.8,
        "hc_mult": 3,
        "hc_eps": 0.01,
        "hc_sinkhorn_iters": 3,
        "rms_norm_eps": 1e-3,
        "max_position_embeddings": 128,
        "rope_theta": 1234.5,
        "compress_rope_theta": 4321.5,
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
    "axk2_bare": model("axk2", SIZES, HEADS, {"moe_intermediate_size": 8, "gated_norm_rank": 4, "index_topk": 6}),
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
            "sparse_topk_blocks": 3,
            "sparse_local_block": 2,
        },
    )
    | TIED,
    "minimax_m3_vl_text_far": MINIMAX_M3
    | {"layer_types": ["minimax_m3_sparse"] * 2, "index_local_blocks": 0, "index_topk_blocks": 2},
    "minimax_m3_vl_text_bare": model(
        "minimax_m3_vl_text",
        SIZES,
        {"num_local_experts": 6, "head_dim": 8, "shared_intermediate_size": 8},
    ),
    "qwen4_exp_text": QWEN4,
    "qwen4_exp_text_blocks": QWEN4
    | BIAS
    | TIED
    | {"layer_types": ["indexed_attention", "linear_attention", "indexed_attention"], "norm_topk_prob": False}
    | {"output_gate_type": "sigmoid", "indexer_compress_ratio": 3, "indexer_budget": 6},
    "qwen4_exp_text_ngrams": QWEN4
    | {
        "ple_layer_ids": [3, 1],
        "ple_embed_dim": 24,
        "ple_conv_kernel_size": 3,
        "ngram_size": 4,
        "heads_per_ngram": 2,
        "ngram_vocab_size_base": 50,
        "make_ngram_vocab_size_divisible_by": 8,
        "seed": 4321,
        "split_ngram_parts": 4,
        "eos_token_id": [137, 9],  # a token of the text
    },
    "qwen4_exp_text_bare": model(
        "qwen4_exp_text",
        without(DELTA_SIZES, "intermediate_size"),
        PERIOD,
        DELTA_EXPERTS,
        QSA,
        {"indexer_head_dim": 256},
    ),
    "hy_v4": HY_V4,
    "hy_v4_old_yarn": old(
        without(HY_V4, "indexer_types", "mlp_layer_types", "n_routed_experts"),
        num_local_experts=8,
        norm_topk_prob=False,
        learnable_sink_init=0.5,
        rope_scaling=without(MSCALES, "rope_theta", "rope_type") | {"type": "yarn"},
    )
    | BIAS
    | TIED,
    "hy_v4_bare": model("hy_v4", SIZES, HEADS, {"moe_intermediate_size": 8, "n_routed_experts": 8, "index_topk": 6}),
    "deepseek_v4": DEEPSEEK_V4,
    "deepseek_v4_nested": without(DEEPSEEK_V4, "partial_rotary_factor", "rope_theta", "compress_rope_theta")
    | TIED
    | {
        "rope_parameters": {
            "main": ROPE | {"partial_rotary_factor": 0.5},
            "compress": YARN | {"partial_rotary_factor": 0.5, "attention_factor": 1.3},
        },
        "scoring_func": "sigmoid",
        "mlp_bias": True,
        "layer_types": ["heavily_compressed_attention", "compressed_sparse_attention", "sliding_attention"],
        "mlp_layer_types": ["moe", "hash_moe", "moe"],
    },
    "deepseek_v4_old_yarn": old(
        without(DEEPSEEK_V4, "layer_types", "mlp_layer_types", "compress_rates", "partial_rotary_factor"),
        compress_ratios=[4, 0, 128, 4],
        compress_rate_csa=3,
        compress_rate_hca=5,
        num_hash_layers=2,
        qk_rope_head_dim=8,
        num_nextn_predict_layers=1,
        rope_scaling=without(YARN, "rope_theta", "rope_type") | {"type": "yarn"},
    ),
    "deepseek_v4_bare": model(
        "deepseek_v4",
        without(SIZES, "intermediate_size", "num_key_value_heads"),
        {"num_hidden_layers": 5, "head_dim": 64, "q_lora_rank": 24, "index_topk": 3, "o_lora_rank": 8, "o_groups": 4}
        | {"moe_intermediate_size": 8, "n_routed_experts": 12, "index_head_dim": 16, "compress_rate_hca": 8},
    ),
}
