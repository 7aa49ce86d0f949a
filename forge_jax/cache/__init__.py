"""What ops remember between calls: slabs with as many slots as a layer can look back on, and running states.

A cache is a pytree of two parts. `places` says which token sits in which slot; layers with equally many slots share
one entry, so it is written once a step. `layers` holds the arrays. Masks are a function of the positions that a place
reports and of nothing else: dense, ring, ragged and chunked use are the same attention code.

What a slot holds is a codec's business (`codecs`), and which slab has which codec a policy's (`policy`): an op reads by
`view`, writes by `put`, and passes what is new through `keep` first.
"""

from forge_jax.cache.codecs import Codec, codec
from forge_jax.cache.dense import (
    Cache,
    Paging,
    Places,
    Planned,
    Slots,
    assign,
    copy_pages,
    init,
    repeat,
    rewind,
    slots_of,
    widen,
)
from forge_jax.cache.memory import Slab, anchors, memories, memory, place_key, recurrent, smooth_name
from forge_jax.cache.moved import moved
from forge_jax.cache.pages import Pages, Rows
from forge_jax.cache.policy import Policy, codecs, policy, slabs
from forge_jax.cache.sizes import bytes_per_token, slot_bytes, state_bytes
from forge_jax.cache.stored import Stored, keep, put, put_all, view

__all__ = [
    "Cache",
    "Codec",
    "Pages",
    "Paging",
    "Places",
    "Planned",
    "Policy",
    "Rows",
    "Slab",
    "Slots",
    "Stored",
    "anchors",
    "assign",
    "bytes_per_token",
    "codec",
    "codecs",
    "copy_pages",
    "init",
    "keep",
    "memories",
    "memory",
    "moved",
    "place_key",
    "policy",
    "put",
    "put_all",
    "recurrent",
    "repeat",
    "rewind",
    "slabs",
    "slot_bytes",
    "slots_of",
    "smooth_name",
    "state_bytes",
    "view",
    "widen",
]
