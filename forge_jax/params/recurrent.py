"""The parameters of linear recurrences."""

from forge_jax.params.tree import Param, Tree
from forge_jax.spec import RgLru

SLOW = -4.0  # a decay of 0.93 a token where its gate is half open


def rg_lru_params(op: RgLru, dim: int) -> Tree:
    """x and z [D, N, H], conv [N, H, K], the gates enter and forget [N, H, H], rate [N, H] and out [N, H, D].

    All but the rate have a bias.
    """
    channels, axes = (op.heads, op.head_dim), ("heads", "head")
    out: Tree = {name: Param((dim, *channels), ("embed", *axes)) for name in ("x", "z")}
    out["conv"] = Param((*channels, op.conv), (*axes, None), stacked=2)
    out |= {name: Param((*channels, op.head_dim), (*axes, None), stacked=1) for name in ("enter", "forget")}
    out |= {f"{name}_bias": Param(channels, axes, fill=0.0) for name in ("x", "z", "conv", "enter", "forget")}
    out["rate"] = Param(channels, axes, fill=SLOW)
    out["out"] = Param((*channels, dim), (*axes, "embed"), inputs=2)
    out["out_bias"] = Param((dim,), ("embed",), fill=0.0)
    return out
