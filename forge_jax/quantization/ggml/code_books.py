"""The code books of the IQ types as places to search: which word stands for some rounded elements. Knows no types.

Elements are rounded to small codes one by one; where the codes of 4 or 8 elements together are no word, the nearest
words are tried. Layout as in `search`: float32 [elements of a word, n].
"""

import functools
from dataclasses import dataclass

import numpy as np

from forge_jax.quantization.ggml import grids
from forge_jax.quantization.ggml.search import total

BOOKS = {
    "IQ1": (grids.IQ1_GRID, 3),
    "IQ2_XXS": (grids.IQ2_XXS_GRID, 2),
    "IQ2_XS": (grids.IQ2_XS_GRID, 2),
    "IQ2_S": (grids.IQ2_S_GRID, 1),
    "IQ3_XXS": (grids.IQ3_XXS_GRID, 2),
    "IQ3_S": (grids.IQ3_S_GRID, 3),
}
"""The words, and how many of the smallest distances count as near."""


@dataclass(frozen=True)
class CodeBook:
    """`codes` float32 [elements, words] with `levels` different codes.

    By point, the number whose digits in base `levels` are the codes, lowest first: `index` the word there or -1; `near`
    the words closest to the others, int16 [points, most], of which the first `count` [points] are meant.
    """

    codes: np.ndarray
    levels: int
    index: np.ndarray
    near: np.ndarray
    count: np.ndarray

    def find(
        self,
        points: np.ndarray,
        x: np.ndarray,
        weights: np.ndarray,
        scale: np.ndarray,
        values: np.ndarray,
        shift: np.ndarray | None = None,
    ) -> np.ndarray:
        """The words [n] at `points` [n]: those there, or of the near ones that with the least weighted squared error.

        `values` [elements, words] are what words mean, scaled by `scale` [n] after `shift` [n] is added.
        """
        found = self.index[points]
        off = np.flatnonzero(found < 0)
        off = off[np.argsort(-self.count[points[off]], kind="stable")]
        points, x, weights, scale = points[off], x[:, off], weights[:, off], scale[off]
        shift = None if shift is None else shift[off]
        count = self.count[points]
        best, chosen = np.full(len(off), np.inf, np.float32), np.zeros(len(off), found.dtype)
        for i in range(int(count[0]) if len(off) else 0):
            n = int(np.searchsorted(-count, -i, side="left"))
            word = self.near[points[:n], i]
            term = values.take(word, axis=1)
            if shift is not None:
                term += shift[:n]
            term *= scale[:n]
            term -= x[:, :n]
            error = total(weights[:, :n] * term * term)
            better = error < best[:n]
            np.copyto(best[:n], error, where=better)
            np.copyto(chosen[:n], word, where=better)
        found[off] = chosen
        return found


@functools.cache
def code_book(name: str) -> CodeBook:
    """The book of a type, made once: up to a second for the largest."""
    grid, near = BOOKS[name]
    values = np.unique(grid)
    levels, size = len(values), grid.shape[1]
    words = np.searchsorted(values, grid).astype(np.float32)
    powers = levels ** np.arange(size)
    points = (np.arange(levels**size)[:, None] // powers % levels).astype(np.float32)
    index = np.full(len(points), -1, np.int16)
    index[(words @ powers.astype(np.float32)).astype(int)] = np.arange(len(words))
    distance = (points**2).sum(axis=-1)[:, None] + (words**2).sum(axis=-1) - 2 * points @ words.T
    distance = distance.astype(np.int16)
    limit = distance.min(axis=-1)
    for _ in range(near - 1):
        limit = np.where(distance > limit[:, None], distance, np.int16(1000)).min(axis=-1)
    count = np.where(index < 0, (distance <= limit[:, None]).sum(axis=-1), 0)
    order = np.argsort(np.where(distance <= limit[:, None], distance, np.int16(1000)), axis=-1, kind="stable")
    return CodeBook(
        np.ascontiguousarray(words.T), levels, index, order[:, : count.max()].astype(np.int16), count.astype(np.int16)
    )
