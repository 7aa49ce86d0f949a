"""How probable given tokens are to a model, and how far models are apart on them: a pure function of a batch of rows.

The logits of a text are never in memory, only those of as many places as LOGITS holds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from forge_jax.cache import Policy, init
from forge_jax.decoder import Inputs, hidden, readout
from forge_jax.ops import Context
from forge_jax.parallel import shard_mapped
from forge_jax.params import Tree
from forge_jax.spec import ModelSpec

LOGITS = 1 << 24  # 64 MB in float32, for each model


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """Rows of tokens, each from its beginning and padded at the end, and the places that are scored.

    order_BT: 0, 1, 2, ..., -1 for padding. at_BK: the place of a token whose logits are wanted; target_BK: the token
    that they should predict. Where a row has fewer places than K, any place and token may fill it up.
    """

    tokens_BT: np.ndarray | Array
    order_BT: np.ndarray | Array
    at_BK: np.ndarray | Array
    target_BK: np.ndarray | Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scores:
    """What models think of the targets; M of them, the reference first.

    logprob_MBK: of the target, in nats. best_MBK: the most probable token. divergence_MBK: the KL divergence of the
    whole distribution from the reference's, in nats.
    """

    logprob_MBK: Array
    best_MBK: Array
    divergence_MBK: Array


@partial(jax.jit, static_argnames=("specs", "meshes", "kept"))
def score(
    specs: tuple[ModelSpec, ...],
    params: tuple[Tree, ...],
    rows: Rows,
    meshes: tuple[Mesh | None, ...],
    kept: Policy | None = None,
) -> Scores:
    """Score the same places by one model, or by several whose distributions are compared with that of the first.

    meshes: the devices that the parameters of each are split over. kept: the last model sees keys and values as a
    cache would keep them.
    """
    models = list(zip(specs, meshes, params, strict=True))
    seen_as = [None] * (len(models) - 1) + [kept]
    places = rows.at_BK.size
    size = min(places, max(1, LOGITS // specs[0].logits))
    count = -(-places // size)

    def chunked(x: Array) -> Array:
        x = jnp.pad(x, ((0, count * size - places), *((0, 0) for _ in x.shape[1:])))
        return x.reshape(count, size, *x.shape[1:])

    def chunk(step: tuple[Array, list[Array]]) -> tuple[Array, Array, Array]:
        target_N, x_MND = step
        run = [on(mesh, readout, spec)(tree, x[None])[0] for (spec, mesh, tree), x in zip(models, x_MND, strict=True)]
        logp = [jax.nn.log_softmax(z_NV, axis=-1) for z_NV in run]
        chosen = [jnp.take_along_axis(lp_NV, target_N[:, None], axis=1)[:, 0] for lp_NV in logp]
        best = [z_NV.argmax(-1).astype(jnp.int32) for z_NV in run]
        apart = [jnp.zeros_like(chosen[0]), *(divergence(logp[0], lp_NV) for lp_NV in logp[1:])]
        return jnp.stack(chosen), jnp.stack(best), jnp.stack(apart)

    x_MND = [
        chunked(on(mesh, partial(reached, kept=how), spec, fresh=True)(tree, rows))
        for (spec, mesh, tree), how in zip(models, seen_as, strict=True)
    ]
    made = jax.lax.map(chunk, (chunked(jnp.asarray(rows.target_BK).reshape(-1)), x_MND))
    return Scores(
        *(x.transpose(1, 0, 2).reshape(len(specs), -1)[:, :places].reshape(-1, *rows.at_BK.shape) for x in made)
    )


def on(mesh: Mesh | None, function: Callable[..., Any], spec: ModelSpec, *, fresh: bool = False) -> Callable[..., Any]:
    """The function (params, ...) that runs `function(spec, params, ...)` where the parameters are."""
    ctx = Context(fresh=fresh)
    return partial(function, spec, ctx=ctx) if mesh is None else shard_mapped(function, spec, mesh, ctx=ctx)


def reached(spec: ModelSpec, params: Tree, rows: Rows, ctx: Context, kept: Policy | None = None) -> Array:
    """The stream at every place that is scored [B * K, D]."""
    tokens_BT, order_BT = jnp.asarray(rows.tokens_BT), jnp.asarray(rows.order_BT)
    cache = None if kept is None else init(spec, *tokens_BT.shape, dtype=kept)
    x_BTD, _ = hidden(spec, params, Inputs(tokens_BT, order_BT), cache, ctx)
    return jnp.take_along_axis(x_BTD, rows.at_BK[..., None], axis=1).reshape(-1, x_BTD.shape[-1])


def divergence(logp_NV: Array, logq_NV: Array) -> Array:
    """The KL divergence (p || q) in nats [N].

    Summed as p (log p - log q) + (q - p), of which no term is negative: an error in the normalisation of log q, a
    millionth in float32, then counts only squared.
    """
    p, q = jnp.exp(logp_NV), jnp.exp(logq_NV)
    return (jnp.where(p > 0, p * (logp_NV - logq_NV), 0.0) + (q - p)).sum(-1)
