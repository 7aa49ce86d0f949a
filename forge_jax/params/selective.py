"""The parameters of selective attention."""

from dataclasses import replace

from forge_jax.params.layers import attention_params
from forge_jax.params.tree import Param, Tree, flatten, unflatten
from forge_jax.spec import Selective


def selective_params(op: Selective, dim: int) -> Tree:
    """Those of attention, merit [K, H, K], its bias, and rate [K].

    A merit depends on the values of all heads, so nothing is split.
    """
    k, h = op.attention.kv_heads, op.attention.head_dim
    tree = attention_params(op.attention, dim)
    tree |= {"merit": Param((k, h, k), (None, None, None), inputs=2), "rate": Param((k,), (None,), fill=0.0)}
    if op.bias:
        tree["merit_bias"] = Param((k,), (None,), fill=0.0)
    return unflatten({path: replace(param, axes=(None,) * len(param.shape)) for path, param in flatten(tree)})
