"""Gemma 1: norms store w - 1, embeddings are scaled by sqrt(hidden_size), the head is tied."""

from dataclasses import replace

from converters.architectures.common import COMMON, decoder, gated_mlp, pre_norm, rotary_attention
from converters.architectures.family import Family
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm

DEFAULTS = {
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated."""
    take.assume(DEFAULTS)
    take.require("use_bidirectional_attention", False)
    take.ignore("hidden_activation")  # an older name beside hidden_act that the reference no longer reads
    norm, bias, mlp = Norm(take("rms_norm_eps"), offset=1.0), take("attention_bias", False), gated_mlp(take)
    if mlp.act == "gelu":
        mlp = replace(mlp, act="gelu_tanh")  # the first releases say "gelu" and were trained with the approximation
    attention = replace(rotary_attention(take), qkv_bias=bias, o_bias=bias)
    spec = decoder(take, (pre_norm(attention, mlp, norm),) * take("num_hidden_layers"), norm)
    return replace(spec, embed_scale=spec.dim**0.5)


FAMILY = Family(("gemma",), config, COMMON)
