"""Fast paths for CPUs, in C++ through XLA's foreign functions. Each has a plain path beside it that gives the same.

Knows arrays and names of formats; not what leaves of a model they came from.
"""

from forge_jax.kernels.attention import Seen, Slab, look, looks
from forge_jax.kernels.derivatives import as_plain
from forge_jax.kernels.formats import Packing, Steps
from forge_jax.kernels.library import Status, available, status, told, waits
from forge_jax.kernels.normalising import normalised, normalises
from forge_jax.kernels.once import once
from forge_jax.kernels.platforms import by_platform, everywhere
from forge_jax.kernels.product import fits, fits_chosen, known, products, products_chosen
from forge_jax.kernels.turning import turn, turns
from forge_jax.kernels.writing import writes, written

__all__ = [
    "Packing",
    "Seen",
    "Slab",
    "Status",
    "Steps",
    "as_plain",
    "available",
    "by_platform",
    "everywhere",
    "fits",
    "fits_chosen",
    "known",
    "look",
    "looks",
    "normalised",
    "normalises",
    "once",
    "products",
    "products_chosen",
    "status",
    "told",
    "turn",
    "turns",
    "waits",
    "writes",
    "written",
]
