"""What a call of a kernel needs to stand in a program for a mesh."""

import jax
from jax import Array


def varying(*arrays: Array) -> list[Array]:
    """Arrays as differing over all axes of a mesh that one of them differs over, which is what a call asks of them."""
    over = [jax.typeof(x).manual_axis_type.varying for x in arrays]
    axes = frozenset[str]().union(*over)
    missing = [tuple(sorted(axes - own)) for own in over]
    return [jax.lax.pcast(x, lacks, to="varying") if lacks else x for x, lacks in zip(arrays, missing, strict=True)]
