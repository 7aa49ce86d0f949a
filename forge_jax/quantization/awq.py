"""AWQ (arXiv:2306.00978): inputs that matter are made smaller and their weights larger, so that these round better.

Inputs x [n] are divided by s and weights multiplied by it. s = m^a, m being the mean of |x|, and `a` the one of a few
that changes the products of the rounded weights least; so are the clips of groups chosen. What H = sum x x^T says of
the change is exact: no input is kept. Computed in float32, on the host.
"""

from collections.abc import Sequence

import numpy as np

from forge_jax.quantization.grid import Grid, Lines

LEAST = 1e-4  # an input that is always 0 must not have a scale of 0
CLIPS = 10  # clips that are tried between all of a group's numbers and half of them


def change(delta: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """The squared change of the products with rows changed by delta [..., R, n], a number [..., R] each."""
    return ((delta @ gram) * delta).sum(-1)


def best_scale(
    size: np.ndarray, weights: Sequence[tuple[np.ndarray, np.ndarray]], grid: Grid, steps: int = 20
) -> np.ndarray:
    """The s [..., n] under which weights change their products least, from ones to nearly `size`, the mean of |x|.

    Args:
        size: [n], or [*stacked, n] where each of the stacked weights has inputs of its own.
        weights: rows [*stacked, R, n] and H [*stacked, n, n] of those that the inputs go to.
    """

    def scale_of(power: float) -> np.ndarray:
        s = np.maximum(size, LEAST * size.max(-1, keepdims=True, initial=LEAST)) ** power
        return s / np.sqrt(s.max(-1, keepdims=True) * s.min(-1, keepdims=True))

    def loss(s: np.ndarray) -> float:
        total = 0.0
        for rows, gram in weights:
            wide = rows * s[..., None, :]
            rounded = grid.values(grid.nearest(wide, lines := grid.lines(wide)), lines)
            total += float(change(rounded / s[..., None, :] - rows, gram).sum())
        return total

    return min((scale_of(step / steps) for step in range(steps)), key=loss)


def clipped(rows: np.ndarray, gram: np.ndarray, grid: Grid) -> Lines:
    """The lines of rows [R, n], given H [n, n], each group cut off where that changes its products least."""
    found = []
    for span in grid.spans(rows.shape[-1]):
        group, inputs = rows[:, span], gram[span, span]
        tried = [grid.line(group, 1 - 0.5 * step / CLIPS) for step in range(CLIPS)]
        alone = [Lines(scale[:, None], zero[:, None]) for scale, zero in tried]
        losses = [change(one.scale * (grid.codes(group, *one) - one.zero) - group, inputs) for one in alone]
        best = np.argmin(losses, 0)[None]
        found.append([np.take_along_axis(np.stack(part), best, 0)[0] for part in zip(*tried, strict=True)])
    return Lines(*(np.stack(part, -1) for part in zip(*found, strict=True)))
