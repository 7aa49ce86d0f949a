"""EXAONE 4: norms after each branch instead of before, norms over a head; with windows, only those layers rotate."""

from dataclasses import replace

from converters.architectures.common import (
    POST_NORM,
    decoder,
    gated_mlp,
    layer_types,
    post_norm,
    rotary_attention,
    windows,
)
from converters.architectures.family import Family
from converters.take import Take
from forge_jax.spec import Block, ModelSpec, Norm

DEFAULTS = {
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
}


def kinds(take: Take, count: int, size: int | None) -> tuple[str, ...]:
    """The kind of each layer. The pattern, for configs without a list, is a period or letters like "LLLG"."""
    pattern = take("sliding_window_pattern", 1)
    letters = pattern if isinstance(pattern, str) else "L" * (pattern - 1) + "G"
    local = [size is not None and letters[i % len(letters)] == "L" for i in range(count)]
    return layer_types(take, count, ["sliding_attention" if is_local else "full_attention" for is_local in local])


def config(take: Take) -> ModelSpec:
    """Post-norm inside the residual branch, gated."""
    take.assume(DEFAULTS)
    norm, mlp = Norm(take("rms_norm_eps")), gated_mlp(take)
    size, count = take("sliding_window", None), take("num_hidden_layers")
    attention = replace(rotary_attention(take), qk_norm=norm)

    def layer(window: int | None) -> Block:
        turns = size is None or window is not None
        return post_norm(replace(attention, window=window, rope=attention.rope if turns else None), mlp, norm)

    return decoder(take, map(layer, windows(take, kinds(take, count, size), size)), norm)


FAMILY = Family(("exaone4",), config, POST_NORM)
