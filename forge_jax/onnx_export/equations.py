"""What the rules ask of an equation of a jaxpr."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from forge_jax.onnx_export.graph import Size

Rule = Callable[..., str | Sequence[str]]
"""(graph, equation, *names of inputs) -> the name of the output, or those of several."""

TRUTH = np.dtype(bool)


def described(atom: Any) -> Any:
    """The shape and dtype of a variable or a literal."""
    return atom.aval


def dtype_of(eqn: JaxprEqn, which: int = 0) -> np.dtype:
    """The dtype of an input."""
    return np.dtype(described(eqn.invars[which]).dtype)


def sizes_of(eqn: JaxprEqn, which: int = 0) -> tuple[Size, ...]:
    """The shape of an input."""
    return tuple(described(eqn.invars[which]).shape)


def result(eqn: JaxprEqn, which: int = 0) -> tuple[Size, ...]:
    """The shape of an output."""
    return tuple(described(eqn.outvars[which]).shape)


def result_dtype(eqn: JaxprEqn, which: int = 0) -> np.dtype:
    """The dtype of an output."""
    return np.dtype(described(eqn.outvars[which]).dtype)
