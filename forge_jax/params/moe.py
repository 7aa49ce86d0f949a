"""The parameters of a mixture of experts."""

from math import isqrt

from forge_jax.params.layers import mlp_params, norm_params
from forge_jax.params.tree import Param, Tree
from forge_jax.spec import Moe, RouterMlp


def moe_params(op: Moe, dim: int) -> Tree:
    """router [D, E], gate and up [E, D, F], down [E, F, D], and what the op's options add.

    Experts that compute nothing have a column of the router and no weights. The width of the shared expert is split
    like any other, under its own name, because it may differ.
    """
    router, experts, width = op.router, op.router.experts, op.latent or dim
    names = ("gate", "up") if op.gated else ("up",)
    into, out = ("experts", "embed", "ff"), ("experts", "ff", "embed")
    seen = (dim, "embed") if router.mlp is None else (router.mlp.dim, None)
    logits = 2 * isqrt(experts) if router.product else op.choices + router.sinks
    tree: Tree = {"router": Param((seen[0], logits), (seen[1], None))}
    if router.mlp is not None:
        tree["router_mlp"] = router_mlp_params(router.mlp, dim)
    tree |= {name: Param((experts, width, op.dim), into, stacked=1) for name in names}
    tree["down"] = Param((experts, op.dim, width), out, stacked=1)
    if op.bias:
        tree |= {f"{name}_bias": Param((experts, op.dim), ("experts", "ff"), fill=0.0) for name in names}
        tree["down_bias"] = Param((experts, width), (None, "embed"), fill=0.0)  # added once, after the sum over devices
    if router.logit_bias:
        tree["router_bias"] = Param((op.choices + router.sinks,), (None,), fill=0.0)
    if router.choice_bias:
        tree["choice_bias"] = Param((op.choices,), (None,), fill=0.0)
    if router.table is not None:
        tree["table"] = Param((router.table, router.top_k), (None, None), fill=0.0, inputs=0)
    if router.scalar:
        tree["router_scalar"] = Param((1,), (None,), fill=1.0)
    if op.latent is not None:
        for name, shape in (("latent_in", (dim, width)), ("latent_out", (width, dim))):
            tree[name] = Param(shape, ("embed", None))
            if op.latent_bias:
                tree[f"{name}_bias"] = Param(shape[1:], (None,), fill=0.0)
    if router.norm is not None:
        tree["router_norm"] = norm_params(router.norm, (dim,), ("embed",))
    if router.expert_scale:
        tree["expert_scale"] = Param((op.choices,), (None,), fill=1.0)
    if op.norm is not None:
        tree["norm"] = norm_params(op.norm, (dim,), ("embed",))
    if op.out_bias:
        tree["out_bias"] = Param((dim,), ("embed",), fill=0.0)
    if op.shared is not None:
        tree["shared"] = mlp_params(op.shared, dim, "shared_ff")
    if op.shared_gate:
        tree["shared_gate"] = Param((dim, 1), ("embed", None))
    return tree


def router_mlp_params(op: RouterMlp, dim: int) -> Tree:
    """into [D, R], l1 and l2 [R, R] with their biases, the norm, and the weight of an earlier router's h [R]."""
    out: Tree = {"into": Param((dim, op.dim), ("embed", None)), "norm": norm_params(op.norm, (op.dim,), (None,))}
    out |= {name: Param((op.dim, op.dim), (None, None)) for name in ("l1", "l2")}
    out |= {f"{name}_bias": Param((op.dim,), (None,), fill=0.0) for name in ("into", "l1", "l2")}
    return out | ({} if op.reads is None else {"carry": Param((op.dim,), (None,), fill=1.0)})
