"""The loop of speculative decoding: propose, verify, rewind; jitted as one program.

A round feeds each row's pending token and its drafts to the target in one pass, then lets the ordinary `choose` draw a
token after each of them for as long as the draft was what it drew. The history thus never holds a token that was not
chosen, and penalties, limits, stop ids and records are what they are without drafts.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from forge_jax import cache as caches
from forge_jax.cache import Cache, Planned
from forge_jax.decoder import Inputs, readout
from forge_jax.generation import loop
from forge_jax.generation.loop import Drafting, State, choose, pending, read
from forge_jax.generation.speculation.keeping import committed
from forge_jax.generation.speculation.protocol import Drafter, Drafts, Fed, Sampler, Target
from forge_jax.ops import Context
from forge_jax.params import Tree
from forge_jax.sampling import SamplerPlan, SamplerValues
from forge_jax.spec import ModelSpec


def start(drafter: Drafter, spec: ModelSpec, batch: int, size: int, dtype: DTypeLike) -> Drafting:
    """Nothing remembered, nothing counted."""
    zeros = [jnp.zeros((), jnp.int32) for _ in range(4)]  # one each: they are donated
    return Drafting(drafter.memory(spec, batch, size, dtype), jnp.full((), drafter.tokens, jnp.int32), *zeros)


def forget(drafting: Drafting, empty: Drafting | None) -> Drafting:
    """Nothing remembered, but still counted."""
    return drafting if empty is None else replace(drafting, memory=empty.memory)


def repeat(drafting: Drafting, times: int) -> Drafting:
    """Every row `times` times, one after another."""

    def rows(node: Any) -> Any:
        return caches.repeat(node, times) if isinstance(node, Cache) else jnp.repeat(node, times, 0)

    return replace(drafting, memory=jax.tree.map(rows, drafting.memory, is_leaf=lambda node: isinstance(node, Cache)))


def prefill(
    spec: ModelSpec,
    params: Tree,
    drafter: Drafter,
    drafting: Drafting,
    cache: Cache | Planned,
    tokens_BT: Array,
    order_BT: Array,
    logits_BV: Array,
    ctx: Context,
) -> tuple[Array, Cache, Drafting]:
    """`loop.prefill`, from which the drafter learns."""
    target = Target(spec, params, ctx)
    x_BTD, taps_BTE, new = through(target, drafter, Inputs(tokens_BT, order_BT), cache)
    memory = drafter.learn(target, drafting.memory, Fed(x_BTD, taps_BTE, tokens_BT, order_BT))
    logits_BV = loop.last_logits(spec, params, x_BTD, order_BT, logits_BV, ctx)
    return logits_BV, new, replace(drafting, memory=memory)


def through(target: Target, drafter: Drafter, inputs: Inputs, cache: Cache | Planned) -> tuple[Array, Array, Cache]:
    """A pass of the target: the stream after the last layer, what the drafter taps, and the advanced cache."""
    x_BTE, new = read(target.spec, target.params, inputs, cache, target.ctx, drafter.taps)
    dim = target.spec.dim
    return x_BTE[..., :dim], x_BTE[..., dim:], new


def advance(
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
    """Run up to `passes` passes of the model, or until every row is done or as long as end_B.

    drafts: whether to draft at all; plain steps otherwise. The cache has room for one more token of every row.
    """
    target, sampler = Target(spec, params, ctx), Sampler(plan, values)
    limit_B, first_B = state.limit_B, state.history.length_B
    size = state.history.tokens_BS.shape[1]
    # for as long as this lasts, a row that has come to its end counts as done
    short_B = jnp.minimum(jnp.minimum(end_B, limit_B), size)
    done_B = state.done_B
    state = replace(state, limit_B=short_B, done_B=done_B | (first_B >= short_B))

    def unfinished(carry: tuple[Array, State]) -> Array:
        made, state = carry
        return (made < passes) & ~state.done_B.all()

    def body(carry: tuple[Array, State]) -> tuple[Array, State]:
        made, state = carry
        return made + 1, turn(target, sampler, drafter, state, drafts)

    state = jax.lax.while_loop(unfinished, body, (jnp.zeros((), jnp.int32), state))[1]
    token_B, _ = pending(state.history)
    stopped_B = (state.history.length_B > first_B) & (values.stop_ids_BE == token_B[:, None]).any(1)
    ended_B = done_B | state.nan_B | stopped_B | (state.history.length_B >= limit_B)
    return replace(state, limit_B=limit_B, done_B=ended_B)


def turn(target: Target, sampler: Sampler, drafter: Drafter, state: State, drafts: Array) -> State:
    """Draft, and verify what was drafted; where no row has a draft, one plain step."""
    held = drafting(state)
    most = jnp.where(drafts, held.length if drafter.costs else drafter.tokens, 0)
    room_B = state.limit_B - state.history.length_B - 1
    most_B = jnp.where(state.done_B, 0, jnp.clip(room_B, 0, most))
    guess, state, memory = drafter.propose(target, sampler, state, held.memory, most_B)
    state = replace(state, drafting=replace(held, memory=memory))
    return jax.lax.cond(
        (guess.count_B > 0).any(),
        lambda state: verify(target, sampler, drafter, state, guess, 1 + drafter.tokens),
        lambda state: verify(target, sampler, drafter, state, guess, 1),
        state,
    )


def verify(target: Target, sampler: Sampler, drafter: Drafter, state: State, drafts: Drafts, width: int) -> State:
    """One pass over every row's pending token and drafts, `width` tokens in all, and the tokens that follow from it."""
    token_B, last_B = pending(state.history)
    place_1T = jnp.arange(width)[None]
    count_B1 = jnp.minimum(drafts.count_B, width - 1)[:, None]
    fed_BT = jnp.concatenate([token_B[:, None], drafts.tokens_BK[:, : width - 1]], axis=1)
    order_BT = jnp.where(~state.done_B[:, None] & (place_1T <= count_B1), last_B[:, None] + place_1T, -1)
    fed, before = Inputs(fed_BT, order_BT), state.cache
    x_BTD, taps_BTE, after = through(target, drafter, fed, before)
    z_BTV = readout(target.spec, target.params, x_BTD, target.ctx)
    draft_BT = jnp.where(place_1T < count_B1, jnp.roll(fed_BT, -1, axis=1), -1)
    state = accept(sampler, z_BTV, draft_BT, replace(state, cache=after))
    length_B = state.history.length_B - 1  # what the cache is to hold: the last token is pending
    if width > 1:
        state = replace(state, cache=committed(target, before, after, fed, length_B))
    kept_BT = jnp.where(order_BT < length_B[:, None], order_BT, -1)
    taken_B = (kept_BT >= 0)[:, 1:].sum(1, dtype=jnp.int32)
    held = drafting(state)
    memory = drafter.learn(target, drafter.rewind(held.memory, length_B), Fed(x_BTD, taps_BTE, fed_BT, kept_BT))
    counted = replace(
        held,
        memory=memory,
        passes=held.passes + 1,
        rounds=held.rounds + int(width > 1),
        proposed=held.proposed + count_B1.sum(dtype=jnp.int32),
        accepted=held.accepted + taken_B.sum(dtype=jnp.int32),
        length=held.length if width == 1 else longer(held.length, count_B1[:, 0], taken_B, width - 1),
    )
    return replace(state, drafting=counted)


