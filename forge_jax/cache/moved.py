"""From one layout into another: the same tokens, bit for bit as they are kept, in other slots or on other pages."""

from dataclasses import replace
from typing import Any

from forge_jax.cache.dense import Cache, assign, widen
from forge_jax.cache.policy import slabs
from forge_jax.cache.stored import gathered, put
from forge_jax.spec import ModelSpec


def moved(spec: ModelSpec, cache: Cache, empty: Cache) -> Cache:
    """What a cache holds in an empty one of the same codecs: rows of slots, rings and pages of any size. The tables of
    pages are those that `empty` has. Layers are not stacked.

    Of what a smaller ring has no slots for, the last tokens stay.
    """
    slots = {key: assign(empty.places[key], places.order_BS, places.span_BS) for key, places in cache.places.items()}
    keys = {(slab.layer, slab.branch, slab.name): slab.key for slab in slabs(spec) if slab.slab.every is None}

    def slab(place: tuple[int, str, str], old: Any, new: Any) -> Any:
        """A slab as it is in the new cache; what has no places of its own is where it was."""
        if place not in keys:
            return widen(old, new)
        key = keys[place]
        table_BQ = cache.places[key].table_BQ
        if table_BQ is not None:
            old = replace(old, parts={name: gathered(part, table_BQ) for name, part in old.parts.items()})
        return put(new, slots[key].slot_BT, old, table_BQ=empty.places[key].table_BQ)

    layers = tuple(
        {
            branch: {name: slab((i, branch, name), old[branch][name], new) for name, new in held.items()}
            for branch, held in layer.items()
        }
        for i, (old, layer) in enumerate(zip(cache.layers, empty.layers, strict=True))
    )
    return Cache({key: each.after for key, each in slots.items()}, layers)
