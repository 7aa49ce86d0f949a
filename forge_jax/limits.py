"""What this machine can do at most, measured: bytes a second of a copy, operations a second of a matrix product.

What a program reaches is told as a part of these. They belong to one moment: other work on the machine lowers them.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from forge_jax import machine

ROUNDS = 5
ENOUGH = 0.1  # seconds that a product must take to be timed
LARGEST = 8192


@dataclass(frozen=True)
class Limits:
    """`copy`: bytes a second, those read and those written counted. `products`: operations a second by dtype."""

    copy: float
    products: Mapping[str, float] = field(default_factory=dict)

    def seconds(self, nbytes: float, operations: float = 0.0, dtype: str = "float32") -> float:
        """The least time that reading so many bytes, or so many operations, takes; whichever takes longer."""
        return max(nbytes / self.copy, operations / self.products[dtype])


def measured(dtypes: tuple[str, ...] = ("float32", "bfloat16")) -> Limits:
    """Measure the default device; takes a few seconds."""
    return Limits(copy_rate(), {dtype: product_rate(dtype) for dtype in dtypes})


def best(run: Callable[[], jax.Array]) -> float:
    """The shortest of a few runs after a first one, in seconds."""
    run().block_until_ready()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run().block_until_ready()
        times.append(time.perf_counter() - start)
    return min(times)


def copy_rate() -> float:
    """Bytes a second of a loop that reads and writes an array larger than any cache."""
    free = machine.memory()[1] or 1 << 30
    size = min(1 << 28 if jax.default_backend() == "cpu" else 1 << 30, free // 8)
    times, held = 4, [jnp.ones(size // 4, jnp.float32)]
    loop = jax.jit(lambda x: jax.lax.fori_loop(0, times, lambda _, y: y + 1, x), donate_argnums=0)

    def run() -> jax.Array:
        held[0] = loop(held[0])  # in place: a copy before the loop would be timed and not counted
        return held[0]

    return 2 * held[0].nbytes * times / best(run)


def product_rate(dtype: str) -> float:
    """Operations a second of a product of two square matrices, the smallest that takes long enough to be timed."""
    product = jax.jit(jnp.matmul)
    size = 512
    while True:
        x = jnp.ones((size, size), dtype)
        seconds = best(lambda x=x: product(x, x))
        if seconds >= ENOUGH or size == LARGEST:
            return 2 * size**3 / seconds
        size *= 2
