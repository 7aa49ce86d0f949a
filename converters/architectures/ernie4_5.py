"""ERNIE 4.5, dense: llama with interleaved rotation, and biases either everywhere or nowhere."""

from dataclasses import replace

from converters.architectures.common import COMMON, decoder, gated_mlp, grouped_attention, head_dim, pre_norm
from converters.architectures.family import Family
from converters.rope import read_rope
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm

DEFAULTS = {
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated."""
    take.assume(DEFAULTS)
    norm, bias = Norm(take("rms_norm_eps")), take("use_bias", False)
    rope = read_rope(take, head_dim(take), interleaved=True)
    attention = replace(grouped_attention(take, rope), qkv_bias=bias, o_bias=bias)
    block = pre_norm(attention, replace(gated_mlp(take), bias=bias), norm)
    return decoder(take, (block,) * take("num_hidden_layers"), norm)


FAMILY = Family(("ernie4_5",), config, COMMON)
