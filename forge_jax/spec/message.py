"""Layers that are run again, and learn in each pass what the one before it has found."""

from dataclasses import dataclass

from forge_jax.spec.ops import Norm


@dataclass(frozen=True)
class Again:
    """Begins another pass: the stream is again what was kept when there were `first`, and nothing is kept since then.

    What the pass before has made, the streams kept after that one and the last one, are left as messages; there are
    `count` of them, one for each stream that the pass kept.
    """

    first: int
    count: int


@dataclass(frozen=True)
class Message:
    """What a branch sees is mixed with messages: (1 - tanh(f)) x + tanh(g) m, both of a map of `rank` features.

    m is a mix of all messages as in `Recall`, by a learned query and with the same `eps`. f and g are linear in what
    the map makes of x and m, each of them put through `norm`, which has no weights.
    `streams`: names of what the branch sees apart, in this order: each has a query, a map, f and g of its own, and x
    may be one for all of them or [B, T, S, D] already. A single one stays [B, T, D].
    """

    rank: int
    norm: Norm
    streams: tuple[str, ...] = ("x",)
    eps: float = 1e-6
