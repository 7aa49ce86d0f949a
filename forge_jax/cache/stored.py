"""Slabs with slots as they are kept: parts made by a codec, read by `view` and written by `put`.

What a call brings is kept by the same codec before it is looked at (`keep`), so a token is seen alike by the call
that it comes with and by all later ones, however a text is cut into calls.
"""

import functools
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from forge_jax import kernels
from forge_jax.cache.codecs import Codec, Float, Parts

Named = dict[tuple[str, str], Array]  # parts of several slabs


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stored:
    """Numbers [B, K, S, H] as parts [B, K, S, *]; or, where `paged`, [P, K, page, *], pages that a table names."""

    parts: Parts
    codec: Codec = field(metadata={"static": True})
    paged: bool = field(metadata={"static": True}, default=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one part: rows (or pages), heads, slots, and what it has for each of them."""
        return next(iter(self.parts.values())).shape

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.size * part.dtype.itemsize for part in self.parts.values())


def keep(x_BKTH: Array, codec: Codec | None = None) -> Stored:
    """New tokens as a slab with this codec will hold them; None: as they are."""
    codec = Float(x_BKTH.dtype.name) if codec is None else codec
    parts = codec.encode(x_BKTH)
    # the barrier: a compiler may take away what rounds numbers and carries them straight back
    return Stored(parts if codec.lossless(x_BKTH.dtype) else jax.lax.optimization_barrier(parts), codec)


def empty(codec: Codec, shape: tuple[int, ...], *, paged: bool = False) -> Stored:
    """Zeros in the parts that numbers of this shape [B, K, S, H] would have."""
    return Stored({name: jnp.zeros(*part) for name, part in encoded(codec, shape).items()}, codec, paged)


@functools.lru_cache
def encoded(codec: Codec, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], DTypeLike]]:
    """Shape and dtype of each part of numbers of this shape; found by tracing, which all layers share."""
    parts = jax.eval_shape(codec.encode, jax.ShapeDtypeStruct(shape, jnp.float32))
    return {name: (part.shape, part.dtype) for name, part in parts.items()}


def view(slab: Stored, dtype: DTypeLike, table_BQ: Array | None = None, *, after: Array | None = None) -> Array:
    """What a slab holds [B, K, S, H], in the basis of its codec; of pages, those of each row, one after another.

    `after`: floats that it waits for. A slab that has to be opened would otherwise be as soon as a program begins, and
    those of all layers be open at once.
    """
    parts = slab.parts
    if slab.paged and table_BQ is not None:
        table_BQ = table_BQ if after is None else table_BQ + nothing(after)
        parts = {name: gathered(part, table_BQ) for name, part in parts.items()}
    elif after is not None and not (isinstance(slab.codec, Float) and slab.codec.name == jnp.dtype(dtype).name):
        small = min(parts, key=lambda name: parts[name].size)
        parts = parts | {small: parts[small] + nothing(after).astype(parts[small].dtype)}
    return slab.codec.decode(parts, dtype)


def laid(slab: Stored, table_BQ: Array | None = None) -> Parts:
    """The parts of what a slab holds, each [B, K, S, *]; of pages, those of each row, one after another."""
    if slab.paged and table_BQ is not None:
        return {name: gathered(part, table_BQ) for name, part in slab.parts.items()}
    return slab.parts


def nothing(x: Array) -> Array:
    """0, which a compiler does not know before it knows x."""
    return (x[(0,) * x.ndim].astype(jnp.float32) > jnp.inf).astype(jnp.int32)


def gathered(pages_PKSX: Array, table_BQ: Array) -> Array:
    """The pages of each row in a row: [B, K, Q * page, X]."""
    found_BKQSX = jnp.take(pages_PKSX, table_BQ, axis=0, mode="clip").swapaxes(1, 2)
    b, k, q, s, x = found_BKQSX.shape
    return found_BKQSX.reshape(b, k, q * s, x)


def put(slab: Stored, slot_BT: Array, new: Stored, *, fresh: bool = False, table_BQ: Array | None = None) -> Stored:
    """Write new tokens, kept by the slab's codec, into their slots; a slot out of range is dropped.

    `fresh`: the slab is empty and token t of every row has order t (or is padding at the end).
    """
    return put_all({"": slab}, slot_BT, {"": new}, fresh=fresh, table_BQ=table_BQ)[""]


def put_all(
    slabs: dict[str, Stored],
    slot_BT: Array,
    new: dict[str, Stored],
    *,
    fresh: bool = False,
    table_BQ: Array | None = None,
) -> dict[str, Stored]:
    """`put` for slabs whose slots are the same ones; on CPUs by one kernel."""
    batch, tokens = slot_BT.shape
    slab = next(iter(slabs.values()))
    old = {(name, part): values for name, slab in slabs.items() for part, values in slab.parts.items()}
    row_BT = jnp.broadcast_to(jnp.arange(batch)[:, None], slot_BT.shape)
    write = kernels.as_plain(write_in_place, write_plainly) if kernels.writes(old) else write_plainly
    if slab.paged and table_BQ is not None:
        page, count = slab.shape[2], table_BQ.shape[1]
        row_BT = jnp.take_along_axis(table_BQ, jnp.minimum(slot_BT // page, count - 1), axis=1)
        slot_BT = jnp.where(slot_BT < page * count, slot_BT % page, page)
    elif fresh and tokens <= slab.shape[2]:
        write = begin
    fed = {(name, part): new[name].parts[part] for name, part in old}
    done = write(old, fed, row_BT.astype(jnp.int32), slot_BT.astype(jnp.int32))
    return {name: replace(slab, parts={part: done[name, part] for part in slab.parts}) for name, slab in slabs.items()}


def write_in_place(parts: Named, new: Named, row_BT: Array, slot_BT: Array) -> Named:
    """`write_plainly`, on CPUs by a kernel."""
    return kernels.by_platform(parts, new, row_BT, slot_BT, cpu=kernels.written, default=write_plainly)


def begin(parts: Named, new: Named, row_BT: Array, slot_BT: Array) -> Named:
    """`write_plainly` into the first slots of every row."""
    return {name: jax.lax.dynamic_update_slice(part, new[name], (0, 0, 0, 0)) for name, part in parts.items()}


def write_plainly(parts: Named, new: Named, row_BT: Array, slot_BT: Array) -> Named:
    """Parts [P, K, S, *] with tokens [B, K, T, *] in the slots and rows that are named [B, T]; a slot out of range is
    dropped.
    """
    return {name: write(part, new[name], row_BT, slot_BT) for name, part in parts.items()}


def write(part_PKSX: Array, new_BKTX: Array, row_BT: Array, slot_BT: Array) -> Array:
    """The same for one part."""
    size = part_PKSX.shape[2]
    batch, _, tokens, _ = new_BKTX.shape
    if tokens > 1 or batch > 16:
        return part_PKSX.at[row_BT, :, slot_BT].set(new_BKTX.transpose(0, 2, 1, 3), mode="drop")
    # decoding: XLA turns a scatter into a loop that copies the slab, but updates these slices in place
    for row in range(batch):
        slot = slot_BT[row, 0]
        at = (row_BT[row, 0], 0, jnp.minimum(slot, size - 1), 0)
        at = tuple(jnp.asarray(place, jnp.int32) for place in at)  # of one type where integers have 64 bits too
        old = jax.lax.dynamic_slice(part_PKSX, at, (1, *new_BKTX.shape[1:]))
        new = jnp.where(slot < size, new_BKTX[row : row + 1], old)
        part_PKSX = jax.lax.dynamic_update_slice(part_PKSX, new, at)
    return part_PKSX
