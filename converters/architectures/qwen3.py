"""Qwen 3, dense: queries and keys normalised over a head, biases only where the config asks for them."""

from dataclasses import replace

from converters.architectures.common import COMMON, decoder, gated_mlp, pre_norm, rotary_attention
from converters.architectures.family import Family
from converters.architectures.qwen2 import DEFAULTS, upper_windows
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated."""
    take.assume(DEFAULTS | {"head_dim": 128})
    norm, mlp, bias = Norm(take("rms_norm_eps")), gated_mlp(take), take("attention_bias", False)
    attention = replace(rotary_attention(take), qk_norm=norm, qkv_bias=bias, o_bias=bias)
    layers = (pre_norm(replace(attention, window=window), mlp, norm) for window in upper_windows(take))
    return decoder(take, layers, norm)


FAMILY = Family(("qwen3",), config, COMMON)
