"""Llama 1 to 3, and what shares its code (TinyLlama, SmolLM, Yi, DeepSeek-LLM, ...)."""

from dataclasses import replace

from converters.architectures.common import COMMON, decoder, gated_mlp, pre_norm, rotary_attention
from converters.architectures.family import Family
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm

DEFAULTS = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 2048}

BUFFERS = ("model.layers.{l}.self_attn.rotary_emb.inv_freq",)


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated; biases in attention and feed-forward where the config asks for them."""
    take.assume(DEFAULTS)
    # cuts the same products into pieces; an older name of the context length
    take.ignore("pretraining_tp", "max_sequence_length")
    norm, bias = Norm(take("rms_norm_eps")), take("attention_bias", False)
    attention = replace(rotary_attention(take), qkv_bias=bias, o_bias=bias)
    mlp = replace(gated_mlp(take), bias=take("mlp_bias", False))
    return decoder(take, (pre_norm(attention, mlp, norm),) * take("num_hidden_layers"), norm)


FAMILY = Family(("llama",), config, COMMON, buffers=BUFFERS)
