"""The compiled functions of generation. Which of them runs when is a session's business."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
from jax import Array

from forge_jax import cache as caches
from forge_jax.decoder import forward
from forge_jax.generation import loop
from forge_jax.generation.loop import Drafting, State
from forge_jax.generation.speculation import rounds


@dataclass(frozen=True)
class Programs:
    """The compiled functions that run a model. `LOCAL` is for one device; forge_jax.parallel makes others.

    forward: (spec, params, inputs, cache) to (logits, cache), the cache donated. learn, speculate: what prefill and
    advance are with a drafter (`generation.speculation.rounds`). plans: whether those that read make the cache
    themselves if they are given the plan of one.
    """

    forward: Callable[..., tuple[Array, caches.Cache | None]]
    prefill: Callable[..., tuple[Array, caches.Cache]]
    choose: Callable[..., State]
    advance: Callable[..., State]
    new_cache: Callable[..., caches.Cache]
    learn: Callable[..., tuple[Array, caches.Cache, Drafting]]
    speculate: Callable[..., State]
    plans: bool = False


def local_programs(options: dict[str, str] | None = None) -> Programs:
    """The programs for one device; `options` are XLA's, for those that read prompts and make tokens."""
    return Programs(
        forward=jax.jit(forward, static_argnames=("spec",), donate_argnames=("cache",)),
        prefill=jax.jit(
            loop.prefill,
            static_argnames=("spec", "ctx"),
            donate_argnames=("cache", "logits_BV"),
            compiler_options=options,
        ),
        choose=jax.jit(loop.choose, static_argnames=("plan",)),  # hands on what it does not change, without a copy
        advance=jax.jit(
            loop.advance, static_argnames=("spec", "plan", "ctx"), donate_argnames=("state",), compiler_options=options
        ),
        new_cache=jax.jit(caches.init, static_argnames=("spec", "batch", "length", "slack", "dtype", "paging")),
        learn=jax.jit(
            rounds.prefill,
            static_argnames=("spec", "ctx"),
            donate_argnames=("drafting", "cache", "logits_BV"),
            compiler_options=options,
        ),
        speculate=jax.jit(
            rounds.advance,
            static_argnames=("spec", "plan", "ctx"),
            donate_argnames=("state",),
            compiler_options=options,
        ),
        plans=True,
    )


LOCAL = local_programs()
# XLA for CPUs would open the packed weights of all layers at once, to have work for many threads: a step of SmolLM2 in
# Q4_1 would take 136 MB beside its weights, not 4, and no less time
FRUGAL = local_programs({"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"})
