"""What an adapter is for: every tensor of a model, by every name that it can have."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from converters import architectures, rules
from converters.adapters.layout import Layout
from converters.architectures.family import Family
from converters.composite import own_name
from forge_jax.lora import Update
from forge_jax.params import Param, abstract, flatten
from forge_jax.spec import ModelSpec


@dataclass(frozen=True)
class Base:
    """What an adapter is for: every tensor of the model by every name that it can have."""

    family: Family
    spec: ModelSpec
    params: Mapping[str, Param]
    named: Mapping[str, rules.Instance]

    def instance(self, name: str) -> rules.Instance | None:
        """The tensor of a name, as it is called in checkpoints, in composites or in the library that trains."""
        for own in (name, own_name(name) or name):
            for full in (own, f"{self.family.prefix}{own}"):
                found = self.named.get(full) or self.named.get(self.family.stored_name(full))
                if found is not None:
                    return found
        return None

    def layout(self, instance: rules.Instance) -> Layout:
        """How a matrix lies in our leaves."""
        return Layout(instance, tuple(self.params[path] for path in instance.paths))


def base_of(model_type: str, spec: ModelSpec) -> Base:
    """The tensors of a model of a family."""
    family = architectures.find(model_type, "adapter")
    params = dict(flatten(abstract(spec)))
    shapes = {path: param.shape for path, param in params.items()}
    if spec.tied:  # the head that the embedding is tied to can have updates of its own
        shapes["head"] = params["embed"].shape[::-1]
        params["head"] = Param(shapes["head"], ("embed", "vocab"))
    named: dict[str, rules.Instance] = {}
    for rule in family.table(spec):
        for made in rules.matches(rule, shapes):
            for instance in made:
                named.setdefault(instance.theirs, instance)
    return Base(family, spec, params, named)


def stacked(path: str, found: Mapping[int, Update], param: Param, axis: int) -> Update:
    """The updates of weights that are numbered by the first axis of a leaf, as one; those that have none get zeros."""
    if axis:
        raise ValueError(f"adapter: {path}: updates numbered along axis {axis} are not implemented")
    like = next(iter(found.values()))
    rank, experts = max(update.rank for update in found.values()), param.shape[0]
    if any(update.bias is not None for update in found.values()):
        raise ValueError(f"adapter: {path}: biases of updates of experts are not implemented")
    a = np.zeros((experts, *like.a.shape[:-1], rank), like.a.dtype)
    b = np.zeros((experts, rank, *like.b.shape[1:]), like.b.dtype)
    scales = {update.scale for update in found.values()}
    same = scales.pop() if len(scales) == 1 else 1.0
    for i, update in found.items():
        a[i, ..., : update.rank] = update.a
        b[i, : update.rank] = update.b if update.scale == same else update.b * np.asarray(update.scale, like.b.dtype)
    magnitudes = [found[i].magnitude for i in range(experts) if i in found]
    if all(m is None for m in magnitudes):
        return Update(a, b, None, None, same, param.stacked)
    if len(magnitudes) < experts or any(m is None for m in magnitudes):
        raise ValueError(f"adapter: {path}: magnitudes of some experts are missing")
    return Update(a, b, np.stack(magnitudes), None, same, param.stacked)


def side_by_side(path: str, found: Mapping[int, Update], param: Param, axis: int) -> Update:
    """The updates of matrices that an axis of outputs numbers, as one: each has directions of its own."""
    inputs = param.stacked + max(param.inputs, 1)
    if axis < inputs or any(u.magnitude is not None or u.bias is not None for u in found.values()):
        raise ValueError(f"adapter: {path}: updates numbered along axis {axis}, of inputs or with magnitudes or biases")
    rows = []
    for i, update in found.items():
        b = np.zeros((update.rank, *param.shape[inputs:]), update.b.dtype)
        b[(slice(None),) * (axis - inputs + 1) + (i,)] = update.b * np.asarray(update.scale, update.b.dtype)
        rows.append(b)
    return Update(np.concatenate([update.a for update in found.values()], -1), np.concatenate(rows))
