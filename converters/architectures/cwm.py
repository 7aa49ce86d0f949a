"""Code World Model: llama with a window in three of four layers."""

from dataclasses import replace

from converters.architectures.common import (
    COMMON,
    decoder,
    gated_mlp,
    layer_types,
    pre_norm,
    rotary_attention,
    windows,
)
from converters.architectures.family import Family
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm

DEFAULTS = {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "rope_theta": 1000000.0,
    "sliding_window": 8192,
}
ROPE = {
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated; every fourth layer, from the first on, sees everything."""
    if not take.has("rope_parameters") and "rope_scaling" not in take.config:  # a null there says that there is none
        take.config["rope_parameters"] = ROPE
    take.assume(DEFAULTS)
    take.ignore("pretraining_tp")  # cuts the same products into pieces
    norm, attention = Norm(take("rms_norm_eps")), rotary_attention(take)
    mlp, count = replace(gated_mlp(take), bias=take("mlp_bias", False)), take("num_hidden_layers")
    kinds = layer_types(take, count, ["sliding_attention" if i % 4 else "full_attention" for i in range(count)])
    sizes = windows(take, kinds, take("sliding_window", None))
    layers = (pre_norm(replace(attention, window=window), mlp, norm) for window in sizes)
    return decoder(take, layers, norm)


FAMILY = Family(("cwm",), config, COMMON)
