"""Variants of families with latent attention. Data only; see variants_a.py."""

from typing import Any

from variants_a import BIAS, ROPE, TIED, YARN, model, old, without

Config = dict[str, Any]

HEADS: Config = {"q_lora_rank": 24, "kv_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 16}
"""Sizes of latent attention, all different."""
SIZES: Config = {
    "vocab_size": 160,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
}
COMMON: Config = SIZES | HEADS | {"rms_norm_eps": 1e-3, "max_position_embeddings": 128, "rope_parameters": ROPE}
EXPERTS: Config = {
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.7,
}
MSCALES: Config = YARN | {"mscale": 0.9, "mscale_all_dim": 0.6}

DEEPSEEK_V3 = model("deepseek_v3", COMMON, EXPERTS, {"first_k_dense_replace": 1})

VARIANTS: dict[str, Config] = {
    "deepseek_v3": DEEPSEEK_V3,
    "deepseek_v3_direct_bias": DEEPSEEK_V3
    | BIAS
    | TIED
    | {"q_lora_rank": None, "rope_interleave": False, "norm_topk_prob": False, "hidden_act": "gelu"},
    "deepseek_v3_old_yarn": old(
        without(DEEPSEEK_V3, "n_routed_experts"),
        rope_scaling=without(MSCALES, "rope_theta", "rope_type") | {"type": "yarn"},
        num_local_experts=8,
        num_nextn_predict_layers=1,
        ep_size=1,
        moe_layer_freq=1,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        seq_aux=True,
        aux_loss_alpha=0.001,
        pretraining_tp=1,
    ),
    "deepseek_v3_bare": model("deepseek_v3", SIZES, HEADS, {"moe_intermediate_size": 8, "num_hidden_layers": 4}),
}
