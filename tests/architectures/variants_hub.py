"""Variants of families whose code lives on the hub; their witnesses are in hub_models.py. Data only."""

from typing import Any

from variants_a import COMMON, model, without
from variants_b import GPT_TINY

Config = dict[str, Any]

GROUPED = without(COMMON, "rope_parameters") | {"rope_theta": 1234.5, "tie_word_embeddings": False}
EXPERTS: Config = {"num_experts_per_tok": 2, "moe_intermediate_size": 40, "norm_topk_prob": False}
DEEPSEEK = model(
    "deepseek",
    GROUPED,
    EXPERTS,
    {
        "n_routed_experts": 6,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "scoring_func": "softmax",
    },
)
BAILING = model("bailing_moe", GROUPED, EXPERTS, {"num_experts": 6, "num_shared_experts": 2, "rope_scaling": None})
LING2: Config = {
    "num_hidden_layers": 3,
    "num_experts": 8,
    "num_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "partial_rotary_factor": 0.5,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "score_function": "sigmoid",
    "use_qk_norm": True,
}
JAIS = model(
    "jais",
    GPT_TINY,
    {
        "n_inner": 56,
        "activation_function": "swiglu",
        "position_embedding_type": "alibi",
        "layer_norm_epsilon": 1e-3,
        "embeddings_scale": 3.7,
        "width_scale": 0.4,
        "scale_qk_dot_by_d": True,
    },
)
REFACT = model("gpt_refact", GPT_TINY, {"layer_norm_epsilon": 1e-3, "multi_query": True, "tie_word_embeddings": False})
PLM: Config = {
    "kv_lora_rank": 24,
    "q_lora_rank": None,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "hidden_act": "relu2",
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}

OPENELM: Config = {
    "vocab_size": 160,
    "model_dim": 64,
    "num_transformer_layers": 3,
    "head_dim": 16,
    "num_query_heads": [4, 4, 6],
    "num_kv_heads": [2, 2, 3],
    "ffn_multipliers": [0.5, 1.3, 1.6],
    "ffn_dim_divisor": 8,
    "ffn_with_glu": True,
    "max_context_length": 128,
    "rope_freq_constant": 1234.5,
    "rope_max_length": 256,
    "normalize_qk_projections": True,
    "normalization_layer_name": "rms_norm",
    "activation_fn_name": "swish",
    "share_input_output_layers": True,
}
ARCTIC: Config = {
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "moe_layer_frequency": 1,
    "parallel_attn_mlp_res": True,
    "use_residual": True,
}

VARIANTS: dict[str, Config] = {
    "arctic": model("arctic", GROUPED, ARCTIC),
    "openelm": model("openelm", OPENELM),
    "plamo": model(
        "plamo",
        without(GROUPED, "rope_theta", "num_key_value_heads"),
        {"num_attention_heads": 6, "n_shared_head": 3},
    ),
    "deepseek": DEEPSEEK,
    "deepseek_renorm": DEEPSEEK | {"norm_topk_prob": True, "first_k_dense_replace": 0},
    "bailing_moe": BAILING | {"norm_topk_prob": True},
    "bailing_moe_bias": BAILING | {"use_qkv_bias": True},
    "bailing_moe_second": model("bailing_moe", GROUPED, EXPERTS, LING2),
    "bailing_moe_v2": model("bailing_moe_v2", GROUPED, EXPERTS, LING2),
    "jais": JAIS,
    "jais_mup": without(JAIS, "embeddings_scale", "width_scale", "scale_qk_dot_by_d")
    | {
        "mup_embeddings_scale": 2.5,
        "mup_output_alpha": 0.7,
        "mup_width_scale": 0.5,
        "mup_scale_qk_dot_by_d": True,
        "tie_word_embeddings": False,
    },
    "gpt_refact": REFACT,
    "gpt_refact_heads": REFACT | {"multi_query": False},
    "maincoder": model("maincoder", GROUPED, {"use_qk_norm": True}),
    "plamo3": model(
        "plamo3",
        GROUPED,
        {
            "num_hidden_layers": 4,
            "window_size": 6,
            "sliding_window_pattern": 3,
            "rope_local_theta": 321.0,
            "tie_word_embeddings": True,
        },
    ),
    "plm": model("plm", without(GROUPED, "head_dim"), PLM),
}
