"""The parameters of embeddings of n-grams."""

from forge_jax.params.layers import norm_params
from forge_jax.params.tree import Param, Tree
from forge_jax.spec import NgramInput


def ngram_params(op: NgramInput, dim: int) -> Tree:
    """table [P, R, H], key [E, S, D], value [E, D], conv [S, D, K], norms of key, query and convolution [S, D]."""
    streams, axes = (op.streams, dim), (None, "embed")
    shape = (op.parts, op.rows // op.parts, op.dim // len(op.sizes))
    return {
        "table": Param(shape, (None, None, None), inputs=0),
        "key": Param((op.dim, *streams), (None, *axes)),
        "value": Param((op.dim, dim), (None, "embed")),
        "conv": Param((*streams, op.taps), (*axes, None), stacked=2),
        **{f"{name}_norm": norm_params(op.norm, streams, axes) for name in ("key", "query", "conv")},
    }
