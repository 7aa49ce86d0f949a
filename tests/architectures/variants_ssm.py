"""Variants of state space models and of hybrids with them. Data only; see variants_a.py."""

from typing import Any

from variants_a import model

Config = dict[str, Any]

MAMBA = model(
    "mamba",
    {
        "vocab_size": 160,
        "hidden_size": 48,
        "state_size": 6,
        "num_hidden_layers": 2,
        "layer_norm_epsilon": 1e-3,
        "expand": 2,
        "conv_kernel": 3,
        "time_step_rank": 5,
    },
)
FALCON_MAMBA = MAMBA | {"model_type": "falcon_mamba", "mixer_rms_eps": 1e-2}
MAMBA2 = model(
    "mamba2",
    {
        "vocab_size": 160,
        "hidden_size": 48,
        "state_size": 6,
        "num_hidden_layers": 2,
        "layer_norm_epsilon": 1e-3,
        "num_heads": 6,
        "head_dim": 16,
        "n_groups": 3,
        "conv_kernel": 3,
        "chunk_size": 8,
    },
)

VARIANTS: dict[str, Config] = {
    "mamba": MAMBA,
    "mamba_bare": model("mamba", {"vocab_size": 160, "hidden_size": 40, "num_hidden_layers": 2}),
    "mamba_bias_untied": MAMBA
    | {"use_bias": True, "use_conv_bias": False, "hidden_act": "gelu", "tie_word_embeddings": False},
    "mamba_wide": MAMBA | {"intermediate_size": 56, "time_step_rank": "auto", "use_mambapy": False},
    "falcon_mamba": FALCON_MAMBA,
    "falcon_mamba_bare": model("falcon_mamba", {"vocab_size": 160, "hidden_size": 40, "num_hidden_layers": 2}),
    "falcon_mamba_bias": FALCON_MAMBA | {"use_bias": True, "use_conv_bias": False, "tie_word_embeddings": False},
    "mamba2": MAMBA2,
    "mamba2_bare": model(
        "mamba2",
        {"vocab_size": 160, "hidden_size": 64, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 16},
    ),
    "mamba2_bias_tied": MAMBA2
    | {"use_bias": True, "use_conv_bias": False, "hidden_act": "gelu", "tie_word_embeddings": True},
    "mamba2_limits": MAMBA2 | {"time_step_limit": [1.2, 1.5], "n_groups": 1, "residual_in_fp32": False},
}
