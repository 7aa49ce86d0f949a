"""Invertible rules between our parameter tree and the tensors of a checkpoint: one table reads and writes it.

A rule names a path of ours, a name of theirs, and how the axes regroup ("(n h) d -> d n h", read from left to right
on import and from right to left on export). Letters take their sizes from our shapes, so a rule needs no config.
Every tensor of theirs is consumed once and every leaf of ours written once, or loading fails and names them.
Knows no architecture.
"""

import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from forge_jax.params import Tree, flatten, unflatten

Shape = tuple[int, ...]

FIXED = {"one": 1, "two": 2}  # axes whose size is in their name


@dataclass(frozen=True)
class Rule:
    """ours <-> theirs.

    `ours` is one path, or several when one tensor of theirs holds them all. `{l}` stands for a layer's number.
    `layout` is "theirs -> ours"; empty: the same axes. With several paths, the first group of the right-hand side
    counts the parts: "(q n h) d -> q d n h" holds q parts of shape [d, n, h].
    `cat` is for parts of unequal size: it gives their tensor's axes with `c` where the parts lie end to end
    ("(n c) r": n groups, in each of them the parts one after another), and `layout` has one entry a part, written
    from those unfolded axes ("n h r -> r n h"). `one` is an axis of size 1 that we do not have, `two` one of size 2,
    and a number one of that size.
    `add` is added to the values on import and subtracted on export, in float32.
    `decay`: theirs is -exp(ours). The way there and back is not bit for bit.
    A letter in braces in `theirs` that `ours` lacks numbers an axis of ours, one tensor for each index:
    Rule("norm.scale", "norms.{n}.weight", "h -> n h").
    """

    ours: str | tuple[str, ...]
    theirs: str
    layout: str | tuple[str, ...] = ""
    cat: str = ""
    add: float = 0.0
    decay: bool = False

    @property
    def paths(self) -> tuple[str, ...]:
        """Our paths, as a tuple."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    def sides(self) -> list[tuple[str, str]]:
        """(theirs, ours) axes of each part."""
        layouts = (self.layout,) * len(self.paths) if isinstance(self.layout, str) else self.layout
        pairs = [tuple(side.strip() for side in layout.split("->")) for layout in layouts]
        return [(left, right) for left, right in pairs]

    def bind(self, shapes: Sequence[Shape]) -> dict[str, int]:
        """Solve the size of every letter from our shapes."""
        if not self.cat and len(shapes) > 1:
            known = [(self.sides()[0][1], (len(shapes), *shapes[0]))]
        else:
            known = [(right, shape) for (_, right), shape in zip(self.sides(), shapes, strict=True)]
        equations: list[tuple[list[str], int]] = []
        for right, shape in known:
            present = [group for group in groups(right) if group != ["one"]]
            if len(present) != len(shape):
                raise ValueError(f"{self.theirs}: layout {right!r} has {len(present)} axes, our shape is {shape}")
            equations += zip(present, shape, strict=True)
        digits = {c: int(c) for side in self.sides() for c in flat(" ".join(side)) if c.isdigit()}
        sizes = FIXED | digits
        while True:
            unsolved = [(g, n) for g, n in equations if sum(c not in sizes for c in g) == 1]
            if not unsolved:
                break
            for group, size in unsolved:
                missing = [c for c in group if c not in sizes]
                if missing:
                    sizes[missing[0]] = size // prod(sizes[c] for c in group if c in sizes)
        for group, size in equations:
            if any(c not in sizes for c in group) or prod(sizes[c] for c in group) != size:
                raise ValueError(f"{self.theirs}: cannot solve axis {group} of size {size} in {self.layout!r}")
        return sizes

    def stored_shape(self, shapes: Sequence[Shape]) -> Shape:
        """The shape of their tensor, from ours."""
        if not self.layout:
            return tuple(shapes[0])
        sizes = self.bind(shapes)
        if self.cat:
            sizes["c"] = sum(self.widths(sizes))
            return folded_shape(self.cat, sizes)
        return folded_shape(self.sides()[0][0], sizes)

    def widths(self, sizes: Mapping[str, int]) -> list[int]:
        """How far each part reaches along `c`."""
        at = flat(self.cat).index("c")
        return [prod(sizes[c] for c in groups(left)[at]) for left, _ in self.sides()]

    def read(self, x: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        """Their tensor to our leaves, in the order of `paths`. `x` must have `stored_shape(shapes)`."""
        if self.add:
            x = (x.astype(np.float32) + np.float32(self.add)).astype(x.dtype)
        if self.decay:
            x = self.rate(x)
        if not self.layout:
            return [x]
        sizes, sides = self.bind(shapes), self.sides()
        if self.cat:
            widths = self.widths(sizes)
            axes = flat(self.cat)
            sizes["c"] = sum(widths)
            parts = np.split(x.reshape([sizes[c] for c in axes]), np.cumsum(widths)[:-1], axes.index("c"))
            return [rearrange(p, *side, sizes).reshape(s) for p, side, s in zip(parts, sides, shapes, strict=True)]
        y = rearrange(x, *sides[0], sizes)
        return list(y) if len(shapes) > 1 else [y.reshape(shapes[0])]

    def write(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """Our leaves to their tensor: the inverse of `read`."""
        x = self.join(leaves) if self.layout else leaves[0]
        if self.decay:
            x = (-np.exp(x.astype(np.float64))).astype(x.dtype)
        return (x.astype(np.float32) - np.float32(self.add)).astype(x.dtype) if self.add else x

    def rate(self, x: np.ndarray) -> np.ndarray:
        """The logarithm of a decay's rate, in the precision that float32 has of it.

        Raises:
            ValueError: a value is not negative.
        """
        if not (x < 0).all():
            raise ValueError(f"{self.theirs}: expected negative values, which are rates of decay")
        return np.log(-x.astype(np.float64)).astype(np.float32)

    def join(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """Rearrange our leaves back and put them together."""
        sizes, sides = self.bind([leaf.shape for leaf in leaves]), self.sides()
        if not self.cat:
            whole = np.stack(leaves) if len(leaves) > 1 else leaves[0]
            return rearrange(whole, sides[0][1], sides[0][0], sizes)
        axis = flat(self.cat).index("c")
        parts = [rearrange(leaf, right, left, sizes) for leaf, (left, right) in zip(leaves, sides, strict=True)]
        x = np.concatenate(parts, axis)
        sizes["c"] = x.shape[axis]
        return x.reshape(folded_shape(self.cat, sizes))


def groups(side: str) -> list[list[str]]:
    """Axis groups of one side: "(n h) d" is [["n", "h"], ["d"]]."""
    return [token.strip("()").split() for token in re.findall(r"\([^)]*\)|\S+", side)]


def flat(side: str) -> list[str]:
    """Every letter of one side, in order."""
    return [c for group in groups(side) for c in group]


def folded_shape(side: str, sizes: Mapping[str, int]) -> Shape:
    """The shape with each group folded into one axis."""
    return tuple(prod(sizes[c] for c in group) for group in groups(side))


def rearrange(x: np.ndarray, source: str, target: str, sizes: Mapping[str, int]) -> np.ndarray:
    """Move `x` from one grouping of axes to another; the letters must be the same on both sides."""
    old, new = flat(source), flat(target)
    if sorted(old) != sorted(new):
        raise ValueError(f"layout {source!r} -> {target!r} loses or invents an axis")
    y = x.reshape([sizes[c] for c in old]).transpose([old.index(c) for c in new])
    return y.reshape(folded_shape(target, sizes))


# ------------------------------------------------------------------------------------------------ a whole model
@dataclass(frozen=True)
class Instance:
    """A rule applied to concrete leaves: their name, our paths and shapes.

    With `axis`, their tensor is slice `index` of `count` along that axis of our leaf, and `shapes` are the slice's.
    """

    rule: Rule
    theirs: str
    paths: tuple[str, ...]
    shapes: tuple[Shape, ...]
    axis: int | None = None
    index: int = 0
    count: int = 1

    @property
    def stored_shape(self) -> Shape:
        """The shape that their tensor must have."""
        return self.rule.stored_shape(self.shapes)

    def write(self, fetch: Callable[[str], np.ndarray]) -> np.ndarray:
        """Their tensor, from our leaves that `fetch(path)` gives."""
        leaves = [fetch(path) for path in self.paths]
        return self.rule.write(leaves if self.axis is None else [np.take(x, self.index, self.axis) for x in leaves])


def numbered(rule: Rule, theirs: str, path: str, shape: Shape) -> list[Instance]:
    """The instances of a rule for one leaf of ours whose tensors are numbered along one of its axes.

    Raises:
        ValueError: the rule is not of this kind; a bug in the architecture's table.
    """
    letter = theirs[theirs.index("{") + 1 : theirs.index("}")]
    left, right = rule.sides()[0]
    if len(rule.paths) > 1 or [letter] not in groups(right):
        raise ValueError(f"{theirs}: {letter!r} must be an axis of its own on the right of {rule.layout!r}")
    axis = groups(right).index([letter])
    rest = " ".join(token for token in re.findall(r"\([^)]*\)|\S+", right) if token != letter)
    one = replace(rule, layout=f"{left} -> {rest}")
    shapes = ((*shape[:axis], *shape[axis + 1 :]),)
    names = [theirs.replace(f"{{{letter}}}", str(i)) for i in range(shape[axis])]
    return [Instance(one, name, (path,), shapes, axis, i, len(names)) for i, name in enumerate(names)]


def pattern(path: str) -> re.Pattern[str]:
    """A path with {l} in it, as an expression that matches its instances."""
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\d+)", re.escape(path)) + r"\Z")


def filled(name: str, numbers: Mapping[str, str]) -> str:
    """A name with its {l} replaced; braces of other letters stay."""
    for letter, number in numbers.items():
        name = name.replace(f"{{{letter}}}", number)
    return name


def placed(rules: Sequence[Rule], layer: int, places: Mapping[str, str]) -> Iterator[Rule]:
    """The rules of one layer of a file whose branches lie elsewhere in our tree: {branch: where}."""
    for rule in rules:
        paths = [filled(path, {"l": str(layer)}) for path in rule.paths]
        for branch, place in places.items():
            mine = f"layers.{layer}.{branch}."
            if paths[0].startswith(mine):
                ours = tuple(path.replace(mine, f"{place}.", 1) for path in paths)
                yield replace(rule, ours=ours, theirs=filled(rule.theirs, {"l": str(layer)}))


def matches(rule: Rule, want: Mapping[str, Shape], taken: Container[str] = ()) -> Iterator[list[Instance]]:
    """The instances of a rule, a list for each set of leaves that it fits and of which none is taken.

    Args:
        want: the shape of every leaf by its path.
    """
    first = pattern(rule.paths[0])
    for path in want:
        found = first.match(path)
        if found is None:
            continue
        theirs = filled(rule.theirs, found.groupdict())
        paths = tuple(filled(p, found.groupdict()) for p in rule.paths)
        if any(p not in want or p in taken for p in paths):
            continue
        if "{" in theirs:
            yield numbered(rule, theirs, paths[0], want[paths[0]])
        else:
            yield [Instance(rule, theirs, paths, tuple(want[p] for p in paths))]


def instances(rules: Sequence[Rule], described: Tree, stored: Container[str] | None = None) -> list[Instance]:
    """Match every leaf with the first rule whose paths all exist.

    Where `stored` names are given, rules whose tensor is there go before rules whose tensor is not: a table may hold
    several ways to store the same leaves (fused and apart).

    Raises:
        ValueError: a leaf that no rule writes; a bug in the architecture's table.
    """
    want = {path: param.shape for path, param in flatten(described)}
    taken: set[str] = set()
    out: list[Instance] = []

    def match(rule: Rule, *, only_stored: bool) -> None:
        for made in matches(rule, want, taken):
            if not only_stored or made[0].theirs in (stored or ()):
                taken.update(made[0].paths)
                out.extend(made)

    for only_stored in (True, False) if stored is not None else (False,):
        for rule in rules:
            match(rule, only_stored=only_stored)
    if missing := sorted(set(want) - taken):
        raise ValueError(f"{len(missing)} parameters have no rule, for example {missing[:5]}")
    return out


def check(found: list[Instance], stored: Mapping[str, Shape], ignored: Callable[[str], bool], where: str) -> None:
    """Account for every tensor before any is read.

    Raises:
        ValueError: tensors that are missing, misshapen or used by nobody; the first five of each, and the count.
    """
    problems: list[str] = []
    for instance in found:
        shape = stored.get(instance.theirs)
        if shape is None:
            problems.append(f"{instance.theirs} is missing (needed for {', '.join(instance.paths)})")
        elif shape != instance.stored_shape:
            problems.append(
                f"{instance.theirs} is {list(shape)}, the config asks {list(instance.stored_shape)} "
                f"(for {', '.join(instance.paths)})"
            )
    used = {instance.theirs for instance in found}
    problems += [
        f"{name} {list(stored[name])} is used by nothing" for name in stored if name not in used and not ignored(name)
    ]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{where}: {len(problems)} tensors do not fit the config: {'; '.join(problems[:5])}{more}")


def read_tree(
    found: list[Instance],
    read: Callable[[Instance], Sequence[Any]],
    place: Callable[[str, Any], Any],
    stack: Callable[[Sequence[Any], int], Any] = np.stack,
) -> Tree:
    """Every leaf of a tree, one tensor of theirs in memory at a time.

    Args:
        read: our leaves, or the slices of them, that an instance's tensor holds.
        place: what becomes of the leaf at a path.
        stack: slices along a new axis.
    """
    leaves: dict[str, Any] = {}
    slices: dict[str, list[Any]] = {}
    for instance in found:
        for path, value in zip(instance.paths, read(instance), strict=True):
            if instance.axis is None:
                leaves[path] = place(path, value)
                continue
            slices.setdefault(path, []).append(value)
            if instance.index + 1 == instance.count:
                leaves[path] = place(path, stack(slices.pop(path), instance.axis))
    return unflatten(leaves)


def identity(described: Tree) -> tuple[Rule, ...]:
    """The rules for a checkpoint of our own tree: every name and every axis is ours."""
    return tuple(Rule(path, path) for path, _ in flatten(described))


def without_prefix(rules: Sequence[Rule], prefix: str) -> tuple[Rule, ...]:
    """The rules for a checkpoint that was saved from the bare model, without its prefix."""
    return tuple(replace(rule, theirs=rule.theirs.removeprefix(prefix)) for rule in rules)
