"""SmolLM 3: llama in which every few layers have no rotary embedding (and may have a window)."""

from dataclasses import replace

from converters.architectures.common import (
    COMMON,
    decoder,
    gated_mlp,
    layer_types,
    pre_norm,
    rotary_attention,
    windows,
)
from converters.architectures.family import Family
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm

DEFAULTS = {
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "no_rope_layer_interval": 4,
    "rope_theta": 2000000.0,
    "tie_word_embeddings": True,
}


def rotated(take: Take, count: int) -> list[bool]:
    """Which layers have a rotary embedding: no_rope_layers says 1 where there is one.

    Raises:
        ValueError: a list of the wrong length.
    """
    every = take("no_rope_layer_interval")
    marks = take("no_rope_layers", None) or [(i + 1) % every for i in range(count)]
    if len(marks) != count:
        raise ValueError(f"{take.where}: no_rope_layers has {len(marks)} entries for {count} layers")
    return [bool(mark) for mark in marks]


def config(take: Take) -> ModelSpec:
    """Pre-norm, gated."""
    take.assume(DEFAULTS)
    take.ignore("pretraining_tp", "max_window_layers")  # inherited from other families' configs, read by nobody
    norm, bias, count = Norm(take("rms_norm_eps")), take("attention_bias", False), take("num_hidden_layers")
    attention = replace(rotary_attention(take), qkv_bias=bias, o_bias=bias)
    mlp = replace(gated_mlp(take), bias=take("mlp_bias", False))
    turns, size = rotated(take, count), take("sliding_window", None)
    slides = take("use_sliding_window", False) and size is not None
    kinds = ["sliding_attention" if slides and not turn else "full_attention" for turn in turns]
    layers = (
        pre_norm(replace(attention, rope=attention.rope if turn else None, window=window), mlp, norm)
        for turn, window in zip(turns, windows(take, layer_types(take, count, kinds), size), strict=True)
    )
    return decoder(take, layers, norm)


FAMILY = Family(("smollm3",), config, COMMON)
