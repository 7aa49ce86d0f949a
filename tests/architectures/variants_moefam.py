"""Variants of mixtures of experts with ordinary attention. Data only; see variants_a.py."""

from typing import Any

from variants_a import BIAS, COMMON, LLAMA3, LONGROPE, ROPE, SIZES, TIED, UNTIED, YARN, kinds, model, old, without

Config = dict[str, Any]

SMALL: Config = {"moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 3}
"""Sizes of a mixture."""

QWEN3_MOE = model("qwen3_moe", COMMON, SMALL, {"norm_topk_prob": True, "mlp_only_layers": [1]})
QWEN2_MOE = model(
    "qwen2_moe", without(COMMON, "head_dim"), SMALL, {"shared_expert_intermediate_size": 40, "mlp_only_layers": [0]}
)
EXPERTS: Config = {"num_local_experts": 6, "num_experts_per_tok": 3}
GPT_OSS = model(
    "gpt_oss",
    COMMON,
    EXPERTS,
    {"sliding_window": 8, "rope_parameters": YARN | {"truncate": False}, "swiglu_limit": 1.0},
)
LLAMA4 = model(
    "llama4_text",
    COMMON,
    EXPERTS,
    {
        "num_hidden_layers": 4,
        "intermediate_size_mlp": 40,
        "attention_chunk_size": 8,
        "attn_scale": 0.3,
        "floor_scale": 4,
        "moe_layers": [1, 3],
    },
)
MINIMAX_M2 = model(
    "minimax_m2", COMMON, EXPERTS, {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}, "intermediate_size": 40}
)
PHIMOE = model("phimoe", without(COMMON, "head_dim"), {"num_local_experts": 6, "router_jitter_noise": 0.05})
AMPLITUDES: Config = {"short_mscale": 1.2, "long_mscale": 1.4}
AFMOE = model(
    "afmoe",
    COMMON,
    SMALL,
    {
        "num_hidden_layers": 4,
        "global_attn_every_n_layers": 2,
        "sliding_window": 8,
        "num_shared_experts": 2,
        "route_scale": 1.7,
    },
)
GRANITEMOE = model(
    "granitemoe",
    without(COMMON, "head_dim"),
    EXPERTS,
    {
        "attention_multiplier": 0.31,
        "embedding_multiplier": 1.7,
        "logits_scaling": 1.6,
        "residual_multiplier": 0.6,
    },
)
GRANITEMOESHARED = GRANITEMOE | {"model_type": "granitemoeshared", "shared_intermediate_size": 40}
ERNIE: Config = model(
    "ernie4_5_moe",
    COMMON,
    {
        "num_hidden_layers": 3,
        "moe_intermediate_size": 24,
        "moe_k": 3,
        "moe_num_experts": 8,
        "moe_num_shared_experts": 2,
        "moe_layer_end_index": 1,
    },
)
FLEX_OLMO = model("flex_olmo", without(COMMON, "head_dim"), {"num_experts": 6, "num_experts_per_tok": 3})
GROUPED: Config = {
    "num_hidden_layers": 3,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.7,
}
GLM4_MOE = model("glm4_moe", COMMON, GROUPED, {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}})
SOLAR_OPEN = model("solar_open", without(COMMON, "intermediate_size"), GROUPED)
SARVAM = model("sarvam_moe", COMMON, GROUPED, {"first_k_dense_replace": 1, "num_hidden_layers": 3})
DOTS1 = model("dots1", without(COMMON, "head_dim"), GROUPED, {"first_k_dense_replace": 1, "sliding_window": None})
OLMOE = model("olmoe", without(COMMON, "head_dim"), {"num_experts": 6, "num_experts_per_tok": 3})
DBRX = model(
    "dbrx",
    {
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 128,
        "vocab_size": 160,
        "pad_token_id": 0,
        "rope_parameters": ROPE,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 0.9, "rope_theta": 1234.5},
        "ffn_config": {"ffn_hidden_size": 40, "moe_num_experts": 6, "moe_top_k": 3},
    },
)
MIMO = model(
    "mimo_v2_flash",
    without(COMMON, "rope_parameters"),
    without(GROUPED, "n_shared_experts"),
    {"num_attention_heads": 8, "num_hidden_layers": 4, "v_head_dim": 16, "sliding_window": 8},
)
HUNYUAN = model("hunyuan_v1_moe", COMMON, {"num_experts": 6, "moe_topk": 3})
EXAONE_MOE = model(
    "exaone_moe",
    without(COMMON, "head_dim"),
    without(GROUPED, "n_routed_experts", "n_shared_experts"),
    {
        "num_hidden_layers": 4,
        "num_experts": 8,
        "num_shared_experts": 2,
        "sliding_window": 8,
        "first_k_dense_replace": 2,
        "sliding_window_pattern": 2,
    },
)

