"""Variants of models whose layers keep states of several kinds. Data only; see variants_a.py."""

from typing import Any

from variants_a import BIAS, COMMON, LINEAR, ROPE, SIZES, TIED, model, old, without

Config = dict[str, Any]

OLMO = model(
    "olmo_hybrid",
    without(COMMON, "head_dim"),
    {
        "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 12,
        "linear_conv_kernel_dim": 3,
    },
)

VARIANTS: dict[str, Config] = {
    "olmo_hybrid": OLMO,
    "olmo_hybrid_no_rope": OLMO
    | BIAS
    | {
        "linear_allow_neg_eigval": False,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 12,
        "hidden_act": "gelu",
        "rope_parameters": ROPE | {"rope_theta": None},
    },
    "olmo_hybrid_old": old(without(OLMO, "layer_types", "linear_value_head_dim"), **TIED, linear_key_head_dim=4),
    "olmo_hybrid_linear": OLMO | {"rope_parameters": LINEAR, "head_dim": 24, "linear_value_head_dim": 24},
    "olmo_hybrid_bare": model("olmo_hybrid", SIZES, {"num_hidden_layers": 4}),
}
