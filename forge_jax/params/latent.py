"""The parameters of latent attention."""

from forge_jax.params.layers import gate_params, norm_params
from forge_jax.params.tree import Param, Tree
from forge_jax.spec import Indexer, Latent


def latent_params(op: Latent, dim: int) -> Tree:
    """kv_a [D, R + P] into the latent and the shared key, k [R, N, H] and v [R, N, V] out of it, o [N, V, D].

    Queries: q_a [D, Q] and q [Q, N, H + P], or q [D, N, H + P] alone. Where they read the bare latent too, they and the
    gate have 2Q inputs. Only what has heads is split over devices.
    """
    n, entry, source = op.heads, op.rank + op.rope_dim, op.q_rank or dim
    read = 2 * source if op.q_raw else source
    out: Tree = {}
    if op.q_rank is not None:
        out["q_a"] = Param((dim, op.q_rank), ("embed", None))
        out["q_norm"] = norm_params(op.norm, (op.q_rank,), (None,))
    out["q"] = Param((read, n, op.nope_dim + op.rope_dim), ("embed", "heads", "head"))
    out["kv_a"] = Param((dim, entry), ("embed", None))
    out["kv_norm"] = norm_params(op.norm, (op.rank,), (None,))
    if op.shared_norm is not None:
        out["shared_norm"] = norm_params(op.shared_norm, (op.rope_dim,), (None,))
    out["k"] = Param((op.rank, n, op.nope_dim), (None, "heads", "head"))
    out["v"] = Param((op.rank, n, op.value_dim), (None, "heads", "head"))
    out["o"] = Param((n, op.value_dim, dim), ("heads", "head", "embed"), inputs=2)
    if op.bias:
        if op.q_rank is not None:
            out["q_a_bias"] = Param((op.q_rank,), (None,), fill=0.0)
        out["kv_a_bias"] = Param((entry,), (None,), fill=0.0)
        out["o_bias"] = Param((dim,), ("embed",), fill=0.0)
    if op.sinks:
        out["sinks"] = Param((n,), ("heads",), fill=0.0)
    if isinstance(op.indexer, Indexer):
        out["index"] = indexer_params(op.indexer, source, dim)
    return out | gate_params(op.gate, read if op.q_raw else dim, n, op.value_dim)


def indexer_params(op: Indexer, source: int, dim: int) -> Tree:
    """q [Q, N, H], k [D, H], k_norm and the weights of the heads [D, N]; every device has the whole of them."""
    return {
        "q": Param((source, op.heads, op.dim), (None, None, "head")),
        "k": Param((dim, op.dim), ("embed", "head")),
        "k_norm": norm_params(op.norm, (op.dim,), ("head",)),
        "weight": Param((dim, op.heads), ("embed", None)),
    }
