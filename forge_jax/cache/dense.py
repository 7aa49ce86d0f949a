"""Dense, ring and paged layouts: token with order p lives in slot p % S, so a ring is a dense slab with few slots.
Where the first tokens stay in sight (`anchors`), they have the first slots, and the ring begins after them.

Where slabs are paged, a row's slots are cut into runs of a page, and a table says which page of a common pool each run
is on. Tables are data: who owns which page is decided on the host (`forge_jax.cache.pages`).

Knows positions and slabs; what the slabs mean is the op's business.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from forge_jax.cache.memory import anchors, memories, place_key, window
from forge_jax.cache.policy import Policy, codecs, policy, slabs
from forge_jax.cache.stored import Stored, empty
from forge_jax.spec import ModelSpec, Op

T = TypeVar("T")  # the package runs on Python 3.11, which has no def f[T]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Places:
    """What sits in each slot: the token's order (-1: empty) and its span (0: none), both [B, S] int32.

    table_BQ: where slabs are paged, the page of each run of slots. anchors: the first tokens, which keep their slots.
    """

    order_BS: Array
    span_BS: Array
    table_BQ: Array | None = None
    anchors: int = field(metadata={"static": True}, default=0)


@dataclass(frozen=True)
class Paging:
    """How slabs are paged: the tokens of a page, and by key of places how many pages the pool has."""

    page: int
    pools: tuple[tuple[str, int], ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """`places` by key (see `place_key`); `layers[i][branch][name]` is what is kept for each `memory.Slab`: a `Stored`
    if it has slots, else an array.

    Beside stacked parameters, `layers` is stacked as they are (`forge_jax.stacking`).
    """

    places: dict[str, Places]
    layers: tuple[Any, ...]

    @property
    def stacked(self) -> bool:
        """Whether the layers are stacked."""
        return bool(self.layers) and isinstance(self.layers[0], tuple)

    @property
    def length(self) -> int:
        """The number of tokens it can hold: the slots of the widest layer."""
        return max((p.order_BS.shape[1] for p in self.places.values()), default=0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slots:
    """Where this call's tokens go in slabs of one size, and what the slabs hold before and after they are written.

    slot_BT is S, which is out of range and hence dropped, for padding and for what would not survive the call.
    """

    slot_BT: Array
    past: Places
    after: Places


def init(
    spec: ModelSpec,
    batch: int,
    length: int,
    *,
    slack: int = 0,
    dtype: DTypeLike | Policy = jnp.float32,
    paging: Paging | None = None,
    new: Callable[..., Stored] = empty,
) -> Cache:
    """An empty cache for `batch` sequences of up to `length` tokens.

    Layers with a window get window + slack slots, the others `length`. `slack` is how many tokens may be rewound.
    `dtype`: of what is kept a token, or the policy that says how each slab is kept. `paging`: the slabs are pools of
    pages, and all entries of the tables page 0. new: makes a slab from its codec and shape.

    Raises:
        ValueError: the policy does not fit the model.
    """
    places: dict[str, Places] = {}
    layers: tuple[dict[str, dict[str, Any]], ...] = tuple({} for _ in spec.layers)
    kept = codecs(spec, policy(dtype))
    for i, branch, op, held in memories(spec):
        slots, key = slots_of(op, length, slack, paging), place_key(op)
        layers[i][branch] = {}
        for name, slab in held.items():
            if not slab.slots:
                layers[i][branch][name] = jnp.zeros((batch, *slab.shape), jnp.float32)
                continue
            rows, count, pool = batch, slots, paging is not None and slab.every is None
            if slab.every is not None:
                count = -(-length // slab.every)
            elif paging is not None:
                rows, count = dict(paging.pools)[key], paging.page
            if slab.every is None:
                nowhere = jnp.full((batch, slots), -1, jnp.int32)
                table = None if paging is None else jnp.zeros((batch, slots // paging.page), jnp.int32)
                places[key] = Places(nowhere, jnp.zeros_like(nowhere), table, anchors(op))
            shape = (rows, *slab.shape[:-1], count, slab.shape[-1])
            layers[i][branch][name] = new(kept[i, branch, name], shape, paged=pool)
    return Cache(places, layers)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Planned:
    """An empty cache that is still to be made, by the program that first writes into it: what `init` is told."""

    batch: int = field(metadata={"static": True})
    length: int = field(metadata={"static": True})
    slack: int = field(metadata={"static": True})
    dtype: Policy = field(metadata={"static": True})

    def made(self, spec: ModelSpec) -> Cache:
        """The cache; slabs that are alike are traced once, since within a program they may be the same one."""
        alike = functools.cache(empty)
        return init(spec, self.batch, self.length, slack=self.slack, dtype=self.dtype, new=alike)


def slots_of(op: Op, length: int, slack: int, paging: Paging | None) -> int:
    """The slots a row of an op in a cache for `length` tokens; of pages, whole ones."""
    size = window(op)
    slots = length if size is None else min(length, anchors(op) + size + slack)
    return slots if paging is None else -(-slots // paging.page) * paging.page


def assign(places: Places, order_BT: Array, span_BT: Array) -> Slots:
    """Assign slots to new tokens.

    Padding (order -1) gets no slot, nor does a token that a later one of the same call would overwrite.
    """
    size, first = places.order_BS.shape[1], places.anchors
    lasting = (order_BT > order_BT.max(1, keepdims=True) - (size - first)) | (order_BT < first)
    slot_BT = order_BT % size if not first else first + (order_BT - first) % (size - first)
    slot_BT = jnp.where(order_BT < first, order_BT, slot_BT) if first else slot_BT
    slot_BT = jnp.where((order_BT >= 0) & lasting, slot_BT, size)
    rows = jnp.arange(order_BT.shape[0])[:, None]
    after = replace(
        places,
        order_BS=places.order_BS.at[rows, slot_BT].set(order_BT, mode="drop"),
        span_BS=places.span_BS.at[rows, slot_BT].set(span_BT, mode="drop"),
    )
    return Slots(slot_BT, places, after)


def widen(tree: T, empty: T) -> T:
    """Copy a cache, or what holds one, into a larger empty one.

    Slots keep their tokens: a dense slab that is not full, and a ring that has not turned, have the token of order p
    in slot p at any size. A ring that has turned has all the slots it needs, so its size stays.
    """

    def copy(new: Array, old: Array) -> Array:
        return old if old.shape == new.shape else jax.lax.dynamic_update_slice(new, old, (0,) * new.ndim)

    return jax.tree.map(copy, empty, tree)


def paged(leaf: Any) -> bool:
    """Whether it is a pool of pages, which belong to no row."""
    return isinstance(leaf, Stored) and leaf.paged


def repeat(cache: Cache, times: int) -> Cache:
    """Every row `times` times, one after another. Of pages, their tables: the rows then share them."""

    def rows(tree: Any, axis: int) -> Any:
        more = partial(jax.tree.map, lambda x: jnp.repeat(x, times, axis))
        return jax.tree.map(lambda leaf: leaf if paged(leaf) else more(leaf), tree, is_leaf=paged)

    return Cache(rows(cache.places, 0), rows(cache.layers, int(cache.stacked)))


def copy_pages(spec: ModelSpec, cache: Cache, copies: dict[str, Array]) -> Cache:
    """Copy pages of the pools of a key: [2, C], from and to; a page out of range is dropped."""
    layers: list[Any] = [{branch: dict(held) for branch, held in layer.items()} for layer in cache.layers]
    for place in slabs(spec):
        slab = layers[place.layer][place.branch][place.name]
        if paged(slab) and place.key in copies:
            source, target = copies[place.key]
            parts = {name: part.at[target].set(part[source], mode="drop") for name, part in slab.parts.items()}
            layers[place.layer][place.branch][place.name] = replace(slab, parts=parts)
    return replace(cache, layers=tuple(layers))


def rewind(cache: Cache, length_B: Array) -> Cache:
    """Forget every token whose order is not below `length_B`, a limit a row. The slabs stay where they are.

    Running states cannot forget: where `memory.recurrent(spec)`, read the text again instead.

    In a ring, tokens that were overwritten before are gone: rewind by no more than the `slack` it was made with.
    """

    def forget(places: Places) -> Places:
        keep = places.order_BS < length_B[:, None]
        return replace(places, order_BS=jnp.where(keep, places.order_BS, -1))

    return replace(cache, places={key: forget(p) for key, p in cache.places.items()})
