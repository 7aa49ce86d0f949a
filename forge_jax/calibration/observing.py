"""What the weights of a layer are multiplied by on some text: sums over all of its tokens, one layer at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from forge_jax.calibration.observed import Observed
from forge_jax.decoder import block, entered, inputs, jitted_block, share, unshared, whole
from forge_jax.ops import Call, Context
from forge_jax.params import Param, Tree, abstract, flatten, unflatten
from forge_jax.spec import Block, ModelSpec

ALONE = Context(experts="grouped")  # the way of a mixture that shows each expert its own tokens
State = tuple[Array, Call]
"""The stream of some rows before a layer, and the call as that layer gets it."""
Sums = dict[str, dict[str, np.ndarray]]
"""By path and tap (`Observed`): float64 [*stacked, ...]."""
Select = Callable[[str, Param], bool]


@dataclass
class Report:
    """What a calibration did.

    seen: how many rows each rounded parameter was multiplied by, float64 [*stacked]; where none, it is rounded to the
    nearest numbers. scaled: by the path of a norm or weight, those that its scales went into.
    """

    seen: dict[str, np.ndarray] = field(default_factory=dict)
    scaled: dict[str, tuple[str, ...]] = field(default_factory=dict)


def matrices(path: str, param: Param) -> bool:
    """Whether a parameter is a matrix of the layers; what chooses experts is left alone, as it decides for the rest."""
    inside = path.startswith(("layers.", "shared."))
    return inside and param.fill is None and param.inputs > 0 and not path.endswith((".router", ".shared_gate"))


def entries(spec: ModelSpec, params: Tree, batches: Iterable[np.ndarray]) -> list[State]:
    """What enters the first layer, for every batch of ids [B, T]."""
    enter = jax.jit(lambda params, ids: entered(spec, params, inputs(ids), None, ALONE))
    return [enter(params, jnp.asarray(ids, jnp.int32)) for ids in batches]


def advanced(spec: ModelSpec, params: Tree, i: int, states: Sequence[State]) -> list[State]:
    """What leaves layer `i`."""
    layer = spec.layers[i]
    own = whole(layer, params["layers"].get(str(i), {}), params)
    out = []
    for x, call in states:
        x, _, bus = jitted_block(unshared(layer), own, x, None, share(call, i), ALONE)
        out.append((x, replace(call, bus=bus)))
    return out


def observe(
    spec: ModelSpec, params: Tree, i: int, states: Sequence[State], select: Select, taps: tuple[str, ...]
) -> tuple[Sums, list[State]]:
    """Sums over what the chosen parameters of layer `i` are multiplied by, and what leaves the layer.

    Parameters that are multiplied by nothing, or not in a way that rows can be told, are not among the sums.
    """
    layer, described = spec.layers[i], dict(flatten(abstract(spec)))
    places = {near: far for near, far in paths(layer, i, described) if select(far, described[far])}
    watched = tuple((near, described[far]) for near, far in places.items())
    own = whole(layer, params["layers"].get(str(i), {}), params)
    total: Sums = {}
    out = []
    for x, call in states:
        found, x, bus = measured(unshared(layer), watched, taps, own, x, share(call, i))
        out.append((x, replace(call, bus=bus)))
        total = added(total, {places[near]: sums for near, sums in found.items()})
    return {path: sums for path, sums in total.items() if sums["count"].any()}, out


def paths(layer: Block, i: int, described: dict[str, Param]) -> Iterator[tuple[str, str]]:
    """(path in the tree of the layer, path in that of the model) of every parameter that layer `i` uses."""
    own = f"layers.{i}."
    yield from ((path.removeprefix(own), path) for path in described if path.startswith(own))
    for branch in layer.every():
        common = f"shared.{branch.shared}."
        yield from (
            (f"{branch.name}.{path.removeprefix(common)}", path) for path in described if path.startswith(common)
        )


def added(total: Sums, found: dict[str, dict[str, Array]]) -> Sums:
    """The sums with those of another batch."""
    wide = {path: {name: np.asarray(x, np.float64) for name, x in sums.items()} for path, sums in found.items()}
    return wide if not total else jax.tree.map(np.add, total, wide)


@partial(jax.jit, static_argnums=(0, 1, 2))
def measured(
    layer: Block,
    watched: tuple[tuple[str, Param], ...],
    taps: tuple[str, ...],
    own: Tree,
    x_BTD: Array,
    call: Call,
) -> tuple[dict[str, dict[str, Array]], Array, dict[str, Any]]:
    """The sums for the watched parameters of a layer, its output and its bus."""
    leaves = dict(flatten(own))

    def run(zeros: dict[str, dict[str, Array]]) -> tuple[Array, tuple[Array, dict[str, Any]]]:
        telling = {path: Observed(leaves[path], zeros[path], param.stacked, param.inputs) for path, param in watched}
        x, _, bus = block(layer, unflatten(leaves | telling), x_BTD, None, call, ALONE)
        floats = [leaf for leaf in jax.tree.leaves((x, bus)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        return jnp.stack([leaf.astype(jnp.float32).sum() for leaf in floats]).sum(), (x, bus)

    sums, (x, bus) = jax.grad(run, has_aux=True)({path: zeros_of(param, taps) for path, param in watched})
    return sums, x, bus


def zeros_of(param: Param, taps: tuple[str, ...]) -> dict[str, Array]:
    """The taps that an `Observed` of a parameter needs, and "count"."""
    stacked, n = param.shape[: param.stacked], param.fan_in
    sizes = {"gram": (n, n), "square": (n,), "absolute": (n,), "count": ()}
    return {name: jnp.zeros((*stacked, *sizes[name]), jnp.float32) for name in dict.fromkeys((*taps, "count"))}
