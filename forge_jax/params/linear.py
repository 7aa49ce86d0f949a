"""The parameters of ops that keep a state instead of keys and values."""

from forge_jax.params.layers import gate_params, norm_params
from forge_jax.params.tree import Param, Tree
from forge_jax.spec import DeltaNet, LinearAttention, Mlstm, ShortConv


def short_conv_params(op: ShortConv, dim: int) -> Tree:
    """b, c and x [D, F], conv [F, K], out [F, D], and their biases."""
    out: Tree = {name: Param((dim, op.dim), ("embed", "ff")) for name in "bcx"}
    out["conv"] = Param((op.dim, op.taps), ("ff", None), stacked=1)
    out["out"] = Param((op.dim, dim), ("ff", "embed"))
    if op.bias:
        out |= {f"{name}_bias": Param((op.dim,), ("ff",), fill=0.0) for name in ("b", "c", "x", "conv")}
        out["out_bias"] = Param((dim,), ("embed",), fill=0.0)
    return out


def delta_net_params(op: DeltaNet, dim: int) -> Tree:
    """q, k [D, K, H] and v [D, N, V] with their convolutions, beta [D, N], decay, gate, norm and o [N, V, D].

    A map of low rank has its first half under its name with "_in".
    """
    keys, values = (op.key_heads, op.key_dim), (op.value_heads, op.value_dim)
    key_axes, value_axes = ("kv_heads", "head"), ("heads", "head")
    out: Tree = {}
    for name, shape, axes in (("q", keys, key_axes), ("k", keys, key_axes), ("v", values, value_axes)):
        out[name] = Param((dim, *shape), ("embed", *axes))
        out[f"{name}_conv"] = Param((*shape, op.taps), (*axes, None), stacked=2)
    fades = (op.value_heads, op.key_dim) if op.decay.over == "feature" else (op.value_heads,)
    for name, shape, rank in (("decay", fades, op.decay.rank), ("gate", values, op.gate_rank)):
        if rank is not None:
            out[f"{name}_in"] = Param((dim, rank), ("embed", None))
        out[name] = Param((rank or dim, *shape), (None if rank else "embed", *value_axes[: len(shape)]))
    out["beta"] = Param((dim, op.value_heads), ("embed", "heads"))
    out["a_log"] = Param((op.value_heads,), ("heads",), fill=0.0)
    out["dt_bias"] = Param(fades, value_axes[: len(fades)], fill=1.0)
    out["norm"] = norm_params(op.norm, (op.value_dim,), ("head",))
    out["o"] = Param((*values, dim), (*value_axes, "embed"), inputs=2)
    return out


def linear_attention_params(op: LinearAttention, dim: int) -> Tree:
    """q, k and v [D, N, H], norm [N, H], gate, and o [N, H, D]."""
    heads, axes = (op.heads, op.head_dim), ("heads", "head")
    out: Tree = {name: Param((dim, *heads), ("embed", *axes)) for name in "qkv"}
    out["norm"] = norm_params(op.norm, heads, axes)
    out["o"] = Param((*heads, dim), (*axes, "embed"), inputs=2)
    return out | gate_params(op.gate, dim, *heads)


def mlstm_params(op: Mlstm, dim: int) -> Tree:
    """q, k [D, N, H], v and gate [D, N, V], input and forget [D, N] with their biases, norm [N, V], o [N, V, D]."""
    keys, values, axes = (op.heads, op.key_dim), (op.heads, op.value_dim), ("heads", "head")
    shapes = {"q": keys, "k": keys, "v": values, "input": keys[:1], "forget": keys[:1]}
    out: Tree = {name: Param((dim, *shape), ("embed", *axes[: len(shape)])) for name, shape in shapes.items()}
    for name, shape in shapes.items():
        if op.bias or name in ("input", "forget"):
            out[f"{name}_bias"] = Param(shape, axes[: len(shape)], fill=0.0)
    out["norm"] = norm_params(op.norm, values, axes)
    out["o"] = Param((*values, dim), (*axes, "embed"), inputs=2)
    if op.bias:
        out["o_bias"] = Param((dim,), ("embed",), fill=0.0)
    return out | gate_params(op.gate, dim, *values)
