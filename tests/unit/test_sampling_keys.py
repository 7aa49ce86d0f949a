"""Keys that are made on the host, beside those of jax.random."""

import jax
import numpy as np

from forge_jax.sampling.keys import folded, row_keys


def test_keys_are_those_of_jax():
    words = np.random.default_rng(0).integers(0, 2**32, (64, 3), dtype=np.uint32)
    words[0], words[1] = 0, 2**32 - 1

    def fold(words_3: jax.Array) -> jax.Array:
        low = jax.random.key(words_3[0], impl="threefry2x32")
        return jax.random.fold_in(jax.random.fold_in(low, words_3[1]), words_3[2])

    assert folded(words).dtype == jax.vmap(fold)(words).dtype
    np.testing.assert_array_equal(jax.random.key_data(folded(words)), jax.random.key_data(jax.vmap(fold)(words)))


def test_rows_differ_by_seed_and_without_one_by_number():
    keys = jax.random.key_data(row_keys([None, None, 0, 7, 7 + 2**32], base_seed=7))
    assert len({tuple(key) for key in keys.tolist()}) == 5
    assert keys[3].tolist() == jax.random.key_data(row_keys([7], base_seed=0))[0].tolist()
