"""Which slabs of quantised keys and values there is a kernel for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Packed:
    pass


def looks() -> bool:
    return False