VARIANTS: dict[str, Config] = {
    "qwen3_moe": QWEN3_MOE,
    "qwen3_moe_bias_window": QWEN3_MOE
    | BIAS
    | TIED
    | {"mlp_only_layers": [], "norm_topk_prob": False, "sliding_window": 8, "use_sliding_window": True},
    "qwen3_moe_old": without(old(QWEN3_MOE), "mlp_only_layers", "num_experts")
    | {"num_local_experts": 6, "decoder_sparse_step": 2, "rope_scaling": None, "max_window_layers": 1},
    "qwen3_moe_bare": model("qwen3_moe", SIZES, {"moe_intermediate_size": 24, "num_experts": 10}),
    "qwen2_moe": QWEN2_MOE,
    "qwen2_moe_window": QWEN2_MOE
    | {
        "num_hidden_layers": 4,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [],
        "max_window_layers": 2,
        "sliding_window": 8,
        "use_sliding_window": True,
        "norm_topk_prob": True,
        "qkv_bias": False,
    },
    "qwen2_moe_layer_types": QWEN2_MOE
    | {"layer_types": kinds("fs"), "sliding_window": 8, "use_sliding_window": True, "hidden_act": "gelu"},
    "qwen2_moe_bare": model(
        "qwen2_moe",
        SIZES,
        {
            "num_key_value_heads": 4,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
            "num_experts": 6,
        },
    ),
    "gpt_oss": GPT_OSS,
    "gpt_oss_full": GPT_OSS
    | TIED
    | {
        "attention_bias": False,
        "layer_types": kinds("fs"),
        "rope_parameters": ROPE,
        "swiglu_alpha": 1.3,
        "sliding_window": 5,
    },
    "gpt_oss_old": without(old(GPT_OSS), "num_local_experts")
    | {
        "num_experts": 4,
        "rope_scaling": without(YARN, "rope_theta"),
        "experts_per_token": 3,
        "initial_context_length": 4096,
    },
    "gpt_oss_bare": model("gpt_oss", SIZES, {"num_key_value_heads": 2, "num_local_experts": 6}),
    "llama4_text": LLAMA4,
    "llama4_text_untuned": LLAMA4
    | BIAS
    | {
        "attn_temperature_tuning": False,
        "use_qk_norm": False,
        "moe_layers": None,
        "interleave_moe_layer_step": 2,
        "no_rope_layer_interval": 2,
        "num_experts_per_tok": 1,
        "rope_parameters": LLAMA3,
    },
    "llama4_text_layers": LLAMA4
    | TIED
    | {
        "layer_types": ["full_attention", "chunked_attention", "full_attention", "chunked_attention"],
        "no_rope_layers": [0, 1, 1, 0],
        "attention_chunk_size": 5,
        "hidden_act": "gelu",
    },
    "llama4_text_old": old(LLAMA4, rope_scaling=None, attention_chunk_size=None),
    "llama4_text_bare": model(
        "llama4_text",
        SIZES,
        {"num_hidden_layers": 4, "num_key_value_heads": 2, "num_local_experts": 6},
    ),
    "minimax_m2": MINIMAX_M2,
    "minimax_m2_old": old(
        MINIMAX_M2, rotary_dim=8, rope_scaling=None, use_qk_norm=True, use_mtp=True, num_mtp_modules=3
    )
    | TIED,
    "minimax_m2_bare": model("minimax_m2", SIZES, {"num_key_value_heads": 2, "num_local_experts": 10}),
    "phimoe": PHIMOE,
    "phimoe_bias": PHIMOE | BIAS | TIED | {"lm_head_bias": True, "sliding_window": 8, "hidden_act": "gelu"},
    "phimoe_longrope_long": PHIMOE
    | {"rope_parameters": LONGROPE | AMPLITUDES | {"long_factor": LONGROPE["short_factor"]}},
    "phimoe_old_longrope": old(
        PHIMOE, rope_scaling=without(LONGROPE, "rope_theta") | AMPLITUDES | {"original_max_position_embeddings": 64}
    ),
    "phimoe_bare": model("phimoe", SIZES, {"num_key_value_heads": 2, "num_local_experts": 6}),
    "afmoe": AFMOE,
    "afmoe_scaled": AFMOE
    | BIAS
    | TIED
    | {
        "layer_types": kinds("fssf"),
        "mup_enabled": True,
        "num_dense_layers": 2,
        "num_shared_experts": 1,
        "hidden_act": "gelu",
    },
    "afmoe_old": old(AFMOE, num_hidden_layers=2, score_func="sigmoid", route_norm=True, rope_scaling=None),
    "afmoe_bare": model(
        "afmoe", SIZES, {"num_hidden_layers": 4, "moe_intermediate_size": 24, "num_experts": 8, "head_dim": 16}
    ),
    "granitemoe": GRANITEMOE,
    "granitemoe_bias": GRANITEMOE | BIAS | TIED | {"hidden_act": "gelu", "num_experts_per_tok": 1},
    "granitemoe_old": old(GRANITEMOE, rope_scaling=None),
    "granitemoe_bare": model("granitemoe", SIZES),
    "granitemoeshared": GRANITEMOESHARED,
    "granitemoeshared_bias": GRANITEMOESHARED | BIAS | TIED | {"hidden_act": "gelu", "shared_intermediate_size": 24},
    "granitemoeshared_bare": model("granitemoeshared", SIZES),
    "ernie4_5_moe": ERNIE,
    "ernie4_5_moe_bias": ERNIE
    | UNTIED
    | {
        "use_bias": True,
        "moe_norm_min": 0.7,
        "moe_layer_end_index": -1,
        "moe_layer_interval": 2,
        "hidden_act": "gelu",
    },
    "ernie4_5_moe_old": old(ERNIE, moe_num_shared_experts=0, rope_scaling=None),
    "ernie4_5_moe_bare": model(
        "ernie4_5_moe", SIZES, {"num_key_value_heads": 2, "moe_intermediate_size": 24, "moe_num_experts": 8}
    ),
    "flex_olmo": FLEX_OLMO,
    "flex_olmo_bias": FLEX_OLMO | BIAS | TIED | {"norm_topk_prob": True, "hidden_act": "gelu", "head_dim": 24},
    "flex_olmo_old": old(FLEX_OLMO, rope_scaling=None),
    "flex_olmo_bare": model("flex_olmo", SIZES),
    "glm4_moe": GLM4_MOE,
    "glm4_moe_bias": GLM4_MOE
    | BIAS
    | TIED
    | {"use_qk_norm": True, "norm_topk_prob": False, "first_k_dense_replace": 2, "hidden_act": "gelu"},
    "glm4_moe_old": without(old(GLM4_MOE), "head_dim") | {"rope_scaling": None, "num_nextn_predict_layers": 1},
    "glm4_moe_bare": model(
        "glm4_moe", SIZES, {"num_key_value_heads": 2, "moe_intermediate_size": 24, "n_routed_experts": 10}
    ),
    "solar_open": SOLAR_OPEN,
    "solar_open_bias": SOLAR_OPEN | BIAS | TIED | {"norm_topk_prob": False, "n_shared_experts": 1},
    "solar_open_old": old(SOLAR_OPEN, rope_scaling=None, first_k_dense_replace=0, use_qk_norm=False),
    "solar_open_bare": model(
        "solar_open", SIZES, {"num_key_value_heads": 2, "moe_intermediate_size": 24, "n_routed_experts": 10}
    ),
    "sarvam_moe": SARVAM,
    "sarvam_moe_bias": SARVAM | BIAS | TIED | {"use_qk_norm": False, "norm_topk_prob": False},
    "sarvam_moe_old": old(
        without(SARVAM, "n_routed_experts", "n_shared_experts"), rope_scaling=None, num_experts=8, num_shared_experts=2
    ),
    "sarvam_moe_bare": model("sarvam_moe", SIZES, {"moe_intermediate_size": 24, "n_routed_experts": 10}),
    "dots1": DOTS1,
    "dots1_bias": DOTS1
    | BIAS
    | TIED
    | {"norm_topk_prob": True, "sliding_window": 8, "max_window_layers": 1, "first_k_dense_replace": 0},
    "dots1_old": old(DOTS1, rope_scaling=None, layer_types=kinds("fsf"), sliding_window=8, scoring_func="noaux_tc"),
    "dots1_bare": model(
        "dots1",
        SIZES,
        {
            "num_key_value_heads": 4,
            "moe_intermediate_size": 24,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "num_experts_per_tok": 3,
        },
    ),
    "olmoe": OLMOE,
    "olmoe_clip": OLMOE | BIAS | TIED | {"clip_qkv": 0.9, "norm_topk_prob": True, "hidden_act": "gelu"},
    "olmoe_old": old(OLMOE, rope_scaling=None),
    "olmoe_bare": model("olmoe", SIZES, {"num_experts": 10}),
    "dbrx": DBRX,
    "dbrx_two": DBRX
    | {
        "attn_config": {"kv_n_heads": 4, "clip_qkv": 2, "rope_theta": 1234.5},
        "ffn_config": DBRX["ffn_config"] | {"ffn_act_fn": {"name": "gelu"}, "moe_normalize_expert_weights": 2.0},
    },
    "dbrx_plain": DBRX
    | {"ffn_config": DBRX["ffn_config"] | {"moe_normalize_expert_weights": None, "moe_loss_weight": 0.05}},
    "dbrx_old": old(DBRX, rope_scaling=None, num_key_value_heads=2),
    "dbrx_bare": model(
        "dbrx",
        {
            "d_model": 64,
            "n_heads": 4,
            "n_layers": 2,
            "vocab_size": 160,
            "attn_config": {"clip_qkv": 0.9, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 40},
        },
    ),
    "mimo_v2_flash": MIMO,
    "mimo_v2_flash_bias": MIMO
    | BIAS
    | TIED
    | {
        "layer_types": kinds("sffs"),
        "mlp_layer_types": ["sparse", "dense", "sparse", "dense"],
        "attention_value_scale": 1.3,
        "sliding_window_size": 5,
        "rope_parameters": {
            "full_attention": ROPE | {"partial_rotary_factor": 0.5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 567.0},
        },
        "hidden_act": "gelu",
    },
    "mimo_v2_flash_released": MIMO
    | {
        "rope_theta": 5000000,
        "swa_rope_theta": 10000,
        "partial_rotary_factor": 0.334,
        "hybrid_layer_pattern": [0, 1, 1, 1],
        "moe_layer_freq": [0, 1, 1, 1],
        "sliding_window_size": 8,
        "swa_head_dim": 24,
        "swa_v_head_dim": 16,
        "swa_num_attention_heads": 8,
        "swa_num_key_value_heads": 4,
        "add_full_attention_sink_bias": False,
        "add_swa_attention_sink_bias": True,
        "layernorm_epsilon": 1e-3,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "routed_scaling_factor": None,
        "attention_value_scale": None,
        "n_shared_experts": None,
    },
    "mimo_v2_flash_bare": model(
        "mimo_v2_flash",
        SIZES,
        {
            "num_key_value_heads": 2,
            "moe_intermediate_size": 24,
            "n_routed_experts": 10,
            "head_dim": 48,
            "v_head_dim": 32,
        },
    ),
    "hunyuan_v1_moe": HUNYUAN,
    "hunyuan_v1_moe_bias": HUNYUAN | BIAS | TIED | {"moe_topk": [2, 3], "hidden_act": "gelu"},
    "hunyuan_v1_moe_old": old(
        HUNYUAN,
        rope_scaling={"type": "dynamic", "alpha": 8.0, "factor": 1.0},
        moe_intermediate_size=[56, 56],
        num_shared_expert=[1, 1],
        use_mixed_mlp_moe=True,
    ),
    "hunyuan_v1_moe_bare": model("hunyuan_v1_moe", SIZES, {"head_dim": 16, "num_experts": 4}),
    "exaone_moe": EXAONE_MOE,
    "exaone_moe_layers": EXAONE_MOE
    | TIED
    | {
        "layer_types": kinds("fsfs"),
        "mlp_layer_types": ["sparse", "dense", "sparse", "dense"],
        "norm_topk_prob": False,
        "hidden_act": "gelu",
    },
    "exaone_moe_full": without(old(EXAONE_MOE), "sliding_window_pattern")
    | {"layer_types": kinds("ffff"), "rope_scaling": None},
    "exaone_moe_bare": model(
        "exaone_moe",
        SIZES,
        {"num_hidden_layers": 4, "num_key_value_heads": 2, "moe_intermediate_size": 24, "num_experts": 10},
    ),
}
