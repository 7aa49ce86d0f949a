"""What every op is told about the call it is part of: positions as data, the mesh axis as a static fact."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.cache import Slots


@dataclass(frozen=True)
class Context:
    """Static facts of an execution. Hashable.

    `axis` names the mesh axis that heads, feed-forward features and vocabulary are split over, None when they are
    whole. `fresh` says that the cache holds nothing yet, so that attention need not read it back.
    """

    axis: str | None = None
    fresh: bool = False

    def psum(self, x: Array) -> Array:
        """Sum partial products over the mesh axis."""
        return x if self.axis is None else jax.lax.psum(x, self.axis)

    def shards(self) -> int:
        """How many pieces a split axis has."""
        return 1 if self.axis is None else jax.lax.axis_size(self.axis)

    def local(self, whole: Array, size: int) -> Array:
        """This device's `size` leading entries of an array that every device holds whole, zeros past its end."""
        if self.axis is None:
            return whole
        missing = size * self.shards() - whole.shape[0]
        padded = jnp.pad(whole, [(0, missing)] + [(0, 0)] * (whole.ndim - 1))
        return jax.lax.dynamic_slice_in_dim(padded, jax.lax.axis_index(self.axis) * size, size)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Call:
    """The positions of one forward pass.

    order_BT: the token's place in its sequence, for causality and cache slots; -1 is padding.
    coords_BTC: what rotary embeddings turn by; C is 1 (the order) or the number of position axes.
    span_BT: tokens of the same span > 0 see each other in both directions. 0: causal only.
    slots: for each place key of the cache, where the tokens go; empty without a cache.
    """

    order_BT: Array
    coords_BTC: Array
    span_BT: Array
    slots: dict[str, Slots]
