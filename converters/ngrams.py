"""The constants of hashed n-grams, which follow from a config: odd multipliers and prime sizes of tables."""

from collections.abc import Iterator
from itertools import count, islice
from math import isqrt

MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15
LAYER = 10007  # between the seeds of two layers


def splitmix(value: int) -> int:
    """One step of the generator SplitMix64 (doi:10.1145/2714064.2660195)."""
    value = (value + GAMMA) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def multipliers(vocab_size: int, tokens: int, layer: int, seed: int) -> tuple[int, ...]:
    """One odd number for each of `tokens` places; times a token it stays below 2^63."""
    half = max(1, ((1 << 63) - 1) // max(vocab_size, 1) // 2)
    start = seed + LAYER * layer
    return tuple(2 * (splitmix((start + GAMMA * (i + 1)) & MASK) % half) + 1 for i in range(tokens))


def primes(start: int) -> Iterator[int]:
    """The primes from `start` on."""
    return (n for n in count(max(start, 2)) if all(n % d for d in range(2, isqrt(n) + 1)))


def table_sizes(base: int, heads: int, layer: int) -> tuple[int, ...]:
    """The rows of each head's table: primes from `base` on, those of a layer after those of the layers before it."""
    return tuple(islice(primes(base), layer * heads, (layer + 1) * heads))
