"""The PRNG key of every row, made on the host: on the device that would be one more program before the first token."""

from collections.abc import Sequence

import jax
import numpy as np

ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
Words = tuple[np.ndarray, np.ndarray]


def row_keys(seeds: Sequence[int | None], base_seed: int) -> jax.Array:
    """One PRNG key a row [B]; rows without a seed get (base_seed, row number), which no given seed collides with."""
    chosen = [(base_seed, row + 1) if seed is None else (seed, 0) for row, seed in enumerate(seeds)]
    words = np.array([(seed & 0xFFFFFFFF, seed >> 32, stream) for seed, stream in chosen], np.uint32).reshape(-1, 3)
    return folded(words)


def folded(words_B3: np.ndarray) -> jax.Array:
    """The key of three words of 32 bits a row [B]: `fold_in(fold_in(key(first), second), third)` of jax.random.

    threefry by name, as other generators are not independent in a vmapped batch.
    """
    none_B = np.zeros(len(words_B3), np.uint32)
    key = none_B, words_B3[:, 0]
    for word_B in words_B3[:, 1:].T:
        key = threefry(key, (none_B, word_B))
    return jax.random.wrap_key_data(jax.device_put(np.stack(key, axis=-1)), impl="threefry2x32")


def threefry(key: Words, block: Words) -> Words:
    """Threefry-2x32 of 20 rounds, of each row (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")."""
    keys = *key, key[0] ^ key[1] ^ np.uint32(0x1BD11BDA)
    a, b = block[0] + keys[0], block[1] + keys[1]
    for group in range(5):
        for turn in ROTATIONS[group % 2]:
            a = a + b
            b = a ^ (b << np.uint32(turn) | b >> np.uint32(32 - turn))
        a, b = a + keys[(group + 1) % 3], b + keys[(group + 2) % 3] + np.uint32(group + 1)
    return a, b
