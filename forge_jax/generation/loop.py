"""The pure functions of generation: `prefill` reads a prompt, `step` makes one token, `advance` loops over steps.

All positions and limits are data: a program is compiled for a batch, a cache size and a sampler's plan, never for a
length. The last token of a row is pending: chosen, in the history, not yet in the cache.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.cache import Cache, Planned
from forge_jax.decoder import Inputs, hidden, readout
from forge_jax.ops import Context
from forge_jax.params import Tree
from forge_jax.sampling import History, SamplerPlan, SamplerValues, sample, update_history
from forge_jax.spec import ModelSpec


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Record:
    """What was reported of each generated token, by its place in the history: [B, S] and [B, S, plan.logprobs]."""

    logprob_BS: Array
    top_ids_BSN: Array
    top_logprobs_BSN: Array


def new_record(plan: SamplerPlan, batch: int, size: int) -> Record | None:
    """An empty record, if the plan reports log-probabilities."""
    if plan.logprobs is None:
        return None
    shape = (batch, size, plan.logprobs)
    return Record(jnp.zeros((batch, size)), jnp.zeros(shape, jnp.int32), jnp.zeros(shape))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Drafting:
    """What drafting carries (`generation.speculation`), and what it counted so far, scalars over all rows.

    memory: what the drafter remembers. length: drafts of the next round. passes: of the model. rounds: passes that
    verified drafts. proposed, accepted: drafts.
    """

    memory: Any
    length: Array
    passes: Array
    rounds: Array
    proposed: Array
    accepted: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that generation carries from token to token.

    history: prompt and output of each row; its last token is pending. limit_B: the length at which a row ends.
    done_B: rows that have ended; they neither change nor write. nan_B: rows for which no token could be chosen.
    """

    cache: Cache
    history: History
    limit_B: Array
    done_B: Array
    nan_B: Array
    record: Record | None = None
    drafting: Drafting | None = None


def read(
    spec: ModelSpec,
    params: Tree,
    inputs: Inputs,
    cache: Cache | Planned,
    ctx: Context = Context(),
    taps: tuple[int, ...] = (),
) -> tuple[Array, Cache]:
    """`decoder.hidden` with a cache: the stream after the last layer (and before the taps), and the advanced cache.

    Raises:
        ValueError: there is no cache.
    """
    cache = cache.made(spec) if isinstance(cache, Planned) else cache
    x_BTD, new = hidden(spec, params, inputs, cache, ctx, taps=taps)
    if new is None:
        raise ValueError("generation needs a cache")
    return x_BTD, new


def prefill(
    spec: ModelSpec,
    params: Tree,
    cache: Cache | Planned,
    tokens_BT: Array,
    order_BT: Array,
    logits_BV: Array,
    ctx: Context,
) -> tuple[Array, Cache]:
    """Read one piece of the prompts into the cache.

    Args:
        order_BT: the place of each token in its row, -1 for padding, which is at the end.
        logits_BV: what earlier pieces gave; kept for rows that have no token in this one.

    Returns:
        The logits after each row's last token so far, and the cache.
    """
    x_BTD, new = read(spec, params, Inputs(tokens_BT, order_BT), cache, ctx)
    return last_logits(spec, params, x_BTD, order_BT, logits_BV, ctx), new


def last_logits(spec: ModelSpec, params: Tree, x_BTD: Array, order_BT: Array, logits_BV: Array, ctx: Context) -> Array:
    """The logits after the last token of each row of a piece; `logits_BV` for a row that has none in it."""
    count_B = (order_BT >= 0).sum(1)
    last_B1 = jnp.maximum(count_B - 1, 0)[:, None]
    logits = readout(spec, params, jnp.take_along_axis(x_BTD, last_B1[:, :, None], axis=1), ctx)[:, 0]
    return jnp.where((count_B > 0)[:, None], logits, logits_BV)


def pending(history: History) -> tuple[Array, Array]:
    """The last token of every row, and its order."""
    last_B = jnp.maximum(history.length_B - 1, 0)
    return jnp.take_along_axis(history.tokens_BS, last_B[:, None], axis=1)[:, 0], last_B


def choose(
    plan: SamplerPlan, values: SamplerValues, logits_BV: Array, state: State, turn_B: Array | None = None
) -> State:
    """Draw the next token of every row that is not done; it becomes the row's pending token.

    turn_B: rows that are to have a token; None: all.
    """
    token_B, info = sample(plan, values, logits_BV, state.history)
    active_B = ~state.done_B if turn_B is None else ~state.done_B & turn_B
    nan_B = state.nan_B | (active_B & info["nan"])
    place_B = jnp.where(active_B, state.history.length_B, state.history.tokens_BS.shape[1])
    history = update_history(state.history, token_B, active_B)
    stopped_B = (values.stop_ids_BE == token_B[:, None]).any(1)
    done_B = state.done_B | nan_B | active_B & (stopped_B | (history.length_B >= state.limit_B))
    record = state.record
    if record is not None:
        rows = jnp.arange(token_B.shape[0])
        record = Record(
            record.logprob_BS.at[rows, place_B].set(info["logprob"], mode="drop"),
            record.top_ids_BSN.at[rows, place_B].set(info["top_ids"], mode="drop"),
            record.top_logprobs_BSN.at[rows, place_B].set(info["top_logprobs"], mode="drop"),
        )
    return replace(state, history=history, done_B=done_B, nan_B=nan_B, record=record)


def step(spec: ModelSpec, plan: SamplerPlan, params: Tree, values: SamplerValues, state: State, ctx: Context) -> State:
    """Put each row's pending token through the model and choose the next one."""
    token_B, last_B = pending(state.history)
    order_B1 = jnp.where(state.done_B, -1, last_B)[:, None]
    x_B1D, cache = read(spec, params, Inputs(token_B[:, None], order_B1), state.cache, ctx)
    return choose(plan, values, readout(spec, params, x_B1D, ctx)[:, 0], replace(state, cache=cache))


def advance(
    spec: ModelSpec, plan: SamplerPlan, params: Tree, values: SamplerValues, state: State, count: Array, ctx: Context
) -> State:
    """Make up to `count` tokens a row in one loop, which ends early when every row is done."""

    def unfinished(carry: tuple[Array, State]) -> Array:
        made, state = carry
        return (made < count) & ~state.done_B.all()

    def body(carry: tuple[Array, State]) -> tuple[Array, State]:
        made, state = carry
        return made + 1, step(spec, plan, params, values, state, ctx)

    return jax.lax.while_loop(unfinished, body, (jnp.zeros((), jnp.int32), state))[1]
