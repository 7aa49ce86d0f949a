"""The parameters of state space models."""

from forge_jax.params.layers import norm_params
from forge_jax.params.tree import Param, Tree
from forge_jax.spec import ChannelMix, Mamba, Mamba2, Wkv

SMALL_STEP = -4.6  # what softplus makes 0.01 of


def mamba_params(op: Mamba, dim: int) -> Tree:
    """x and z [D, N, H], conv [N, H, K], dt_in, b, c [N, H, R or S], dt [N, R, H], a_log [N, H, S], out [N, H, D].

    The channels are N heads of H; H is split over devices.
    """
    n, h = op.heads, op.dim // op.heads
    channels, into = (None, "ff"), ("embed", None, "ff")
    out: Tree = {name: Param((dim, n, h), into) for name in ("x", "z")}
    out["conv"] = Param((n, h, op.conv), (*channels, None), stacked=2)
    for name, size in (("dt_in", op.rank), ("b", op.state), ("c", op.state)):
        out[name] = Param((n, h, size), (*channels, None), stacked=1)
        if op.norm is not None:
            out[f"{name}_norm"] = norm_params(op.norm, (size,), (None,))
    out["dt"] = Param((n, op.rank, h), (None, None, "ff"), stacked=1)
    out["dt_bias"] = Param((n, h), channels, fill=SMALL_STEP)
    out["a_log"] = Param((n, h, op.state), (*channels, None), fill=0.0)
    out["skip"] = Param((n, h), channels, fill=1.0)
    out["out"] = Param((n, h, dim), (*channels, "embed"), inputs=2)
    if op.conv_bias:
        out["conv_bias"] = Param((n, h), channels, fill=0.0)
    if op.bias:
        out |= {f"{name}_bias": Param((n, h), channels, fill=0.0) for name in ("x", "z")}
        out["out_bias"] = Param((dim,), ("embed",), fill=0.0)
    return out


def mamba2_params(op: Mamba2, dim: int) -> Tree:
    """x and z [D, N, H], b and c [D, G, S], dt_in [D, N], a convolution for each of x, b, c, out [N, H, D]."""
    heads, groups = (op.heads, op.head_dim), (op.groups, op.state)
    head_axes, group_axes = ("heads", "head"), (None, None)
    parts = {"z": (heads, head_axes), "x": (heads, head_axes), "b": (groups, group_axes), "c": (groups, group_axes)}
    parts["dt_in"] = (heads[:1], head_axes[:1])
    out: Tree = {}
    for name, (shape, axes) in parts.items():
        out[name] = Param((dim, *shape), ("embed", *axes))
        if op.in_bias:
            out[f"{name}_bias"] = Param(shape, axes, fill=0.0)
        if name in ("x", "b", "c"):
            out[f"{name}_conv"] = Param((*shape, op.conv), (*axes, None), stacked=2)
            if op.conv_bias:
                out[f"{name}_conv_bias"] = Param(shape, axes, fill=0.0)
    for name, fill in (("dt_bias", SMALL_STEP), ("a_log", 0.0), ("skip", 1.0)):
        out[name] = Param(heads[:1], head_axes[:1], fill=fill)
    if op.norm is not None:
        out["norm"] = norm_params(op.norm, heads, head_axes)
    out["out"] = Param((*heads, dim), (*head_axes, "embed"), inputs=2)
    if op.out_bias:
        out["out_bias"] = Param((dim,), ("embed",), fill=0.0)
    return out


def wkv_params(op: Wkv, dim: int) -> Tree:
    """k, v, r [D, C], out [C, D], decay and bonus [C], and the share of the token itself in what enters, [1, 1, D]."""
    out: Tree = {f"{name}_mix": Param((1, 1, dim), (None, None, "embed"), fill=0.5) for name in ("k", "v", "r")}
    out |= {name: Param((dim, op.dim), ("embed", "ff")) for name in ("k", "v", "r")}
    out |= {name: Param((op.dim,), ("ff",), fill=0.0) for name in ("decay", "bonus")}
    out["out"] = Param((op.dim, dim), ("ff", "embed"))
    return out


def channel_mix_params(op: ChannelMix, dim: int) -> Tree:
    """up [D, F], down [F, D], r [D, D], and the share of the token itself in what enters, [1, 1, D]."""
    out: Tree = {f"{name}_mix": Param((1, 1, dim), (None, None, "embed"), fill=0.5) for name in ("up", "r")}
    out["up"] = Param((dim, op.dim), ("embed", "ff"))
    out["down"] = Param((op.dim, dim), ("ff", "embed"))
    out["r"] = Param((dim, dim), ("embed", None))
    return out
