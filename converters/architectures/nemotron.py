"""Nemotron-4 and Minitron: layer norms that store w - 1, half of each head rotated, a plain feed-forward layer."""

from dataclasses import replace

from converters.architectures.common import COMMON, activation, decoder, grouped_attention, head_dim, pre_norm
from converters.architectures.family import Family
from converters.rope import read_rope
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Norm

DEFAULTS = {"hidden_act": "relu2", "norm_eps": 1e-5, "max_position_embeddings": 4096}


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, relu squared."""
    take.assume(DEFAULTS)
    # repeats head_dim; cuts the same products into pieces
    take.ignore("kv_channels", "pretraining_tp")
    norm, bias = Norm(take("norm_eps"), "layer", offset=1.0, bias=True), take("attention_bias", False)
    rope = read_rope(take, head_dim(take), partial=0.5)
    attention = replace(grouped_attention(take, rope), qkv_bias=bias, o_bias=bias)
    mlp = Mlp(take("intermediate_size"), activation(take, "hidden_act"), gated=False, bias=take("mlp_bias", False))
    return decoder(take, (pre_norm(attention, mlp, norm),) * take("num_hidden_layers"), norm)


FAMILY = Family(("nemotron",), config, COMMON)
