"""Ministral 8B: mistral in which some layers have a window."""

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
from converters.architectures.mistral import DEFAULTS
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated, no biases."""
    take.assume(DEFAULTS)
    norm, attention, mlp = Norm(take("rms_norm_eps")), rotary_attention(take), gated_mlp(take)
    size, count = take("sliding_window", None), take("num_hidden_layers")
    kinds = layer_types(take, count, ["full_attention" if size is None else "sliding_attention"] * count)
    layers = (pre_norm(replace(attention, window=window), mlp, norm) for window in windows(take, kinds, size))
    return decoder(take, layers, norm)


FAMILY = Family(("ministral",), config, COMMON)
