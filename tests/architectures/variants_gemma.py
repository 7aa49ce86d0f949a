"""Variants of the families whose layers share keys or have inputs of their own, and of some mixtures. Data only."""

from typing import Any

from variants_a import COMMON, kinds, model, old, without

Config = dict[str, Any]

ROPES: Config = {
    "full_attention": {"rope_theta": 2000.0, "rope_type": "proportional", "partial_rotary_factor": 0.25},
    "sliding_attention": {"rope_theta": 300.0, "rope_type": "default"},
}
GEMMA4 = model(
    "gemma4_text",
    without(COMMON, "rope_parameters"),
    {
        "num_hidden_layers": 4,
        "layer_types": kinds("sfsf"),
        "rope_parameters": ROPES,
        "sliding_window": 8,
        "global_head_dim": 32,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 12,
        "vocab_size_per_layer_input": 170,
        "enable_moe_block": False,
    },
)
SMALL: Config = {"head_dim": 8, "global_head_dim": 16, "vocab_size": 160, "hidden_size": 48, "intermediate_size": 56}
GEMMA3N = without(GEMMA4, "global_head_dim", "enable_moe_block") | {
    "model_type": "gemma3n_text",
    "vocab_size_per_layer_input": 150,
    "rope_parameters": {
        kind: {"rope_theta": rope["rope_theta"], "rope_type": "default"} for kind, rope in ROPES.items()
    },
    "activation_sparsity_pattern": [0.6, 0.0, 0.0, 0.3],
    "altup_num_inputs": 3,
    "altup_active_idx": 1,
    "laurel_rank": 6,
}

VARIANTS: dict[str, Config] = {
    "gemma3n_text": GEMMA3N,
    "gemma3n_text_apart": GEMMA3N
    | {
        "num_kv_shared_layers": 0,
        "altup_num_inputs": 2,
        "altup_active_idx": 0,
        "altup_coef_clip": 0.1,
        "intermediate_size": [40, 56, 48, 64],
        "hidden_activation": "silu",
        "attention_bias": True,
        "tie_word_embeddings": False,
        "vocab_size_per_layer_input": 160,
    },
    "gemma3n_text_old": old(
        without(GEMMA3N, "activation_sparsity_pattern"),
        rope_theta=2000.0,
        rope_local_base_freq=300.0,
        rope_scaling=None,
    ),
    "gemma4_text": GEMMA4,
    "gemma4_text_keys": without(GEMMA4, "vocab_size_per_layer_input")
    | {
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 0,
        "final_logit_softcapping": 3.0,
        "tie_word_embeddings": False,
    },
    "gemma4_text_experts": GEMMA4
    | {"enable_moe_block": True, "num_experts": 6, "top_k_experts": 3, "moe_intermediate_size": 24},
    "gemma4_text_wide": without(GEMMA4, "global_head_dim")
    | {
        "attention_bias": True,
        "use_double_wide_mlp": True,
        "hidden_activation": "silu",
        "per_layer_config": {
            "1": {"head_dim": 48, "num_key_value_heads": 4},
            "3": {"head_dim": 48, "num_key_value_heads": 4},
        },
    },
    "gemma4_text_bare": model("gemma4_text", SMALL, {"vocab_size_per_layer_input": 160, "num_hidden_layers": 6}),
    "gemma4_unified_text": without(
        GEMMA4, "hidden_size_per_layer_input", "vocab_size_per_layer_input", "enable_moe_block"
    )
    | {"model_type": "gemma4_unified_text", "num_kv_shared_layers": 1, "layer_types": kinds("sffs")},
    "gemma4_unified_text_bare": model("gemma4_unified_text", SMALL, {"num_hidden_layers": 6}),
}

SPARSE: Config = {"num_experts": 6, "num_experts_per_tok": 3}
KINDS: Config = {"num_hidden_layers": 4, "layer_types": kinds("fsfs"), "sliding_window": 8}
PLAIN: Config = {kind: {"rope_theta": rope["rope_theta"], "rope_type": "default"} for kind, rope in ROPES.items()}
COHERE2_MOE = model(
    "cohere2_moe",
    without(COMMON, "rms_norm_eps", "rope_parameters"),
    SPARSE,
    KINDS,
    {"layer_norm_eps": 1e-3, "mlp_layer_types": ["dense", "dense", "sparse", "sparse"], "num_shared_experts": 2},
    {"prefix_dense_intermediate_size": 40, "logit_scale": 0.5, "rope_theta": 1234.5, "rope_scaling": None},
)
LAGUNA = model(
    "laguna",
    COMMON,
    SPARSE,
    KINDS,
    {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 40, "moe_routed_scaling_factor": 1.7},
    {"num_attention_heads_per_layer": [4, 6, 4, 6], "moe_router_logit_softcapping": 0.7},
    {"rope_parameters": PLAIN | {"full_attention": PLAIN["full_attention"] | {"partial_rotary_factor": 0.5}}},
)
MELLUM = model("mellum", COMMON, SPARSE, KINDS, {"moe_intermediate_size": 24, "rope_parameters": PLAIN})
HY_V3 = model("hy_v3", COMMON, SPARSE, {"moe_intermediate_size": 24, "num_shared_experts": 2, "num_hidden_layers": 3})
FEW: Config = {"vocab_size": 160, "hidden_size": 48, "head_dim": 8, "intermediate_size": 40, "num_hidden_layers": 4}
EXPERTS: Config = {"num_experts": 8, "moe_intermediate_size": 16}

