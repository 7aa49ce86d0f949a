"""Variants of Granite with mixtures of experts and windows. Data only; see variants_a.py."""

from typing import Any

from variants_a import LINEAR, ROPE, SIZES, model, old, without

Config = dict[str, Any]

GRANITEMOE_SWA = model(
    "granitemoe_swa",
    SIZES,
    {
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-3,
        "max_position_embeddings": 128,
        "rope_parameters": ROPE,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "attention_multiplier": 0.31,
        "embedding_multiplier": 1.7,
        "logits_scaling": 1.6,
        "residual_multiplier": 0.6,
        "sliding_window": 8,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "layer_rope_theta": [0, 300.0, 2000.0],
    },
)

VARIANTS: dict[str, Config] = {
    "granitemoe_swa": GRANITEMOE_SWA,
    "granitemoe_swa_shared": GRANITEMOE_SWA
    | {
        "attention_bias": True,
        "hidden_act": "gelu",
        "layer_rope_theta": None,
        "rope_parameters": LINEAR,
        "shared_intermediate_size": 24,
        "tie_word_embeddings": True,
    },
    "granitemoe_swa_old": old(without(GRANITEMOE_SWA, "layer_types", "layer_rope_theta"), rope_scaling=None),
    "granitemoe_swa_bare": model("granitemoe_swa", SIZES),
}
