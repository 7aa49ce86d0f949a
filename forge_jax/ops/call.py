"""What every op is told about the call it is part of: positions as data, the mesh axis as a static fact."""

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.cache import Places, Slots
from forge_jax.spec import Attention


@dataclass(frozen=True)
class Context:
    """Static facts of an execution. Hashable.

    `axis` names the mesh axis that heads, feed-forward features and vocabulary are split over, None when they are
    whole; `expert_axis` the one that the experts of mixtures are spread over. `fresh` promises a prompt from its
    beginning: the cache holds nothing, token t of every row has order t or is padding at the end, and no span makes a
    token see what comes after it. `experts` says how a mixture multiplies (see `ops.moe`): as suits the device,
    or one of its ways. `apart` computes the rows of a batch one after another (`forge_jax.rowwise`).
    """

    axis: str | None = None
    expert_axis: str | None = None
    fresh: bool = False
    experts: Literal["best", "every", "gathered", "grouped", "ragged"] = "best"
    apart: bool = False

    def psum(self, x: Array) -> Array:
        """Sum partial products over the mesh axis."""
        return x if self.axis is None else jax.lax.psum(x, self.axis)

    def own(self, x: Array, *also: str | None) -> Array:
        """Declare an array that every device holds whole to be its own: a loop cannot start from less than it makes.

        `also` names further mesh axes, None for none, over which what it stands for differs.
        """
        axes = tuple(axis for axis in (self.axis, *also) if axis is not None)
        return jax.lax.pcast(x, axes, to="varying") if axes else x

    def shards(self) -> int:
        """How many pieces a split axis has."""
        return 1 if self.axis is None else jax.lax.axis_size(self.axis)

    def local(self, whole: Array) -> Array:
        """This device's share of the leading axis of an array that every device holds whole."""
        if self.axis is None:
            return whole
        size = whole.shape[0] // self.shards()
        return jax.lax.dynamic_slice_in_dim(whole, jax.lax.axis_index(self.axis) * size, size)

    def real(self, size: int, local: int) -> Array | None:
        """1 for an entry of a split axis of true length `size`, 0 for its padding; None where there is no padding."""
        whole = local * self.shards()
        return None if whole == size else self.local((jnp.arange(whole) < size).astype(jnp.float32))

    def heads(self, op: Attention) -> "HeadSlots":
        """Which heads of an op sit where over all devices together."""
        return head_slots(op.heads, op.kv_heads, self.shards())


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Call:
    """The positions of one forward pass.

    order_BT: the token's place in its sequence, for causality and cache slots; -1 is padding.
    coords_BTC: what rotary embeddings turn by; C is 1 (the order) or the number of position axes.
    span_BT: tokens of the same span > 0 see each other in both directions. 0: causal only.
    slots: for each place key of the cache, where the tokens go; empty without a cache.
    tokens_BT: ids, where they are known.
    own: what only this layer gets, of inputs that every layer has its own share of.
    bus: what layers leave for later ones, by name. "embed" is the stream before the first layer; an op adds to it.

    Where an op keeps a running state, the tokens of a row come before its padding (see `decoder.hidden`).
    """

    order_BT: Array
    coords_BTC: Array
    span_BT: Array
    slots: dict[str, Slots]
    tokens_BT: Array | None = None
    own: Any = None
    bus: dict[str, Any] = field(default_factory=dict)

    @property
    def places(self) -> Places:
        """Where the tokens of the call stand, as a cache says it of those that it holds."""
        return Places(self.order_BT, self.span_BT)


@dataclass(frozen=True)
class HeadSlots:
    """The head that each slot of the query and kv axes holds, -1 where it is padding.

    Slot i of the queries attends with slot i // (len(queries) // len(kvs)) of the kvs. Padded heads have zero weights.
    """

    queries: tuple[int, ...]
    kvs: tuple[int, ...]


def head_slots(heads: int, kv_heads: int, shards: int) -> HeadSlots:
    """Arrange grouped heads so that `shards` equal cuts each hold whole groups: a kv head and its queries.

    Each kv head is repeated r times, r the same for all, and its queries are dealt to the copies; the last copies are
    filled up with padding, and padded kv heads fill the last cut. The r that needs the fewest slots is taken, then the
    one with the fewest kv slots, because those have a cache. One shard keeps the heads as they are.
    """
    group = heads // kv_heads

    def slots(r: int) -> tuple[int, int, int]:
        kvs, share = -(-kv_heads * r // shards) * shards, -(-group // r)
        return kvs * share, kvs, share

    repeat = min(range(1, group + 1), key=lambda r: (sum(slots(r)[:2]), slots(r)[1]))
    total, kvs, share = slots(repeat)
    width = repeat * share  # query slots of one kv head
    place = [divmod(i, width) for i in range(total)]
    return HeadSlots(
        tuple(kv * group + i if kv < kv_heads and i < group else -1 for kv, i in place),
        tuple(i // repeat if i < kv_heads * repeat else -1 for i in range(kvs)),
    )
