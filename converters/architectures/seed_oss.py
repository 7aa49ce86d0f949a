"""Seed-OSS: llama whose output projection has a bias of its own choice."""

from dataclasses import replace

from converters.architectures.common import COMMON, decoder, gated_mlp, pre_norm, rotary_attention
from converters.architectures.family import Family
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm

DEFAULTS = {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 524288,
    "attention_bias": True,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated."""
    take.assume(DEFAULTS)
    take.ignore("pretraining_tp")  # cuts the same products into pieces
    norm = Norm(take("rms_norm_eps"))
    attention = replace(
        rotary_attention(take), qkv_bias=take("attention_bias", False), o_bias=take("attention_out_bias", False)
    )
    mlp = replace(gated_mlp(take), bias=take("mlp_bias", False))
    return decoder(take, (pre_norm(attention, mlp, norm),) * take("num_hidden_layers"), norm)


FAMILY = Family(("seed_oss",), config, COMMON)
