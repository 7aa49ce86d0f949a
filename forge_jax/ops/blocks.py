"""Sparse attention's choice of blocks: a cheap score of every block of tokens for every query.

Block b holds the tokens of order b * size and so on, whatever cache, padding or call they come from.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.cache import Slots, keep, put, view
from forge_jax.ops.call import Call, Context
from forge_jax.ops.chunks import pieces
from forge_jax.ops.indexer import BLOCK, UNSEEN, top
from forge_jax.ops.norm import norm
from forge_jax.ops.rope import rotate
from forge_jax.params import Tree
from forge_jax.spec import Blocks
from forge_jax.tensor import contract

Chosen = Callable[[Array], Array]
"""order_BS of some tokens -> [B, I, T, S]: which of them each query chose; I is 1 where all queries choose together."""


def pick_blocks(
    op: Blocks, params: Tree, x_BTD: Array, state: Tree | None, slots: Slots | None, call: Call, ctx: Context
) -> tuple[Chosen, Tree]:
    """What each query chose, and the cache's new "index" slab, where there is a cache."""
    q_BTIH = norm(op.norm, params["q_norm"], contract("BTD,DIH->BTIH", x_BTD, params["q"]))
    q_BTIH = rotate(op.rope, q_BTIH, call.coords_BTC[..., 0], None)
    k_BT1H = contract("BTD,DH->BTH", x_BTD, params["k"])[:, :, None]
    if op.score == "best":
        k_BT1H = rotate(op.rope, norm(op.norm, params["k_norm"], k_BT1H), call.coords_BTC[..., 0], None)
    k_B1TH, index = k_BT1H.transpose(0, 2, 1, 3), {}
    if state is not None and slots is not None:
        new, table_BQ = keep(k_B1TH, state["index"].codec), slots.past.table_BQ
        index = {"index": put(state["index"], slots.slot_BT, new, fresh=ctx.fresh, table_BQ=table_BQ)}
    if slots is not None and not ctx.fresh:
        key_BSH = view(index["index"], x_BTD.dtype, slots.past.table_BQ, after=x_BTD)[:, 0]
        order_BS, span_BS = slots.after.order_BS, slots.after.span_BS
        first_B = jnp.zeros(order_BS.shape[0], jnp.int32)
    else:
        key_BSH, order_BS, span_BS, first_B = in_order(op, k_B1TH, call)
    mask_BITS = blockwise(op, params, q_BTIH, key_BSH, order_BS, span_BS, first_B, call)

    def chosen(order_BS: Array) -> Array:
        at_BS = jnp.clip(order_BS - first_B[:, None] * op.size, 0, mask_BITS.shape[-1] - 1)
        return jnp.take_along_axis(mask_BITS, at_BS[:, None, None], -1)

    return chosen, index


def in_order(op: Blocks, k_B1TH: Array, call: Call) -> tuple[Array, Array, Array, Array]:
    """The tokens of a call by their order, from the block of the first: keys, orders, spans, and that block a row."""
    order_BT, length = call.order_BT, k_B1TH.shape[2]
    first_B = jnp.where(order_BT < 0, jnp.iinfo(jnp.int32).max, order_BT).min(1) // op.size
    size = -(-length // op.size) * op.size + op.size  # the first block need not be whole
    at_BT = jnp.where(order_BT < 0, size, order_BT - first_B[:, None] * op.size)
    rows = jnp.arange(order_BT.shape[0])[:, None]

    def place(fill: int, new: Array) -> Array:
        return jnp.full((len(rows), size, *new.shape[2:]), fill, new.dtype).at[rows, at_BT].set(new, mode="drop")

    return place(0, k_B1TH[:, 0]), place(-1, order_BT), place(0, call.span_BT), first_B


def blockwise(
    op: Blocks, params: Tree, q_BTIH: Array, key_BSH: Array, order_BS: Array, span_BS: Array, first_B: Array, call: Call
) -> Array:
    """[B, I, T, S]: for each query the tokens of the blocks that it chose, S filled up to whole blocks."""
    count = -(-key_BSH.shape[1] // op.size)
    fill = count * op.size - key_BSH.shape[1]
    key_BSH = jnp.pad(key_BSH, ((0, 0), (0, fill), (0, 0)))
    order_BS, span_BS = (
        jnp.pad(order_BS, ((0, 0), (0, fill)), constant_values=-1),
        jnp.pad(span_BS, ((0, 0), (0, fill))),
    )
    b = key_BSH.shape[0]
    block_BC = first_B[:, None] + jnp.arange(count)[None]

    def best(q_BTIH: Array, order_BT: Array, span_BT: Array) -> Array:
        """Each query by itself: [B, I, T, C]."""
        z_BITS = jnp.einsum("BTIH,BSH->BITS", q_BTIH, key_BSH, preferred_element_type=jnp.float32)
        seen_BTS = (order_BS[:, None] <= order_BT[..., None]) & (order_BS >= 0)[:, None]
        seen_BTS |= (span_BT[..., None] > 0) & (span_BT[..., None] == span_BS[:, None])
        z_BITS = jnp.where(seen_BTS[:, None], z_BITS, UNSEEN)
        z_BITC = z_BITS.reshape(*z_BITS.shape[:3], count, op.size).max(-1)
        behind_BTC = order_BT[..., None] // op.size - block_BC[:, None]
        z_BITC = jnp.where(((behind_BTC >= 0) & (behind_BTC < op.local))[:, None], jnp.inf, z_BITC)
        return top(z_BITC, op.top_k)

    def mean(q_BTIH: Array, order_BT: Array, span_BT: Array) -> Array:
        """All queries together, of whole blocks: [B, 1, T, C]."""
        mean_BCH = key_BSH.reshape(b, count, op.size, -1).astype(jnp.float32).mean(2)
        k_BCH = norm(op.norm, params["k_norm"], mean_BCH.astype(key_BSH.dtype))
        k_BCH = rotate(op.rope, k_BCH[:, :, None], block_BC * op.size, None)[:, :, 0]
        z_BTIC = jnp.einsum("BTIH,BCH->BTIC", q_BTIH, k_BCH, preferred_element_type=jnp.float32)
        whole_BT1 = (order_BT[..., None] + 1) // op.size
        behind_BTC = block_BC[:, None] >= whole_BT1
        picked_BTC = top(jnp.where(behind_BTC, UNSEEN, jax.nn.relu(z_BTIC).sum(2)), op.top_k)
        return (picked_BTC | behind_BTC)[:, None]

    choose = best if op.score == "best" else mean
    runs = pieces(q_BTIH.shape[1], BLOCK)
    picked = [choose(q_BTIH[:, rows], call.order_BT[:, rows], call.span_BT[:, rows]) for rows in runs]
    return jnp.repeat(jnp.concatenate(picked, 2), op.size, axis=-1)
