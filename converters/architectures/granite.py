"""Granite 3, dense: llama with four multipliers."""

from dataclasses import replace

from converters.architectures.common import COMMON, decoder, gated_mlp, pre_norm, rotary_attention
from converters.architectures.family import Family
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm

DEFAULTS = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": 1.0,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated; scores, residual branches, embedding and logits scaled."""
    take.assume(DEFAULTS)
    norm, bias = Norm(take("rms_norm_eps")), take("attention_bias", False)
    attention = replace(rotary_attention(take), scale=take("attention_multiplier"), qkv_bias=bias, o_bias=bias)
    mlp = replace(gated_mlp(take), bias=take("mlp_bias", False))
    block = pre_norm(attention, mlp, norm, take("residual_multiplier"))
    spec = decoder(take, (block,) * take("num_hidden_layers"), norm)
    return replace(spec, embed_scale=take("embedding_multiplier"), logit_scale=1 / take("logits_scaling"))


FAMILY = Family(("granite",), config, COMMON)
