"""Drafts from an EAGLE-3 head (arXiv:2503.01840): one layer that sees the model from within.

For the token t_{i+1}, and the streams l_i, m_i, h_i of the token before it, low, in the middle and high in the model:

    g_i = mix [l_i; m_i; h_i]       a_i = g_i + attention([norm(embed(t_{i+1})); norm(g_i)])
    x_i = a_i + mlp(norm(a_i))      logits of t_{i+2} = head(norm(x_i))

Further drafts take x_i in the place of g_i. The head knows a part of the model's ids.
"""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from forge_jax.cache import Cache
from forge_jax.decoder import Inputs, added, entered, lookup, pre
from forge_jax.generation.speculation.pairs import PairHead
from forge_jax.generation.speculation.protocol import STATIC, Fed, Target, check_tokens
from forge_jax.ops import Context, norm
from forge_jax.params import Tree
from forge_jax.spec import ModelSpec
from forge_jax.tensor import contract

ALONE = Context()  # the head is whole on every device


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EagleHead(PairHead):
    """Draft with an EAGLE-3 head: `forge.load_drafter(directory, model)`.

    Args:
        spec: of its one layer, an attention and a feed-forward branch, and of the model's vocabulary.
        params: "layers", whose attention takes 2D features, "embed_norm", "hidden_norm", "final_norm", "mix" [K E, D]
            for K taps of width E, "head" [D, N] and "ids" [N] for the N ids that it knows; "embed" [V, D] where it is
            not the model's; "mix_norm" [K E] or [K, E] where taps are normalised, together or each by itself.
        taps: before which layers of the model the streams are taken.
        tokens: drafted a round at most.
        normed_residual: the layer adds to norm(g), not to g.
        normed_output: further drafts take norm(x) in the place of x.
    """

    spec: ModelSpec = field(metadata=STATIC)
    params: Tree
    taps: tuple[int, ...] = field(metadata=STATIC)
    tokens: int = field(default=4, metadata=STATIC)
    normed_residual: bool = field(default=False, metadata=STATIC)
    normed_output: bool = field(default=False, metadata=STATIC)

    @property
    def modules(self) -> int:
        """One."""
        return 1

    @property
    def dtype(self) -> DTypeLike:
        """That of the parameters."""
        return self.params["mix"].dtype

    def check(self, spec: ModelSpec, params: Tree, known_ids: int) -> None:
        """Raise ValueError for a head of another model."""
        check_tokens("EagleHead", self.tokens, 31)
        depth, wide = len(spec.layers), self.params["mix"].shape[0]
        if spec.streams is not None:
            raise ValueError("EagleHead: the model has several streams in its layers; such a head reads one")
        if list(self.taps) != sorted({*self.taps} & {*range(depth)}):
            raise ValueError(
                f"EagleHead: it looks at the streams before the layers {list(self.taps)}; expected rising numbers "
                f"from 0 to {depth - 1}, the layers of this model"
            )
        if wide != len(self.taps) * spec.dim:
            raise ValueError(
                f"EagleHead: made for {len(self.taps)} streams of width {wide / len(self.taps):g}, this model's are "
                f"{spec.dim} wide; it belongs to another model"
            )
        if self.spec.vocab_size not in (spec.vocab_size, spec.logits):
            raise ValueError(
                f"EagleHead: made for a vocabulary of {self.spec.vocab_size} tokens, this model has {spec.vocab_size}; "
                "it belongs to another model"
            )
        if "embed" not in self.params and (spec.embed_dim or spec.dim) != self.spec.dim:
            raise ValueError(
                f"EagleHead: it has no embedding of its own, and the model's is {spec.embed_dim or spec.dim} wide, "
                f"not {self.spec.dim} as the head is"
            )

    def seen(self, target: Target, fed: Fed) -> Array:
        """The tapped streams, mixed."""
        taps_BTE, p = fed.taps_BTE.astype(self.dtype), self.params
        if (scale := p.get("mix_norm")) is not None:  # over all of them, or over each
            parts = taps_BTE.reshape(*taps_BTE.shape[:2], -1, scale.shape[-1])
            normed = [norm(self.kind, {"scale": s}, parts[:, :, i]) for i, s in enumerate(jnp.atleast_2d(scale))]
            taps_BTE = jnp.concatenate(normed, axis=-1)
        return contract("BTE,ED->BTD", taps_BTE, p["mix"])

    def through(
        self, module: int, target: Target, before_BTD: Array, tokens_BT: Array, place_BT: Array, cache: Cache
    ) -> tuple[Array, Cache]:
        """Pairs of hidden states and the tokens after them through the layer."""
        p, (attention, mlp), layer = self.params, self.spec.layers[0].branches, self.params["layers"]["0"]
        g_BTD = before_BTD.astype(self.dtype)
        normed_BTD = norm(self.kind, p["hidden_norm"], g_BTD)
        pair_BTE = jnp.concatenate([norm(self.kind, p["embed_norm"], self.embedded(target, tokens_BT)), normed_BTD], -1)
        _, call = entered(self.spec, p, Inputs(tokens_BT, place_BT, embeds_BTD=pair_BTE), cache, ALONE)
        memory = dict(cache.layers[0])
        x_BTD = normed_BTD if self.normed_residual else g_BTD
        x_BTD = x_BTD + added(attention, layer, pair_BTE, memory, call, ALONE)
        x_BTD = x_BTD + added(mlp, layer, pre(mlp, layer, x_BTD, call), memory, call, ALONE)
        places = {key: slot.after for key, slot in call.slots.items()}
        x_BTD = norm(self.kind, p["final_norm"], x_BTD) if self.normed_output else x_BTD
        return x_BTD, replace(cache, places=places, layers=(memory,))

    def embedded(self, target: Target, tokens_BT: Array) -> Array:
        """The embedding of tokens, the head's own or the model's, as it is stored."""
        own = self.params.get("embed")
        table, ctx = (target.params["embed"], target.ctx) if own is None else (own, ALONE)
        return lookup(table, tokens_BT, ctx).astype(self.dtype)

    def logits(self, target: Target, hidden_BTD: Array) -> Array:
        """Over the model's ids; those that the head does not know get -inf."""
        x_BTD = hidden_BTD if self.normed_output else norm(self.kind, self.params["final_norm"], hidden_BTD)
        z_BTN = contract("BTD,DN->BTN", x_BTD, self.params["head"]).astype(jnp.float32)
        none_BTV = jnp.full((*z_BTN.shape[:2], target.spec.logits), -jnp.inf)
        return none_BTV.at[:, :, self.params["ids"]].set(z_BTN, mode="drop")
