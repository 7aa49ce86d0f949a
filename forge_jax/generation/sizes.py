"""The few sizes that programs are compiled for, so that no length of a prompt or a text compiles again, and what else
is worked out before anything runs."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from forge_jax.lora import choose_adapters
from forge_jax.params import Tree

BURST = 32  # tokens made between two looks at the host, so how long an interrupt waits, and how far a row is rewound
CHUNK = 512  # prompts longer than this are read in pieces of this length
EQUAL = 64  # tokens of a piece where all must be alike


def bucket(length: int, smallest: int = 16) -> int:
    """The smallest power of two that is at least `length` and at least `smallest`."""
    return max(smallest, 1 << max(length - 1, 0).bit_length())


def chunks(length: int, limit: int) -> list[int]:
    """Padded sizes of the pieces in which a prompt of `length` tokens is read, none larger than `limit`."""
    whole, rest = divmod(length, CHUNK)
    sizes = [CHUNK] * whole + ([bucket(rest)] if rest else [])
    return [min(size, limit) for size in sizes]


def equal_chunks(length: int, limit: int) -> list[int]:
    """Pieces that are of one size however long the prompt is."""
    size = min(EQUAL, limit)
    return [size] * -(-length // size)


def capacity(length: int, limit: int) -> int:
    """The slots of a cache for `length` tokens of a model that can look at `limit`.

    Raises:
        ValueError: the tokens do not fit the model's context.
    """
    if length > limit:
        raise ValueError(
            f"{length} tokens (prompt and what is to be generated) do not fit the model's context of {limit}; "
            "shorten the prompt, ask for fewer tokens, or extend the context with a rope scaling"
        )
    # powers of two and the sizes half-way between: a cache is never more than half as large again as it must be
    size = bucket(length, 256)
    return min(size * 3 // 4 if 256 < length <= size * 3 // 4 else size, limit)


def compute_dtype(params: Tree) -> Any:
    """The dtype that activations have: that of a row of the embedding."""
    return jnp.dtype(params["embed"].dtype)


def with_adapters(params: Tree, adapters: Sequence[int] | None, rows: int, n: int) -> Tree:
    """The parameters for `n` continuations of each of `rows` prompts, of which each has one of several adapters.

    Raises:
        ValueError: another number of adapters than there are prompts, or no adapter of a number.
    """
    if adapters is None:
        return params
    if len(adapters) != rows:
        raise ValueError(f"generation: {len(adapters)} adapters for {rows} prompts; expected one each, -1 for none")
    return choose_adapters(params, np.repeat(np.asarray(adapters, np.int32), n))
