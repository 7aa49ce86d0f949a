"""Granite 3, dense: llama with four multipliers."""

from collections.abc import Iterable
from dataclasses import replace

from converters.architectures.common import COMMON, decoder, gated_mlp, pre_norm, rotary_attention
from converters.architectures.family import Family
from converters.take import Take
from forge_jax.spec import Attention, ModelSpec, Norm

DEFAULTS = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": 1.0,
}


def attention(take: Take) -> Attention:
    """Rotary attention whose scores are multiplied by a setting."""
    bias = take("attention_bias", False)
    return replace(rotary_attention(take), scale=take("attention_multiplier"), qkv_bias=bias, o_bias=bias)


def assemble(take: Take, attentions: Iterable[Attention], norm: Norm) -> ModelSpec:
    """The decoder around the attention of each layer."""
    mlp = replace(gated_mlp(take), bias=take("mlp_bias", False))
    spec = decoder(take, (pre_norm(op, mlp, norm, take("residual_multiplier")) for op in attentions), norm)
    return replace(spec, embed_scale=take("embedding_multiplier"), logit_scale=1 / take("logits_scaling"))


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated; scores, residual branches, embedding and logits scaled."""
    take.assume(DEFAULTS)
    return assemble(take, (attention(take),) * take("num_hidden_layers"), Norm(take("rms_norm_eps")))


FAMILY = Family(("granite",), config, COMMON)
