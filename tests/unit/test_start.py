"""What makes a start short: large pages for weights, no look for garbage, a cache that the first program makes."""

import gc
import weakref
from dataclasses import replace

import jax
import numpy as np
import pytest

from forge_jax import Session
from forge_jax import cache as caches
from forge_jax import params as P
from forge_jax.cache import Planned
from forge_jax.garbage import uncollected
from forge_jax.generation.programs import LOCAL
from forge_jax.large_pages import LINE, PIECE, LargePages
from forge_jax.spec import Attention, Block, Branch, Mlp, ModelSpec, Norm, Rope


# ------------------------------------------------------------------------------------------------ large pages
def test_leaves_lie_behind_each_other_and_are_copies():
    pages, given = (
        LargePages(),
        [np.arange(5, dtype=np.int8), np.ones((3, 7), np.float16), np.zeros((2, 0), np.float32)],
    )
    put = [pages.put(values) for values in given]
    given[0][:] = 0
    np.testing.assert_array_equal(put[0], np.arange(5))
    for array, values in zip(put, given, strict=True):
        assert (array.shape, array.dtype) == (values.shape, values.dtype)
    first, second = (array.unsafe_buffer_pointer() for array in put[:2])
    assert second - first == LINE
    assert pages.piece.ctypes.data == first


def test_what_does_not_fit_begins_a_piece_and_a_piece_goes_with_its_leaves():
    pages = LargePages()
    kept = pages.put(np.ones(8, np.float32))
    piece = weakref.ref(pages.piece.base)
    large = pages.put(np.ones(PIECE + 8, np.uint8))
    assert pages.piece.size >= large.nbytes
    gc.collect()
    assert piece() is not None
    np.testing.assert_array_equal(kept, 1)
    kept.delete()
    del kept
    gc.collect()
    assert piece() is None


# ------------------------------------------------------------------------------------------------ garbage
@pytest.mark.parametrize("collects", [True, False])
def test_looking_for_garbage_is_as_it_was(collects):
    was, frozen = gc.isenabled(), gc.get_freeze_count()
    try:
        (gc.enable if collects else gc.disable)()
        with uncollected():
            assert not gc.isenabled()
        assert gc.isenabled() == collects
        with pytest.raises(KeyError), uncollected():
            raise KeyError
        assert gc.isenabled() == collects
        assert gc.get_freeze_count() == frozen
    finally:
        (gc.enable if was else gc.disable)()


def test_what_was_made_meanwhile_is_still_found():
    class Ring:
        pass

    with uncollected():
        ring = Ring()
        ring.self = ring
        found = weakref.ref(ring)
        del ring
    gc.collect()
    assert found() is None


def test_what_somebody_froze_stays_frozen():
    gc.freeze()
    try:
        count = gc.get_freeze_count()
        with uncollected():
            pass
        assert gc.get_freeze_count() == pytest.approx(count, abs=100)  # what went meanwhile by itself
    finally:
        gc.unfreeze()


# ------------------------------------------------------------------------------------------------ cache
NORM = Norm(1e-5)
WINDOWED = Attention(4, 2, 16, 0.25, Rope(16), window=5)
BLOCKS = tuple(
    Block((Branch("attention", op, NORM), Branch("mlp", Mlp(56), NORM)))
    for op in (WINDOWED, WINDOWED, replace(WINDOWED, window=None))
)
SPEC = ModelSpec(160, 48, BLOCKS, 1024, NORM, tied=True)


@pytest.mark.parametrize("kept", ["float32", "k8v4"])
def test_a_planned_cache_is_the_empty_one(kept):
    how = caches.policy(kept)
    made, want = Planned(2, 64, 8, how).made(SPEC), caches.init(SPEC, 2, 64, slack=8, dtype=how)
    assert jax.tree.structure(made) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, made, want)


def test_a_session_begins_without_a_program_for_its_cache():
    before = LOCAL.new_cache._cache_size()
    Session(SPEC, P.init(SPEC, jax.random.key(0)), [[1, 2, 3]], max_new_tokens=2)
    assert LOCAL.new_cache._cache_size() == before
