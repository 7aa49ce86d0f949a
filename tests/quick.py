"""How programs that run a few times only are compiled: by less work, in a third of the time."""

from typing import Any

import jax


def known(name: str, value: Any) -> bool:
    """Whether XLA has this option: later versions lose some."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


WANTED: dict[str, Any] = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,  # tests have a process for each core already
    "xla_cpu_use_fusion_emitters": False,  # of JAX 0.10, whose other ones take half the time
}
QUICK = {name: value for name, value in WANTED.items() if known(name, value)}
