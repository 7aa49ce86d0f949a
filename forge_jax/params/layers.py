"""The parameters of norms, attention and feed-forward layers."""

from math import expm1, log

from forge_jax.params.tree import Param, Tree
from forge_jax.spec import Attention, Blocks, Gate, HeadTransform, Mlp, Norm


def norm_params(norm: Norm, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> Tree:
    """The parameters of one norm over features of `shape`; down [D, R] and up [R, D] of its gate."""
    out: Tree = {}
    if norm.scale:
        out["scale"] = Param(shape, axes, fill=1.0 - norm.offset)
    if norm.bias:
        out["bias"] = Param(shape, axes, fill=0.0)
    if norm.gate is not None:
        out |= {"down": Param((*shape, norm.gate), (*axes, None)), "up": Param((norm.gate, *shape), (None, *axes))}
    return out


def gate_params(gate: Gate | None, dim: int, heads: int, head_dim: int) -> Tree:
    """gate [D, N, H], or [D, N] where a head has one number, and its bias."""
    if gate is None:
        return {}
    shapes = {"feature": ((heads, head_dim), ("heads", "head")), "head": ((heads,), ("heads",))}
    shape, axes = shapes[gate.over]
    out: Tree = {"gate": Param((dim, *shape), ("embed", *axes))}
    if gate.bias is not None:
        out["gate_bias"] = Param(*shapes[gate.bias], fill=0.0)
    if gate.gain is not None:
        out["gate_gain"] = Param(*shapes["feature"], fill=1 / gate.gain)
    return out


def attention_params(op: Attention, dim: int) -> Tree:
    """q [D, N, H], k and v [D, K, H], o [N, H, D] and what the op's options add; H of v and o may be another.

    A layer that reads the keys of another has no k, one whose values are its keys no v.
    """
    n, k, h, value = op.heads, op.kv_heads, op.head_dim, op.value_size
    query, key = ("embed", "heads", "head"), ("embed", "kv_heads", "head")
    inputs = {"q": ((n, h), query)}
    if op.reads is None:
        inputs["k"] = ((k, h), key)
    if op.reads is None and op.values == "own":
        inputs["v"] = ((k, value), key)
    out: Tree = {name: Param((dim, *shape), axes) for name, (shape, axes) in inputs.items()}
    out["o"] = Param((n, value, dim), ("heads", "head", "embed"), inputs=2)
    if op.qkv_bias:
        out |= {f"{name}_bias": Param(shape, axes[1:], fill=0.0) for name, (shape, axes) in inputs.items()}
    if op.o_bias:
        out["o_bias"] = Param((dim,), ("embed",), fill=0.0)
    if op.qk_norm is not None:
        own = op.qk_norm_over != "head"
        out["q_norm"] = norm_params(op.qk_norm, (n, h) if own else (h,), query[1:] if own else ("head",))
        if op.reads is None:
            out["k_norm"] = norm_params(op.qk_norm, (k, h) if own else (h,), key[1:] if own else ("head",))
    if op.v_norm is not None and op.reads is None:
        out["v_norm"] = norm_params(op.v_norm, (value,), ("head",))
    if op.smooth is not None:
        out |= {
            f"{name}_smooth": Param((*inputs[name][0], op.smooth.taps), (*key[1:], None), stacked=2) for name in "kv"
        }
        if op.smooth.dynamic:
            out |= {f"{name}_taps": Param((dim, k, op.smooth.taps), (*key[:2], None)) for name in "kv"}
    if op.longest is not None:
        out["q_scale"] = Param((n, h), query[1:], fill=1.0)
    if op.q_gain is not None:
        out["q_gain"] = Param((n, h), query[1:], fill=1 / op.q_gain)
    if op.relative is not None:
        out["relative"] = Param((dim, n, op.relative.dim), ("embed", "heads", None))
        if op.relative.longest is not None:
            out["relative_scale"] = Param((n, op.relative.dim), ("heads", None), fill=1.0)
        out["profiles"] = Param((op.relative.dim, op.relative.extent), (None, None))
    if op.apart is not None:
        out |= {f"{name}_in": norm_params(op.apart, (dim,), ("embed",)) for name in "qkv"}
    if op.out_norm is not None:
        out["out_norm"] = norm_params(op.out_norm, (n, value), query[1:])
    if op.blocks is not None:
        out["index"] = blocks_params(op.blocks, dim)
    if op.sinks:
        out["sinks"] = Param((n,), ("heads",), fill=0.0) if op.sinks is True else Param((dim, n), query[:2])
    return out | gate_params(op.gate, dim, n, value)


def blocks_params(op: Blocks, dim: int) -> Tree:
    """q [D, I, H], k [D, H] and their norms; every device has the whole of them."""
    return {
        "q": Param((dim, op.heads, op.dim), ("embed", None, "head")),
        "k": Param((dim, op.dim), ("embed", "head")),
        **{f"{name}_norm": norm_params(op.norm, (op.dim,), ("head",)) for name in "qk"},
    }


def mlp_params(op: Mlp, dim: int, ff: str = "ff") -> Tree:
    """gate and up [D, F], down [F, D], and what the op's options add; `ff` names the axis F."""
    names = ("gate", "up") if op.gated else ("up",)
    out: Tree = {name: Param((dim, op.dim), ("embed", ff)) for name in names}
    out["down"] = Param((op.dim, dim), (ff, "embed"))
    if op.bias:
        out |= {f"{name}_bias": Param((op.dim,), (ff,), fill=0.0) for name in names}
        out["down_bias"] = Param((dim,), ("embed",), fill=0.0)
    if op.gain is not None:
        out |= {f"{name}_gain": Param((op.dim,), (ff,), fill=1 / op.gain) for name in names}
    if op.norm is not None:
        out["norm"] = norm_params(op.norm, (op.dim,), (ff,))
    if op.scalar:
        out["scalar"] = Param((1,), (None,), fill=1.0)
    if op.act == "xielu":
        out["act"] = xielu_params()
    return out


def xielu_params() -> Tree:
    """Both slopes as softplus keeps them (alpha = softplus(...) of 0.8, and of 0.8 less beta), beta and eps."""
    slopes = {"alpha_p": 0.8, "alpha_n": 0.3}
    out: Tree = {name: Param((1,), (None,), fill=log(expm1(slope))) for name, slope in slopes.items()}
    return out | {"beta": Param((), (), fill=0.5), "eps": Param((), (), fill=-1e-6)}


def transform_params(op: HeadTransform, dim: int) -> Tree:
    """dense [D, D], its bias, and the norm."""
    out: Tree = {"dense": Param((dim, dim), ("embed", None)), "norm": norm_params(op.norm, (dim,), ("embed",))}
    return out | ({"dense_bias": Param((dim,), ("embed",), fill=0.0)} if op.bias else {})
