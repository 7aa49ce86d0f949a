"""Softmax attention with grouped heads. What a token sees is a function of positions alone.

Head counts are read from the weights, never from the spec: under shard_map they are local.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from forge_jax.cache import Places, Slots, Stored, keep, place_key, put_all, view
from forge_jax.ops.blocks import pick_blocks
from forge_jax.ops.call import Call, Context
from forge_jax.ops.conv import smoothed
from forge_jax.ops.found import BLOCK, Keys, Mix, attend, span
from forge_jax.ops.gate import gated, squared
from forge_jax.ops.heads import finished, linear, over_heads, shortened, turned
from forge_jax.ops.norm import norm
from forge_jax.ops.packed import Held
from forge_jax.params import Tree
from forge_jax.spec import Alibi, Attention, LogScaling, PowerScaling, QueryScaling
from forge_jax.tensor import beside, contract, dense


def visible(
    order_BT: Array,
    span_BT: Array,
    key_order_BS: Array,
    key_span_BS: Array,
    window: int | None = None,
    chunk: int | None = None,
) -> Array:
    """[B, T, S]: which tokens each new token sees: itself, what came before it within the window or chunk, its span."""
    q, k = order_BT[:, :, None], key_order_BS[:, None, :]
    seen = k <= q
    if window is not None:
        seen &= k > q - window
    if chunk is not None:
        seen &= k >= q // chunk * chunk
    seen |= (span_BT[:, :, None] > 0) & (span_BT[:, :, None] == key_span_BS[:, None, :])
    return seen & (k >= 0)


def alibi_bias(alibi: Alibi, key_order_BS: Array, heads: tuple[int, ...], ctx: Context) -> Array:
    """[B, N, 1, S]: slope times key position, added to the scores. `heads` says which head is in which slot."""
    whole = np.append(np.asarray(alibi.slopes, np.float32), np.float32(0))  # the zero is for padding, slot -1
    slopes = ctx.local(jnp.asarray(whole[list(heads)]))
    position_BS = key_order_BS.astype(jnp.float32)
    if not alibi.rounded:
        return slopes[None, :, None, None] * position_BS[:, None, None, :] * alibi.scale
    # not astype: a compiler may leave the rounding out
    bfloat16 = functools.partial(jax.lax.reduce_precision, exponent_bits=8, mantissa_bits=7)
    return bfloat16(bfloat16(slopes)[None, :, None, None] * bfloat16(position_BS)[:, None, None, :]) * alibi.scale


class Tokens(NamedTuple):
    """Tokens as a cache holds them. Where frequencies depend on the length, the angle of an old key changes: keys are
    then kept unrotated.
    """

    k: Stored
    v: Stored
    places: Places


def earliest(order: int, window: int | None, chunk: int | None) -> int:
    """The first token that a token with this order can see, spans aside."""
    in_window = 0 if window is None else order - window + 1
    in_chunk = 0 if chunk is None else order // chunk * chunk
    return max(0, in_window, in_chunk)


def triangle(
    look: Callable[[Array, Sequence[Keys]], Array],
    q_BTNH: Array,
    keys: Keys,
    window: int | None = None,
    chunk: int | None = None,
    beside: Sequence[Keys] = (),
    size: int = BLOCK,
) -> Array:
    """Attention of a prompt to itself, `size` queries after the others: keys that none of them sees cost nothing.

    `beside`: what all of them see besides.
    """
    length = q_BTNH.shape[1]

    def block(start: int) -> Array:
        end = min(start + size, length)
        near = slice(earliest(start, window, chunk), end)
        rows = slice(start, end)
        return look(q_BTNH[:, rows], [keys.cut(rows, near), *(part.cut(rows, slice(None)) for part in beside)])

    return jnp.concatenate([block(start) for start in range(0, length, size)], axis=1)


def kept(state: Tree | None, name: str, x_BTKH: Array) -> Stored:
    """New tokens as the slab of this name will hold them; without a cache, as they are."""
    return keep(x_BTKH.transpose(0, 2, 1, 3), None if state is None else state[name].codec)


def remember(state: Tree, slots: Slots, new: dict[str, Stored], done_BT: Array, ctx: Context) -> Tree:
    """The state with the tokens of this call in their slots.

    done_BT is any number that follows from what was read of the state. The slots wait for it, or XLA would copy the
    slab to read and write it at the same time.
    """
    slot_BT = slots.slot_BT + (done_BT.astype(jnp.float32) > jnp.inf).astype(jnp.int32)
    table_BQ = slots.past.table_BQ
    return put_all({name: state[name] for name in new}, slot_BT, new, fresh=ctx.fresh, table_BQ=table_BQ)


def projections(op: Attention, params: Tree, names: str, x: Array) -> dict[str, Array]:
    """Some of q, k, v before their norms, each [B, T, heads, H]; together where they are made of the same."""
    if x.ndim == 3 and op.apart is None:
        return linear(op, params, names, x)
    return {name: linear(op, params, name, entering(op, params, name, x))[name] for name in names}


def new_tokens(
    op: Attention, params: Tree, x_BTD: Array, made: dict[str, Array], state: Tree | None, call: Call, ctx: Context
):
    """The keys and values of the tokens of this call, and what their smoothing remembers. `made`: see `projections`."""
    kvs, tails = ctx.heads(op).kvs, {}

    def part(name: str) -> Array:
        y = made[name]
        if op.smooth is not None:
            tail = None if state is None else state[f"{name}_tail"]
            seen_BTD = entering(op, params, name, x_BTD)
            filters = contract("BTD,DKS->BTKS", seen_BTD, params[f"{name}_taps"]) if op.smooth.dynamic else None
            weight = params[f"{name}_smooth"]
            y, tails[f"{name}_tail"] = smoothed(op.smooth, weight, y, tail, call.order_BT, filters)
        return finished(op, params, name, y, kvs, ctx)

    k, v = part("k"), part("v")
    if op.rope is None or not op.rope.varies:
        k = turned(op, params, "k", k, call.coords_BTC[..., 0], None, kvs, ctx)
    return (Tokens(kept(state, "k", k), kept(state, "v", v), call.places),), tails


def queries(op: Attention, params: Tree, made_BTNH: Array, call: Call, length_B: Array | None, ctx: Context) -> Array:
    """The queries of the tokens of this call: [B, T, N, H]. `made_BTNH`: see `projections`."""
    position_BT, heads = call.coords_BTC[..., 0], ctx.heads(op).queries
    q = finished(op, params, "q", made_BTNH, heads, ctx)
    q = turned(op, params, "q", q, position_BT, length_B, heads, ctx)
    q = q if op.q_gain is None else q * squared(params["q_gain"], op.q_gain).astype(q.dtype)
    return q if op.query_scaling is None else q * growth(op.query_scaling, position_BT).astype(q.dtype)[..., None, None]


def growth(scaling: QueryScaling | PowerScaling | LogScaling, position_BT: Array) -> Array:
    """By what a query grows with its position, float32."""
    match scaling:
        case QueryScaling(beta, original_len, offset):
            return 1 + beta * jnp.log1p(jnp.floor((position_BT + offset).astype(jnp.float32) / original_len))
        case LogScaling(alpha, original_len):
            return 1 + alpha * jnp.log(jnp.maximum((position_BT + 1).astype(jnp.float32) / original_len, 1.0))
        case PowerScaling(power, original_len):
            return jnp.exp(power * jnp.log1p((position_BT + 1).astype(jnp.float32) / original_len))


def anchored(op: Attention, near: Keys, places: Places, q_BTNH: Array, call: Call, ctx: Context) -> tuple[Keys, Keys]:
    """Some tokens without the anchors, and the anchors among them, which meet queries that come no further."""
    seen = visible(call.order_BT, call.span_BT, places.order_BS, places.span_BS)
    far_BS = (places.order_BS < op.anchors)[:, None]
    # in a cache, and in a prompt from its beginning, they are in front
    some = slice(op.anchors if places.anchors or ctx.fresh else None)
    far = replace(near, seen_BTS=seen & far_BS, q_BTNH=q_BTNH).cut(slice(None), some)
    return replace(near, seen_BTS=near.seen_BTS & ~far_BS), far


def narrowed(op: Attention, keys: Keys, chosen_BITS: Array, ctx: Context) -> Keys:
    """The keys, of which each kv head sees only what the index query chose that picks for it."""
    kvs = np.maximum(np.asarray(ctx.heads(op).kvs), 0)
    picker_K = ctx.local(jnp.asarray(kvs * chosen_BITS.shape[1] // op.kv_heads))
    return replace(keys, seen_BTS=keys.seen_BTS[:, None] & chosen_BITS[:, picker_K])


def sink(params: Tree, x_BTD: Array, q_BTNH: Array, like: Keys) -> Keys:
    """A key whose score is linear in the query's token, and whose value is nothing."""
    score_BNT1 = contract("BTD,DN->BTN", x_BTD, params["sinks"]).astype(jnp.float32).transpose(0, 2, 1)[..., None]
    k, v = (jnp.zeros_like(part[:, :, :1]) for part in (like.k_BKSH, like.v_BKSH))
    return Keys(k, v, jnp.ones((*q_BTNH.shape[:2], 1), bool), score_BNT1)


