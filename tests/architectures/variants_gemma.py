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