VARIANTS |= {
    "cohere2_moe": COHERE2_MOE,
    "cohere2_moe_sigmoid": without(COHERE2_MOE, "mlp_layer_types", "layer_types", "prefix_dense_intermediate_size")
    | {
        "expert_selection_fn": "sigmoid",
        "first_k_dense_replace": 2,
        "prefix_dense_sliding_window_pattern": 2,
        "sliding_window_pattern": 2,
        "shared_expert_combination_strategy": "sum",
        "rms_norm_eps": 1e-3,
        "attention_bias": True,
        "tie_word_embeddings": False,
    },
    "cohere2_moe_bare": model(
        "cohere2_moe", FEW, {"num_attention_heads": 4, "num_experts": 4, "num_experts_per_tok": 2}
    ),
    "laguna": LAGUNA,
    "laguna_features": without(LAGUNA, "num_attention_heads_per_layer", "moe_router_logit_softcapping")
    | {"gating": "per-element", "mlp_layer_types": ["sparse", "dense", "sparse", "sparse"], "attention_bias": True},
    "laguna_bare": model("laguna", FEW, EXPERTS, {"shared_expert_intermediate_size": 24, "num_attention_heads": 8}),
    "mellum": MELLUM,
    "mellum_dense": MELLUM
    | {
        "mlp_layer_types": ["dense", "sparse", "dense", "sparse"],
        "attention_bias": True,
        "norm_topk_prob": False,
        "tie_word_embeddings": True,
        "hidden_act": "gelu",
    },
    "mellum_bare": model("mellum", FEW, EXPERTS),
    "hy_v3": HY_V3,
    "hy_v3_bias": HY_V3
    | {
        "mlp_bias": True,
        "attention_bias": True,
        "mlp_layer_types": ["sparse", "dense", "sparse"],
        "router_scaling_factor": 1.3,
        "tie_word_embeddings": True,
    },
    "hy_v3_bare": model("hy_v3", FEW, EXPERTS, {"num_attention_heads": 8}),
}

ARIA = model(
    "aria_text", COMMON, {"moe_num_experts": 6, "moe_topk": 3, "moe_num_shared_experts": 1, "intermediate_size": 24}
)
SHARED: Config = {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 40}
FLINT = model("flint", COMMON, SPARSE, SHARED, KINDS, {"mlp_only_layers": [0]})
KOLIBRI1 = model("kolibri1", without(COMMON, "intermediate_size"), SPARSE, SHARED, KINDS)

VARIANTS |= {
    "aria_text": ARIA,
    "aria_text_bias": ARIA
    | {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu", "tie_word_embeddings": True},
    "aria_text_bare": model("aria_text", FEW, {"num_attention_heads": 4}),
    "flint": FLINT,
    "flint_step": without(FLINT, "layer_types")
    | {
        "decoder_sparse_step": 2,
        "mlp_only_layers": [3],
        "attention_bias": True,
        "norm_topk_prob": False,
        "tie_word_embeddings": True,
        "num_hidden_layers": 6,
    },
    "flint_bare": model("flint", FEW, EXPERTS),
    "kolibri1": KOLIBRI1,
    "kolibri1_sums": without(KOLIBRI1, "layer_types")
    | {"norm_topk_prob": True, "tie_word_embeddings": True, "num_hidden_layers": 5},
    "kolibri1_bare": model("kolibri1", without(FEW, "intermediate_size"), EXPERTS),
}

BEAM = model(
    "beam",
    COMMON,
    KINDS,
    {"num_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "moe_intermediate_size": 24},
    {"rope_parameters": PLAIN | {"full_attention": None}, "mlp_layer_types": ["dense", "sparse", "dense", "sparse"]},
    {"final_logit_softcapping": 3.0},
)

VARIANTS |= {
    "beam": BEAM,
    "beam_ropes": BEAM
    | {
        "rope_parameters": PLAIN,
        "attention_bias": True,
        "norm_topk_prob": False,
        "final_logit_softcapping": None,
        "tie_word_embeddings": True,
    },
    "beam_bare": model("beam", FEW, {"num_experts": 16, "moe_intermediate_size": 16, "num_attention_heads": 8}),
}
