"""What ops remember between calls: slabs with as many slots as a layer can look back on, and running states.

A cache is a pytree of two parts. `places` says which token sits in which slot; layers with equally many slots share
one entry, so it is written once a step. `layers` holds the arrays. Masks are a function of the positions that a place
reports and of nothing else: dense, ring, ragged and chunked use are the same attention code.
"""

from forge_jax.cache.dense import Cache, Places, Slots, assign, init, put, repeat, rewind, widen
from forge_jax.cache.memory import Slab, memories, memory, place_key, recurrent, smooth_name

__all__ = [
    "Cache",
    "Places",
    "Slab",
    "Slots",
    "assign",
    "init",
    "memories",
    "memory",
    "place_key",
    "put",
    "recurrent",
    "repeat",
    "rewind",
    "smooth_name",
    "widen",
]
