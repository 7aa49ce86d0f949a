"""Texts that have been read and the cache that holds them: what a session begins with, or leaves behind.

Values: no function here changes one. A copy is made where a session begins, because it gives its cache away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from forge_jax import cache as caches
from forge_jax.cache import Cache
from forge_jax.generation.layouts import Dense
from forge_jax.spec import ModelSpec

Text = tuple[int, ...]


@dataclass(frozen=True)
class Held:
    """A cache, dense whatever layout it comes from (see `layouts.Dense.kept`), and the ids of each row in it."""

    cache: Cache
    texts: tuple[Text, ...]


def trim(spec: ModelSpec, held: Held, lengths: Sequence[int]) -> Held:
    """Only the first tokens of each row.

    Raises:
        ValueError: lengths that the rows do not have, or a model with running states, from which nothing is taken back.
    """
    if len(lengths) != len(held.texts) or any(not 0 <= n <= len(t) for n, t in zip(lengths, held.texts, strict=False)):
        raise ValueError(f"cache: lengths {list(lengths)} for texts of {[len(text) for text in held.texts]} tokens")
    if caches.recurrent(spec) and any(n < len(text) for n, text in zip(lengths, held.texts, strict=True)):
        raise ValueError(
            "cache: the model keeps running states, from which no token is taken back; read the text again"
        )
    texts = tuple(text[:length] for text, length in zip(held.texts, lengths, strict=True))
    return Held(caches.rewind(held.cache, jnp.asarray(lengths, jnp.int32)), texts)


def fork(held: Held, times: int) -> Held:
    """Every row `times` times, one after another."""
    texts = tuple(text for text in held.texts for _ in range(times))
    return Held(caches.repeat(held.cache, times), texts)


def begun(
    spec: ModelSpec, held: Held, layout: Dense, rows: Sequence[Sequence[int]], size: int
) -> tuple[Cache, int, list[int]]:
    """A cache of the session's own with what is held, its size, and where each row goes on to be read.

    A single row that is held is what all prompts begin with.

    Raises:
        ValueError: a prompt that begins otherwise or has no more to it, or a cache of another kind.
    """
    if len(held.texts) == 1:
        held = fork(held, len(rows))
    if len(held.texts) != len(rows):
        raise ValueError(f"generation: {len(held.texts)} rows are held, but there are {len(rows)} prompts")
    for i, (row, text) in enumerate(zip(rows, held.texts, strict=True)):
        if tuple(row[: len(text)]) != text:
            first = next((at for at, (a, b) in enumerate(zip(row, text, strict=False)) if a != b), len(row))
            raise ValueError(f"generation: prompt {i} is not what is held from token {first} on; give the whole text")
    # the last token of a prompt is read again: the logits after it are in no cache
    starts = [min(len(text), len(row) - 1) for row, text in zip(rows, held.texts, strict=True)]
    held = trim(spec, held, starts)
    wanted, found = described(layout.kept(len(rows), held.cache.length)), described(held.cache)
    if wanted != found:
        odd = sorted(name for name, _ in set(wanted.items()) ^ set(found.items()))
        raise ValueError(
            "generation: what is held is kept by other codecs, or by other devices, than this session keeps it; give "
            f"the cache_dtype that it was made with; {odd[0]} for example"
        )
    size = max(size, held.cache.length)
    return (
        layout.begun(held.cache, [text[:start] for text, start in zip(rows, starts, strict=True)], size),
        size,
        starts,
    )


def named(cache: Cache) -> dict[str, Any]:
    """Every array by its place in the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(cache)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def described(cache: Cache) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every array."""
    return {name: (tuple(leaf.shape), np.dtype(leaf.dtype).name) for name, leaf in named(cache).items()}


def left(layout: Dense, cache: Cache, texts: Sequence[Sequence[int]], size: int) -> Held:
    """What a session of texts of up to `size` tokens leaves: a copy of its cache, and the tokens in it."""
    cut = jnp.asarray([len(text) for text in texts], jnp.int32)
    held = layout.left(caches.rewind(cache, cut), len(texts), size)
    return Held(held, tuple(tuple(map(int, text)) for text in texts))
