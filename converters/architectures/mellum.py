"""Mellum 2: Qwen 3's mixtures of experts with windows, a rope a layer type, and dense layers among the others."""

from dataclasses import replace

from converters.architectures.common import (
    decoder,
    gated_mlp,
    grouped_attention,
    head_dim,
    layer_types,
    rename,
    windows,
)
from converters.architectures.experts import TRAINING, mlp_layer_types, pre_norm
from converters.architectures.family import Family
from converters.architectures.qwen2_moe import RULES, mixture
from converters.rope import read_ropes
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm

DEFAULTS = {
    "vocab_size": 98304,
    "hidden_size": 2304,
    "intermediate_size": 7168,
    "num_hidden_layers": 28,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "sliding_window": 1024,
    "moe_intermediate_size": 896,
    "num_experts_per_tok": 8,
    "num_experts": 64,
    "norm_topk_prob": True,
}
THETAS = {"full_attention": 500000.0, "sliding_attention": 10000.0}
# of the module that guesses a further token
DRAFT = ("num_mtp_layers", "num_nextn_predict_layers", "mtp_layer_types", "mtp_mlp_layer_types")


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated."""
    rename(take, {"num_experts": "num_local_experts"})
    take.assume(DEFAULTS)
    take.ignore(*TRAINING, *DRAFT)
    count, norm, bias = take("num_hidden_layers"), Norm(take("rms_norm_eps")), take("attention_bias", False)
    kinds = layer_types(take, count, ["full_attention"] * count)
    ropes, sizes = read_ropes(take, head_dim(take), THETAS), windows(take, kinds, take("sliding_window", None))
    attention = replace(grouped_attention(take), qk_norm=norm, qkv_bias=bias, o_bias=bias)
    feed_forwards, moe = mlp_layer_types(take, count, 0), mixture(take)
    take.ignore("intermediate_size")  # read below if a layer is dense
    layers = [
        pre_norm(replace(attention, rope=ropes[kind], window=size), gated_mlp(take) if second == "dense" else moe, norm)
        for kind, size, second in zip(kinds, sizes, feed_forwards, strict=True)
    ]
    return decoder(take, layers, norm)


FAMILY = Family(("mellum",), config, RULES, drafts=("mtp.",))
