"""Jais 2: llama's wiring with layer norms and a plain feed-forward layer of squared rectifiers."""

from dataclasses import replace

from converters.architectures.common import COMMON, activation, decoder, pre_norm, rotary_attention
from converters.architectures.family import Family
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Norm

DEFAULTS = {
    "hidden_act": "relu2",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "attention_bias": True,
    "mlp_bias": True,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, not gated."""
    take.assume(DEFAULTS)
    norm, bias = Norm(take("layer_norm_eps"), "layer", bias=True), take("attention_bias")
    attention = replace(rotary_attention(take), qkv_bias=bias, o_bias=bias)
    mlp = Mlp(take("intermediate_size"), activation(take, "hidden_act"), gated=False, bias=take("mlp_bias"))
    return decoder(take, (pre_norm(attention, mlp, norm),) * take("num_hidden_layers"), norm)


FAMILY = Family(("jais2",), config, COMMON)