def longer(length: Array, proposed_B: Array, accepted_B: Array, most: int) -> Array:
    """Drafts of the next round: twice as many if a row took all that it got, else one more than the best row took."""
    all_taken = ((accepted_B == proposed_B) & (proposed_B > 0)).any()
    return jnp.clip(jnp.where(all_taken, 2 * length, accepted_B.max() + 1), 1, most)


def accept(sampler: Sampler, z_BTV: Array, draft_BT: Array, state: State) -> State:
    """Choose a token after each place, for as long as the row is not done and the choice is the draft (-1: none)."""
    width = z_BTV.shape[1]

    def unfinished(carry: tuple[Array, Array, State]) -> Array:
        place, turn_B, _ = carry
        return (place < width) & turn_B.any()

    def body(carry: tuple[Array, Array, State]) -> tuple[Array, Array, State]:
        place, turn_B, state = carry
        z_BV = jax.lax.dynamic_index_in_dim(z_BTV, place, 1, keepdims=False)
        draft_B = jax.lax.dynamic_index_in_dim(draft_BT, place, 1, keepdims=False)
        state = choose(sampler.plan, sampler.values, z_BV, state, turn_B)
        token_B, _ = pending(state.history)
        return place + 1, turn_B & ~state.done_B & (token_B == draft_B), state

    return jax.lax.while_loop(unfinished, body, (jnp.zeros((), jnp.int32), ~state.done_B, state))[2]


def drafting(state: State) -> Drafting:
    """What drafting carries.

    Raises:
        ValueError: the state was made without a drafter.
    """
    if state.drafting is None:
        raise ValueError("speculation: the state has no place for drafts; make the session with draft=...")
    return state.drafting
