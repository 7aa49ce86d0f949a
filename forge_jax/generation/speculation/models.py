"""Drafts from a model: a smaller one of the same vocabulary, or the first layers of the target itself."""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from forge_jax import cache as caches
from forge_jax import stacking
from forge_jax.cache import Cache
from forge_jax.decoder import Inputs, readout
from forge_jax.generation.loop import State, pending, read
from forge_jax.generation.speculation.keeping import emptied, restored
from forge_jax.generation.speculation.protocol import (
    STATIC,
    Drafts,
    Fed,
    Memoryless,
    Sampler,
    Target,
    Untapped,
    check_tokens,
    rollout,
)
from forge_jax.params import Tree
from forge_jax.spec import ModelSpec

CATCH_UP = 64  # tokens that a draft model reads at once of a text that it has not read


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Held:
    """What a draft model remembers: its cache, and how many tokens of each row are in it."""

    cache: Cache
    length_B: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DraftModel(Untapped):
    """Draft with another, smaller model that has the same tokens.

    It reads what it has not read yet at the beginning of a round, prompts too, and draws with the target's sampler.

    Args:
        spec, params: the model.
        tokens: drafted a round at most.
    """

    spec: ModelSpec = field(metadata=STATIC)
    params: Tree
    tokens: int = field(default=4, metadata=STATIC)

    @property
    def costs(self) -> bool:
        """Yes: a pass of the drafting layers."""
        return True

    def check(self, spec: ModelSpec, params: Tree, known_ids: int) -> None:
        """Raise ValueError for another vocabulary or a shorter context."""
        check_tokens("DraftModel", self.tokens, 31)
        if self.spec.logits != spec.logits and min(self.spec.logits, self.spec.vocab_size) < known_ids:
            raise ValueError(
                f"DraftModel: it knows {self.spec.logits} tokens, the model {spec.logits}; "
                "a draft model must have the same vocabulary as the model that it drafts for"
            )
        if self.spec.max_seq_len < spec.max_seq_len:
            raise ValueError(
                f"DraftModel: its context is {self.spec.max_seq_len} tokens, the model's {spec.max_seq_len}; load it "
                f"with max_seq_len={spec.max_seq_len}, or the model with max_seq_len={self.spec.max_seq_len}"
            )

    def memory(self, spec: ModelSpec, batch: int, size: int, dtype: DTypeLike) -> Held:
        """An empty cache."""
        cache = caches.init(self.spec, batch, size, slack=CATCH_UP, dtype=dtype)
        cache = stacking.stack_cache(self.spec, cache) if stacking.stacked(self.params) else cache
        return Held(cache, jnp.zeros(batch, jnp.int32))

    def learn(self, target: Target, memory: Held, fed: Fed) -> Held:
        """Nothing: it reads the history by itself."""
        return memory

    def rewind(self, memory: Held, length_B: Array) -> Held:
        """Forget. Running states cannot: a row that would have to is read again from its beginning."""
        over_B = memory.length_B > length_B
        if caches.recurrent(self.spec):
            return Held(emptied(self.spec, memory.cache, over_B), jnp.where(over_B, 0, memory.length_B))
        return Held(caches.rewind(memory.cache, length_B), jnp.where(over_B, length_B, memory.length_B))

    def propose(
        self, target: Target, sampler: Sampler, state: State, memory: Held, most_B: Array
    ) -> tuple[Drafts, State, Held]:
        """Read what is new, then draft from the pending token on."""
        _, last_B = pending(state.history)
        asked_B = most_B > 0
        memory = self.catch_up(memory, state.history.tokens_BS, jnp.where(asked_B, last_B, 0))

        def think(token_B1: Array, order_B1: Array, cache: Cache) -> tuple[Array, Cache]:
            x_B1D, cache = self.through(token_B1, order_B1, cache)
            return fitted(readout(self.spec, self.params, x_B1D)[:, 0], target.spec.logits), cache

        drafts, after = rollout(sampler, think, memory.cache, state, most_B, self.tokens)
        if caches.recurrent(self.spec):
            return drafts, state, replace(memory, cache=restored(self.spec, memory.cache, after))
        return drafts, state, Held(after, jnp.where(asked_B, last_B + most_B, memory.length_B))

    def through(self, tokens_BT: Array, order_BT: Array, cache: Cache) -> tuple[Array, Cache]:
        """Tokens through the model."""
        known_BT = jnp.minimum(tokens_BT, self.spec.vocab_size - 1)
        return read(self.spec, self.params, Inputs(known_BT, order_BT), cache)

    def catch_up(self, memory: Held, tokens_BS: Array, until_B: Array) -> Held:
        """Read the tokens of every row whose order is below until_B."""
        for width in (CATCH_UP, self.tokens + 1):  # a text by large pieces; what a round accepted by one small

            def behind(memory: Held, width: int = width) -> Array:
                return (until_B - memory.length_B).max() > (self.tokens + 1 if width == CATCH_UP else 0)

            def read(memory: Held, width: int = width) -> Held:
                order_BT = memory.length_B[:, None] + jnp.arange(width)[None]
                tokens_BT = jnp.take_along_axis(tokens_BS, jnp.minimum(order_BT, tokens_BS.shape[1] - 1), axis=1)
                order_BT = jnp.where(order_BT < until_B[:, None], order_BT, -1)
                _, cache = self.through(tokens_BT, order_BT, memory.cache)
                return Held(cache, memory.length_B + (order_BT >= 0).sum(1, dtype=jnp.int32))

            memory = jax.lax.while_loop(behind, read, memory)
        return memory


