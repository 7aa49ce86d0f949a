"""Variants of families that run layers several times and tell each pass what the one before it found. Data only."""

from typing import Any

from variants_a import without
from variants_convolved import INKLING2

Config = dict[str, Any]

LOOP: Config = INKLING2 | {
    "model_type": "inkling2_loop_text",
    "num_hidden_layers": 4,
    "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid"],
    "n_layers_per_attn_res_block": 1,
    "loop_layer_index_start": 1,
    "loop_layer_index_end": 3,
    "loop_num_passes": 2,
    "loop_gate_rank": 5,
    # milder than without a loop: more layers enlarge rounding further
    "route_scale": 0.5,
    "final_logit_softcapping": 6.0,
}

VARIANTS: dict[str, Config] = {
    "inkling2_loop_text": LOOP,
    "inkling2_loop_text_blocks": LOOP
    | {
        "num_hidden_layers": 7,
        "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid", "hybrid", "hybrid_sliding", "hybrid"],
        "n_layers_per_attn_res_block": 2,
        "loop_layer_index_start": 2,
        "loop_layer_index_end": 6,
    },
    # as published, perhaps: the settings of the loop in a dict of their own
    "inkling2_loop_text_thrice": without(
        LOOP, "loop_layer_index_start", "loop_layer_index_end", "loop_num_passes", "loop_gate_rank"
    )
    | {
        "layer_types": ["hybrid", "hybrid_sliding", "hybrid", "hybrid_sliding"],
        "unpadded_vocab_size": 151,
        "conv_kernel_size": 3,
        "loop_config": {"core_start": 1, "core_end": 3, "num_passes": 3, "gate_rank": 4},
    },
    # the last layer is run again too
    "inkling2_loop_text_end": without(LOOP, "sliding_window_size", "moe_intermediate_size", "route_scale")
    | {
        "num_hidden_layers": 3,
        "layer_types": ["hybrid_sliding", "hybrid_sliding", "hybrid"],
        "intermediate_size": 24,
        "routed_scaling_factor": 0.6,
        "sliding_window": 5,
    },
    "inkling2_loop_text_bare": {
        "model_type": "inkling2_loop_text",
        "vocab_size": 160,
        "hidden_size": 64,
        "moe_intermediate_size": 8,
        "num_hidden_layers": 7,
        "unpadded_vocab_size": 160,
        "n_routed_experts": 12,
        "route_scale": 0.5,
        # a loop of one block would have one message, whatever the queries
        "n_layers_per_attn_res_block": 1,
        "loop_layer_index_start": 4,
        "loop_layer_index_end": 6,
    },
}
