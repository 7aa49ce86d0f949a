"""Generation on a mesh: the programs of a session, with the model's part of each mapped over the devices."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh

from forge_jax.cache import Cache
from forge_jax.decoder import Inputs, forward
from forge_jax.generation import loop
from forge_jax.generation.loop import State
from forge_jax.generation.programs import LOCAL, Programs
from forge_jax.generation.speculation import rounds
from forge_jax.ops import Context
from forge_jax.parallel.tensor_parallel import init_cache, shard_mapped, shards_of
from forge_jax.params import Tree
from forge_jax.sampling import SamplerPlan
from forge_jax.spec import ModelSpec


def programs(mesh: Mesh, *, axis: str = "model") -> Programs:
    """What a `Session` calls, for parameters that `shard` placed on `mesh`. Keep it: it holds what is compiled.

    Raises:
        ValueError: the mesh lacks the axis.
    """
    shards_of(mesh, axis)

    @partial(jax.jit, static_argnames=("spec",), donate_argnames=("cache",))
    def whole(spec: ModelSpec, params: Tree, inputs: Inputs, cache: Cache | None = None) -> tuple[Array, Cache | None]:
        return shard_mapped(forward, spec, mesh, axis=axis)(params, inputs, cache)

    def reads(function: Callable[..., Any], *donated: str) -> Callable[..., Any]:
        """One of (spec, params, ..., ctx)."""

        @partial(jax.jit, static_argnames=("spec", "ctx"), donate_argnames=donated)
        @wraps(function)  # for the names of its arguments
        def run(spec: ModelSpec, params: Tree, *given: Any) -> Any:
            return shard_mapped(function, spec, mesh, ctx=given[-1], axis=axis)(params, *given[:-1])

        return run

    def makes(function: Callable[..., State]) -> Callable[..., State]:
        """One of (spec, plan, params, ..., ctx) that makes tokens."""

        @partial(jax.jit, static_argnames=("spec", "plan", "ctx"), donate_argnames=("state",))
        @wraps(function)
        def run(spec: ModelSpec, plan: SamplerPlan, params: Tree, *given: Any) -> State:
            def local(spec: ModelSpec, params: Tree, *given: Any, ctx: Context) -> State:
                return function(spec, plan, params, *given, ctx)

            return shard_mapped(local, spec, mesh, ctx=given[-1], axis=axis)(params, *given[:-1])

        return run

    return Programs(
        forward=whole,
        prefill=reads(loop.prefill, "cache", "logits_BV"),
        choose=LOCAL.choose,
        advance=makes(loop.advance),
        new_cache=partial(init_cache, mesh=mesh, axis=axis),
        learn=reads(rounds.prefill, "drafting", "cache", "logits_BV"),
        speculate=makes(rounds.advance),
    )
