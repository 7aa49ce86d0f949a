"""Architectures whose models come with code of their own, or are the text part of models that also see; see `archs`."""

from collections.abc import Mapping
from dataclasses import replace

from converters.gguf.arch import (
    ATTENTION_BIAS,
    EXPERT_WIDTH,
    EXPERTS,
    GPT2,
    GROUPED_EXPERTS,
    GROUPS,
    LATENT,
    LOCAL_EXPERTS,
    QKV_BIAS,
    RMS,
    WEIGHTS,
    Arch,
)
from converters.gguf.archs_dense import DENSE
from converters.gguf.archs_experts import MIXTURES

_BAILING = (
    RMS
    | EXPERTS
    | EXPERT_WIDTH
    | {
        "expert_shared_count": "num_shared_experts",
        "leading_dense_block_count": "first_k_dense_replace",
        "expert_weights_norm": "norm_topk_prob",
    }
)

_REFACT = Arch(
    "gpt_refact",
    {key: name for key, name in GPT2.items() if key != "attention.layer_norm_epsilon"}
    | {"attention.layer_norm_rms_epsilon": "layer_norm_epsilon"},
    act=("silu", None),
    rope=False,
)

HUB: Mapping[str, Arch] = {
    # the text part of models that also see; where positions are along several axes, they are one for text
    "qwen2vl": replace(DENSE["qwen2"], alias=True),
    "qwen3vl": replace(DENSE["qwen3"], alias=True),
    "qwen3vlmoe": replace(MIXTURES["qwen3moe"], alias=True),
    "paddleocr": Arch("llama", RMS, alias=True, present=ATTENTION_BIAS),
    "hunyuan_vl": replace(DENSE["hunyuan-dense"], alias=True),
    "deepseek2-ocr": Arch("deepseek", RMS | GROUPED_EXPERTS, alias=True, rope=False, square=True),
    # models of the hub
    "plamo": Arch("plamo", RMS, square=True, head="always"),
    "deepseek": Arch("deepseek", RMS | GROUPED_EXPERTS, fixed={"norm_topk_prob": False}, permuted=True, square=True),
    "bailingmoe": Arch("bailing_moe", _BAILING, present={"use_qkv_bias": QKV_BIAS}, permuted=True, head="always"),
    "bailingmoe2": Arch(
        "bailing_moe_v2",
        _BAILING,
        GROUPS | {"expert_weights_scale": WEIGHTS["expert_weights_scale"]},
        fused_qkv=True,
        square=True,
        partial=True,
        head="always",
    ),
    "jais": Arch(
        "jais",
        GPT2,
        fixed={
            "activation_function": "swiglu",
            "position_embedding_type": "alibi",
            "scale_qk_dot_by_d": True,
        },
        act=("silu", None),
        rope=False,
        fused_qkv=True,
        square=True,
        biases="always",
        head="always",
    ),
    "refact": _REFACT,
    # the 13B, whose queries and keys lie as if they were rotated
    "baichuan:alibi": replace(_REFACT, alias=True, fixed={"multi_query": False}, permuted=True),
    "arctic": Arch(
        "arctic",
        RMS | LOCAL_EXPERTS,
        fixed={"moe_layer_frequency": 1, "parallel_attn_mlp_res": True},
        permuted=True,
        square=True,
        # one that sees what the layer began with
        norms={"moe.pre": "ffn_norm_exps"},
    ),
    "openelm": Arch(
        "openelm",
        {
            "context_length": "max_context_length",
            "embedding_length": "model_dim",
            "block_count": "num_transformer_layers",
            "attention.key_length": "head_dim",
        },
        act=("silu", "activation_fn_name"),
        attention="mixed",
        fused_qkv=True,
        head="never",
    ),
    "maincoder": Arch("maincoder", RMS),
    "plamo3": Arch(
        "plamo3",
        RMS,
        {"attention.sliding_window": "window_size"},
        fused_qkv=True,
        fused_gate=True,
        period=8,
        partial=True,
        names={"post_attention_norm.weight": "post_attention_norm", "post_ffw_norm.weight": "post_ffw_norm"},
    ),
    "plm": Arch(
        "plm",
        LATENT,
        act=("relu2", "hidden_act"),
        attention="latent",
        fused_kv=True,
        head="never",
    ),
}
