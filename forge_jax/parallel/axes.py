"""From the logical axes of parameters to the axes of a mesh, as data that can be printed.

Knows names of axes and kinds of leaves; nothing about ops, devices or what is computed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from jax.sharding import PartitionSpec

from forge_jax.lora import Apart, Chosen, Lora, Replaced, Turned
from forge_jax.params import Param, Tree, abstract, flatten, unflatten
from forge_jax.spec import ModelSpec
from forge_jax.tensor import QTensor


@dataclass(frozen=True)
class Rules:
    """Pairs of (logical axis, mesh axis); None as the mesh axis replicates. The first pair that matches wins."""

    pairs: tuple[tuple[str | None, str | None], ...]

    def mesh_axis(self, logical: str | None) -> str | None:
        """The mesh axis that a logical axis is split over, None if every device holds it whole.

        Raises:
            ValueError: no rule names the axis.
        """
        for name, mesh_axis in self.pairs:
            if name == logical:
                return mesh_axis
        known = ", ".join(str(name) for name, _ in self.pairs)
        raise ValueError(f"sharding rules: no rule for the logical axis {logical!r} (there are {known}); add a pair")

    def __str__(self) -> str:
        """A line a rule."""
        width = max(len(str(name)) for name, _ in self.pairs)
        return "\n".join(f"{name!s:{width}} -> {axis or 'replicated'}" for name, axis in self.pairs)


SPLIT = ("vocab", "heads", "kv_heads", "ff", "shared_ff")
WHOLE = ("embed", "head", "layers", None)


def tensor_rules(axis: str = "model", expert_axis: str | None = None) -> Rules:
    """The rules of tensor parallelism: vocabulary, heads and feed-forward features are split over one mesh axis, the
    experts of mixtures over another if it is named."""
    return Rules((*((name, axis) for name in SPLIT), ("experts", expert_axis), *((name, None) for name in WHOLE)))


@dataclass(frozen=True)
class LoraAxes:
    """The logical axes of the parts of a low-rank update; ranks and numbers of adapters are split over nothing."""

    a: tuple[str | None, ...]
    b: tuple[str | None, ...]
    outputs: tuple[str | None, ...]

    def map(self, leaf: Lora, base: Any, do: Callable[[Any, tuple[str | None, ...]], Any]) -> Lora:
        """The leaf with `do(array, axes)` in the place of each of its arrays, and with another base."""
        gain, bias = (None if part is None else do(part, self.outputs) for part in (leaf.gain, leaf.bias))
        row_B = None if leaf.row_B is None else do(leaf.row_B, (None,))
        return replace(leaf, base=base, a=do(leaf.a, self.a), b=do(leaf.b, self.b), gain=gain, bias=bias, row_B=row_B)


def lora_axes(param: Param, rows: bool = False) -> LoraAxes:
    """The axes of an update of a parameter; with `rows`, of those of several adapters."""
    first, stacked = (None,) * rows, param.axes[: param.stacked]
    inputs = param.stacked + max(param.inputs, 1)  # a table is indexed by its first axis
    into, out = param.axes[param.stacked : inputs], param.axes[inputs:]
    return LoraAxes((*first, *stacked, *into, None), (*first, *stacked, None, *out), (*first, *stacked, *out))


def replaced_axes(param: Param, rows: bool) -> tuple[tuple[str | None, ...], tuple[str | None, ...]]:
    """The axes of `which` and `rows` of a `Replaced` table; with `rows`, of those of several adapters."""
    first = (None,) * rows
    return (*first, param.axes[0]), (*first, None, param.axes[1])


def turned(param: Param) -> Param:
    """The description of a head, from that of the table it is tied to."""
    return Param(param.shape[::-1], param.axes[::-1])


def leaf_specs(leaf: Any, param: Param, rules: Rules) -> Any:
    """The PartitionSpec of each array of one leaf, in a copy of the leaf. An axis of size 1 is not split."""
    match leaf:
        case QTensor():
            return packed_specs(leaf, param, rules)
        case Lora(base):
            axes = lora_axes(param, leaf.row_B is not None)
            return axes.map(leaf, leaf_specs(base, param, rules), lambda x, own: array_spec(x, own, rules))
        case Replaced(base):
            which, rows = replaced_axes(param, leaf.row_B is not None)
            return replace(
                leaf,
                base=leaf_specs(base, param, rules),
                which=array_spec(leaf.which, which, rules),
                rows=array_spec(leaf.rows, rows, rules),
                row_B=None if leaf.row_B is None else array_spec(leaf.row_B, (None,), rules),
            )
        case Apart(base, head):
            return Apart(leaf_specs(base, param, rules), leaf_specs(head, turned(param), rules))
        case Turned(base):
            return Turned(leaf_specs(base, turned(param), rules))
        case Chosen(options):
            every = tuple(leaf_specs(option, param, rules) for option in options)
            whole: Any = PartitionSpec(None)
            return Chosen(every, whole, whole)
        case _:
            return array_spec(leaf, param.axes, rules)


def packed_specs(leaf: QTensor, param: Param, rules: Rules) -> QTensor:
    """The PartitionSpec of each part of a packed weight: by the axes of its rows, and along them by the first summed.

    Raises:
        ValueError: it would be cut where that cannot be.
    """
    end = leaf.first + len(leaf.summed)
    along, *inner = (rules.mesh_axis(axis) for axis in param.axes[leaf.first : end])
    if any(inner) or (along and "index" in leaf.parts):
        raise ValueError(
            f"sharding: {leaf.scheme.name} rows over the axes {param.axes[leaf.first : end]} cannot be cut"
        )
    outputs = [rules.mesh_axis(axis) for axis in (*param.axes[: leaf.first], *param.axes[end:])]

    def spec(name: str, part: Any) -> Any:
        sizes = zip(part.shape, [*outputs, None if name in leaf.scheme.whole else along], strict=True)
        return PartitionSpec(*(None if size == 1 else axis for size, axis in sizes))

    return replace(leaf, parts={name: spec(name, part) for name, part in leaf.parts.items()})


def array_spec(array: Any, axes: tuple[str | None, ...], rules: Rules) -> Any:
    """The PartitionSpec of one array, typed loosely because it stands in the array's place."""
    if len(array.shape) != len(axes):
        raise ValueError(f"sharding: an array of shape {array.shape} cannot have the axes {axes}")
    return PartitionSpec(*(rules.mesh_axis(axis) for axis in axes))


def described(spec: ModelSpec, params: Tree) -> dict[str, tuple[Any, Param]]:
    """Each leaf of a parameter tree with the description of its path.

    Raises:
        ValueError: the tree lacks leaves of the spec or has others; they are named.
    """
    leaves, expected = dict(flatten(params)), dict(flatten(abstract(spec)))
    if leaves.keys() != expected.keys():
        missing, extra = sorted(expected.keys() - leaves.keys()), sorted(leaves.keys() - expected.keys())
        raise ValueError(
            f"parameters: the tree does not belong to this spec; {len(missing)} leaves are missing {missing[:5]}, "
            f"{len(extra)} are not in the spec {extra[:5]}"
        )
    return {path: (leaf, expected[path]) for path, leaf in leaves.items()}


def partition_specs(spec: ModelSpec, params: Tree, rules: Rules | None = None) -> Tree:
    """The tree of PartitionSpecs for a parameter tree, prepared or not; its leaves may be arrays, QTensor or Lora."""
    rules = rules or tensor_rules()
    return unflatten({path: leaf_specs(leaf, param, rules) for path, (leaf, param) in described(spec, params).items()})
