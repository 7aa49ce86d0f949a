"""How a session lays out its cache: rows of slots, or pages that rows share. Both answer the same calls.

A layout knows which tokens each row has and is about to get, on the host; programs see arrays only.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from forge_jax import cache as caches
from forge_jax import stacking
from forge_jax.cache import Cache, Pages, Paging, Planned, Rows, slots_of
from forge_jax.generation.programs import Programs
from forge_jax.generation.sizes import BURST, bucket
from forge_jax.lora.leaves import NONE
from forge_jax.params import Tree
from forge_jax.spec import ModelSpec

PAGE = 16  # tokens a page

Layout = Literal["dense", "paged"]

copy_pages = jax.jit(caches.copy_pages, static_argnames=("spec",), donate_argnames=("cache",))
rearranged = jax.jit(caches.moved, static_argnames=("spec",))


def moved(spec: ModelSpec, cache: Cache, empty: Cache) -> Cache:
    """What a cache holds in an empty one of any layout, on the devices that it is on."""
    where = jax.tree.map(lambda leaf: leaf.sharding, empty)
    return jax.device_put(rearranged(spec, cache, empty), where)


class Dense:
    """A row of slots for each text, of one length for all."""

    def __init__(
        self, spec: ModelSpec, new_cache: Callable[..., Cache], options: dict[str, Any], *, plans: bool = False
    ) -> None:
        """`options` are those of `new_cache` that stay as they are. plans: as of `Programs`."""
        self.spec, self.new_cache, self.options, self.plans = spec, new_cache, options, plans

    def empty(self, rows: int, size: int) -> Cache:
        """A cache for `rows` texts of up to `size` tokens."""
        return self.new_cache(self.spec, rows, size, **self.options)

    def planned(self, rows: int, size: int) -> Cache | Planned:
        """The same; where it can be, what reads the first tokens makes it, which is a program less to begin with."""
        return Planned(rows, size, **self.options) if self.plans else self.empty(rows, size)

    def admit(self, cache: Any, texts: Sequence[Sequence[int]], marks: Sequence[int]) -> Any:
        """Prepare an empty cache for the texts that are read first; equal texts of unequal marks are told apart."""
        return cache

    def room(self, cache: Cache, starts: Sequence[int], stops: Sequence[int]) -> Cache:
        """Prepare for tokens start..stop of each row, none where they are equal."""
        return cache

    def repeat(self, cache: Cache, times: int) -> Cache:
        """Every row `times` times."""
        return caches.repeat(cache, times)

    def widen(self, cache: Cache, rows: int, size: int) -> Cache:
        """Room for texts of up to `size` tokens."""
        return caches.widen(cache, self.empty(rows, size))

    # -------------------------------------------------------------------------------------------- what is held
    def plain(self, rows: int, size: int) -> Cache:
        """An empty cache as texts are held in it, the same for all layouts: slots, a layer each, the least slack."""
        return self.new_cache(self.spec, rows, size, **(self.options | {"slack": BURST}))

    def kept(self, rows: int, size: int) -> Cache:
        """The shapes of what is held."""
        return jax.eval_shape(lambda: self.plain(rows, size))

    def left(self, cache: Cache, rows: int, size: int) -> Cache:
        """What is in a cache for texts of up to `size` tokens, to be held: a copy."""
        return moved(self.spec, cache, self.plain(rows, size))

    def begun(self, held: Cache, texts: Sequence[Sequence[int]], size: int) -> Cache:
        """A cache with what is held, which is these texts: a copy."""
        return moved(self.spec, held, self.empty(len(texts), size))


class Stacked(Dense):
    """Slots for models whose equal layers are stacked."""

    def empty(self, rows: int, size: int) -> Cache:
        """A cache for `rows` texts of up to `size` tokens."""
        return stacking.stack_cache(self.spec, super().empty(rows, size))

    def left(self, cache: Cache, rows: int, size: int) -> Cache:
        """What is in a cache for texts of up to `size` tokens, to be held: a copy."""
        return super().left(stacking.unstack_cache(self.spec, cache), rows, size)

    def begun(self, held: Cache, texts: Sequence[Sequence[int]], size: int) -> Cache:
        """A cache with what is held, which is these texts: a copy."""
        return stacking.stack_cache(self.spec, moved(self.spec, held, super().empty(len(texts), size)))


class Paged(Dense):
    """Pages of a pool for each kind of place; rows with the same beginning share its pages."""

    def __init__(
        self, spec: ModelSpec, new_cache: Callable[..., Cache], options: dict[str, Any], page: int = PAGE
    ) -> None:
        """As for `Dense`; with so many tokens a page."""
        super().__init__(spec, new_cache, options)
        self.page = page
        # an op of each kind of place, which says how many slots it has
        self.ops = {
            caches.place_key(op): op
            for _, _, op, held in caches.memories(spec)
            if any(slab.slots and slab.every is None for slab in held.values())
        }
        self.rows: dict[str, Rows] = {}
        self.size = 0

    def width(self, key: str, size: int) -> int:
        """Entries of a table for texts of up to `size` tokens."""
        return slots_of(self.ops[key], size, self.options["slack"], Paging(self.page, ())) // self.page

    def made(self, rows: int, size: int) -> Cache:
        """The arrays for the pools as they are."""
        pools = tuple((key, len(kept.pool.users)) for key, kept in self.rows.items())
        return self.new_cache(self.spec, rows, size, paging=Paging(self.page, pools), **self.options)

    def empty(self, rows: int, size: int) -> Cache:
        """An empty cache, and no row in it."""
        self.size = size
        for key in self.ops:
            width = self.width(key, size)
            self.rows[key] = Rows(Pages(rows * width), self.page, width, key != "full", caches.anchors(self.ops[key]))
        return self.made(rows, size)

    def tabled(self, cache: Cache) -> Cache:
        """The cache with the tables as they are by now."""
        places = dict(cache.places)
        for key, rows in self.rows.items():
            table_BQ = np.zeros((len(rows.tables), rows.width), np.int32)
            for row, pages in zip(table_BQ, rows.tables, strict=True):
                row[: len(pages)] = pages
            places[key] = replace(places[key], table_BQ=jnp.asarray(table_BQ))
        return replace(cache, places=places)

    def admit(self, cache: Cache, texts: Sequence[Sequence[int]], marks: Sequence[int]) -> Cache:
        """Pages for the texts that are read first; what begins alike, with equal marks, is on the same ones."""
        for rows in self.rows.values():
            for text, mark in zip(texts, marks, strict=True):
                rows.admit(text, mark)
        return self.tabled(cache)

    def room(self, cache: Cache, starts: Sequence[int], stops: Sequence[int]) -> Cache:
        """Pages of its own for what each row is about to write."""
        copies: dict[str, Any] = {}
        for key, rows in self.rows.items():
            made = [pair for row, (a, b) in enumerate(zip(starts, stops, strict=True)) for pair in rows.own(row, a, b)]
            if made:
                padded = np.full((2, bucket(len(made), 1)), len(rows.pool.users), np.int32)
                padded[:, : len(made)] = np.array(made).T
                copies[key] = padded
        return self.tabled(copy_pages(self.spec, cache, copies) if copies else cache)

    def repeat(self, cache: Cache, times: int) -> Cache:
        """Every row `times` times on the pages that it has, and room to go on by itself."""
        for rows in self.rows.values():
            first, count = rows.tables, 0
            rows.tables = []
            for table in first:
                whole = 0 if rows.ring else len(table) - 1  # the last page may be written on
                count += whole + times * (rows.width - whole)
                rows.tables += [table, *([rows.pool.share(page) for page in table] for _ in range(times - 1))]
            rows.pool.grow(count)
        return self.tabled(caches.widen(caches.repeat(cache, times), self.made(len(rows.tables), self.size)))

    def widen(self, cache: Cache, rows: int, size: int) -> Cache:
        """More entries in the tables, and more pages in the pools."""
        self.size = size
        for key, kept in self.rows.items():
            more = self.width(key, size) - kept.width
            kept.width += more
            kept.pool.grow(len(kept.pool.users) + rows * more)
        return self.tabled(caches.widen(cache, self.made(rows, size)))

    def begun(self, held: Cache, texts: Sequence[Sequence[int]], size: int) -> Cache:
        """A cache with what is held, which is these texts, on pages that they share where they begin alike: a copy."""
        return moved(self.spec, held, self.admit(self.empty(len(texts), size), texts, [NONE] * len(texts)))


def laid_out(layout: Layout, spec: ModelSpec, params: Tree, programs: Programs, options: dict[str, Any]) -> Dense:
    """The layout of this name, of caches that are stacked if the parameters are.

    Raises:
        ValueError: an unknown name, or pages beside stacked parameters.
    """
    if not stacking.stacked(params):
        match layout:
            case "dense":
                return Dense(spec, programs.new_cache, options, plans=programs.plans)
            case "paged":
                return Paged(spec, programs.new_cache, options)
    elif layout == "dense":
        return Stacked(spec, programs.new_cache, options)
    raise ValueError(
        f"generation: layout {layout!r}; expected 'dense', or 'paged' where the parameters are not stacked"
    )
