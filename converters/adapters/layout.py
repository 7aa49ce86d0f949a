"""Factors of an update of a stored tensor, and those of our leaves: one is made of the other by the tensor's rule.

A stored matrix has an axis of inputs and one of outputs. A factor has one of the two, and the rank. What a rule does to
an axis of the matrix it does to that axis of the factor; where it cuts the other axis into several leaves of ours, all
of them have the same factor.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from converters.rows import cut, ours, side
from converters.rules import Instance, Rule, flat, groups
from forge_jax.params import Param

Which = Literal["inputs", "outputs"]
RANK = "row"  # what `rows.cut` calls the axis that it appends


@dataclass(frozen=True)
class Layout:
    """How the matrix, or the stack of them, of one instance of a rule lies in our leaves.

    params: the descriptions of the instance's leaves, in its order.
    """

    instance: Instance
    params: tuple[Param, ...]

    @cached_property
    def rule(self) -> Rule:
        """The rule, its axes named."""
        rule = self.instance.rule
        letters = " ".join("abcd"[: len(self.instance.shapes[0])])
        return rule if rule.layout else replace(rule, layout=f"{letters} -> {letters}")

    @cached_property
    def stacked(self) -> int:
        """How many leading axes of our leaves number weights of a kind."""
        stacked, axis = self.params[0].stacked, self.instance.axis
        return stacked - (axis is not None and axis < stacked)

    @cached_property
    def stored(self) -> list[list[str]]:
        """The letters of every stored axis, `c` for what several leaves share."""
        return groups(self.rule.cat or self.rule.sides()[0][0])

    def letters(self, which: Which, part: int) -> list[str]:
        """The letters of one side of one of our leaves, in our order, without those that number weights."""
        axes, inputs = ours(self.rule)[part], max(self.params[part].inputs, 1)  # a table is indexed by its first axis
        first = self.stacked
        chosen = axes[first : first + inputs] if which == "inputs" else axes[first + inputs :]
        return [letter for group in chosen for letter in group]

    @cached_property
    def axes(self) -> dict[Which, list[str]]:
        """The letters of the stored axis of inputs, and of that of outputs.

        Raises:
            ValueError: the tensor is no matrix, nor a stack of them.
        """
        first, unfolded = groups(self.rule.sides()[0][0]), flat(self.rule.cat)
        out: dict[Which, list[str]] = {}
        for which in ("inputs", "outputs"):
            mine = set(self.letters(which, 0))
            if unfolded:  # the part's own letters stand where the whole has c
                mine = {c for c, group in zip(unfolded, first, strict=True) if set(group) & mine}
            found = [axis for axis in self.stored if set(axis) & mine]
            out[which] = found[0] if len(found) == 1 else []
        rest = [axis for axis in self.stored if axis not in out.values()]
        numbers = [group for group in ours(self.rule)[0][: self.stacked] if group in rest]
        if not all(out.values()) or out["inputs"] == out["outputs"] or len(rest) != len(numbers):
            raise ValueError(
                f"{self.instance.theirs}: an update of a tensor laid out as {self.rule.layout!r} is not implemented"
            )
        return out

    @property
    def numbers(self) -> tuple[int, ...]:
        """The sizes of the stored axes that number matrices."""
        sizes = zip(self.instance.stored_shape, self.stored, strict=True)
        return tuple(size for size, axis in sizes if axis not in self.axes.values())

    def missing(self, which: Which) -> list[int]:
        """Which of the axes that number our weights are folded into the other stored axis.

        One factor is then the same for all of those weights.
        """
        other = self.axes["outputs" if which == "inputs" else "inputs"]
        return [i for i, group in enumerate(ours(self.rule)[0][: self.stacked]) if set(group) & set(other)]

    def split(self, which: Which) -> bool:
        """Whether our leaves have different parts of a stored axis."""
        if len(self.instance.paths) == 1:
            return False
        mark = "c" if self.rule.cat else flat(self.rule.sides()[0][1])[0]
        return mark in self.axes[which]

    def size(self, which: Which) -> int:
        """The size of a stored axis."""
        return self.instance.stored_shape[self.stored.index(self.axes[which])]

    def gone(self, which: Which, part: int) -> list[str]:
        """The letters of one of our leaves that a factor with the stored axis `which` lacks."""
        folded = [letter for i in self.missing(which) for letter in ours(self.rule)[part][i]]
        return [*folded, *self.letters("outputs" if which == "inputs" else "inputs", part), "one"]

    def kept(self, which: Which) -> tuple[list[Rule], list[tuple[int, ...]]]:
        """The rules of factors with one stored axis and the rank last, and the shapes of our leaves' without the rank.

        One rule for all leaves where they have different parts of the axis, else one for each.
        """
        shapes = []
        for part, (shape, axes) in enumerate(zip(self.instance.shapes, ours(self.rule), strict=True)):
            gone = {*self.gone(which, part)}
            shapes.append(tuple(n for n, group in zip(shape, axes, strict=True) if not set(group) & gone))
        if self.split(which):
            drop = self.axes["outputs" if which == "inputs" else "inputs"]
            layouts = tuple(side(left, right, drop) for left, right in self.rule.sides())
            layout = layouts[0] if isinstance(self.rule.layout, str) else layouts
            return [replace(self.rule, layout=layout, cat=cut(self.rule.cat, drop))], shapes
        numbers = [axis for axis in self.stored if axis not in self.axes.values()]
        left = " ".join(f"({' '.join(axis)})" for axis in (*numbers, self.axes[which]))
        rules = []
        for part, path in enumerate(self.instance.paths):
            right = self.rule.sides()[part if self.rule.cat else 0][1]
            if not self.rule.cat and len(self.instance.paths) > 1:  # without the group that counts the leaves
                right = right.partition(" ")[2]
            rules.append(Rule(path, self.instance.theirs, f"{left} {RANK} -> {cut(right, self.gone(which, part))}"))
        return rules, shapes

    def read(self, which: Which, x: np.ndarray) -> list[np.ndarray]:
        """A stored factor [*numbers, inputs or outputs, rank] to those of our leaves [*stacked, *axes, rank].

        Raises:
            ValueError: it has not the size of the tensor.
        """
        rules, shapes = self.kept(which)
        sizes = [(*shape, x.shape[-1]) for shape in shapes]
        wanted = rules[0].stored_shape(sizes if self.split(which) else sizes[:1])
        if x.shape != wanted:
            raise ValueError(
                f"{self.instance.theirs}: the {which} of its update are {list(x.shape[:-1])}, those of the model "
                f"{list(wanted[:-1])}; the adapter belongs to another model"
            )
        if self.split(which):
            found = rules[0].read(x, sizes)
        else:
            found = [rule.read(x, [size])[0] for rule, size in zip(rules, sizes, strict=True)]
        return [self.spread(which, each, shape) for each, shape in zip(found, self.instance.shapes, strict=True)]

    def empty(self, which: Which, part: int) -> np.ndarray:
        """The factor of rank 0 of one of our leaves."""
        shape = self.kept(which)[1][part]
        return self.spread(which, np.zeros((*shape, 0), np.float32), self.instance.shapes[part])

    def spread(self, which: Which, x: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """A factor of one of our leaves, of a given shape, repeated for weights that share it."""
        for i in self.missing(which):
            x = np.repeat(np.expand_dims(x, i), shape[i], i)
        return x

    def write(self, which: Which, leaves: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The inverse of `read`: one stored factor where our leaves are parts of it, else the one that each has.

        Raises:
            ValueError: weights that share a factor have different ones.
        """
        rules, _ = self.kept(which)
        small = []
        for leaf in leaves:
            for i in reversed(self.missing(which)):
                if (leaf != leaf.take([0], i)).any():
                    raise ValueError(f"{self.instance.theirs}: weights that are stored as one have different updates")
                leaf = leaf.take(0, i)
            small.append(leaf)
        if self.split(which):
            return [rules[0].write(small)]
        return [rule.write([leaf]) for rule, leaf in zip(rules, small, strict=True)]
