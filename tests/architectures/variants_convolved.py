"""Variants of families with convolutions in or beside their attention. Data only; see variants_a.py."""

from typing import Any

from variants_a import BIAS, COMMON, UNTIED, YARN, model, old, without

Config = dict[str, Any]

HYBRID: Config = {"hybrid": {"rope_type": "default", "rope_theta": 1234.5, "partial_rotary_factor": 0.5}}
SLIDING: Config = {"rope_type": "default", "rope_theta": 321.0}
ZAYA = model(
    "zaya",
    without(COMMON, "intermediate_size"),
    {
        "moe_intermediate_size": 24,
        "num_experts": 4,
        "num_hidden_layers": 3,
        "router_hidden_size": 20,
        "rope_parameters": HYBRID,
    },
)

INKLING = model(
    "inkling_text",
    without(COMMON, "rope_parameters", "head_dim", "num_attention_heads", "num_key_value_heads"),
    {
        "head_dim": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "swa_head_dim": 12,
        "swa_num_attention_heads": 6,
        "swa_num_key_value_heads": 3,
        "sliding_window_size": 8,
        "d_rel": 5,
        "rel_extent": 12,
        "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding"],
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "num_hidden_layers": 3,
        "moe_intermediate_size": 24,
        "n_routed_experts": 6,
        "num_experts_per_tok": 3,
        "n_shared_experts": 2,
        "route_scale": 1.7,
        "logits_mup_width_multiplier": 1.6,
    },
)

INKLING2 = without(
    INKLING, "n_shared_experts", "logits_mup_width_multiplier", "mlp_layer_types", "intermediate_size"
) | {
    "model_type": "inkling2_text",
    "layer_types": ["hybrid_sliding", "hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid"],
    "num_hidden_layers": 5,
    "n_layers_per_attn_res_block": 2,
    "unpadded_vocab_size": 160,
    "qk_l2_clip_threshold": 3.7,
    "rel_l2_clip_threshold": 2.1,
    "mlp_gate_softcap": 1.1,
    "mlp_up_softcap": 1.7,
    "final_logit_softcapping": 2.3,
    "log_scaling_n_floor": 8,
    "log_scaling_alpha": 0.7,
}

LARA_MINI = model(
    "lara_mini",
    without(COMMON, "intermediate_size"),
    {
        "num_hidden_layers": 5,
        "sliding_window": 8,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "linear_conv_kernel_dim": 3,
        "linear_key_head_dim": 12,
        "linear_value_head_dim": 20,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
)

VARIANTS: dict[str, Config] = {
    "zaya": ZAYA,
    "zaya_bias_untied": ZAYA | BIAS | UNTIED | {"lm_head_bias": True, "hidden_act": "gelu", "num_experts": 3},
    "zaya_window": ZAYA
    | {
        "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding"],
        "sliding_window": 8,
        "cca_time0": 3,
        "cca_time1": 4,
        "rope_parameters": HYBRID | {"hybrid_sliding": SLIDING, "rope_type": "default"},
    },
    "zaya_odd": ZAYA | {"num_attention_heads": 6, "num_key_value_heads": 3, "cca_time0": 1, "num_experts": 3},
    "zaya_bare": without(
        ZAYA, "rope_parameters", "head_dim", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps"
    )
    | {"num_attention_heads": 8},
    "inkling_text": INKLING,
    "inkling_text_growth": without(INKLING, "layer_types", "mlp_layer_types")
    | {"log_scaling_n_floor": 8, "log_scaling_alpha": 0.7, "local_layer_ids": [1], "dense_mlp_idx": 1},
    "inkling_text_padded": INKLING
    | {"unpadded_vocab_size": 151, "n_shared_experts": 3, "conv_kernel_size": 3, "hidden_act": "gelu"},
    "inkling_text_old": without(INKLING, "sliding_window_size", "moe_intermediate_size", "logits_mup_width_multiplier")
    | {
        "sliding_window": 8,
        "intermediate_size": 24,
        "dense_intermediate_size": 40,
        "embedding_multiplier": 1.6,
        "sconv_kernel_size": 2,
        "torch_dtype": "bfloat16",
    },
    "inkling_text_bare": {
        "model_type": "inkling_text",
        "vocab_size": 160,
        "hidden_size": 64,
        "intermediate_size": 40,
        "moe_intermediate_size": 8,
        "num_hidden_layers": 6,
        "dense_mlp_idx": 2,
    },
    "inkling2_text": INKLING2,
    "inkling2_text_first_full": INKLING2
    | {
        "layer_types": ["hybrid", "hybrid_sliding", "hybrid"],
        "num_hidden_layers": 3,
        "n_layers_per_attn_res_block": 2,
        "unpadded_vocab_size": 151,
        "conv_kernel_size": 3,
    },
    "inkling2_text_each": without(
        INKLING2, "layer_types", "sliding_window_size", "moe_intermediate_size", "route_scale"
    )
    | {
        "num_hidden_layers": 6,
        "n_layers_per_attn_res_block": 1,
        "intermediate_size": 24,
        "routed_scaling_factor": 1.3,
        "sliding_window": 8,
        "torch_dtype": "float16",
    },
    "inkling2_text_bare": {
        "model_type": "inkling2_text",
        "vocab_size": 160,
        "hidden_size": 64,
        "moe_intermediate_size": 8,
        "num_hidden_layers": 7,
        "unpadded_vocab_size": 160,
        "n_routed_experts": 12,
    },
    "lara_mini": LARA_MINI,
    "lara_mini_bias_untied": LARA_MINI | BIAS | UNTIED | {"norm_topk_prob": False, "hidden_act": "gelu"},
    "lara_mini_layers": LARA_MINI
    | {
        "layer_types": ["full_attention", "sliding_attention", "linear_attention", "sliding_attention"],
        "num_hidden_layers": 4,
        "rope_parameters": YARN,
    },
    "lara_mini_old": old(without(LARA_MINI, "norm_topk_prob"), rope_scaling={"type": "linear", "factor": 2.5}),
    "lara_mini_bare": {
        "model_type": "lara_mini",
        "vocab_size": 160,
        "hidden_size": 64,
        "num_hidden_layers": 5,
        "num_experts": 8,
        "moe_intermediate_size": 8,
        "linear_num_value_heads": 8,
    },
}
