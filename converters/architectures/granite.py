"""Granite 3, dense: llama with four multipliers."""

from collections.abc import Iterable
from dataclasses import replace

from converters.architectures.common import COMMON, decoder, gated_mlp, rotary_attention
from converters.architectures.experts import pre_norm
from converters.architectures.family import Family
from converters.take import Take
from forge_jax.spec import Attention, Mlp, ModelSpec, Moe, Norm

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


def dense(take: Take) -> Mlp:
    """The feed-forward layer."""
    return replace(gated_mlp(take), bias=take("mlp_bias", False))


def assemble(take: Take, attentions: Iterable[Attention], feed_forward: Mlp | Moe) -> ModelSpec:
    """The decoder around the attention of each layer."""
    norm, scale = Norm(take("rms_norm_eps")), take("residual_multiplier")
    spec = decoder(take, (pre_norm(op, feed_forward, norm, scale) for op in attentions), norm)
    return replace(spec, embed_scale=take("embedding_multiplier"), logit_scale=1 / take("logits_scaling"))


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated; scores, residual branches, embedding and logits scaled."""
    take.assume(DEFAULTS)
    return assemble(take, (attention(take),) * take("num_hidden_layers"), dense(take))


FAMILY = Family(("granite",), config, COMMON)
