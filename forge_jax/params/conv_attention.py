"""The parameters of compressed convolutional attention."""

from forge_jax.params.tree import Param, Tree
from forge_jax.spec import ConvAttention


def conv_attention_params(op: ConvAttention, dim: int) -> Tree:
    """q [D, N, H], k [D, K, H] with both convolutions and the keys' length, v and v_before [D, half], o [N, H, D].

    Values do not know heads, so every device has all of them.
    """
    base, (channel, head) = op.attention, op.taps
    queries, keys = (base.heads, base.head_dim), (base.kv_heads, base.head_dim)
    parts = {"q": (queries, ("heads", "head")), "k": (keys, ("kv_heads", "head"))}
    out: Tree = {}
    for name, (shape, axes) in parts.items():
        out[name] = Param((dim, *shape), ("embed", *axes))
        out[f"{name}_conv"] = Param((*shape, channel), (*axes, None), stacked=2)
        out[f"{name}_mix"] = Param((*shape, base.head_dim, head), (*axes, None, None), inputs=2, stacked=2)
        biases = ("_bias", "_conv_bias", "_mix_bias") if base.qkv_bias else ("_conv_bias", "_mix_bias")
        out |= {f"{name}{end}": Param(shape, axes, fill=0.0) for end in biases}
    out["length"] = Param((base.kv_heads,), ("kv_heads",), fill=1.0)
    for name in ("v", "v_before"):
        out[name] = Param((dim, op.half), ("embed", None))
        if base.qkv_bias:
            out[f"{name}_bias"] = Param((op.half,), (None,), fill=0.0)
    out["o"] = Param((*queries, dim), ("heads", "head", "embed"), inputs=2)
    return out | ({"o_bias": Param((dim,), ("embed",), fill=0.0)} if base.o_bias else {})
