"""Dense and ring layouts: token with order p lives in slot p % S, so a ring is a dense slab with few slots.

Knows positions and slabs; what the slabs mean is the op's business.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from forge_jax.spec import Attention, ModelSpec


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Places:
    """What sits in each slot: the token's order (-1: empty) and its span (0: none), both [B, S] int32."""

    order_BS: Array
    span_BS: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """`places` by key (see `place_key`); `layers[i][branch][name]` are slabs [B, K, S, H]."""

    places: dict[str, Places]
    layers: tuple[dict[str, dict[str, Array]], ...]

    @property
    def length(self) -> int:
        """The number of tokens it can hold: the slots of the widest layer."""
        return max((p.order_BS.shape[1] for p in self.places.values()), default=0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slots:
    """Where this call's tokens go in slabs of one size: slot_BT, S (out of range, hence dropped) for padding."""

    slot_BT: Array
    places: Places


def place_key(op: Attention) -> str:
    """Layers with the same key have equally many slots."""
    return "full" if op.window is None else f"window{op.window}"


def required_length(op: Attention, length: int, chunk: int) -> int:
    """Slots a layer needs for sequences of `length` tokens that arrive at most `chunk` at a time."""
    return length if op.window is None else min(length, op.window + chunk - 1)


def init(spec: ModelSpec, batch: int, length: int, *, chunk: int, dtype: DTypeLike = jnp.float32) -> Cache:
    """An empty cache for `batch` sequences of up to `length` tokens, written at most `chunk` tokens at a time.

    Layers with a window get window + chunk - 1 slots: every query of a chunk still finds its whole window.
    """
    places: dict[str, Places] = {}

    def slab(op: Attention) -> dict[str, Array]:
        slots = required_length(op, length, chunk)
        empty = jnp.full((batch, slots), -1, jnp.int32)
        places[place_key(op)] = Places(empty, jnp.zeros_like(empty))
        shape = (batch, op.kv_heads, slots, op.head_dim)
        return {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)}

    layers = tuple(
        {branch.name: slab(branch.op) for branch in block.branches if isinstance(branch.op, Attention)}
        for block in spec.layers
    )
    return Cache(places, layers)


def slots_of(places: Places, order_BT: Array, span_BT: Array) -> Slots:
    """Assign slots to new tokens and record them. Padding (order -1) is not recorded.

    Raises:
        ValueError: more tokens at once than there are slots: some would overwrite others of the same call.
    """
    size = places.order_BS.shape[1]
    if order_BT.shape[1] > size:
        raise ValueError(
            f"cache: {order_BT.shape[1]} tokens at once into {size} slots; "
            "make the cache with a larger `chunk`, or pass fewer tokens a call"
        )
    slot_BT = jnp.where(order_BT >= 0, order_BT % size, size)
    rows = jnp.arange(order_BT.shape[0])[:, None]
    record = Places(
        places.order_BS.at[rows, slot_BT].set(order_BT, mode="drop"),
        places.span_BS.at[rows, slot_BT].set(span_BT, mode="drop"),
    )
    return Slots(slot_BT, record)


def put(slab_BKSH: Array, slot_BT: Array, new_BTKH: Array) -> Array:
    """Write new tokens into their slots; a slot out of range is dropped."""
    rows = jnp.arange(slot_BT.shape[0])[:, None]
    return slab_BKSH.at[rows, :, slot_BT].set(new_BTKH.astype(slab_BKSH.dtype), mode="drop")


def rewind(cache: Cache, length_B: Array) -> Cache:
    """Forget every token whose order is not below `length_B`, a limit a row. The slabs stay where they are.

    In a ring, tokens that were overwritten before are gone: rewind by less than the `chunk` it was made with.
    """

    def forget(places: Places) -> Places:
        keep = places.order_BS < length_B[:, None]
        return replace(places, order_BS=jnp.where(keep, places.order_BS, -1))

    return replace(cache, places={key: forget(p) for key, p in cache.places.items()})
