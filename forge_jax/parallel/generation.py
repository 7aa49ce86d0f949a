"""Generation on a mesh: the programs of a session, with the model's part of each mapped over the devices."""

from functools import partial
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh

from forge_jax.cache import Cache
from forge_jax.decoder import Inputs, forward
from forge_jax.generation import loop
from forge_jax.generation.loop import Drafting, State
from forge_jax.generation.programs import LOCAL, Programs
from forge_jax.generation.speculation import Drafter, rounds
from forge_jax.ops import Context
from forge_jax.parallel.tensor_parallel import init_cache, shard_mapped, shards_of
from forge_jax.params import Tree
from forge_jax.sampling import SamplerPlan, SamplerValues
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

    @partial(jax.jit, static_argnames=("spec", "ctx"), donate_argnames=("cache", "logits_BV"))
    def prefill(
        spec: ModelSpec, params: Tree, cache: Cache, tokens_BT: Array, order_BT: Array, logits_BV: Array, ctx: Context
    ) -> tuple[Array, Cache]:
        run = shard_mapped(loop.prefill, spec, mesh, ctx=ctx, axis=axis)
        return run(params, cache, tokens_BT, order_BT, logits_BV)

    @partial(jax.jit, static_argnames=("spec", "plan", "ctx"), donate_argnames=("state",))
    def advance(
        spec: ModelSpec,
        plan: SamplerPlan,
        params: Tree,
        values: SamplerValues,
        state: State,
        count: Array,
        ctx: Context,
    ) -> State:
        def local(spec: ModelSpec, params: Tree, *given: Any, ctx: Context) -> State:
            return loop.advance(spec, plan, params, *given, ctx=ctx)

        return shard_mapped(local, spec, mesh, ctx=ctx, axis=axis)(params, values, state, count)

    @partial(jax.jit, static_argnames=("spec", "ctx"), donate_argnames=("drafting", "cache", "logits_BV"))
    def learn(
        spec: ModelSpec,
        params: Tree,
        drafter: Drafter,
        drafting: Drafting,
        cache: Cache,
        tokens_BT: Array,
        order_BT: Array,
        logits_BV: Array,
        ctx: Context,
    ) -> tuple[Array, Cache, Drafting]:
        run = shard_mapped(rounds.prefill, spec, mesh, ctx=ctx, axis=axis)
        return run(params, drafter, drafting, cache, tokens_BT, order_BT, logits_BV)

    @partial(jax.jit, static_argnames=("spec", "plan", "ctx"), donate_argnames=("state",))
    def speculate(
        spec: ModelSpec,
        plan: SamplerPlan,
        params: Tree,
        drafter: Drafter,
        values: SamplerValues,
        state: State,
        passes: Array,
        end_B: Array,
        drafts: Array,
        ctx: Context,
    ) -> State:
        def local(spec: ModelSpec, params: Tree, *given: Any, ctx: Context) -> State:
            return rounds.advance(spec, plan, params, *given, ctx=ctx)

        run = shard_mapped(local, spec, mesh, ctx=ctx, axis=axis)
        return run(params, drafter, values, state, passes, end_B, drafts)

    new_cache = partial(init_cache, mesh=mesh, axis=axis)
    return Programs(whole, prefill, LOCAL.choose, advance, new_cache, learn, speculate)
