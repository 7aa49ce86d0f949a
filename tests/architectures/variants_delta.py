"""Variants of models with recurrent layers between those of attention. Data only; see variants_a.py."""

from typing import Any

from variants_a import BIAS, COMMON, ROPE, SIZES, TIED, UNTIED, model, old, without

Config = dict[str, Any]

CONV_SIZES: Config = {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}
LFM2 = model(
    "lfm2", without(COMMON, "rms_norm_eps", "head_dim"), CONV_SIZES, {"norm_eps": 1e-3, "block_multiple_of": 8}
)

DELTA: Config = {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "head_dim": 16,
    "linear_conv_kernel_dim": 3,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "rope_parameters": ROPE | {"partial_rotary_factor": 0.5},
}
EXPERTS: Config = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
}
# of every default but the sizes: a period of four layers, the widths of the heads
PERIOD: Config = {"num_hidden_layers": 4, "linear_num_key_heads": 1, "linear_num_value_heads": 2}
QWEN3_NEXT = model("qwen3_next", COMMON, DELTA, EXPERTS, {"mlp_only_layers": [0]})
QWEN3_5 = model("qwen3_5_text", COMMON, DELTA)
QWEN3_5_MOE = model("qwen3_5_moe_text", without(COMMON, "intermediate_size"), DELTA, EXPERTS)

VARIANTS: dict[str, Config] = {
    "lfm2": LFM2,
    "lfm2_bias": LFM2 | {"conv_bias": True, "conv_L_cache": 4, "block_ffn_dim_multiplier": 1.5},
    "lfm2_indices": old(
        without(LFM2, "layer_types"), full_attn_idxs=[1], block_auto_adjust_ff_dim=False, tie_embedding=False
    ),
    "lfm2_widths": LFM2 | UNTIED | {"block_ffn_dim_multiplier": 2, "block_ff_dim": 51},
    "lfm2_bare": model(
        "lfm2", SIZES, {"num_attention_heads": 8, "layer_types": ["conv", "full_attention"], "intermediate_size": 300}
    ),
    "qwen3_next": QWEN3_NEXT,
    "qwen3_next_bias": QWEN3_NEXT
    | BIAS
    | {"decoder_sparse_step": 2, "norm_topk_prob": False, "linear_num_value_heads": 2, "hidden_act": "gelu"},
    "qwen3_next_interval": old(
        without(QWEN3_NEXT, "layer_types", "mlp_only_layers"),
        full_attention_interval=2,
        partial_rotary_factor=0.75,
        tie_word_embeddings=True,
    ),
    "qwen3_next_bare": model("qwen3_next", SIZES, PERIOD, EXPERTS),
    "qwen3_5_text": QWEN3_5,
    "qwen3_5_text_interval": old(without(QWEN3_5, "layer_types"), full_attention_interval=3, attention_bias=True),
    "qwen3_5_text_sections": QWEN3_5
    | TIED
    | {
        "linear_num_key_heads": 4,
        "rope_parameters": ROPE | {"mrope_section": [2, 1, 1], "mrope_interleaved": True, "partial_rotary_factor": 0.5},
    },
    "qwen3_5_text_bare": model("qwen3_5_text", SIZES, PERIOD),
    "qwen3_5_moe_text": QWEN3_5_MOE,
    "qwen3_5_moe_text_tied": QWEN3_5_MOE | TIED | BIAS | {"num_experts_per_tok": 3, "hidden_act": "relu"},
    "qwen3_5_moe_text_bare": model("qwen3_5_moe_text", without(SIZES, "intermediate_size"), PERIOD, EXPERTS),
}
