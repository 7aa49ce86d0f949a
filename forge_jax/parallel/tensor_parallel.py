"""Tensor parallelism: heads, feed-forward features and vocabulary split over one axis of a mesh, by shard_map.
Expert parallelism: the experts of mixtures over another (`expert_axis`), to which their tokens travel.

`shard` places parameters, `init_cache` makes a cache that lies beside them, `shard_mapped` runs any pure function of
the library on them. What a function computes does not change; it finds its local head counts in the weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from forge_jax import cache as caches
from forge_jax.cache import Cache
from forge_jax.decoder import Driver, Inputs, forward
from forge_jax.generation.loop import Drafting
from forge_jax.ops import Context
from forge_jax.parallel.axes import described, leaf_specs, partition_specs, tensor_rules
from forge_jax.parallel.prepare import prepare_leaf, prepared_shape, widened
from forge_jax.params import Param, Tree, abstract, flatten, unflatten
from forge_jax.spec import ModelSpec, Moe

REPLICATED = PartitionSpec()


def make_mesh(
    shards: int, *, axis: str = "model", experts: int | None = None, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh of one axis over the first `shards` devices; with `experts`, of a second axis "expert" of that size.

    Raises:
        ValueError: there are fewer devices.
    """
    devices = jax.devices() if devices is None else devices
    total = shards * (experts or 1)
    if shards < 1 or not 1 <= total <= len(devices):
        raise ValueError(
            f"mesh: {total} shards asked, {len(devices)} devices found; ask for 1 to {len(devices)} "
            "(on a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=N set before jax starts gives N devices)"
        )
    sizes, names = ((shards,), (axis,)) if experts is None else ((shards, experts), (axis, "expert"))
    return jax.make_mesh(sizes, names, (AxisType.Auto,) * len(names), devices=devices[:total])


def shards_of(mesh: Mesh, axis: str) -> int:
    """How many pieces a mesh cuts its axis into.

    Raises:
        ValueError: it has no such axis.
    """
    if axis not in mesh.shape:
        raise ValueError(
            f"mesh: found the axes {tuple(mesh.axis_names)}, expected {axis!r}; "
            "make one with parallel.make_mesh(shards), or name the axis to split over with axis=..."
        )
    return mesh.shape[axis]


# ------------------------------------------------------------------------------------------------ placing
def check_experts(spec: ModelSpec, mesh: Mesh, expert_axis: str | None) -> None:
    """Raise ValueError unless the mesh has the axis and its size divides every mixture's experts."""
    if expert_axis is None:
        return
    devices = shards_of(mesh, expert_axis)
    for i, block in enumerate(spec.layers):
        for op in (branch.op for branch in block.every() if isinstance(branch.op, Moe)):
            if op.router.experts % devices:
                raise ValueError(
                    f"layer {i}: {op.router.experts} experts cannot be spread evenly over the {devices} devices of "
                    f"{expert_axis!r}; take a mesh axis whose size divides them"
                )


def shard_leaf(
    spec: ModelSpec,
    path: str,
    param: Param,
    leaf: Any,
    mesh: Mesh,
    *,
    axis: str = "model",
    expert_axis: str | None = None,
) -> Any:
    """Prepare one leaf and place it on the mesh, each device getting its part of it and no more."""
    leaf = prepare_leaf(spec, path, param, leaf, shards_of(mesh, axis))
    specs = leaf_specs(leaf, param, tensor_rules(axis, expert_axis))
    return jax.tree.map(lambda array, p: jax.device_put(array, NamedSharding(mesh, p)), leaf, specs)


def shard(spec: ModelSpec, params: Tree, mesh: Mesh, *, axis: str = "model", expert_axis: str | None = None) -> Tree:
    """Prepare parameters and place them on the mesh, a leaf at a time: at most one leaf is in memory twice.

    Raises:
        ValueError: the tree is not one of this spec, the mesh lacks an axis, or it cannot share out the experts.
    """
    place = placer(spec, mesh, axis=axis, expert_axis=expert_axis)
    return unflatten({path: place(path, leaf) for path, (leaf, _) in described(spec, params).items()})


def placer(
    spec: ModelSpec, mesh: Mesh, *, axis: str = "model", expert_axis: str | None = None
) -> Callable[[str, Any], Any]:
    """The function (path, values) -> leaf with which a loader places each tensor that it has read."""
    check_experts(spec, mesh, expert_axis)
    expected = dict(flatten(abstract(spec)))
    axes = {"axis": axis, "expert_axis": expert_axis}
    return lambda path, leaf: shard_leaf(spec, path, expected[path], leaf, mesh, **axes)


