"""Sparse attention's indexer: a cheap score of every token for every query, of which the best are looked at."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.ops.norm import norm
from forge_jax.ops.rope import rotate
from forge_jax.params import Tree
from forge_jax.spec import Indexer
from forge_jax.tensor import contract

BLOCK = 128  # queries that are scored together
UNSEEN = -1e30  # a score below that of any token that is seen


def index_keys(op: Indexer, params: Tree, x_BTD: Array) -> Array:
    """The key that each token leaves behind, unrotated: [B, T, 1, H]."""
    return norm(op.norm, params["k_norm"], contract("BTD,DH->BTH", x_BTD, params["k"]))[:, :, None]


def index_turned(op: Indexer, x_BTNH: Array, position_BT: Array, length_B: Array | None) -> Array:
    """Queries or keys, of which some features rotate."""
    still = x_BTNH.shape[-1] - op.rope.dim if op.last else 0
    rotated = rotate(op.rope, x_BTNH[..., still:], position_BT, length_B)
    return jnp.concatenate([x_BTNH[..., :still], rotated], -1) if still else rotated


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

    def best(rows: slice) -> Array:
        z = score(rows)
        _, ids = jax.lax.top_k(z, op.top_k)
        b, t = (jnp.arange(n) for n in z.shape[:2])
        return jnp.zeros(z.shape, bool).at[b[:, None, None], t[None, :, None], ids].set(True)

    length = q_BTNH.shape[1]
    picked = jnp.concatenate([best(slice(start, start + BLOCK)) for start in range(0, length, BLOCK)], 1)
    cuts = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    return [mask & part for mask, part in zip(seen, jnp.split(picked, cuts, -1), strict=True)]
