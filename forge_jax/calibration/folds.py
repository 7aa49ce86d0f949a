"""Where the inputs of weights can be scaled and what makes them scaled back, so that a layer gives the same.

Candidates follow from the shapes and axes that parameters say they have; whether one holds is found out by running the
layer. Nothing is known of any op.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from forge_jax.calibration.observing import ALONE, State
from forge_jax.decoder import jitted_block, unshared
from forge_jax.params import Param, unflatten
from forge_jax.spec import Block, Norm
from forge_jax.tensor import dense

PAIRS = (("v", "o"), ("up", "down"))  # a weight, and the one that its outputs go to by a product with other numbers
SAME = 1e-4  # of what a layer adds: more than rounding makes, less than any wrong scale
Leaves = dict[str, Any]
"""By path in the tree of a layer."""
Described = Mapping[str, Param]
"""By path in the tree of a layer: the parameters that are its own."""


@dataclass(frozen=True)
class Fold:
    """Weights `into` whose inputs can be divided by s, because their `source` can: a norm, or another weight.

    shape: of s, the sizes of the axes that the source makes. repeat: each of the first of them is so many in turn of
    the inputs (heads that share their values). stacked: how many axes of weights s has before those.
    """

    source: str
    into: tuple[str, ...]
    shape: tuple[int, ...]
    repeat: int = 1
    stacked: int = 0
    norm: Norm | None = None

    def wide(self, s: np.ndarray) -> np.ndarray:
        """[*stacked, n] for every input, from s [*stacked, *shape]."""
        return np.repeat(s, self.repeat, self.stacked).reshape(*s.shape[: self.stacked], -1)

    def narrow(self, values: np.ndarray) -> np.ndarray:
        """Means [*stacked, *shape] of numbers [*stacked, n] of the inputs that have one s."""
        lead = values.shape[: self.stacked]
        return values.reshape(*lead, self.shape[0], self.repeat, -1).mean(-2).reshape(*lead, *self.shape)

    def applied(self, leaves: Leaves, described: Described, s: np.ndarray) -> Leaves:
        """The leaves with s [*stacked, *shape] in the weights and out of their source."""
        new, wide = dict(leaves), self.wide(s)
        for path in self.into:
            param = described[path]
            between = (1,) * (param.stacked - self.stacked)
            ends = (*between, *inputs(param), *(1,) * len(outputs(param)))
            new[path] = times(leaves[path], wide.reshape(*wide.shape[: self.stacked], *ends))
        if self.norm is not None:
            new[f"{self.source}.scale"] = times(leaves[f"{self.source}.scale"], 1 / s, self.norm.offset)
            bias = f"{self.source}.bias"
        else:
            between = (1,) * described[self.source].inputs
            ones = s.reshape(*s.shape[: self.stacked], *between, *self.shape)
            new[self.source] = times(leaves[self.source], 1 / ones)
            bias = f"{self.source}_bias"
        return new | ({bias: times(leaves[bias], 1 / s)} if bias in leaves else {})


def times(leaf: Array, factor: np.ndarray, offset: float = 0.0) -> Array:
    """(leaf + offset) * factor - offset, computed in float32; offset is what a norm adds to its weights."""
    wide = (leaf.astype(jnp.float32) + offset) * jnp.broadcast_to(jnp.asarray(factor, jnp.float32), leaf.shape)
    return (wide - offset).astype(leaf.dtype)


def inputs(param: Param) -> tuple[int, ...]:
    """The sizes of the axes that rows run along."""
    return param.shape[param.stacked : param.stacked + param.inputs]


def outputs(param: Param) -> tuple[int, ...]:
    """The sizes of the axes after those."""
    return param.shape[param.stacked + param.inputs :]


def candidates(layer: Block, described: Described) -> Iterator[Fold]:
    """What may hold of a layer: weights that read a norm, and those that read the features of another weight."""
    readers: dict[str, list[str]] = {}
    norms = {"pre": layer.pre}
    source = "pre"
    for branch in layer.every():
        source = source if branch.beside else "pre"
        if branch.pre is not None:
            source = f"{branch.name}.pre"
            norms[source] = branch.pre
        readers.setdefault(source, []).append(f"{branch.name}.")
    for source, norm in norms.items():
        scale = described.get(f"{source}.scale")
        if norm is None or scale is None:
            continue
        homes = tuple(readers.get(source, ()))
        into = [path for path, param in described.items() if path.startswith(homes) and reads(param, scale.shape)]
        if into:
            yield Fold(source, tuple(into), scale.shape, norm=norm)
    for path, param in described.items():
        home, _, name = path.rpartition(".")
        for first, second in PAIRS:
            if name == second and (source := f"{home}.{first}") in described:
                yield from pair(source, described[source], path, param)


def reads(param: Param, shape: tuple[int, ...]) -> bool:
    """Whether the rows of a matrix run along so many features of the stream."""
    along = [param.axes[axis] for axis in param.summed]
    return param.fill is None and along == ["embed"] and inputs(param) == shape


def pair(source: str, made: Param, path: str, read: Param) -> Iterator[Fold]:
    """The fold of a weight into another whose inputs are its outputs, or a multiple of them."""
    shape, sizes = outputs(made), inputs(read)
    stacks = made.shape[: made.stacked] == read.shape[: read.stacked]
    if stacks and len(shape) == len(sizes) and shape[1:] == sizes[1:] and sizes[0] % shape[0] == 0:
        yield Fold(source, (path,), shape, sizes[0] // shape[0], made.stacked)


def holding(layer: Block, described: Described, leaves: Leaves, state: State) -> list[Fold]:
    """The folds that leave what a layer gives as it is, on the state before it; `described` leaves are plain arrays.

    Computed in float32: what a smaller type rounds is more than what tells right scales from wrong ones.
    """
    leaves, state = widened({path: dense(leaf) for path, leaf in leaves.items()}), widened(state)
    found = []
    for fold in candidates(layer, described):
        lead = described[fold.into[0]].shape[: fold.stacked]
        s = np.exp2(np.random.default_rng(0).uniform(-1, 1, (*lead, *fold.shape)))
        if same(layer, leaves, fold.applied(leaves, described, s), state):
            found.append(fold)
    return found


def widened(tree: Any) -> Any:
    """A tree with its arrays of floats in float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def same(layer: Block, leaves: Leaves, changed: Leaves, state: State) -> bool:
    """Whether a layer gives the same with other leaves: what it adds to the stream, token by token, and its bus."""
    (x, call), found = state, []
    for each in (leaves, changed):
        y, _, bus = jitted_block(unshared(layer), unflatten(each), x, None, call, ALONE)
        found.append([y - x, *(leaf for leaf in jax.tree.leaves(bus) if jnp.issubdtype(leaf.dtype, jnp.floating))])
    return all(distance(one, other) < SAME for one, other in zip(*found, strict=True))


def distance(one: Array, other: Array) -> float:
    """How far vectors are apart on the average, as a part of their length."""
    length = jnp.linalg.norm(one.astype(jnp.float32), axis=-1)
    apart = jnp.linalg.norm((other - one).astype(jnp.float32), axis=-1)
    return float((apart / jnp.maximum(length, 1e-30)).mean())