def init_cache(
    spec: ModelSpec,
    batch: int,
    length: int,
    *,
    mesh: Mesh,
    slack: int = 0,
    dtype: DTypeLike | caches.Policy = jnp.float32,
    paging: caches.Paging | None = None,
    axis: str = "model",
) -> Cache:
    """An empty cache (see `forge_jax.cache.init`) for prepared parameters; each device makes its own kv heads."""
    wide = widened(spec, shards_of(mesh, axis))
    make = partial(caches.init, wide, batch, length, slack=slack, dtype=dtype, paging=paging)
    specs = split_caches(spec, jax.eval_shape(make), axis)
    return jax.jit(make, out_shardings=jax.tree.map(partial(NamedSharding, mesh), specs))()


# ------------------------------------------------------------------------------------------------ running
def split_caches(spec: ModelSpec, tree: Any, axis: str) -> Any:
    """The PartitionSpecs of anything: the arrays of caches in it are split as ops describe them, all else is whole.

    What drafting carries is whole too: a drafter's cache is not the model's.
    """
    rules = tensor_rules(axis)

    def array(slab: caches.Slab) -> PartitionSpec:
        lead = slab.axes[:-1] if slab.slots else slab.axes  # slots stand before the last axis, which is whole
        return PartitionSpec(None, *map(rules.mesh_axis, lead))

    split = {
        (i, branch): {name: array(s) for name, s in slabs.items()} for i, branch, _, slabs in caches.memories(spec)
    }

    whole = partial(jax.tree.map, lambda _: REPLICATED)

    def alike(spec: PartitionSpec, held: Any) -> Any:
        return jax.tree.map(lambda _: spec, held)  # the parts of a slab have the axes that the slab has

    def branch_specs(named: dict[str, PartitionSpec] | None, held: Any) -> Any:
        return whole(held) if named is None else {name: alike(named[name], slab) for name, slab in held.items()}

    def specs(node: Any) -> Any:
        if not isinstance(node, Cache):
            return whole(node)
        layers = tuple(
            {branch: branch_specs(split.get((i, branch)), held) for branch, held in layer.items()}
            for i, layer in enumerate(node.layers)
        )
        return replace(node, places=whole(node.places), layers=layers)

    return jax.tree.map(specs, tree, is_leaf=lambda node: isinstance(node, Cache | Drafting))


def check_prepared(spec: ModelSpec, params: Tree, shards: int) -> None:
    """Refuse parameters that do not have the shapes that `shards` devices need.

    Raises:
        ValueError: some leaf differs; the first is named.
    """
    for path, (leaf, param) in described(spec, params).items():
        expected = prepared_shape(spec, path, param, shards)
        if tuple(leaf.shape) != expected:
            raise ValueError(
                f"{path}: found shape {tuple(leaf.shape)}, expected {expected} on {shards} shards; "
                "prepare and place the parameters with parallel.shard(spec, params, mesh)"
            )


def shard_mapped(
    function: Callable[..., Any],
    spec: ModelSpec,
    mesh: Mesh,
    *,
    ctx: Context = Context(),
    axis: str = "model",
    expert_axis: str | None = None,
) -> Callable[..., Any]:
    """The function (params, *args) that runs `function(spec, params, *args, ctx=ctx)` on every device of the mesh.

    Parameters come from `shard`. Caches, wherever they stand in arguments and results, are split over their kv heads;
    all else is whole on every device, logits too. Options of `function` are bound with functools.partial. Jit it.

    Raises:
        ValueError: the mesh lacks the axis, or (when called) the parameters are not prepared for it.
    """
    shards = shards_of(mesh, axis)
    check_experts(spec, mesh, expert_axis)
    body = partial(function, spec, ctx=replace(ctx, axis=axis, expert_axis=expert_axis))

    def mapped(params: Tree, *args: Any) -> Any:
        check_prepared(spec, params, shards)
        in_specs = (partition_specs(spec, params, tensor_rules(axis, expert_axis)), *split_caches(spec, args, axis))
        run = partial(jax.shard_map, body, mesh=mesh, in_specs=in_specs)
        # a trace without checks finds the caches among the results; the real one proves that the rest is replicated
        results = jax.eval_shape(run(out_specs=REPLICATED, check_vma=False), params, *args)
        return run(out_specs=split_caches(spec, results, axis))(params, *args)

    return mapped


def sharded_forward(
    spec: ModelSpec,
    mesh: Mesh,
    *,
    ctx: Context = Context(),
    driver: Driver = "loop",
    axis: str = "model",
    expert_axis: str | None = None,
) -> Callable[..., tuple[Array, Cache | None]]:
    """`forge_jax.decoder.forward` on a mesh, jitted: (params, inputs, cache=None) to (logits, cache)."""
    function = partial(forward, driver=driver)
    run = jax.jit(shard_mapped(function, spec, mesh, ctx=ctx, axis=axis, expert_axis=expert_axis))

    def call(params: Tree, inputs: Inputs, cache: Cache | None = None) -> tuple[Array, Cache | None]:
        return run(params, inputs, cache)

    return call
