"""Granite 4 dense with windows: most layers see a window, each has its own rotary base or none, heads have sinks."""

from dataclasses import replace

from converters.architectures.common import COMMON, LAYER, layer_types, windows
from converters.architectures.family import Family
from converters.architectures.granite import DEFAULTS, assemble, attention, dense
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Attention, ModelSpec

SWA = {
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "sliding_window": 128,
    "tie_word_embeddings": True,
}


def attentions(take: Take) -> list[Attention]:
    """The attention of each layer. A rotary base of 0 means no rotation."""
    count, base = take("num_hidden_layers"), replace(attention(take), sinks=True)
    default = ["sliding_attention" if i % 4 else "full_attention" for i in range(count)]
    sizes = windows(take, layer_types(take, count, default), take("sliding_window", None))
    thetas = take("layer_rope_theta", None)
    if thetas is None:
        return [replace(base, window=size) for size in sizes]
    if len(thetas) != count:
        raise ValueError(f"{take.where}: layer_rope_theta has {len(thetas)} entries for {count} layers")
    ropes = [replace(base.rope, theta=float(theta)) if base.rope and theta else None for theta in thetas]
    return [replace(base, window=size, rope=rope) for size, rope in zip(sizes, ropes, strict=True)]


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated, with Granite's four multipliers."""
    take.assume(DEFAULTS | SWA)
    return assemble(take, attentions(take), dense(take))


SINKS = Rule("layers.{l}.attention.sinks", f"{LAYER}.self_attn.sinks")

FAMILY = Family(("granite_swa",), config, (*COMMON, SINKS))
