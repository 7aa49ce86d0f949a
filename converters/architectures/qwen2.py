"""Qwen 1.5, 2 and 2.5: biases on queries, keys and values, and a window on the upper layers if it is switched on."""

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
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def upper_windows(take: Take) -> tuple[int | None, ...]:
    """The window of each layer: none below max_window_layers, and none at all unless use_sliding_window is set."""
    size, first, count = take("sliding_window", None), take("max_window_layers"), take("num_hidden_layers")
    size = size if take("use_sliding_window", False) else None
    slides = [size is not None and i >= first for i in range(count)]
    kinds = layer_types(take, count, ["sliding_attention" if slide else "full_attention" for slide in slides])
    return windows(take, kinds, size)


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated."""
    take.assume(DEFAULTS)
    norm, mlp = Norm(take("rms_norm_eps")), gated_mlp(take)
    attention = replace(rotary_attention(take), qkv_bias=True)
    layers = (pre_norm(replace(attention, window=window), mlp, norm) for window in upper_windows(take))
    return decoder(take, layers, norm)


FAMILY = Family(("qwen2",), config, COMMON)
