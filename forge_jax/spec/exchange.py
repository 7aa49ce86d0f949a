"""Ops for models that work on more than one stream. What is not the stream lies on the bus, by name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Constant:
    """Gives a learned vector, the same for every token."""


@dataclass(frozen=True)
class Exchange:
    """Gives what lies on the bus under `fetch`, and leaves there what it sees under `leave`."""

    fetch: str
    leave: str
