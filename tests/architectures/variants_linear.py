"""Variants of hybrids of attention and linear recurrences. Data only; see variants_a.py."""

from typing import Any

from variants_a import ROPE, model, old, without

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
MINIMAX = model(
    "minimax",
    {
        "vocab_size": 160,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "rms_norm_eps": 1e-3,
        "max_position_embeddings": 128,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": ROPE,
        "block_size": 7,
        "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
        "full_attn_alpha_factor": 1.7,
        "full_attn_beta_factor": 0.6,
        "linear_attn_alpha_factor": 0.8,
        "linear_attn_beta_factor": 1.3,
        "mlp_alpha_factor": 1.2,
        "mlp_beta_factor": 0.7,
    },
)

VARIANTS: dict[str, Config] = {
    "minimax": MINIMAX,
    "minimax_old_tied": old(
        without(MINIMAX, "head_dim", "layer_types", "block_size", "num_local_experts"),
        rope_scaling=None,
        hidden_act="gelu",
        num_experts=4,
        num_key_value_heads=6,
        num_hidden_layers=3,
        rotary_dim=8,
        tie_word_embeddings=True,
    ),
    "minimax_window": MINIMAX
    | {
        "sliding_window": 8,
        "layer_types": ["full_attention", "linear_attention", "full_attention"],
        "num_hidden_layers": 3,
        "full_attn_alpha_factor": 3,
    },
    "minimax_bare": model(
        "minimax",
        {
            "vocab_size": 160,
            "hidden_size": 64,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
        },
    ),
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
