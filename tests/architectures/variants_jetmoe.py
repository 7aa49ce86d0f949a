"""Variants of mixtures of attention heads. Data only; see variants_a.py."""

from typing import Any

from variants_a import LINEAR, ROPE, model, old

Config = dict[str, Any]

JETMOE = model(
    "jetmoe",
    {
        "vocab_size": 160,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_key_value_heads": 3,
        "kv_channels": 12,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-3,
        "max_position_embeddings": 128,
        "rope_parameters": ROPE,
    },
)

VARIANTS: dict[str, Config] = {
    "jetmoe": JETMOE,
    "jetmoe_three_untied": JETMOE
    | {
        "activation_function": "gelu",
        "num_experts_per_tok": 3,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
        "rope_parameters": LINEAR,
    },
    "jetmoe_old": old(JETMOE, rope_scaling=None, num_attention_heads=6, num_experts_per_tok=1, aux_loss_coef=0.1),
    "jetmoe_bare": model(
        "jetmoe", {"vocab_size": 160, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1}
    ),
}
