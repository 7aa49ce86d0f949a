"""Sparse attention's indexer: a cheap score of every token for every query, of which the best are looked at."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.ops.chunks import pieces
from forge_jax.ops.norm import norm
from forge_jax.ops.rope import rotate, rotate_last
from forge_jax.params import Tree
from forge_jax.spec import Indexer
from forge_jax.tensor import contract

BLOCK = 128  # queries that are scored together
UNSEEN = -1e30  # a score below that of any token that is seen


def index_keys(op: Indexer, params: Tree, x_BTD: Array) -> Array:
    """The key that each token leaves behind, unrotated: [B, T, 1, H]."""
    return norm(op.norm, params["k_norm"], contract("BTD,DH->BTH", x_BTD, params["k"]))[:, :, None]


def turn_of(op: Indexer) -> Callable[..., Array]:
    """How its queries and keys are rotated."""
    return rotate_last if op.last else rotate


def top(score: Array, count: int) -> Array:
    """Which are the `count` largest along the last axis, of those that can be seen; the earliest of equals."""
    if score.shape[-1] <= count:
        return score > UNSEEN
    _, ids = jax.lax.top_k(score, count)
    return put_last(jnp.zeros(score.shape, bool), ids, True) & (score > UNSEEN)


def put_last(x: Array, ids: Array, values: Array | bool) -> Array:
    """x with other values at places of the last axis, [..., K] of [..., S]; a place past the end is dropped."""
    count = math.prod(x.shape[:-1])
    rows, ids = x.reshape(count, x.shape[-1]), ids.reshape(count, ids.shape[-1])
    new = values if isinstance(values, bool) else values.reshape(ids.shape)
    return rows.at[jnp.arange(count)[:, None], ids].set(new, mode="drop").reshape(x.shape)


def pick(
    op: Indexer, params: Tree, q_BTNH: Array, x_BTD: Array, keys: Sequence[Array], seen: Sequence[Array]
) -> list[Array]:
    """Of what each query sees of some parts, the `top_k` tokens of all parts together: masks like `seen`.

    keys: [B, 1, S, H] a part. seen: [B, T, S] a part.
    """
    sizes = [part.shape[2] for part in keys]
    if sum(sizes) <= op.top_k:
        return list(seen)
    weight_BTN = contract("BTD,DN->BTN", x_BTD, params["weight"]).astype(jnp.float32) * op.heads**-0.5

    def score(rows: slice) -> Array:
        parts = []
        for part, visible in zip(keys, seen, strict=True):
            z = jnp.einsum("BTNH,BSH->BTNS", q_BTNH[:, rows], part[:, 0], preferred_element_type=jnp.float32)
            z = jnp.einsum("BTNS,BTN->BTS", jax.nn.relu(z * op.dim**-0.5), weight_BTN[:, rows])
            parts.append(jnp.where(visible[:, rows], z, UNSEEN))
        return jnp.concatenate(parts, -1)

    picked = jnp.concatenate([top(score(rows), op.top_k) for rows in pieces(q_BTNH.shape[1], BLOCK)], 1)
    cuts = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    return [mask & part for mask, part in zip(seen, jnp.split(picked, cuts, -1), strict=True)]
