"""Variants of Dory. Data only; see variants_a.py."""

from typing import Any

from variants_a import LINEAR, ROPE, SIZES, model

Config = dict[str, Any]

DORY = model(
    "dory",
    SIZES,
    {
        "num_hidden_layers": 5,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "max_position_embeddings": 128,
        "initializer_range": 0.9,
        "ngpt_alpha_init": 0.2,
        "sliding_window": 6,
        "layer_types": [
            "sliding_attention",
            "full_attention",
            "sliding_attention",
            "sliding_attention",
            "full_attention",
        ],
        "rope_parameters": {"sliding_attention": ROPE, "full_attention": LINEAR},
        "n_input_layers": 1,
        "n_output_layers": 2,
    },
)

VARIANTS: dict[str, Config] = {
    "dory": DORY,
    # as published: attention and feed-forward layers counted apart
    "dory_apart": DORY
    | {
        "num_hidden_layers": 8,
        "n_input_layers": 2,
        "n_recurrent_layers": 2,
        "n_output_layers": 4,
        "n_recurrent_loops": 3,
        "layer_types": ["full_attention", "mlp", "sliding_attention", "mlp"] * 2,
        "attention_bias": True,
        "mlp_bias": True,
        "hidden_act": "gelu",
    },
    "dory_once": DORY
    | {"num_hidden_layers": 4, "layer_types": None, "n_recurrent_loops": 1, "tie_word_embeddings": True},
    "dory_bare": model(
        "dory",
        SIZES,
        {"initializer_range": 0.5, "n_input_layers": 1, "n_output_layers": 0, "num_key_value_heads": 2, "head_dim": 16},
    ),
}
