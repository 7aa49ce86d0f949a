"""Variants of families with latent attention. Data only; see variants_a.py."""

from typing import Any

from variants_a import BIAS, LONGROPE, ROPE, TIED, UNTIED, YARN, model, old, without

Config = dict[str, Any]

HEADS: Config = {"q_lora_rank": 24, "kv_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 16}
"""Sizes of latent attention, all different."""
SIZES: Config = {
    "vocab_size": 160,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
}
COMMON: Config = SIZES | HEADS | {"rms_norm_eps": 1e-3, "max_position_embeddings": 128, "rope_parameters": ROPE}
EXPERTS: Config = {
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.7,
}
MSCALES: Config = YARN | {"mscale": 0.9, "mscale_all_dim": 0.6}

DEEPSEEK_V3 = model("deepseek_v3", COMMON, EXPERTS, {"first_k_dense_replace": 1})
DEEPSEEK_V2 = model("deepseek_v2", COMMON, EXPERTS, {"first_k_dense_replace": 1, "topk_method": "group_limited_greedy"})
MINICPM3 = model("minicpm3", COMMON, {"scale_emb": 2.5, "scale_depth": 1.1, "dim_model_base": 40})
GLM4_MOE_LITE = model("glm4_moe_lite", COMMON, EXPERTS, {"mlp_layer_types": ["sparse", "dense"]})
LONGCAT_FLASH = model(
    "longcat_flash",
    without(COMMON, "intermediate_size", "num_hidden_layers"),
    {
        "num_layers": 2,
        "ffn_hidden_size": 56,
        "expert_ffn_hidden_size": 16,
        "n_routed_experts": 6,
        "zero_expert_num": 3,
        "moe_topk": 4,
        "head_dim": 8,
        "routed_scaling_factor": 1.7,
    },
)
YOUTU = model("youtu", without(COMMON, "pad_token_id"), UNTIED)  # a row for padding is zeroed as it is read
SARVAM_MLA = model("sarvam_mla", COMMON, EXPERTS)
AXK1 = model("axk1", COMMON, EXPERTS, {"mlp_layer_types": ["dense", "sparse"]})
INDEX: Config = {"index_topk": 6, "index_head_dim": 16, "index_n_heads": 12}  # with few heads, scores are often all 0
DEEPSEEK_V32 = model("deepseek_v32", COMMON, EXPERTS, INDEX, {"mlp_layer_types": ["dense", "sparse"]})
GLM_MOE_DSA = model(
    "glm_moe_dsa",
    COMMON,
    EXPERTS,
    INDEX,
    {"num_hidden_layers": 3, "indexer_types": ["full", "shared", "full"], "first_k_dense_replace": 1},
)
SMALLER: Config = {
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 28,
    "head_dim": 20,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 10,
    "v_head_dim": 6,
}
# of a layer that slides, of one that picks, and of one that does neither
DOTS3 = model(
    "dots3_note_text",
    COMMON,
    EXPERTS,
    INDEX,
    {
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "indexed_attention", "full_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "sliding_window": 6,
        "shared_experts_intermediate_size": 12,
        "head_dim": 20,
        "per_layer_config": {"0": SMALLER},
        "rope_parameters": {
            "sliding_attention": ROPE | {"partial_rotary_factor": 0.5},
            "indexed_attention": YARN | {"partial_rotary_factor": 0.4},
            "full_attention": ROPE | {"rope_theta": 3000.0, "partial_rotary_factor": 0.4},
        },
    },
)

VARIANTS: dict[str, Config] = {
    "dots3_note_text": DOTS3,
    # as they were released: the layers with windows under names of their own
    "dots3_note_text_old": old(
        without(
            DOTS3,
            "layer_types",
            "mlp_layer_types",
            "per_layer_config",
            "sliding_window",
            "shared_experts_intermediate_size",
        ),
        **{f"swa_{key}": value for key, value in SMALLER.items()},
        num_hidden_layers=4,
        first_k_dense_replace=2,
        use_sliding_window=True,
        sliding_window_size=6,
        rope_theta=7000.0,
        swa_rope_theta=500.0,
        attention_bias=True,
        moe_shared_expert_intermediate_size=20,
    ),
    "dots3_note_text_flat": without(DOTS3, "per_layer_config", "layer_types", "mlp_layer_types")
    | {
        **{f"swa_{key}": value for key, value in SMALLER.items() if key != "qk_rope_head_dim"},
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "use_dsa": False,
        "first_k_dense_replace": 0,
        "moe_layer_freq": [1, 1, 0],
        "rope_parameters": YARN,
        "hidden_act": "gelu",
        "norm_topk_prob": False,
        "tie_word_embeddings": True,
    },
    "deepseek_v3": DEEPSEEK_V3,
    "deepseek_v3_direct_bias": DEEPSEEK_V3
    | BIAS
    | TIED
    | {"q_lora_rank": None, "rope_interleave": False, "norm_topk_prob": False, "hidden_act": "gelu"},
    "deepseek_v3_old_yarn": old(
        without(DEEPSEEK_V3, "n_routed_experts"),
        rope_scaling=without(MSCALES, "rope_theta", "rope_type") | {"type": "yarn"},
        num_local_experts=8,
        num_nextn_predict_layers=1,
        ep_size=1,
        moe_layer_freq=1,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        seq_aux=True,
        aux_loss_alpha=0.001,
        pretraining_tp=1,
    ),
    "deepseek_v3_bare": model("deepseek_v3", SIZES, HEADS, {"moe_intermediate_size": 8, "num_hidden_layers": 4}),
    "deepseek_v2": DEEPSEEK_V2,
    "deepseek_v2_greedy": without(DEEPSEEK_V2, "n_routed_experts", "n_group", "topk_group")
    | BIAS
    | {"num_experts": 6, "q_lora_rank": None, "topk_method": "greedy", "mlp_bias": True, "hidden_act": "gelu"},
    "deepseek_v2_old_yarn": old(
        DEEPSEEK_V2, rope_scaling=without(MSCALES, "rope_theta", "rope_type") | {"type": "yarn"}, norm_topk_prob=False
    ),
    "deepseek_v2_bare": model(
        "deepseek_v2",
        without(SIZES, "num_key_value_heads"),
        HEADS,
        {"moe_intermediate_size": 8, "num_experts_per_tok": 5},
    ),
    "minicpm3": MINICPM3,
    "minicpm3_nulls": MINICPM3
    | BIAS
    | UNTIED
    | {"scale_depth": None, "dim_model_base": None, "v_head_dim": None, "q_lora_rank": None, "mlp_bias": True},
    "minicpm3_longrope": MINICPM3
    | {
        "rope_parameters": LONGROPE | {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 1.5, 2.0, 2.5]},
        "hidden_act": "gelu",
    },
    "minicpm3_bare": model("minicpm3", SIZES, HEADS),
    "glm4_moe_lite": GLM4_MOE_LITE,
    "glm4_moe_lite_old": old(
        without(GLM4_MOE_LITE, "mlp_layer_types", "qk_rope_head_dim", "n_routed_experts"),
        num_local_experts=8,
        head_dim=8,
        attention_bias=True,
        rope_interleave=False,
        num_nextn_predict_layers=1,
        partial_rotary_factor=1.0,
        rope_scaling=None,
    ),
    "glm4_moe_lite_direct": GLM4_MOE_LITE | {"q_lora_rank": None, "norm_topk_prob": False, "hidden_act": "gelu"},
    "glm4_moe_lite_bare": model("glm4_moe_lite", SIZES, HEADS, {"moe_intermediate_size": 8}),
    "longcat_flash": LONGCAT_FLASH,
    "longcat_flash_bias_yarn": LONGCAT_FLASH
    | BIAS
    | {"zero_expert_num": 0, "hidden_act": "gelu", "rope_parameters": MSCALES},
    "longcat_flash_old": old(
        without(LONGCAT_FLASH, "moe_topk", "ffn_hidden_size", "expert_ffn_hidden_size", "n_routed_experts"),
        num_experts_per_tok=4,
        intermediate_size=56,
        moe_intermediate_size=16,
        num_local_experts=6,
        num_hidden_layers=4,
        attention_method="MLA",
        mla_scale_q_lora=True,
        mla_scale_kv_lora=True,
        zero_expert_type="identity",
        router_bias=False,
    ),
    "longcat_flash_bare": model(
        "longcat_flash",
        without(SIZES, "intermediate_size", "num_hidden_layers"),
        HEADS,
        {"num_layers": 1, "ffn_hidden_size": 24, "expert_ffn_hidden_size": 4, "head_dim": 8},
    ),
    "youtu": YOUTU,
    "youtu_direct_bias_yarn": YOUTU
    | BIAS
    | {"q_lora_rank": None, "rope_interleave": False, "hidden_act": "gelu", "rope_parameters": MSCALES},
    "youtu_bare": model("youtu", without(SIZES, "pad_token_id"), HEADS),
    "sarvam_mla": SARVAM_MLA,
    "sarvam_mla_old": without(old(SARVAM_MLA), "n_routed_experts", "n_shared_experts")
    | BIAS
    | {
        "num_experts": 8,
        "num_shared_experts": 1,
        "head_dim": 28,
        "q_head_dim": 20,
        "rope_scaling": without(MSCALES, "rope_theta", "rope_type") | {"type": "deepseek_yarn"},
    },
    "sarvam_mla_bare": model("sarvam_mla", SIZES, without(HEADS, "q_lora_rank"), {"moe_intermediate_size": 8}),
    "axk1": AXK1,
    "axk1_old": without(old(AXK1), "mlp_layer_types")
    | BIAS
    | TIED
    | {"num_hidden_layers": 3, "first_k_dense_replace": 2, "moe_layer_freq": 2, "rope_interleave": False},
    "axk1_bare": model("axk1", SIZES, HEADS, {"moe_intermediate_size": 8}),
    "deepseek_v32": DEEPSEEK_V32,
    "deepseek_v32_old_yarn": old(
        without(DEEPSEEK_V32, "mlp_layer_types"),
        first_k_dense_replace=1,
        attention_bias=True,
        hidden_act="gelu",
        rope_scaling=without(MSCALES, "rope_theta", "rope_type") | {"type": "yarn"},
    ),
    # the default of index_topk is more than the tokens there are
    "deepseek_v32_bare": model(
        "deepseek_v32",
        SIZES,
        HEADS,
        {"moe_intermediate_size": 8, "num_hidden_layers": 4, "head_dim": 8, "index_topk": 6},
    ),
    "glm_moe_dsa": GLM_MOE_DSA,
    "glm_moe_dsa_every": without(GLM_MOE_DSA, "indexer_types") | {"index_topk_freq": 2, "index_skip_topk_offset": 1},
    "glm_moe_dsa_pattern": without(GLM_MOE_DSA, "indexer_types") | {"index_topk_pattern": "FSS"},
    # the default of index_topk is more than the tokens there are
    "glm_moe_dsa_bare": model(
        "glm_moe_dsa",
        SIZES,
        HEADS,
        {"moe_intermediate_size": 8, "num_hidden_layers": 4, "head_dim": 8, "index_topk": 6},
    ),
}
