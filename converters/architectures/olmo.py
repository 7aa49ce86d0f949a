"""OLMo 1: llama with layer norms that have no weights, and in some sizes clipped queries, keys and values."""

from dataclasses import replace

from converters.architectures.common import COMMON, decoder, gated_mlp, pre_norm, rotary_attention
from converters.architectures.family import Family
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm

DEFAULTS = {"hidden_act": "silu", "max_position_embeddings": 2048}


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated. The eps of the norms is not in the config."""
    take.assume(DEFAULTS)
    take.ignore("pretraining_tp")  # cuts the same products into pieces
    norm, bias = Norm(1e-5, kind="layer", scale=False), take("attention_bias", False)
    attention = replace(rotary_attention(take), clip=take("clip_qkv", None), qkv_bias=bias, o_bias=bias)
    return decoder(take, (pre_norm(attention, gated_mlp(take), norm),) * take("num_hidden_layers"), norm)


FAMILY = Family(("olmo",), config, COMMON)
