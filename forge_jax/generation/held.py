"""Texts that have been read and the cache that holds them: what a session begins with, or leaves behind.

Values: no function here changes one. A copy is made where a session begins, because it gives its cache away.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from forge_jax import cache as caches
from forge_jax.cache import Cache
from forge_jax.generation.layouts import Dense, Paged
from forge_jax.spec import ModelSpec

Text = tuple[int, ...]


@dataclass(frozen=True)
class Held:
    """A cache, dense, and the ids of each row that are in it."""

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
    if isinstance(layout, Paged):
        raise ValueError("generation: what is held is dense; begin with it in layout='dense'")
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
    size = max(size, held.cache.length)
    empty = layout.empty(len(rows), size)
    if jax.tree.structure(held.cache) != jax.tree.structure(empty):
        raise ValueError("generation: what is held is kept by other codecs; give the cache_dtype that it was made with")
    return caches.widen(copied(held.cache), empty), size, starts


def copied(cache: Cache) -> Cache:
    """The same numbers in arrays of their own."""
    return jax.tree.map(jnp.copy, cache)


def left(cache: Cache, texts: Sequence[Sequence[int]]) -> Held:
    """What a session leaves: a copy of its cache, and the tokens in it.

    Raises:
        ValueError: it is in pages.
    """
    if any(places.table_BQ is not None for places in cache.places.values()):
        raise ValueError("generation: pages are not held by themselves; use a session with layout='dense'")
    cache = copied(cache)
    cut = jnp.asarray([len(text) for text in texts], jnp.int32)
    return Held(caches.rewind(cache, cut), tuple(tuple(map(int, text)) for text in texts))
