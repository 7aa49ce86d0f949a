"""Mistral 7B and its successors up to Nemo and Small: llama with a window in every layer, or in none."""

from dataclasses import replace

from converters.architectures.common import COMMON, decoder, gated_mlp, pre_norm, rotary_attention
from converters.architectures.family import Family
from converters.architectures.llama import BUFFERS
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm

DEFAULTS = {
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated, no biases."""
    take.assume(DEFAULTS)
    norm = Norm(take("rms_norm_eps"))
    attention = replace(rotary_attention(take), window=take("sliding_window", None))
    return decoder(take, (pre_norm(attention, gated_mlp(take), norm),) * take("num_hidden_layers"), norm)


FAMILY = Family(("mistral",), config, COMMON, buffers=BUFFERS)
