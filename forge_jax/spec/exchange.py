"""Ops for models that work on more than one stream. What is not the stream lies on the bus, by name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Constant:
    """Gives a learned vector, the same for every token."""


@dataclass(frozen=True)
class Exchange:
    """Leaves on the bus what it sees, under `leave`, and gives what lies there under `fetch`."""

    fetch: str
    leave: str | None = None
