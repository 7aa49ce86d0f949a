"""Attention of one new token a row over quantised slots: codes and scales are opened in registers, block by block.

Softmax is float32, over those blocks of a run of slots that hold anything seen, relative to the largest score until
then. What the runs find is brought together outside, beside what the plain path finds elsewhere.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from forge_jax.kernels.pallas.call import EXACT, field, launched, numbers
from forge_jax.kernels.pallas.slots import SLOTS, Packed, filled, runs, whole
from forge_jax.kernels.pallas.switch import Target, target

HIDDEN = -1e30  # a score below all others, finite so that differences of two are numbers


class Found(NamedTuple):
    """What queries find in some slots: values and weights summed up, float32 [..., H] and [..., 1]. The weight of a
    score is exp(score - top)."""

    y: Array
    total: Array
    top: Array


def joined(found: Found, axis: int) -> Found:
    """What was found apart, along an axis, as one."""
    top = found.top.max(axis, keepdims=True)
    share = jnp.exp(found.top - top)
    return Found((found.y * share).sum(axis), (found.total * share).sum(axis), top.squeeze(axis))


def look(q_BNH: Array, k: Packed, v: Packed, seen_BS: Array, scale: float, softcap: float | None) -> Found:
    """What queries find [B, N, *] up to the last whole block of slots; only where it `looks`."""
    aim = target()
    if aim is None:
        raise ValueError("no kernel in Pallas was asked for; ask `looks` first")
    (b, n, h), heads, slots = q_BNH.shape, k.codes.shape[1], whole(k)
    group, blocks = n // heads, slots // SLOTS
    rows, (count, each) = filled(group), runs(b * heads, blocks)
    q_BKGH = jnp.pad(q_BNH.reshape(b, heads, group, h), ((0, 0), (0, 0), (0, rows - group), (0, 0)))
    seen_BS = seen_BS[:, :slots].astype(jnp.int32)
    slabs = [k.codes, scales(k, aim), v.codes, scales(v, aim)]

    def slab(part: Array, along: int) -> pl.BlockSpec:
        size = [None, None, *part.shape[2:]]
        size[along] = each * SLOTS
        return pl.BlockSpec(size, lambda b, k, r: (b, k, r, 0) if along == 2 else (b, k, 0, r))

    way = 3 if aim.kind == "tpu" else 2
    results = [
        (
            (b, heads, count, rows, size),
            jnp.float32,
            pl.BlockSpec((None, None, None, rows, size), lambda b, k, r: (b, k, r, 0, 0)),
        )
        for size in (v.size, 1, 1)
    ]
    found = launched(
        functools.partial(attend, k=k.form, v=v.form, each=each, scale=scale, softcap=softcap, aim=aim),
        [q_BKGH, bounds(seen_BS), seen_BS[:, None], *slabs],
        [
            pl.BlockSpec((None, None, rows, h), lambda b, k, r: (b, k, 0, 0)),
            numbers((b, 2), aim),
            pl.BlockSpec((None, 1, each * SLOTS), lambda b, k, r: (b, 0, r)),
            *(slab(part, along) for part, along in zip(slabs, (2, way, 2, way), strict=True)),
        ],
        results,
        (b, heads, count),
        aim,
        "forge_jax_attention",
    )
    one = joined(Found(*found), 2)
    return Found(*(part[:, :, :group].reshape(b, n, -1) for part in one))


def scales(packed: Packed, aim: Target) -> Array:
    """The scales as a kernel reads them: for TPUs, which read rows, [B, K, groups, S]."""
    return packed.scale.swapaxes(2, 3) if aim.kind == "tpu" else packed.scale


def bounds(seen_BS: Array) -> Array:
    """The first block of slots that holds anything seen, and the one after the last: int32 [B, 2]."""
    blocks = seen_BS.shape[1] // SLOTS
    any_BC = seen_BS.reshape(-1, blocks, SLOTS).max(-1) > 0
    at_C = jnp.arange(blocks, dtype=jnp.int32)[None]
    first_B = jnp.where(any_BC, at_C, blocks).min(1)
    last_B = jnp.where(any_BC, at_C + 1, 0).max(1)
    return jnp.stack([first_B, last_B], 1)


def attend(
    q_GH: Any,
    bounds_B2: Any,
    seen_1S: Any,
    k_codes: Any,
    k_scale: Any,
    v_codes: Any,
    v_scale: Any,
    y_GH: Any,
    total_G1: Any,
    top_G1: Any,
    *,
    k: Any,
    v: Any,
    each: int,
    scale: float,
    softcap: float | None,
    aim: Target,
) -> None:
    """The kernel: the queries of a row and kv head on a run of slots, `each` blocks of them."""
    row, first = pl.program_id(0), pl.program_id(2) * each
    begin = jnp.maximum(bounds_B2[row, 0] - first, 0)
    end = jnp.minimum(bounds_B2[row, 1] - first, each)
    rows, dtype = q_GH.shape[0], q_GH.dtype

    def block(i: Any, found: Any) -> Any:
        total, top, ys = found
        at = pl.ds(pl.multiple_of(i * SLOTS, SLOTS), SLOTS)
        seen = seen_1S[:, at] > 0
        z = jnp.zeros((rows, SLOTS), jnp.float32)
        for start, codes, step in opened(k_codes, k_scale, k, at, dtype, aim):
            z = z + dot(q_GH[:, start : start + k.width], codes, 1) * step
        z = z * jnp.float32(scale)
        z = z if softcap is None else jnp.float32(softcap) * jnp.tanh(z / jnp.float32(softcap))
        z = jnp.where(seen, z, jnp.float32(HIDDEN))
        higher = jnp.maximum(top, z.max(-1, keepdims=True))
        weight = jnp.where(seen, jnp.exp(z - higher), jnp.float32(0))
        fade = jnp.exp(top - higher)
        values = (
            (jnp.where(seen, weight * step, jnp.float32(0)), codes)
            for _, codes, step in opened(v_codes, v_scale, v, at, dtype, aim)
        )
        ys = tuple(y * fade + dot(w.astype(dtype), codes, 0) for y, (w, codes) in zip(ys, values, strict=True))
        return total * fade + weight.sum(-1, keepdims=True), higher, ys

    empty = tuple(jnp.zeros((rows, v.width), jnp.float32) for _ in range(v.size // v.width))
    start = (jnp.zeros((rows, 1), jnp.float32), jnp.full((rows, 1), HIDDEN, jnp.float32), empty)
    total, top, ys = jax.lax.fori_loop(begin, end, block, start)
    total_G1[:, :], top_G1[:, :] = total, top
    for place, y in zip(v.starts, ys, strict=True):
        y_GH[:, place : place + v.width] = y


def opened(codes_ref: Any, scale_ref: Any, form: Any, at: Any, dtype: Any, aim: Target) -> Any:
    """Some features after others of a block of slots: where they start, codes [SLOTS, width], scales [1, SLOTS]."""
    for start in form.starts:
        place, which = start % form.bytes, start // form.bytes
        codes = field(codes_ref[at, place : place + form.width], which, form.bits).astype(jnp.float32)
        g = start // form.group
        if aim.kind == "tpu":
            step = scale_ref[g : g + 1, at].astype(jnp.float32)
        else:
            step = scale_ref[at, g : g + 1].astype(jnp.float32).reshape(1, SLOTS)
        yield start, (codes - jnp.float32(form.middle)).astype(dtype), step


def dot(a: Array, b: Array, axis: int) -> Array:
    """A product over the last axis of one and an axis of the other, in float32."""
    exact = EXACT if a.dtype == jnp.float32 else None
    along = (((1,), (axis,)), ((), ()))
    return jax.lax.dot_general(a, b, along, precision=exact, preferred_element_type=jnp.float32)
