"""Which of two ways a program takes, by the platform that it is compiled for."""

from collections.abc import Callable
from typing import Any

import jax

from forge_jax.kernels.library import available

# `with everywhere(True)`: what is traced within can be lowered for any platform. JAX keeps such programs apart.
everywhere = jax.make_user_context(False)


def by_platform(*operands: Any, cpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
    """`jax.lax.platform_dependent`; where there are kernels, and no devices but CPUs, only their way is traced.

    Lowering leaves the other way out, but to trace it would take as long as all else of a packed model.
    """
    if available() and only_cpus() and not everywhere.value:
        return cpu(*operands)
    return jax.lax.platform_dependent(*operands, cpu=cpu, default=default)


def only_cpus() -> bool:
    """Whether JAX uses nothing but CPUs. If nobody asked for them, they are the default where there is nothing else."""
    return jax.default_backend() == "cpu" and set(asked()) <= {"", "cpu"}


def asked() -> list[str]:
    """The platforms that JAX was told to use, first the default."""
    told = jax.config.values
    if default := told["jax_platform_name"]:  # of all that there are
        return [str(default), "others"]
    return str(told["jax_platforms"] or "").split(",")