def mixes(op: Attention, params: Tree, x_BTD: Array, call: Call) -> Array:
    """How the queries of this call mix the profiles of the bias: [B, T, N, R]."""
    mix = contract("BTD,DNR->BTNR", x_BTD, params["relative"])
    if op.relative is not None and op.relative.longest is not None:
        mix = shortened(mix, params["relative_scale"], op.relative.longest)
    if op.query_scaling is None:
        return mix
    return mix * growth(op.query_scaling, call.coords_BTC[..., 0]).astype(mix.dtype)[..., None, None]


def entering(op: Attention, params: Tree, name: str, x: Array) -> Array:
    """What queries, keys or values are made of [B, T, D], of one stream or three."""
    x_BTD = x if x.ndim == 3 else x[:, :, "qkv".index(name)]
    return x_BTD if op.apart is None else norm(op.apart, params.get(f"{name}_in", {}), x_BTD)


def query_length(op: Attention, call: Call) -> Array | None:
    """The length of each row, where the angle of an old key changes with it: keys are then kept unrotated."""
    return call.order_BT.max(1) + 1 if op.rope is not None and op.rope.varies else None


def attended(
    op: Attention,
    params: Tree,
    x_BTD: Array,
    q: Array,
    new: tuple[Tokens, ...],
    state: Tree | None,
    call: Call,
    ctx: Context,
    far: Array | None = None,
) -> tuple[Array, Tree | None]:
    """What queries find [B, T, N, H], and the state with the new tokens; N is any multiple of the kv heads.

    `new`: the tokens of this call, none where the layer reads others'. `far`: the queries as they meet anchors.

    The past is read from the cache and the present from the call, then the present is written. A layer that reads the
    keys of another gets them over the bus: past and present, or of a single new token the slab that it is in already.
    """
    length_B, heads = query_length(op, call), ctx.heads(op)
    mix_BTNR = None if op.relative is None else mixes(op, params, x_BTD, call)

    def keys(tokens: Tokens) -> Keys:
        places = tokens.places
        k_BKSH, v_BKSH = (view(slab, q.dtype, places.table_BQ, after=q) for slab in (tokens.k, tokens.v))
        if length_B is not None:  # keys are kept unrotated
            unrotated, position_BS = basis.turn(k_BKSH).transpose(0, 2, 1, 3), jnp.maximum(places.order_BS, 0)
            k_BSKH = turned(op, params, "k", unrotated, position_BS, length_B, heads.kvs, ctx)
            k_BKSH = k_BSKH.transpose(0, 2, 1, 3)
        seen = visible(call.order_BT, call.span_BT, places.order_BS, places.span_BS, op.window, op.chunk)
        bias = alibi_bias(op.alibi, places.order_BS, heads.queries, ctx) if op.alibi else None
        if mix_BTNR is None:
            held = None if length_B is not None else Held(tokens.k, tokens.v, places.table_BQ)
            return Keys(k_BKSH, v_BKSH, seen, bias, held=held)
        profiles_RE, distance_BTS = dense(params["profiles"]), call.order_BT[:, :, None] - places.order_BS[:, None]
        return Keys(k_BKSH, v_BKSH, seen, bias, Mix(mix_BTNR, profiles_RE.astype(mix_BTNR.dtype), distance_BTS))

    slots = call.slots[place_key(op)] if state is not None and op.reads is None else None
    if op.reads is not None:
        parts = call.bus[op.reads]
    else:
        parts = new
        if state is not None and slots is not None and not ctx.fresh:
            parts = (Tokens(state["k"], state["v"], slots.past), *parts)
    basis = parts[-1].k.codec
    q = q if length_B is not None else basis.turn(q)
    softcap, sinks_N = op.softcap, params["sinks"] if op.sinks is True else None
    look = functools.partial(attend, scale=op.scale, softcap=softcap, sinks_N=sinks_N)
    seen, index = [keys(part) for part in parts], {}
    if op.blocks is not None:
        chosen, index = pick_blocks(op.blocks, params["index"], x_BTD, state, slots, call, ctx)
        orders = [tokens.places.order_BS for tokens in parts]
        seen = [narrowed(op, part, chosen(order_BS), ctx) for part, order_BS in zip(seen, orders, strict=True)]
    beside = [] if op.sinks != "token" else [sink(params, x_BTD, q, seen[0])]
    if far is not None:
        pairs = [anchored(op, k, part.places, basis.turn(far), call, ctx) for k, part in zip(seen, parts, strict=True)]
        seen, beside = [near for near, _ in pairs], [*beside, *(first for _, first in pairs)]
    if ctx.fresh:
        size = span(q, [seen[0], *beside], softcap=softcap, sinks_N=sinks_N)
        y = triangle(look, q, seen[0], op.window, op.chunk, beside, size)
    else:
        y = look(q, [*seen, *beside])
    y = parts[-1].v.codec.turn(y)

    if state is not None and slots is not None:
        written = {"k": parts[-1].k, "v": parts[-1].v}
        state = remember(state, slots, written, y[:, :, 0, 0], ctx) | index
        if q.shape[1] == 1 and not ctx.fresh:
            parts = (Tokens(state["k"], state["v"], slots.after),)
    if op.publish is not None:
        call.bus[op.publish] = parts
    return y, state


