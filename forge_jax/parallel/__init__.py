"""Running one model on many devices: tree -> tree transforms of parameters, and a wrapper for the pure functions."""

from forge_jax.parallel.axes import Rules, partition_specs, tensor_rules
from forge_jax.parallel.generation import programs
from forge_jax.parallel.prepare import prepare, prepare_leaf, widened
from forge_jax.parallel.tensor_parallel import (
    init_cache,
    make_mesh,
    placer,
    shard,
    shard_leaf,
    shard_mapped,
    sharded_forward,
)

__all__ = [
    "Rules",
    "init_cache",
    "make_mesh",
    "partition_specs",
    "placer",
    "prepare",
    "prepare_leaf",
    "programs",
    "shard",
    "shard_leaf",
    "shard_mapped",
    "sharded_forward",
    "tensor_rules",
    "widened",
]
