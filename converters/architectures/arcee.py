"""Arcee Foundation Models: llama with a plain feed-forward layer, relu squared."""

from dataclasses import replace

from converters.architectures.common import COMMON, activation, decoder, pre_norm, rotary_attention
from converters.architectures.family import Family
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Norm

DEFAULTS = {"hidden_act": "relu2", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096}


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary."""
    take.assume(DEFAULTS)
    norm, bias = Norm(take("rms_norm_eps")), take("attention_bias", False)
    attention = replace(rotary_attention(take), qkv_bias=bias, o_bias=bias)
    mlp = Mlp(take("intermediate_size"), activation(take, "hidden_act"), gated=False, bias=take("mlp_bias", False))
    return decoder(take, (pre_norm(attention, mlp, norm),) * take("num_hidden_layers"), norm)


FAMILY = Family(("arcee",), config, COMMON)
