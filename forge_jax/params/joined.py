"""The parameters of attention to two streams side by side, and of low-rank updates."""

from forge_jax.params.layers import attention_params, norm_params
from forge_jax.params.tree import Param, Tree
from forge_jax.spec import Adapter, Joined, Project


def joined_params(op: Joined, dim: int) -> Tree:
    """Those of attention, from 2 D features to D, and the norm over 2 D."""
    narrow = attention_params(op.attention, dim)
    ways_out = {name: narrow[name] for name in ("o", "o_bias") if name in narrow}
    return attention_params(op.attention, 2 * dim) | ways_out | {"norm": norm_params(op.norm, (2 * dim,), ("embed",))}


def project_params(op: Project, dim: int) -> Tree:
    """weight [D, D]."""
    return {"weight": Param((dim, dim), ("embed", None))}


def adapter_params(adapters: tuple[Adapter, ...], base: Tree) -> Tree:
    """b [R, trailing axes] for each parameter of `base` that is updated, a [leading axes, R] for the first of a group.

    The leading axes are those that a product sums over. Updates begin at zero.
    """
    out: Tree = {}
    for adapter in adapters:
        for name in adapter.names:
            param: Param = base[name]
            shape, axes, inputs = param.shape, param.axes, param.inputs
            out[name] = {"b": Param((adapter.rank, *shape[inputs:]), (None, *axes[inputs:]), fill=0.0)}
            if name == adapter.names[0]:
                out[name]["a"] = Param((*shape[:inputs], adapter.rank), (*axes[:inputs], None), inputs=inputs)
    return out
