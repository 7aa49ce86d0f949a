"""The parameters of mixtures of attention heads."""

from forge_jax.params.layers import attention_params
from forge_jax.params.tree import Param, Tree
from forge_jax.spec import HeadMixture


def head_mixture_params(op: HeadMixture, dim: int) -> Tree:
    """router [D, E], q [E, D, K, H], o [E, K, H, D], and k and v [D, K, H] that all experts share."""
    out, experts, heads = attention_params(op.attention, dim), op.router.experts, ("kv_heads", "head")
    size = (op.attention.kv_heads, op.attention.head_dim)
    out["q"] = Param((experts, dim, *size), (None, "embed", *heads), stacked=1)
    out["o"] = Param((experts, *size, dim), (None, *heads, "embed"), inputs=2, stacked=1)
    out["router"] = Param((dim, experts), ("embed", None))
    return out