def left(op: Attention, params: Tree, x_BTD: Array, y_BTNH: Array, ctx: Context) -> Array:
    """What the op adds to the stream, from what its queries found."""
    y = gated(op.gate, params, x_BTD, y_BTNH)
    if op.out_norm is not None:
        y = over_heads(op.out_norm, params.get("out_norm", {}), y, ctx.heads(op).queries, ctx)
    out = ctx.psum(contract("BTNH,NHD->BTD", y, params["o"]))
    return out + beside(params["o_bias"], out.ndim, out.dtype) if op.o_bias else out


def attention(op: Attention, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context):
    """Apply the op. Returns (y_BTD, state with the new keys and values)."""
    made = projections(op, params, "q" if op.reads is not None else "qkv", x_BTD)
    new, tails = ((), {}) if op.reads is not None else new_tokens(op, params, x_BTD, made, state, call, ctx)
    q_BTNH = queries(op, params, made["q"], call, query_length(op, call), ctx)
    far = queries(op, params, made["q"], bounded(op, call), None, ctx) if op.anchors else None
    x_BTD = entering(op, params, "q", x_BTD)
    y_BTNH, state = attended(op, params, x_BTD, q_BTNH, new, state, call, ctx, far)
    return left(op, params, x_BTD, y_BTNH, ctx), None if state is None else state | tails


def bounded(op: Attention, call: Call) -> Call:
    """The call with every token at most as far from the beginning as a window right after the anchors reaches."""
    return replace(call, coords_BTC=jnp.minimum(call.coords_BTC, op.anchors + (op.window or 0) - 1))
