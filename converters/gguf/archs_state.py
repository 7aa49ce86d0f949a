"""Architectures with state space models; see `archs`."""

from collections.abc import Mapping
from dataclasses import replace

from converters.gguf.arch import (
    ATTENTION_BIAS,
    EXPERT_WIDTH,
    EXPERTS,
    GROUPED,
    GROUPED_EXPERTS,
    GROUPS,
    LATENT,
    LOCAL_EXPERTS,
    MLP_BIAS,
    MULTIPLIERS,
    RMS,
    STATE,
    WEIGHTS,
    Arch,
)

_MAMBA = Arch(
    "mamba",
    STATE | {"ssm.inner_size": "intermediate_size", "ssm.time_step_rank": "time_step_rank"},
    present={"use_conv_bias": ("blk.0.ssm_conv1d.bias",)},
    attention="never",
    rope=False,
)

_NEMOTRON = Arch(
    "nemotron_h",
    {
        "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
        "ssm.conv_kernel": "conv_kernel",
        "ssm.state_size": "ssm_state_size",
        "ssm.group_count": "n_groups",
        "ssm.time_step_rank": "mamba_num_heads",
    },
    act=("relu2", "mlp_hidden_act"),
    rope=False,
    names={"ffn_norm": "attn_norm"},
    permuted=True,
    hybrid=True,
)
_LFM2 = Arch(
    "lfm2",
    GROUPED | {"attention.layer_norm_rms_epsilon": "norm_eps", "shortconv.l_cache": "conv_L_cache"},
    act=("silu", None),
    names={"output_norm": "token_embd_norm"},
    hybrid=True,
)
HYBRID = {
    "ssm.conv_kernel": "mamba_d_conv",
    "ssm.state_size": "mamba_d_state",
    "ssm.group_count": "mamba_n_groups",
    "ssm.time_step_rank": "mamba_n_heads",
}
DELTA = {
    "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.state_size": "linear_key_head_dim",
    "ssm.group_count": "linear_num_key_heads",
    "ssm.time_step_rank": "linear_num_value_heads",
}
AFTER = {"ffn_norm": "post_attention_norm"}

STATES: Mapping[str, Arch] = {
    "mamba": _MAMBA,
    "mamba:falcon": replace(_MAMBA, model_type="falcon_mamba"),
    "mamba2": replace(
        _MAMBA,
        model_type="mamba2",
        keys=STATE | {"ssm.group_count": "n_groups", "ssm.time_step_rank": "num_heads"},
    ),
    "jamba": Arch(
        "jamba",
        RMS
        | EXPERTS
        | {
            "ssm.conv_kernel": "mamba_d_conv",
            "ssm.state_size": "mamba_d_state",
            "ssm.time_step_rank": "mamba_dt_rank",
        },
        rope=False,
        square=True,
        hybrid=True,
    ),
    "granitehybrid": Arch(
        "granitemoehybrid",
        RMS | HYBRID | {"logit_scale": "logits_scaling"},
        MULTIPLIERS | LOCAL_EXPERTS | {"expert_shared_feed_forward_length": "shared_intermediate_size"},
        rope=False,
        permuted=True,
        hybrid=True,
    ),
    "falcon-h1": Arch(
        "falcon_h1", RMS | HYBRID, present=ATTENTION_BIAS | MLP_BIAS, names={"ffn_norm.weight": "ffn_norm"}
    ),
    "nemotron_h": _NEMOTRON,
    "nemotron_h_moe": replace(
        _NEMOTRON,
        keys=dict(_NEMOTRON.keys)
        | EXPERT_WIDTH
        | {
            "expert_count": "n_routed_experts",
            "expert_used_count": "num_experts_per_tok",
            "expert_shared_feed_forward_length": "moe_shared_expert_intermediate_size",
        },
        optional=GROUPS | WEIGHTS | {"moe_latent_size": "moe_latent_size"},
    ),
    "qwen3next": Arch(
        "qwen3_next",
        RMS | EXPERTS | DELTA,
        EXPERT_WIDTH | {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
        partial=True,
        names=AFTER,
        gated_queries=True,
        hybrid=True,
    ),
    "qwen35": Arch("qwen3_5_text", RMS | DELTA, partial=True, names=AFTER, gated_queries=True, tiled=True, hybrid=True),
    "qwen35moe": Arch(
        "qwen3_5_moe_text",
        RMS | EXPERTS | DELTA,
        EXPERT_WIDTH | {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
        partial=True,
        names=AFTER,
        gated_queries=True,
        tiled=True,
        hybrid=True,
    ),
    "kimi-linear": Arch(
        "kimi_linear",
        LATENT
        | GROUPED_EXPERTS
        | {
            "expert_count": "num_local_experts",
            "expert_weights_scale": "routed_scaling_factor",
            "ssm.conv_kernel": "linear_conv_kernel_dim",
            "kda.head_dim": "linear_head_dim",
        },
        {"attention.q_lora_rank": "q_lora_rank"} | GROUPS,
        fixed={"norm_topk_prob": True},
        attention="latent",
        rope=False,
        head="always",
    ),
    "lfm2": _LFM2,
    "lfm2moe": replace(
        _LFM2,
        model_type="lfm2_moe",
        keys=dict(_LFM2.keys) | EXPERTS | EXPERT_WIDTH | {"leading_dense_block_count": "num_dense_layers"},
        fixed={"use_expert_bias": True, "norm_topk_prob": True},
    ),
}
