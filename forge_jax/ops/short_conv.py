"""A short convolution between two gates."""

from jax import Array

from forge_jax.ops.call import Call, Context
from forge_jax.ops.conv import causal_conv
from forge_jax.params import Tree
from forge_jax.spec import ShortConv
from forge_jax.tensor import contract


def short_conv(op: ShortConv, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context):
    """Apply the op. Returns (y_BTD, the last inputs of its convolution)."""

    def project(name: str) -> Array:
        y = contract("BTD,DF->BTF", x_BTD, params[name])
        return y + params[f"{name}_bias"].astype(y.dtype)[None, None] if op.bias else y

    bias = params["conv_bias"] if op.bias else None
    tail = state["tail"] if state is not None else None
    y_BTF, tail = causal_conv(project("b") * project("x"), params["conv"], bias, tail, call.order_BT)
    out = ctx.psum(contract("BTF,FD->BTD", project("c") * y_BTF, params["out"]))
    out = out + params["out_bias"].astype(out.dtype)[None, None] if op.bias else out
    return out, {"tail": tail} if state is not None else None
