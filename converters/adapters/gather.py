"""Updates of our leaves as those of stored tensors: what writing an adapter in any format begins with."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from converters.adapters.layout import Layout
from converters.rules import Instance
from forge_jax.lora import Update
from forge_jax.params import Param


@dataclass(frozen=True)
class Stored:
    """The update of one stored tensor: factors [*numbers, inputs, rank] and [*numbers, outputs, rank], on the host.

    scale is that of the product; magnitude and bias are [*numbers, outputs].
    """

    instance: Instance
    layout: Layout
    into: np.ndarray
    out: np.ndarray
    scale: float
    magnitude: np.ndarray | None = None
    bias: np.ndarray | None = None

    @property
    def rank(self) -> int:
        """How many directions it has."""
        return self.into.shape[-1]


def stored_updates(
    instances: Sequence[Instance], params: Mapping[str, Param], updates: Mapping[str, Update]
) -> Iterator[Stored]:
    """The update of every tensor that has one.

    Raises:
        ValueError: updates that no tensor can have.
    """
    for instance in instances:
        mine = [updates.get(path) for path in instance.paths]
        if all(update is None for update in mine):
            continue
        if instance.axis is not None:
            mine = [None if update is None else sliced(update, instance.index, instance.axis) for update in mine]
        layout = Layout(instance, tuple(params[path] for path in instance.paths))
        yield joined(layout, mine)


def sliced(update: Update, index: int, axis: int) -> Update:
    """The update of one of the weights that an axis numbers, the first one or one of outputs."""
    if axis >= update.stacked:
        b = np.take(np.asarray(update.b), index, axis - np.ndim(update.a) + 2 + update.stacked)
        own = (b != 0).reshape(update.rank, -1).any(1)  # directions of others
        return replace(update, a=np.asarray(update.a)[..., own], b=b[own])
    magnitude, bias = (None if part is None else np.asarray(part)[index] for part in (update.magnitude, update.bias))
    a, b = np.asarray(update.a)[index], np.asarray(update.b)[index]
    return replace(update, a=a, b=b, magnitude=magnitude, bias=bias, stacked=update.stacked - 1)


def joined(layout: Layout, updates: Sequence[Update | None]) -> Stored:
    """The updates of our leaves as one of the tensor that holds them.

    Leaves with the same factor of what the tensor does not split share it. Where they differ, or some leaf has no
    update, ranks are put one after another, with zeros where a direction is another leaf's.

    Raises:
        ValueError: magnitudes or biases that only some of the leaves have.
    """
    given = [update for update in updates if update is not None]
    scale = given[0].scale if all(update.scale == given[0].scale for update in given) else 1.0
    into = [layout.empty("inputs", i) if u is None else np.asarray(u.a) for i, u in enumerate(updates)]
    out = [layout.empty("outputs", i) if u is None else last(u, scale) for i, u in enumerate(updates)]
    turned = layout.split("inputs")
    whole, parts = (out, into) if turned else (into, out)
    if not all(np.array_equal(x, whole[0]) for x in whole[1:]):
        ranks = [x.shape[-1] for x in whole]
        whole = [np.concatenate(whole, -1)] * len(ranks)
        parts = [
            np.pad(x, [(0, 0)] * (x.ndim - 1) + [(sum(ranks[:i]), sum(ranks[i + 1 :]))]) for i, x in enumerate(parts)
        ]
    into, out = (parts, whole) if turned else (whole, parts)
    magnitudes = [None if u is None or u.magnitude is None else np.asarray(u.magnitude) for u in updates]
    biases = [None if u is None or u.bias is None else rescaled(u.bias, u.scale, scale) for u in updates]
    outputs = outputs_of(layout, magnitudes), outputs_of(layout, biases)
    first_in, first_out = layout.write("inputs", into)[0], layout.write("outputs", out)[0]
    return Stored(layout.instance, layout, first_in, first_out, scale, *outputs)


def last(update: Update, scale: float) -> np.ndarray:
    """b with its rank last, for another scale than the update's own."""
    return np.moveaxis(rescaled(update.b, update.scale, scale), update.stacked, -1)


def rescaled(x: Any, old: float, new: float) -> np.ndarray:
    """Numbers that a new scale makes the same of as the old one did."""
    x = np.asarray(x)
    return x if old == new else x * np.asarray(old / new, x.dtype)


def outputs_of(layout: Layout, given: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """One number for each output of a tensor, from those of our leaves.

    Raises:
        ValueError: only some leaves have them.
    """
    if all(x is None for x in given):
        return None
    if any(x is None for x in given):
        raise ValueError(
            f"{layout.instance.theirs}: only some of {', '.join(layout.instance.paths)} have magnitudes or biases of "
            "updates; the tensor holds all of them"
        )
    columns = [x[..., None] for x in given if x is not None]
    return layout.write("outputs", columns)[0][..., 0]
