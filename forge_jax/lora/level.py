"""Equal layers with unequal adapters made alike, so that their leaves can be stacked: zeros where one has less."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from forge_jax.lora.adapter import is_leaf
from forge_jax.lora.leaves import Chosen, Lora
from forge_jax.tensor import Weight


def alike(trees: Sequence[Any]) -> list[Any]:
    """Trees of the same parameters whose adapted leaves have the same parts; what they stand for does not change."""
    flat = [jax.tree.flatten(tree, is_leaf=is_leaf) for tree in trees]
    if any(len(leaves) != len(flat[0][0]) for leaves, _ in flat):
        return list(trees)
    columns = [levelled(column) for column in zip(*(leaves for leaves, _ in flat), strict=True)]
    rows = zip(*columns, strict=True) if columns else [()] * len(flat)
    return [jax.tree.unflatten(kind, leaves) for leaves, (_, kind) in zip(rows, flat, strict=True)]


def levelled(leaves: Sequence[Weight]) -> list[Weight]:
    """Leaves of one parameter in several layers, the kinds and ranks of their adapters made the same."""
    if updates := [leaf for leaf in leaves if isinstance(leaf, Lora)]:
        every = [leaf if isinstance(leaf, Lora) else idle(leaf, updates[0]) for leaf in leaves]
        rank = max(leaf.a.shape[-1] for leaf in every)
        gains, biases = any(u.gain is not None for u in updates), any(u.bias is not None for u in updates)
        bases = levelled([leaf.base for leaf in every])
        return [padded(replace(leaf, base=base), rank, gains, biases) for leaf, base in zip(every, bases, strict=True)]
    if choices := [leaf for leaf in leaves if isinstance(leaf, Chosen)]:
        count, like = max(len(leaf.options) for leaf in choices), choices[0]
        every = [
            leaf if isinstance(leaf, Chosen) else Chosen((leaf,), jnp.zeros_like(like.table), like.row_B)
            for leaf in leaves
        ]
        return [replace(leaf, options=(*leaf.options, *[leaf.base] * (count - len(leaf.options)))) for leaf in every]
    return list(leaves)


def idle(leaf: Weight, like: Lora) -> Lora:
    """A weight with an update of rank 0, of the axes of another."""
    at = like.a.ndim - 1
    first = like.stacked + (like.row_B is not None)
    b = jnp.zeros((*like.b.shape[:first], 0, *like.b.shape[first + 1 :]), like.b.dtype)
    return Lora(leaf, jnp.zeros((*like.a.shape[:at], 0), like.a.dtype), b, row_B=like.row_B, stacked=like.stacked)


def padded(leaf: Lora, rank: int, gain: bool, bias: bool) -> Lora:
    """An update with more directions, which do nothing, and with a gain and a bias if it has to have them."""
    more, first = rank - leaf.a.shape[-1], leaf.stacked + (leaf.row_B is not None)
    outputs = (*leaf.b.shape[:first], *leaf.b.shape[first + 1 :])
    return replace(
        leaf,
        a=jnp.pad(leaf.a, [(0, 0)] * (leaf.a.ndim - 1) + [(0, more)]),
        b=jnp.pad(leaf.b, [(0, more) if i == first else (0, 0) for i in range(leaf.b.ndim)]),
        gain=jnp.ones(outputs) if gain and leaf.gain is None else leaf.gain,
        bias=jnp.zeros(outputs) if bias and leaf.bias is None else leaf.bias,
    )
