"""Variants of hybrids of attention and linear recurrences. Data only; see variants_a.py."""

from typing import Any

from variants_a import ROPE, model, old

Config = dict[str, Any]

RECURRENT_GEMMA = model(
    "recurrent_gemma",
    {
        "vocab_size": 160,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "lru_width": 36,
        "attention_window_size": 7,
        "conv1d_width": 3,
        "logits_soft_cap": 5.0,
        "rms_norm_eps": 1e-3,
        "rope_parameters": ROPE | {"partial_rotary_factor": 0.5},
    },
)

VARIANTS: dict[str, Config] = {
    "recurrent_gemma": RECURRENT_GEMMA,
    "recurrent_gemma_bias_untied": RECURRENT_GEMMA
    | {
        "attention_bias": True,
        "tie_word_embeddings": False,
        "hidden_activation": "silu",
        "block_types": ["attention", "recurrent"],
        "conv1d_width": 1,
    },
    "recurrent_gemma_old": old(
        RECURRENT_GEMMA,
        partial_rotary_factor=1.0,
        head_dim=8,
        lru_width=None,
        num_key_value_heads=1,
        embeddings_scale_by_sqrt_dim=True,
        w_init_variance_scale=0.01,
        final_w_init_variance_scale=0.1,
    ),
    "recurrent_gemma_bare": model(
        "recurrent_gemma",
        {
            "vocab_size": 160,
            "hidden_size": 48,
            "intermediate_size": 40,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
        },
    ),
}
