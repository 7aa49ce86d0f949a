"""Drafts from a module that was trained beside the model to guess the token after the next (arXiv:2412.19437, 2.2).

For the token t_{i+1} and the model's hidden state h_i of the token before it, after the final norm:

    x_i = join [norm(embed(t_{i+1})); norm(h_i)]        g_i = norm(layer(x)_i)        logits of t_{i+2} = head(g_i)

Further drafts take g_i in the place of h_i. Embedding and head are the model's.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from forge_jax import cache as caches
from forge_jax.cache import Cache
from forge_jax.decoder import Inputs, embed, readout
from forge_jax.generation.loop import State, read
from forge_jax.generation.speculation.keeping import restored
from forge_jax.generation.speculation.protocol import STATIC, Drafts, Fed, Sampler, Target, check_tokens, rollout
from forge_jax.ops import norm
from forge_jax.params import Tree
from forge_jax.spec import ModelSpec
from forge_jax.tensor import contract


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pairs:
    """What the module remembers: the cache of its layer, and the model's hidden state of the last token it read."""

    cache: Cache
    hidden_BD: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MtpHead:
    """Draft with a checkpoint's own module for multi-token prediction: `forge.load(..., mtp=True).mtp`.

    Args:
        spec: of its one layer.
        params: "layers", "final_norm", "embed_norm", "hidden_norm", "join" [2D, D].
        tokens: drafted a round at most; the module is applied again to what it gave.
    """

    spec: ModelSpec = field(metadata=STATIC)
    params: Tree
    tokens: int = field(default=2, metadata=STATIC)

    @property
    def costs(self) -> bool:
        """Yes: a pass of one layer and of the head."""
        return True

    def check(self, spec: ModelSpec, params: Tree, known_ids: int) -> None:
        """Raise ValueError for a module of another model."""
        check_tokens("MtpHead", self.tokens, 31)
        if (self.spec.dim, self.spec.vocab_size) != (spec.dim, spec.vocab_size):
            raise ValueError(
                f"MtpHead: made for a model of width {self.spec.dim} and {self.spec.vocab_size} tokens, "
                f"this one has {spec.dim} and {spec.vocab_size}"
            )

    def memory(self, spec: ModelSpec, batch: int, size: int, dtype: DTypeLike) -> Pairs:
        """No token read."""
        x_BD = jnp.zeros((batch, spec.dim), self.params["join"].dtype)
        return Pairs(caches.init(self.spec, batch, size, slack=64, dtype=dtype), x_BD)

    def rewind(self, memory: Pairs, length_B: Array) -> Pairs:
        """Forget the pairs that end in later tokens.

        The hidden state of the last token may be one of those; the first draft after that is then a bad one.
        """
        return Pairs(caches.rewind(memory.cache, length_B - 1), memory.hidden_BD)

    def learn(self, target: Target, memory: Pairs, fed: Fed) -> Pairs:
        """Read the pairs that new tokens make with the hidden states before them."""
        h_BTD = normed(target, fed.x_BTD)
        before_BTD = jnp.concatenate([memory.hidden_BD[:, None].astype(h_BTD.dtype), h_BTD[:, :-1]], axis=1)
        _, cache = self.through(target, before_BTD, fed.tokens_BT, fed.order_BT, memory.cache)
        count_B = (fed.order_BT >= 0).sum(1)
        last_BD = jnp.take_along_axis(h_BTD, jnp.maximum(count_B - 1, 0)[:, None, None], axis=1)[:, 0]
        held_BD = memory.hidden_BD
        return Pairs(cache, jnp.where((count_B > 0)[:, None], last_BD.astype(held_BD.dtype), held_BD))

    def propose(
        self, target: Target, sampler: Sampler, state: State, memory: Pairs, most_B: Array
    ) -> tuple[Drafts, State, Pairs]:
        """Draft from the pending token on; of these pairs nothing is kept, as their hidden states are guesses."""

        def think(token_B1: Array, order_B1: Array, carry: Pairs) -> tuple[Array, Pairs]:
            before_B1D = carry.hidden_BD[:, None]
            x_B1D, cache = self.through(target, before_B1D, token_B1, order_B1, carry.cache)
            g_B1D = norm(self.final_norm, self.params.get("final_norm", {}), x_B1D)
            own = target.params | {"final_norm": self.params.get("final_norm", {})}
            z_BV = readout(target.spec, own, x_B1D, target.ctx)[:, 0]
            return z_BV, Pairs(cache, g_B1D[:, 0].astype(carry.hidden_BD.dtype))

        drafts, after = rollout(sampler, think, memory, state, most_B, self.tokens)
        return drafts, state, Pairs(restored(self.spec, memory.cache, after.cache), memory.hidden_BD)

    def through(
        self, target: Target, before_BTD: Array, tokens_BT: Array, order_BT: Array, cache: Cache
    ) -> tuple[Array, Cache]:
        """Pairs of hidden states and the tokens after them through the layer; a pair stands where its state does."""
        token_BTD = embed(target.spec, target.params, Inputs(tokens_BT, order_BT), target.ctx)
        parts = [
            norm(self.final_norm, self.params["embed_norm"], token_BTD),
            norm(self.final_norm, self.params["hidden_norm"], before_BTD.astype(token_BTD.dtype)),
        ]
        x_BTD = contract("BTE,ED->BTD", jnp.concatenate(parts, axis=-1), self.params["join"])
        place_BT = jnp.maximum(order_BT - 1, -1)  # the first token of a text has no state before it
        return read(self.spec, self.params, Inputs(tokens_BT, place_BT, embeds_BTD=x_BTD), cache)

    @property
    def final_norm(self) -> Any:
        """The kind of all its norms."""
        return self.spec.final_norm


def normed(target: Target, x_BTD: Array) -> Array:
    """The stream after the model's final norm."""
    spec = target.spec.final_norm
    return x_BTD if spec is None else norm(spec, target.params.get("final_norm", {}), x_BTD)
