"""What a drafter is, and how one that is a model drafts token after token."""

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from forge_jax.generation.loop import State, pending
from forge_jax.ops import Context
from forge_jax.params import Tree
from forge_jax.sampling import SamplerPlan, SamplerValues, sample, update_history
from forge_jax.spec import ModelSpec

STATIC = MappingProxyType({"static": True})
"""Marks the fields of a drafter that programs are compiled for."""


@dataclass(frozen=True)
class Target:
    """The model that drafts are for."""

    spec: ModelSpec
    params: Tree
    ctx: Context


@dataclass(frozen=True)
class Sampler:
    """How its tokens are chosen."""

    plan: SamplerPlan
    values: SamplerValues


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Drafts:
    """What may come after each row's pending token: the first count_B of tokens_BK."""

    tokens_BK: Array
    count_B: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fed:
    """What a pass put through the target: hidden states, tokens, and orders, -1 for padding and for rejected drafts.

    taps_BTE: the streams before the layers that the drafter asked for, one behind another along the features.
    """

    x_BTD: Array
    taps_BTE: Array
    tokens_BT: Array
    order_BT: Array


class Drafter(Protocol):
    """Proposes tokens. A pytree: what is static about it is in its structure, its parameters are its leaves.

    Whatever it proposes, the text stays the same; only the speed depends on it. Its memory is a pytree of arrays whose
    first axis is the batch, and of caches.
    """

    @property
    def tokens(self) -> int:
        """How many tokens it drafts at most; static."""
        ...

    @property
    def costs(self) -> bool:
        """Whether every draft takes time: then no more are made than are likely to be accepted. Static."""
        ...

    @property
    def taps(self) -> tuple[int, ...]:
        """The layers, in rising order, of whose entering streams it learns; static."""
        ...

    def check(self, spec: ModelSpec, params: Tree, known_ids: int) -> None:
        """Raise ValueError where it cannot draft for a model, of whose vocabulary the first `known_ids` are used."""
        ...

    def memory(self, spec: ModelSpec, batch: int, size: int, dtype: DTypeLike) -> Any:
        """An empty memory for `batch` texts of up to `size` tokens."""
        ...

    def learn(self, target: Target, memory: Any, fed: Fed) -> Any:
        """Remember what the target has read or accepted; the rows of a call go on where those of the last one ended."""
        ...

    def propose(
        self, target: Target, sampler: Sampler, state: State, memory: Any, most_B: Array
    ) -> tuple[Drafts, State, Any]:
        """Draft up to most_B tokens for every row. The state is handed on; slots beyond its tokens may be written."""
        ...

    def rewind(self, memory: Any, length_B: Array) -> Any:
        """Forget every token whose order is not below `length_B`."""
        ...


class Untapped:
    """A drafter that learns nothing from within the layers."""

    @property
    def taps(self) -> tuple[int, ...]:
        """None."""
        return ()


class Memoryless(Untapped):
    """What a drafter does that looks at nothing but the state."""

    def memory(self, spec: ModelSpec, batch: int, size: int, dtype: DTypeLike) -> Any:
        """Nothing."""
        return None

    def learn(self, target: Target, memory: Any, fed: Fed) -> Any:
        """Nothing."""
        return memory

    def rewind(self, memory: Any, length_B: Array) -> Any:
        """Nothing."""
        return memory


Think = Callable[[Array, Array, Any], tuple[Array, Any]]
"""(tokens [B, 1], order [B, 1], carry) -> (logits [B, V], carry): one step of whatever drafts."""


def rollout(sampler: Sampler, think: Think, carry: Any, state: State, most_B: Array, tokens: int) -> tuple[Drafts, Any]:
    """Draft token after token: each is chosen as the target's would be, from the logits that `think` gives.

    Rows get most_B tokens, none of them more than `tokens`. Sampler, history and noise are those of the target.
    """

    def unfinished(loop: Any) -> Array:
        return loop[0] < most_B.max()

    def body(loop: Any) -> Any:
        k, drafts_BK, history, carry = loop
        turn_B = k < most_B
        token_B, last_B = pending(history)
        z_BV, carry = think(token_B[:, None], jnp.where(turn_B, last_B, -1)[:, None], carry)
        token_B, _ = sample(sampler.plan, sampler.values, z_BV, history)
        drafts_BK = jax.lax.dynamic_update_index_in_dim(drafts_BK, token_B, k, 1)
        return k + 1, drafts_BK, update_history(history, token_B, turn_B), carry

    empty = jnp.zeros((most_B.shape[0], tokens), jnp.int32)
    start = (jnp.zeros((), jnp.int32), empty, state.history, carry)
    _, drafts_BK, _, carry = jax.lax.while_loop(unfinished, body, start)
    return Drafts(drafts_BK, most_B), carry


def check_tokens(drafter: str, tokens: int, most: int) -> None:
    """Raise ValueError unless 1 <= tokens <= most."""
    if not 1 <= tokens <= most:
        raise ValueError(f"{drafter}: tokens = {tokens}; expected 1 to {most}, the tokens drafted a round")
