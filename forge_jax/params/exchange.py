"""The parameters of ops for models of several streams."""

from forge_jax.params.tree import Param, Tree
from forge_jax.spec import Constant


def constant_params(op: Constant, dim: int) -> Tree:
    """The vector [D]."""
    return {"value": Param((dim,), ("embed",), fill=0.0)}
