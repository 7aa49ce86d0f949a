"""Architectures of mixtures of experts; see `archs`."""

from collections.abc import Mapping
from dataclasses import replace

from converters.gguf.arch import (
    ATTENTION_BIAS,
    EXPERT_WIDTH,
    EXPERTS,
    FACTORS,
    FREQS,
    GROUPED_EXPERTS,
    GROUPS,
    LATENT,
    LOCAL_EXPERTS,
    MULTIPLIERS,
    QKV_BIAS,
    RMS,
    WEIGHTS,
    WIDTHS,
    WINDOW,
    Arch,
)

_GRANITE = Arch(
    "granitemoe",
    RMS | LOCAL_EXPERTS | {"logit_scale": "logits_scaling"},
    MULTIPLIERS,
    present=ATTENTION_BIAS,
    permuted=True,
    rope_tensors=FREQS | FACTORS,
)

_DEEPSEEK = Arch(
    "deepseek_v3",
    LATENT | GROUPED_EXPERTS,
    {"attention.q_lora_rank": "q_lora_rank"} | GROUPS | WEIGHTS,
    rope=False,
    attention="latent",
)

MIXTURES: Mapping[str, Arch] = {
    "llama:mixtral": Arch("mixtral", RMS | LOCAL_EXPERTS, rope_tensors=FREQS | FACTORS, permuted=True),
    "qwen2moe": Arch(
        "qwen2_moe",
        RMS | EXPERTS,
        EXPERT_WIDTH | {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
        present={"qkv_bias": QKV_BIAS},
        fixed={"norm_topk_prob": False},
        square=True,
    ),
    "qwen3moe": Arch("qwen3_moe", RMS | EXPERTS, EXPERT_WIDTH, fixed={"norm_topk_prob": True}),
    "olmoe": Arch("olmoe", RMS | EXPERTS, fixed={"norm_topk_prob": False}, square=True, head="always"),
    "phimoe": Arch(
        "phimoe",
        RMS | LOCAL_EXPERTS,
        WINDOW,
        fixed={"attention_bias": True, "lm_head_bias": True},
        rope_tensors=FACTORS,
        square=True,
        biases="optional",
        head="always",
    ),
    "granitemoe": _GRANITE,
    "granitemoe:shared": replace(
        _GRANITE,
        model_type="granitemoeshared",
        optional=MULTIPLIERS | {"expert_shared_feed_forward_length": "shared_intermediate_size"},
    ),
    "ernie4_5-moe": Arch(
        "ernie4_5_moe",
        RMS
        | EXPERT_WIDTH
        | {
            "expert_count": "moe_num_experts",
            "expert_used_count": "moe_k",
            "leading_dense_block_count": "moe_layer_start_index",
            "interleave_moe_layer_step": "moe_layer_interval",
        },
        {"expert_shared_count": "moe_num_shared_experts"},
        present={"use_bias": QKV_BIAS},
    ),
    "dots1": Arch(
        "dots1",
        RMS | GROUPED_EXPERTS,
        GROUPS | WEIGHTS,
        present=ATTENTION_BIAS,
        fixed={"sliding_window": None, "scoring_func": "sigmoid"},
        head="always",
    ),
    "glm4moe": Arch(
        "glm4_moe",
        RMS | GROUPED_EXPERTS,
        GROUPS | WEIGHTS,
        present=ATTENTION_BIAS | {"use_qk_norm": ("blk.0.attn_q_norm.weight",)},
        partial=True,
        names={"ffn_norm": "post_attention_norm"},
    ),
    "minimax-m2": Arch(
        "minimax_m2",
        RMS | LOCAL_EXPERTS,
        repeats={"expert_feed_forward_length": "intermediate_size"},
        partial=True,
        head="always",
    ),
    "afmoe": Arch(
        "afmoe",
        RMS
        | EXPERTS
        | EXPERT_WIDTH
        | WINDOW
        | {"expert_shared_count": "num_shared_experts", "leading_dense_block_count": "num_dense_layers"},
        {"expert_weights_scale": "route_scale"},
        present=ATTENTION_BIAS,
        fixed={"mup_enabled": True},
        period=4,
        head="always",
    ),
    "exaone-moe": Arch(
        "exaone_moe",
        RMS
        | EXPERTS
        | EXPERT_WIDTH
        | WINDOW
        | {"expert_shared_count": "num_shared_experts", "leading_dense_block_count": "first_k_dense_replace"},
        GROUPS | WEIGHTS,
        period=4,
    ),
    "hunyuan-moe": Arch(
        "hunyuan_v1_moe",
        RMS | EXPERTS,
        repeats={
            "expert_feed_forward_length": "intermediate_size",
            "expert_shared_feed_forward_length": "intermediate_size",
        },
        present=ATTENTION_BIAS,
    ),
    "dbrx": Arch(
        "dbrx",
        {
            "context_length": "max_seq_len",
            "embedding_length": "d_model",
            "block_count": "n_layers",
            "attention.head_count": "n_heads",
            "attention.head_count_kv": "kv_n_heads",
            "feed_forward_length": "ffn_hidden_size",
            "expert_count": "moe_num_experts",
            "expert_used_count": "moe_top_k",
        },
        {"attention.clamp_kqv": "clip_qkv"},
        act=("silu", None),
        fused_qkv=True,
        square=True,
        names={"ffn_norm": "attn_output_norm"},
        head="always",
    ),
    "deepseek2": _DEEPSEEK,
    "deepseek2:v2": replace(_DEEPSEEK, model_type="deepseek_v2"),
    "deepseek2:dense": Arch(
        "youtu",
        LATENT,
        {"attention.q_lora_rank": "q_lora_rank"},
        repeats={"expert_feed_forward_length": "intermediate_size", "leading_dense_block_count": "num_hidden_layers"},
        rope=False,
        attention="latent",
    ),
    "glm-dsa": replace(
        _DEEPSEEK,
        model_type="glm_moe_dsa",
        keys=dict(_DEEPSEEK.keys)
        | {
            "attention.q_lora_rank": "q_lora_rank",
            "attention.indexer.head_count": "index_n_heads",
            "attention.indexer.key_length": "index_head_dim",
            "attention.indexer.top_k": "index_topk",
        },
        optional=GROUPS | WEIGHTS,
    ),
    "mimo2": Arch(
        "mimo_v2_flash",
        WIDTHS
        | WINDOW
        | EXPERT_WIDTH
        | {
            "attention.layer_norm_rms_epsilon": "rms_norm_eps",
            "expert_count": "n_routed_experts",
            "expert_used_count": "num_experts_per_tok",
        },
        GROUPS | {"attention.value_scale": "attention_value_scale"},
        present=ATTENTION_BIAS,
        fixed={"norm_topk_prob": True},
        attention="mixed",
        head="always",
    ),
    "minicpm3": Arch(
        "minicpm3",
        LATENT,
        {"attention.q_lora_rank": "q_lora_rank"},
        rope_tensors=FACTORS,
        attention="latent",
        fused_kv=True,
    ),
    "gpt-oss": Arch(
        "gpt_oss",
        RMS | LOCAL_EXPERTS | WINDOW,
        repeats={"expert_feed_forward_length": "intermediate_size"},
        fixed={"attention_bias": True},
        act=("silu", None),
        period=2,
        biases="always",
        names={"ffn_norm": "post_attention_norm"},
        whole_ramp=False,
        head="always",
    ),
    "llama4": Arch(
        "llama4_text",
        RMS
        | LOCAL_EXPERTS
        | {
            "feed_forward_length": "intermediate_size_mlp",
            "expert_feed_forward_length": "intermediate_size",
            "interleave_moe_layer_step": "interleave_moe_layer_step",
        },
        rope_tensors=FREQS,
    ),
}
