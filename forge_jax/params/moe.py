"""The parameters of a mixture of experts."""

from forge_jax.params.layers import mlp_params, norm_params
from forge_jax.params.tree import Param, Tree
from forge_jax.spec import Moe


def moe_params(op: Moe, dim: int) -> Tree:
    """router [D, E], gate and up [E, D, F], down [E, F, D], and what the op's options add.

    Identity experts have a column of the router and no weights. The width of the shared expert is split like any
    other, under its own name, because it may differ.
    """
    router, experts, width = op.router, op.router.experts, op.latent or dim
    names = ("gate", "up") if op.gated else ("up",)
    into, out = ("experts", "embed", "ff"), ("experts", "ff", "embed")
    tree: Tree = {"router": Param((dim, experts + op.identity), ("embed", None))}
    tree |= {name: Param((experts, width, op.dim), into, stacked=1) for name in names}
    tree["down"] = Param((experts, op.dim, width), out, stacked=1)
    if op.bias:
        tree |= {f"{name}_bias": Param((experts, op.dim), ("experts", "ff"), fill=0.0) for name in names}
        tree["down_bias"] = Param((experts, width), (None, "embed"), fill=0.0)  # added once, after the sum over devices
    if router.logit_bias:
        tree["router_bias"] = Param((experts + op.identity,), (None,), fill=0.0)
    if router.choice_bias:
        tree["choice_bias"] = Param((experts + op.identity,), (None,), fill=0.0)
    if router.table is not None:
        tree["table"] = Param((router.table, router.top_k), (None, None), fill=0.0, inputs=0)
    if op.latent is not None:
        for name, shape in (("latent_in", (dim, width)), ("latent_out", (width, dim))):
            tree[name] = Param(shape, ("embed", None))
            if op.latent_bias:
                tree[f"{name}_bias"] = Param(shape[1:], (None,), fill=0.0)
    if router.norm is not None:
        tree["router_norm"] = norm_params(router.norm, (dim,), ("embed",))
    if router.expert_scale:
        tree["expert_scale"] = Param((experts + op.identity,), (None,), fill=1.0)
    if op.norm is not None:
        tree["norm"] = norm_params(op.norm, (dim,), ("embed",))
    if op.out_bias:
        tree["out_bias"] = Param((dim,), ("embed",), fill=0.0)
    if op.shared is not None:
        tree["shared"] = mlp_params(op.shared, dim, "shared_ff")
    if op.shared_gate:
        tree["shared_gate"] = Param((dim, 1), ("embed", None))
    return tree
