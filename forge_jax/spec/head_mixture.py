"""Attention whose heads are experts."""

from dataclasses import dataclass

from forge_jax.spec.moe import Router
from forge_jax.spec.ops import Attention


@dataclass(frozen=True)
class HeadMixture:
    """A mixture of attention heads (arXiv:2210.05144): each token asks and answers through the experts that it chose.

    An expert has queries for all heads of `attention` and a way out of its own; keys and values are the same for all.

    Raises:
        ValueError: an option of the attention that its experts do not have.
    """

    attention: Attention
    router: Router

    def __post_init__(self) -> None:
        """Check the attention: plain, a query an expert for every key."""
        a = self.attention
        plain = Attention(
            a.kv_heads, a.kv_heads, a.head_dim, a.scale, a.rope, a.window, a.chunk, a.softcap, o_bias=a.o_bias
        )
        if a != plain:
            raise ValueError(f"mixture of heads: found {a}; expected as many heads as kv heads, and no other options")
