"""The parameters of differential attention."""

from forge_jax.params.tree import Param, Tree
from forge_jax.spec import Differential

LAMBDAS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")


def differential_params(op: Differential, dim: int) -> Tree:
    """q [D, N, 2, H], k and v [D, K, 2, H], o [N, 2, H, D] for N and K pairs, four vectors [H] that make lambda."""
    n, k, h = op.attention.heads, op.attention.kv_heads, op.attention.head_dim
    query, key = ("heads", None, "head"), ("kv_heads", None, "head")
    inputs = {"q": ((n, 2, h), query), "k": ((k, 2, h), key), "v": ((k, 2, h), key)}
    out: Tree = {name: Param((dim, *shape), ("embed", *axes)) for name, (shape, axes) in inputs.items()}
    out["o"] = Param((n, 2, h, dim), (*query, "embed"), inputs=3)
    if op.attention.qkv_bias:
        out |= {f"{name}_bias": Param(shape, axes, fill=0.0) for name, (shape, axes) in inputs.items()}
    if op.attention.o_bias:
        out["o_bias"] = Param((dim,), ("embed",), fill=0.0)
    return out | {name: Param((h,), ("head",), inputs=0) for name in LAMBDAS}
