"""Architectures of mixtures of experts; see `archs`."""

from collections.abc import Mapping

from converters.gguf.arch import (
    EXPERT_WIDTH,
    EXPERTS,
    FACTORS,
    FREQS,
    LOCAL_EXPERTS,
    QKV_BIAS,
    RMS,
    WINDOW,
    Arch,
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
