"""Trees of parameters and their descriptions: nested dicts with string keys, whose leaves are anything but dicts."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

Tree = dict[str, Any]


@dataclass(frozen=True)
class Param:
    """The description of one parameter.

    `axes` names each dimension for sharding: "vocab", "embed", "heads", "kv_heads", "head", "ff", "layers" or None.
    `fill` is the constant it starts at; None draws from a normal of variance 1 / fan_in, `fan_in` being the product
    of the `inputs` dimensions that follow the first `stacked` ones, which number matrices of the same kind (experts).
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    fill: float | None = None
    inputs: int = 1
    stacked: int = 0

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)

    @property
    def summed(self) -> tuple[int, ...]:
        """The dimensions that a product with it sums over."""
        return tuple(range(self.stacked, self.stacked + self.inputs))

    @property
    def fan_in(self) -> int:
        """How many numbers go into one output."""
        return prod(self.shape[i] for i in self.summed)


def prune(tree: Tree) -> Tree:
    """Drop empty sub-trees (norms without parameters), so that a tree has leaves only where there are numbers."""
    out = {key: prune(value) if isinstance(value, dict) else value for key, value in tree.items()}
    return {key: value for key, value in out.items() if value != {}}


def flatten(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("layers.0.attention.q", leaf) for every leaf that is no dict."""
    for key, value in tree.items():
        path = f"{prefix}.{key}" if prefix else key
        if isinstance(value, dict):
            yield from flatten(value, path)
        else:
            yield path, value


def unflatten(leaves: dict[str, Any]) -> Tree:
    """Build the nested dict whose flattened form is `leaves`."""
    out: Tree = {}
    for path, leaf in leaves.items():
        *parents, last = path.split(".")
        node = out
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return out
