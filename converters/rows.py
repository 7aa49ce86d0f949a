"""Rules on weights that stay packed: rows are moved about whole, never opened.

A packed tensor of theirs is rows along one of its axes (a `QTensor` on the host). Where a rule only regroups the other
axes, and splits that one into axes of ours in the same order, the same rule moves the packed rows.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from converters.rules import Rule, Shape, groups
from forge_jax.tensor import QTensor

ROW = ["row"]
Groups = list[list[str]]


def read(rule: Rule, w: QTensor, shapes: Sequence[Shape]) -> list[Any]:
    """Their packed tensor to our leaves, in the order of the rule's paths: packed, or dense where it must be."""
    moved = None if rule.add or rule.decay else move(rule, w, shapes)
    return rule.read(w.dense(), shapes) if moved is None else moved


def move(rule: Rule, w: QTensor, shapes: Sequence[Shape]) -> list[QTensor] | None:
    """The rule on packed rows; None if they cannot be moved whole."""
    if not rule.layout:
        return [w] if w.ndim > 1 else None
    axes = groups(rule.cat or rule.sides()[0][0])
    if len(axes) != w.ndim or (rule.cat and axes[w.first] == ["c"]):
        return None
    names = axes[w.first]
    places = [place_of(names, right) for right in ours(rule)]
    small = replace(
        rule, layout=tuple(side(left, right, names) for left, right in rule.sides()), cat=cut(rule.cat, names)
    )
    small = replace(small, layout=small.layout[0]) if isinstance(rule.layout, str) else small
    found = [place for place in places if place is not None]
    if len(found) < len(places):
        return None
    rows = [
        tuple(size for i, size in enumerate(shape) if i not in place)
        for shape, place in zip(shapes, found, strict=True)
    ]
    parts: list[dict[str, np.ndarray]] = [{} for _ in shapes]
    for name, part in w.parts.items():
        if prod(part.shape[:-1]) == 1:  # all rows share it
            pieces = [part.reshape(*(1,) * len(sizes), -1) for sizes in rows]
        else:
            part = np.broadcast_to(part, (*w.outputs, part.shape[-1]))
            pieces = small.read(part, [(*sizes, part.shape[-1]) for sizes in rows])
        for mine, piece in zip(parts, pieces, strict=True):
            mine[name] = piece
    return [
        replace(w, parts=mine, inner=tuple(shape[i] for i in place[1:]), trailing=len(shape) - 1 - place[-1])
        for mine, shape, place in zip(parts, shapes, found, strict=True)
    ]


def ours(rule: Rule) -> list[Groups]:
    """The axes of each of our leaves, as the rule groups them."""
    counted = not rule.cat and len(rule.paths) > 1  # then the first group counts the leaves
    return [[group for group in groups(right) if group != ["one"]][counted:] for _, right in rule.sides()]


def place_of(names: list[str], axes: Groups) -> list[int] | None:
    """Which axes are made of the letters of a row, if nothing else is in them and the order is the row's."""
    place = [i for i, group in enumerate(axes) if set(group) & set(names)]
    letters = [letter for i in place for letter in axes[i]]
    whole = letters == names and place == list(range(place[0], place[0] + len(place)))
    return place if whole else None


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
