"""Drafts from modules that were trained beside the model to guess tokens after the next (arXiv:2412.19437, 2.2).

For the token t_{i+k} and what the module before made of the one before it, h^{k-1}_i (h^0: the model's own hidden state
after the final norm), the k-th module is

    x_i = join [norm(embed(t_{i+k})); norm(h^{k-1}_i)]   h^k_i = norm(layer(x)_i)   logits of t_{i+k+1} = head(h^k_i)

Embedding and head are the model's. Where there is one module, further drafts take its h^1 in the place of h^0.
"""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from forge_jax.cache import Cache
from forge_jax.decoder import Inputs, embed, readout
from forge_jax.generation.loop import read
from forge_jax.generation.speculation.pairs import PairHead
from forge_jax.generation.speculation.protocol import STATIC, Fed, Target, Untapped, check_tokens
from forge_jax.ops import norm
from forge_jax.params import Tree
from forge_jax.spec import ModelSpec
from forge_jax.tensor import contract


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MtpHead(Untapped, PairHead):
    """Draft with a checkpoint's own modules for multi-token prediction: `forge.load(..., mtp=True).mtp`.

    Args:
        spec: of the one layer of a module.
        params: of each module: "layers", "final_norm", "embed_norm", "hidden_norm", "join" [2D, D].
        tokens: drafted a round at most: no more than there are modules, unless there is one, which is applied again
            to what it gave.
    """

    spec: ModelSpec = field(metadata=STATIC)
    params: tuple[Tree, ...]
    tokens: int = field(default=2, metadata=STATIC)

    @property
    def modules(self) -> int:
        """How many there are."""
        return len(self.params)

    @property
    def dtype(self) -> DTypeLike:
        """That of the parameters."""
        return self.params[0]["join"].dtype

    def check(self, spec: ModelSpec, params: Tree, known_ids: int) -> None:
        """Raise ValueError for a module of another model."""
        check_tokens("MtpHead", self.tokens, 31 if self.modules == 1 else self.modules)
        if (self.spec.dim, self.spec.vocab_size) != (spec.dim, spec.vocab_size):
            raise ValueError(
                f"MtpHead: made for a model of width {self.spec.dim} and {self.spec.vocab_size} tokens, "
                f"this one has {spec.dim} and {spec.vocab_size}"
            )

    def seen(self, target: Target, fed: Fed) -> Array:
        """The stream after the model's final norm."""
        kind = target.spec.final_norm
        return fed.x_BTD if kind is None else norm(kind, target.params.get("final_norm", {}), fed.x_BTD)

    def through(
        self, module: int, target: Target, before_BTD: Array, tokens_BT: Array, place_BT: Array, cache: Cache
    ) -> tuple[Array, Cache]:
        """Pairs of hidden states and the tokens after them through the layer of a module, and its norm."""
        own = self.params[module]
        token_BTD = embed(target.spec, target.params, Inputs(tokens_BT, place_BT), target.ctx)
        parts = [
            norm(self.kind, own["embed_norm"], token_BTD),
            norm(self.kind, own["hidden_norm"], before_BTD.astype(token_BTD.dtype)),
        ]
        x_BTD = contract("BTE,ED->BTD", jnp.concatenate(parts, axis=-1), own["join"])
        x_BTD, cache = read(self.spec, own, Inputs(tokens_BT, place_BT, embeds_BTD=x_BTD), cache)
        return norm(self.kind, own.get("final_norm", {}), x_BTD), cache

    def logits(self, target: Target, hidden_BTD: Array) -> Array:
        """What the model's head says."""
        return readout(replace(target.spec, final_norm=None), target.params, hidden_BTD, target.ctx)
