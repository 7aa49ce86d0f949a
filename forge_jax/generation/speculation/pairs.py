"""What heads have in common that draft from pairs: a token, and the model's hidden state of the token before it.

A head is one module or several. Each reads the pair of a token and of what the one before it made of the token before,
the first one the pair with the model's own state; so the k-th module guesses the k-th token after the pending one. A
single module goes on with what it gave itself.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from forge_jax import cache as caches
from forge_jax.cache import Cache
from forge_jax.generation.loop import State
from forge_jax.generation.speculation.keeping import restored
from forge_jax.generation.speculation.protocol import Drafts, Fed, Sampler, Target, rollout
from forge_jax.spec import ModelSpec, Norm


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pairs:
    """What a module remembers: the cache of its layer, and the hidden state before the next token it will read."""

    cache: Cache
    hidden_BD: Array


Memory = tuple[Pairs, ...]


class PairHead(ABC):
    """Drafts from pairs. A head says what it sees of the model, what a module makes of pairs, and what that means."""

    spec: ModelSpec
    tokens: int

    @property
    def costs(self) -> bool:
        """Yes: a pass of one layer a module, and of the head."""
        return True

    @property
    def kind(self) -> Norm:
        """That of all its norms."""
        return self.spec.final_norm or Norm()

    @property
    @abstractmethod
    def modules(self) -> int:
        """How many there are."""

    @property
    @abstractmethod
    def dtype(self) -> DTypeLike:
        """Of the hidden states that are kept."""

    @abstractmethod
    def seen(self, target: Target, fed: Fed) -> Array:
        """The hidden states of what the model read, as the first module takes them: [B, T, D]."""

    @abstractmethod
    def through(
        self, module: int, target: Target, before_BTD: Array, tokens_BT: Array, place_BT: Array, cache: Cache
    ) -> tuple[Array, Cache]:
        """Pairs of hidden states and the tokens after them through a module: what it hands on [B, T, D], its cache."""

    @abstractmethod
    def logits(self, target: Target, hidden_BTD: Array) -> Array:
        """What a module handed on, as float32 logits over the model's ids [B, T, V]."""

    def memory(self, spec: ModelSpec, batch: int, size: int, dtype: DTypeLike) -> Memory:
        """No token read."""

        def empty() -> Pairs:
            cache = caches.init(self.spec, batch, size, slack=64, dtype=dtype)
            return Pairs(cache, jnp.zeros((batch, self.spec.dim), self.dtype))

        return tuple(empty() for _ in range(self.modules))

    def rewind(self, memory: Memory, length_B: Array) -> Memory:
        """Forget the pairs that end in later tokens.

        The hidden state of the last token may be one of those; the first draft after that is then a bad one.
        """
        return tuple(
            Pairs(caches.rewind(pairs.cache, length_B - 1 - k), pairs.hidden_BD) for k, pairs in enumerate(memory)
        )

    def learn(self, target: Target, memory: Memory, fed: Fed) -> Memory:
        """Read the pairs that new tokens make with the hidden states before them."""
        h_BTD, count_B, held = self.seen(target, fed), (fed.order_BT >= 0).sum(1), []
        for k, pairs in enumerate(memory):
            before_BTD = jnp.concatenate([pairs.hidden_BD[:, None].astype(h_BTD.dtype), h_BTD[:, :-1]], axis=1)
            last_BD = jnp.take_along_axis(h_BTD, jnp.maximum(count_B - 1, 0)[:, None, None], axis=1)[:, 0]
            last_BD = jnp.where((count_B > 0)[:, None], last_BD.astype(pairs.hidden_BD.dtype), pairs.hidden_BD)
            h_BTD, cache = self.through(k, target, before_BTD, fed.tokens_BT, placed(fed.order_BT, k), pairs.cache)
            held.append(Pairs(cache, last_BD))
        return tuple(held)

    def propose(
        self, target: Target, sampler: Sampler, state: State, memory: Memory, most_B: Array
    ) -> tuple[Drafts, State, Memory]:
        """Draft from the pending token on; of these pairs nothing is kept, as their hidden states are guesses."""

        def think(token_B1: Array, order_B1: Array, carry: tuple[Array, Memory]) -> tuple[Array, tuple[Array, Memory]]:
            step, memory = carry
            made = [
                self.through(k, target, pairs.hidden_BD[:, None], token_B1, placed(order_B1, k), pairs.cache)
                for k, pairs in enumerate(memory)
            ]
            g_KB1D = jnp.stack([g_B1D for g_B1D, _ in made])
            z_BV = self.logits(target, jax.lax.dynamic_index_in_dim(g_KB1D, step, 0, keepdims=False))[:, 0]
            before_KBD = jnp.roll(g_KB1D, 1, axis=0)[:, :, 0].astype(memory[0].hidden_BD.dtype)
            return z_BV, (step + 1, tuple(Pairs(cache, before_KBD[k]) for k, (_, cache) in enumerate(made)))

        start = (jnp.zeros((), jnp.int32), memory)
        drafts, (_, after) = rollout(sampler, think, start, state, most_B, self.tokens)
        kept = (restored(self.spec, old.cache, new.cache) for old, new in zip(memory, after, strict=True))
        return drafts, state, tuple(Pairs(cache, old.hidden_BD) for cache, old in zip(kept, memory, strict=True))


def placed(order_BT: Array, module: int) -> Array:
    """Where the pair of a token stands: at the state of the model that it goes back to; -1 where there is none."""
    return jnp.maximum(order_BT - 1 - module, -1)
