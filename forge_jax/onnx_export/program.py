"""A decoder as one function of token ids, a mask and what was remembered, traced with sizes left open.

Sizes are symbolic (`jax.export`), so one trace is good for any batch, any number of new tokens and any past. Where
code chooses by a size, the bounds below make it choose what is right for every size, which is how it treats large ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, export
from jax.extend.core import ClosedJaxpr

from forge_jax import kernels
from forge_jax.cache import Cache, Places, Slab, keep, memories, place_key
from forge_jax.decoder import Inputs, forward
from forge_jax.params import Tree
from forge_jax.spec import ModelSpec

NAMES = ("batch_size", "sequence_length", "past_sequence_length")
LARGE = ("batch_size >= 1024", "sequence_length >= 1048576", "past_sequence_length >= 1073741824")
INPUTS = ("input_ids", "attention_mask", "position_ids")


@dataclass(frozen=True)
class State:
    """One array that a layer remembers: the graph's input of it, and its output. Shapes may be symbolic."""

    layer: int
    branch: str
    name: str
    slab: Slab
    key: str | None
    """Which places its slots are of; None: it has none of its own."""
    past: str
    present: str
    before: jax.ShapeDtypeStruct
    after: jax.ShapeDtypeStruct


@dataclass(frozen=True)
class Program:
    """The traced function, of parameters, ids [B, T], mask [B, P + T], positions [B, T] and states.

    `signature` has the shape and dtype of each input but the parameters, and of each output, by its name.
    """

    jaxpr: ClosedJaxpr
    states: tuple[State, ...]
    signature: dict[str, jax.ShapeDtypeStruct]


def states(spec: ModelSpec, batch: Any, tokens: Any, past: Any, dtype: Any) -> Iterator[State]:
    """Everything that the layers remember, slots in `dtype`.

    Keys and values have the names that they have elsewhere, where a layer has only one pair of them.
    """
    found = list(memories(spec))
    for layer, branch, op, slabs in found:
        paired = [i for i, _, _, other in found if i == layer and {"k", "v"} <= other.keys()]
        for name, slab in slabs.items():
            names = f"past_states.{layer}.{branch}.{name}", f"present_states.{layer}.{branch}.{name}"
            if paired == [layer] and name in ("k", "v") and slab.slots:
                long = {"k": "key", "v": "value"}[name]
                names = f"past_key_values.{layer}.{long}", f"present.{layer}.{long}"
            key = place_key(op) if slab.slots and slab.every is None else None
            before, after = (held(slab, batch, length, dtype) for length in (past, past + tokens))
            yield State(layer, branch, name, slab, key, *names, before, after)


def held(slab: Slab, batch: Any, length: Any, dtype: Any) -> jax.ShapeDtypeStruct:
    """What a slab is after `length` tokens."""
    if not slab.slots:
        return jax.ShapeDtypeStruct((batch, *slab.shape), jnp.float32)
    return jax.ShapeDtypeStruct((batch, *slab.shape[:-1], -(-length // (slab.every or 1)), slab.shape[-1]), dtype)


def trace(spec: ModelSpec, params: Tree, dtype: Any) -> Program:
    """Trace `forward` with a cache of just the tokens there are.

    In the cache a token of order p is in slot p, whatever padding stood before it; a row's slots past its last token
    hold nothing. The mask says which order a token has: how many tokens of its row came before.

    Args:
        params: the shapes and dtypes of the parameters, a `jax.ShapeDtypeStruct` for each leaf.
        dtype: of the slots. Running states are float32.
    """
    batch, tokens, past = export.symbolic_shape(", ".join(NAMES), constraints=LARGE)
    memory = tuple(states(spec, batch, tokens, past, dtype))
    whole = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)  # noqa: E731
    inputs = dict(zip(INPUTS, (whole(batch, tokens), whole(batch, past + tokens), whole(batch, tokens)), strict=True))

    def run(params: Tree, ids_BT: Array, mask_BS: Array, position_BT: Array, before: tuple[Array, ...]):
        slot_1S = jnp.arange(past + tokens, dtype=jnp.int32)[None]
        count_B1 = mask_BS[:, :past].sum(1, keepdims=True, dtype=jnp.int32)
        new_BT = mask_BS[:, past:]
        order_BT = jnp.where(new_BT > 0, count_B1 + jnp.cumsum(new_BT, 1, dtype=jnp.int32) - 1, -1)
        order_BS = jnp.where(slot_1S < count_B1, slot_1S, -1)
        places = {state.key: Places(order_BS, jnp.zeros_like(order_BS)) for state in memory if state.key is not None}
        layers: tuple[dict[str, dict[str, Any]], ...] = tuple({} for _ in spec.layers)
        for state, x in zip(memory, before, strict=True):
            more = [(0, new - old) for new, old in zip(state.after.shape, state.before.shape, strict=True)]
            whole = jnp.pad(x, more)
            layers[state.layer].setdefault(state.branch, {})[state.name] = keep(whole) if state.slab.slots else whole
        call = Inputs(ids_BT, order_BT, coords_BTC=position_BT[..., None])
        logits_BTV, cache = forward(spec, params, call, Cache(places, layers))
        after = () if cache is None else cache.layers
        held = [after[state.layer][state.branch][state.name] for state in memory]
        values = [x.parts["values"] if state.slab.slots else x for state, x in zip(memory, held, strict=True)]
        return logits_BTV, tuple(values)

    before = tuple(state.before for state in memory)
    with kernels.everywhere(True):
        jaxpr, (logits, _) = jax.make_jaxpr(run, return_shape=True)(params, *inputs.values(), before)
    ends = {state.past: state.before for state in memory} | {state.present: state.after for state in memory}
    return Program(jaxpr, memory, inputs | ends | {"logits": logits})
