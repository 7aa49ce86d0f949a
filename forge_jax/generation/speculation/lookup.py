"""Drafts from the text itself: what followed the last time that the text ended like this (prompt lookup)."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.generation.loop import State
from forge_jax.generation.speculation.protocol import STATIC, Drafts, Memoryless, Sampler, Target, check_tokens
from forge_jax.params import Tree
from forge_jax.spec import ModelSpec


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lookup(Memoryless):
    """Copy what followed the longest earlier match of the last tokens, the latest of equally long ones.

    Costs no model, so it pays wherever a text repeats its prompt or itself: editing, summaries, code, lists.

    Args:
        tokens: drafted a round.
        shortest, longest: tokens of a match; one that is shorter drafts nothing, longer ones are not told apart.
    """

    tokens: int = field(default=8, metadata=STATIC)
    shortest: int = field(default=3, metadata=STATIC)
    longest: int = field(default=8, metadata=STATIC)

    @property
    def costs(self) -> bool:
        """No."""
        return False

    def check(self, spec: ModelSpec, params: Tree, known_ids: int) -> None:
        """Raise ValueError for sizes that make no sense."""
        check_tokens("Lookup", self.tokens, 31)
        if not 1 <= self.shortest <= self.longest <= 64:
            raise ValueError(f"Lookup: matches of {self.shortest} to {self.longest} tokens; expected 1 <= both <= 64")

    def propose(
        self, target: Target, sampler: Sampler, state: State, memory: Any, most_B: Array
    ) -> tuple[Drafts, State, Any]:
        """Copy. Where the source runs into the end of the text, it goes on with the copy: a period is continued."""
        tokens_BS, length_B = state.history.tokens_BS, state.history.length_B
        match_BS = matches(tokens_BS, length_B, self.longest)
        size = tokens_BS.shape[1]
        place_B = (match_BS * size + jnp.arange(size)[None]).argmax(1)
        found_B = jnp.take_along_axis(match_BS, place_B[:, None], axis=1)[:, 0] >= self.shortest
        period_B1 = jnp.maximum(length_B - place_B, 1)[:, None]
        from_BK = place_B[:, None] + jnp.arange(self.tokens)[None] % period_B1
        drafts_BK = jnp.take_along_axis(tokens_BS, from_BK, axis=1)
        return Drafts(drafts_BK, jnp.where(found_B, most_B, 0)), state, memory


def matches(tokens_BS: Array, length_B: Array, longest: int) -> Array:
    """How many tokens before each place equal those at the end of the row, up to `longest`: [B, S]."""
    batch, size = tokens_BS.shape
    place_1S = jnp.arange(size)[None]
    equal_BS, count_BS = place_1S < length_B[:, None], jnp.zeros((batch, size), jnp.int32)
    for back in range(1, longest + 1):
        last_B1 = jnp.take_along_axis(tokens_BS, jnp.maximum(length_B - back, 0)[:, None], axis=1)
        before_BS = jnp.roll(tokens_BS, back, axis=1)
        equal_BS &= (before_BS == last_B1) & (place_1S >= back)
        count_BS += equal_BS.astype(jnp.int32)
    return count_BS
