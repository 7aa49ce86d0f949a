"""GPTQ (arXiv:2210.17323): inputs of a weight are rounded one after another, and those to come make up for the error.

Rows w [n] are multiplied by x of which H = sum x x^T is known; what is made small is the error of their products,
(w - q) H (w - q)^T. Computed in float64, on the host.
"""

from dataclasses import dataclass

import numpy as np

from forge_jax.quantization.grid import Grid, Rounded

TOGETHER = 128  # inputs that are rounded before those behind them learn of the error, which changes only the time


@dataclass(frozen=True)
class Gptq:
    """How to round.

    act_order: largest inputs first. static: groups and their scales are those of the weight as it was; otherwise
    inputs that are rounded after each other form a group, with a scale for what they are by then. damping: this part of
    the mean of H's diagonal is added to it.

    Raises:
        ValueError: a damping that is not positive.
    """

    grid: Grid = Grid()
    act_order: bool = False
    static: bool = False
    damping: float = 0.01

    def __post_init__(self) -> None:
        """Check the damping."""
        if not self.damping > 0:
            raise ValueError(f"gptq: damping = {self.damping}; expected more than 0")

    def round(self, rows: np.ndarray, gram: np.ndarray) -> Rounded:
        """Round rows [R, n], given H [n, n]. Inputs that were always 0 are rounded to the nearest number.

        Raises:
            ValueError: H is not what sums of squares can be.
        """
        size, grid = rows.shape[1], self.grid
        group = grid.group or size
        order = np.argsort(-np.diagonal(gram), kind="stable") if self.act_order else np.arange(size)
        upper = inverse_factor(gram[np.ix_(order, order)].astype(np.float64), self.damping)
        wide = rows.astype(np.float64)
        scale, zero = lines = grid.lines(wide)
        of = order // group if self.static else np.arange(size) // group
        w = np.ascontiguousarray(wide.T[order])  # [n, R]: inputs come first, so that each lies in one piece
        codes = np.empty_like(w)
        width = group * max(1, TOGETHER // group)  # whole groups, whose scale needs to know of every error so far
        for start in range(0, size, width):
            stop = min(start + width, size)
            errors = np.empty((stop - start, len(rows)))
            for i in range(start, stop):
                if not self.static and i % group == 0:
                    scale[:, of[i]], zero[:, of[i]] = grid.line(w[i : i + group].T)
                s, z = scale[:, of[i]], zero[:, of[i]]
                codes[i] = grid.codes(w[i], s, z)
                error = errors[i - start] = (w[i] - s * (codes[i] - z)) / upper[i, i]
                w[i + 1 : stop] -= np.outer(upper[i, i + 1 : stop], error)
            w[stop:] -= upper[start:stop, stop:].T @ errors
        back = np.argsort(order)
        return Rounded(codes[back].T, lines, of[back] if self.act_order and not self.static else None)


def inverse_factor(gram: np.ndarray, damping: float) -> np.ndarray:
    """The upper triangle U of H^-1 = U^T U, H being damped.

    H = V V^T with V upper, which is the usual factor of H read from its end, and U = V^-1.

    Raises:
        ValueError: H is not finite or not positive.
    """
    h, diagonal = gram.copy(), np.diagonal(gram)
    if not np.isfinite(h).all() or (diagonal < 0).any():
        raise ValueError("gptq: the sums over the inputs are not finite; the model gives no numbers for this text")
    dead = diagonal == 0
    mean = 1.0 if dead.all() else diagonal[~dead].mean()
    h[np.diag_indices_from(h)] += np.where(dead, mean, damping * mean)
    lower = np.linalg.cholesky(h[::-1, ::-1])
    return np.triu(np.linalg.inv(lower[::-1, ::-1]))
