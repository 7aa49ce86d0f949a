"""The parameters of attention to compressed tokens."""

from forge_jax.params.layers import norm_params
from forge_jax.params.tree import Param, Tree
from forge_jax.spec import Compressed, Compression, Norm


def compressed_params(op: Compressed, dim: int) -> Tree:
    """q_a [D, Q], q [Q, N, H], kv [D, H], sinks [N], o_a [N, H, R], o_b [G, R, D], norms, and those of a compression.

    Only what has heads is split over devices.
    """
    n, h = op.heads, op.head_dim
    out: Tree = {
        "q_a": Param((dim, op.rank), ("embed", None)),
        "q_norm": norm_params(op.norm, (op.rank,), (None,)),
        "q": Param((op.rank, n, h), (None, "heads", "head")),
        "kv": Param((dim, h), ("embed", "head")),
        "kv_norm": norm_params(op.norm, (h,), ("head",)),
        "sinks": Param((n,), ("heads",), fill=0.0),
        "o_a": Param((n, h, op.out_rank), ("heads", "head", None), stacked=1),
        "o_b": Param((op.groups, op.out_rank, dim), (None, None, "embed"), inputs=2),
    }
    if op.compression is None:
        return out
    out["compression"] = compression_params(op.compression, op.norm, h, dim)
    if (indexer := op.compression.indexer) is not None:
        out["index"] = compression_params(op.compression, indexer.norm, indexer.dim, dim) | {
            "q": Param((op.rank, indexer.heads, indexer.dim), (None, None, "head")),
            "weight": Param((dim, indexer.heads), ("embed", None)),
        }
    return out


def compression_params(op: Compression, norm: Norm, features: int, dim: int) -> Tree:
    """kv and gate [D, C], bias [E, C] and the norm; C is twice the features where tokens take part twice."""
    wide = features * (2 if op.overlap else 1)
    return {
        "kv": Param((dim, wide), ("embed", None)),
        "gate": Param((dim, wide), ("embed", None)),
        "bias": Param((op.every, wide), (None, None), fill=0.0),
        "norm": norm_params(norm, (features,), (None,)),
    }
