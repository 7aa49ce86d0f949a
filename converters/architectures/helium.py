"""Helium: llama with heads rotated in pairs and no bias on the output projection."""

from dataclasses import replace

from converters.architectures.common import COMMON, decoder, gated_mlp, grouped_attention, head_dim, pre_norm
from converters.architectures.family import Family
from converters.rope import read_rope
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm

DEFAULTS = {
    "num_key_value_heads": 20,
    "head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-8,
    "max_position_embeddings": 4096,
    "rope_theta": 100000.0,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated."""
    take.assume(DEFAULTS)
    norm = Norm(take("rms_norm_eps"))
    rope = read_rope(take, head_dim(take), interleaved=True)
    attention = replace(grouped_attention(take, rope), qkv_bias=take("attention_bias", False))
    mlp = replace(gated_mlp(take), bias=take("mlp_bias", False))
    return decoder(take, (pre_norm(attention, mlp, norm),) * take("num_hidden_layers"), norm)


FAMILY = Family(("helium",), config, COMMON)
