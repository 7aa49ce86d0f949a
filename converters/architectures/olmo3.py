"""OLMo 3: OLMo 2 whose layers mostly have a window; only the ropes of full layers are ever stretched."""

from dataclasses import replace

from converters.architectures.common import gated_mlp, head_dim, layer_types, windows
from converters.architectures.family import Family
from converters.architectures.olmo2 import DEFAULTS, RULES, assemble, attention
from converters.rope import read_ropes
from converters.take import Take
from forge_jax.spec import ModelSpec


def config(take: Take) -> ModelSpec:
    """Post-norm inside the residual branch, rotary, gated."""
    take.assume(DEFAULTS | {"rope_theta": 500000.0, "sliding_window": 4096})
    count = take("num_hidden_layers")
    kinds = layer_types(take, count, ["sliding_attention" if (i + 1) % 4 else "full_attention" for i in range(count)])
    # transformers 5 gives the theta of an older config to the full layers alone; released ones have the default
    ropes = read_ropes(take, head_dim(take), dict.fromkeys(("full_attention", "sliding_attention"), take("rope_theta")))
    sizes = windows(take, kinds, take("sliding_window", None))
    base = attention(take)
    layers = [replace(base, rope=ropes[kind], window=size) for kind, size in zip(kinds, sizes, strict=True)]
    return assemble(take, layers, gated_mlp(take))


FAMILY = Family(("olmo3",), config, RULES)
