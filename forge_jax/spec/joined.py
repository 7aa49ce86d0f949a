"""Ops beside attention that a block is joined to a stream with."""

from dataclasses import dataclass

from forge_jax.spec.ops import Attention, Norm


@dataclass(frozen=True)
class Joined:
    """Attention that sees the stream and, beside it, what lies on the bus under `fetch`: twice as many features.

    `norm` is over all of them. What comes out is as wide as the stream.
    """

    attention: Attention
    fetch: str
    norm: Norm


@dataclass(frozen=True)
class Project:
    """A linear map of what it sees, as wide as that."""
