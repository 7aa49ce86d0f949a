"""Rules on weights that stay packed: rows are moved about whole, never opened.

A packed tensor of theirs is rows along one of its axes (a `QTensor` on the host). Where a rule only regroups the other
axes, and splits that one into axes of ours in the same order, the same rule moves the packed rows.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from converters.rules import Instance, Rule, Shape, groups
from forge_jax.tensor import QTensor

ROW = ["row"]
Groups = list[list[str]]


def read(rule: Rule, w: QTensor, shapes: Sequence[Shape]) -> list[Any]:
    """Their packed tensor to our leaves, in the order of the rule's paths: packed, or dense where it must be."""
    if not rule.layout and w.ndim > 1 and plain(rule):  # its rows may run over several axes, if the tree is ours
        return [w]
    moved = rule_of_rows(rule, w.ndim, w.first)
    if moved is None:
        return rule.read(w.dense(), shapes)
    small, places = moved
    sizes = [without(shape, place) for shape, place in zip(shapes, places, strict=True)]
    parts: list[dict[str, np.ndarray]] = [{} for _ in shapes]
    for name, part in w.parts.items():
        if prod(part.shape[:-1]) == 1:  # all rows share it
            pieces = [part.reshape(*(1,) * len(rows), -1) for rows in sizes]
        else:
            pieces = small.read(w.every_row(name), [(*rows, part.shape[-1]) for rows in sizes])
        for mine, piece in zip(parts, pieces, strict=True):
            mine[name] = piece
    return [
        replace(w, parts=mine, inner=tuple(shape[i] for i in place[1:]), trailing=len(shape) - 1 - place[-1])
        for mine, shape, place in zip(parts, shapes, places, strict=True)
    ]


def write(rule: Rule, leaves: Sequence[QTensor], first: int) -> QTensor | None:
    """Our packed leaves to their tensor, whose rows run along axis `first`: the inverse of `read`.

    None where rows cannot be moved whole, or the leaves are not packed alike.
    """
    if not rule.layout and plain(rule):
        return leaves[0] if leaves[0].first == first else None
    rank = len(groups(rule.cat or rule.sides()[0][0]))
    moved = rule_of_rows(rule, rank, first)
    if moved is None or any(kind_of(leaf) != kind_of(leaves[0]) for leaf in leaves):
        return None
    small, places = moved
    covered = [[*range(leaf.first, leaf.first + len(leaf.summed))] for leaf in leaves]
    if covered != places:
        return None
    parts = {}
    for name in leaves[0].parts:
        mine = [leaf.parts[name] for leaf in leaves]
        if all(prod(part.shape[:-1]) == 1 for part in mine):
            if any(not np.array_equal(part.ravel(), mine[0].ravel()) for part in mine):
                return None
            parts[name] = mine[0].reshape(*(1,) * (rank - 1), -1)
        else:
            parts[name] = small.write([leaf.every_row(name) for leaf in leaves])
    return replace(leaves[0], parts=parts, inner=(), trailing=rank - 1 - first)


def tensor(instance: Instance, leaves: Sequence[QTensor], first: int) -> QTensor | None:
    """The packed tensor of theirs that an instance makes of our leaves; see `write`."""
    if instance.axis is None:
        return write(instance.rule, leaves, first)
    return write(instance.rule, [slice_of(leaf, instance.index, instance.axis) for leaf in leaves], first)


def slice_of(leaf: QTensor, index: int, axis: int) -> QTensor:
    """One slice of a leaf along an axis that rows are numbered by: the inverse of `stack`."""
    before = axis < leaf.first
    at = axis if before else axis - len(leaf.summed)
    parts = {name: np.take(part, min(index, part.shape[at] - 1), at) for name, part in leaf.parts.items()}
    return replace(leaf, parts=parts, trailing=leaf.trailing - (not before))


def plain(rule: Rule) -> bool:
    """Whether a rule only moves numbers."""
    return not rule.add and not rule.decay


def kind_of(leaf: QTensor) -> Any:
    """What leaves that become one tensor must have in common."""
    return leaf.scheme, leaf.dtype, {name: part.dtype for name, part in leaf.parts.items()}


def rule_of_rows(rule: Rule, rank: int, first: int) -> tuple[Rule, list[list[int]]] | None:
    """The rule for rows that run along axis `first` of their tensor of `rank` axes, and which axes of each of our
    leaves they cover; None if they cannot be moved whole."""
    axes = groups(rule.cat or rule.sides()[0][0]) if rule.layout else []
    if not plain(rule) or len(axes) != rank or axes[first] == ["c"]:
        return None
    names = axes[first]
    places = [place_of(names, right) for right in ours(rule)]
    found = [place for place in places if place is not None]
    layouts = tuple(side(left, right, names) for left, right in rule.sides())
    small = replace(rule, layout=layouts[0] if isinstance(rule.layout, str) else layouts, cat=cut(rule.cat, names))
    return (small, found) if len(found) == len(places) else None


def without(shape: Shape, place: Sequence[int]) -> Shape:
    """The sizes of the axes that rows are numbered by."""
    return tuple(size for i, size in enumerate(shape) if i not in place)


def ours(rule: Rule) -> list[Groups]:
    """The axes of each of our leaves, as the rule groups them."""
    counted = not rule.cat and len(rule.paths) > 1  # then the first group counts the leaves
    return [[group for group in groups(right) if group != ["one"]][counted:] for _, right in rule.sides()]


def place_of(names: list[str], axes: Groups) -> list[int] | None:
    """Which axes are made of the letters of a row, if nothing else is in them and the order is the row's."""
    place = [i for i, group in enumerate(axes) if set(group) & set(names)]
    letters = [letter for i in place for letter in axes[i]]
    return place if letters == names and place == [*range(place[0], place[0] + len(place))] else None


def cut(axes: str, names: list[str]) -> str:
    """The axes without those of a row, which come last as one."""
    kept = [group for group in groups(axes) if not set(group) & set(names)]
    return " ".join(f"({' '.join(group)})" if len(group) != 1 else group[0] for group in [*kept, ROW]) if axes else ""


def side(left: str, right: str, names: list[str]) -> str:
    """A layout in which a row is one axis, the last on either side."""
    return f"{cut(left, names)} -> {cut(right, names)}"


def stack(slices: Sequence[Any], axis: int) -> Any:
    """Leaves of one kind along a new axis of ours; packed if all are packed alike."""
    first = slices[0]
    alike = isinstance(first, QTensor) and all(
        isinstance(one, QTensor)
        and (one.scheme, one.inner, one.trailing, one.dtype) == (first.scheme, first.inner, first.trailing, first.dtype)
        and {name: part.shape for name, part in one.parts.items()}
        == {name: part.shape for name, part in first.parts.items()}
        for one in slices
    )
    if not alike:
        return np.stack([one.dense() if isinstance(one, QTensor) else one for one in slices], axis)
    before = axis <= first.first
    at = axis if before else axis - len(first.summed)
    parts = {name: np.stack([one.parts[name] for one in slices], at) for name in first.parts}
    return replace(first, parts=parts, trailing=first.trailing + (not before))