def fitted(z_BV: Array, size: int) -> Array:
    """Logits of a vocabulary of `size` ids: padding that only one of two models has is cut, or can never be drawn."""
    missing = size - z_BV.shape[1]
    return z_BV[:, :size] if missing <= 0 else jnp.pad(z_BV, ((0, 0), (0, missing)), constant_values=-jnp.inf)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EarlyExit(Memoryless):
    """Draft with the first layers of the target, its final norm and its head. Their cache is the target's own.

    Drafts are written into slots beyond the text, where the target writes the same tokens when it verifies them.

    Args:
        layers: how many.
        tokens: drafted a round at most.
    """

    layers: int = field(metadata=STATIC)
    tokens: int = field(default=4, metadata=STATIC)

    @property
    def costs(self) -> bool:
        """Yes: a pass of the drafting layers."""
        return True

    def check(self, spec: ModelSpec, params: Tree, known_ids: int) -> None:
        """Raise ValueError for a number of layers that the model does not have, or layers that lie stacked."""
        check_tokens("EarlyExit", self.tokens, 31)
        if not 1 <= self.layers < len(spec.layers):
            raise ValueError(f"EarlyExit: layers = {self.layers}; expected 1 to {len(spec.layers) - 1} of this model")
        if stacking.stacked(params):
            raise ValueError("EarlyExit: the first of stacked layers cannot be run alone; unstack the parameters first")

    def propose(
        self, target: Target, sampler: Sampler, state: State, memory: Any, most_B: Array
    ) -> tuple[Drafts, State, Any]:
        """Draft from the pending token on."""
        spec = replace(target.spec, layers=target.spec.layers[: self.layers])
        before = Cache(state.cache.places, state.cache.layers[: self.layers])

        def think(token_B1: Array, order_B1: Array, cache: Cache) -> tuple[Array, Cache]:
            x_B1D, cache = read(spec, target.params, Inputs(token_B1, order_B1), cache, target.ctx)
            return readout(spec, target.params, x_B1D, target.ctx)[:, 0], cache

        drafts, after = rollout(sampler, think, before, state, most_B, self.tokens)
        first = restored(spec, before, after).layers
        layers = (*first, *state.cache.layers[self.layers :])
        return drafts, replace(state, cache=replace(state.cache, layers=layers)), memory
