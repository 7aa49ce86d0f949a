"""Variants of mixtures of experts with ordinary attention. Data only; see variants_a.py."""

from typing import Any

from variants_a import BIAS, COMMON, SIZES, TIED, kinds, model, old, without

Config = dict[str, Any]

SMALL: Config = {"moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 3}
"""Sizes of a mixture."""

QWEN3_MOE = model("qwen3_moe", COMMON, SMALL, {"norm_topk_prob": True, "mlp_only_layers": [1]})
QWEN2_MOE = model(
    "qwen2_moe", without(COMMON, "head_dim"), SMALL, {"shared_expert_intermediate_size": 40, "mlp_only_layers": [0]}
)

VARIANTS: dict[str, Config] = {
    "qwen3_moe": QWEN3_MOE,
    "qwen3_moe_bias_window": QWEN3_MOE
    | BIAS
    | TIED
    | {"mlp_only_layers": [], "norm_topk_prob": False, "sliding_window": 8, "use_sliding_window": True},
    "qwen3_moe_old": without(old(QWEN3_MOE), "mlp_only_layers", "num_experts")
    | {"num_local_experts": 6, "decoder_sparse_step": 2, "rope_scaling": None, "max_window_layers": 1},
    "qwen3_moe_bare": model("qwen3_moe", SIZES, {"moe_intermediate_size": 24, "num_experts": 10}),
    "qwen2_moe": QWEN2_MOE,
    "qwen2_moe_window": QWEN2_MOE
    | {
        "num_hidden_layers": 4,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [],
        "max_window_layers": 2,
        "sliding_window": 8,
        "use_sliding_window": True,
        "norm_topk_prob": True,
        "qkv_bias": False,
    },
    "qwen2_moe_layer_types": QWEN2_MOE
    | {"layer_types": kinds("fs"), "sliding_window": 8, "use_sliding_window": True, "hidden_act": "gelu"},
    "qwen2_moe_bare": model(
        "qwen2_moe",
        SIZES,
        {
            "num_key_value_heads": 4,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
            "num_experts": 6,
        },
    ),
}
