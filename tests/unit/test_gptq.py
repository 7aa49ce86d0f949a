"""GPTQ against the algorithm as its paper derives it: one input after another, by the inverse of what is left of H."""

import numpy as np
import pytest

from forge_jax.quantization.gptq import Gptq
from forge_jax.quantization.grid import Grid


def problem(rows: int = 7, size: int = 24, tokens: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a weight, and inputs that are correlated and differ in size."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(tokens, size)) @ rng.normal(size=(size, size)) * rng.uniform(0.1, 3, size)
    return rng.normal(size=(rows, size)).astype(np.float32), x


def line(values: np.ndarray, bits: int, symmetric: bool) -> tuple[float, float]:
    """The scale, rounded to float16, and the zero of one group of one row."""
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    if symmetric:
        high = max(-low, high)
        scale, zero = 2 * high / (2**bits - 1), 2 ** (bits - 1)
        return float(np.float16(scale)), zero
    scale = float(np.float16((high - low) / (2**bits - 1)))
    return scale, min(max(np.rint(-low / scale), 0), 2**bits - 1)


def textbook(w: np.ndarray, x: np.ndarray, how: Gptq) -> tuple[np.ndarray, np.ndarray]:
    """(codes, values) [R, n]: every row by itself, H^-1 without an input by one step of Gauss's elimination."""
    grid, size = how.grid, w.shape[1]
    group = grid.group or size
    h = x.T @ x
    order = sorted(range(size), key=lambda i: -h[i, i]) if how.act_order else list(range(size))
    h = h + how.damping * np.mean(np.diag(h)) * np.eye(size)
    codes, values = np.zeros_like(w), np.zeros(w.shape)
    for r, row in enumerate(w.astype(np.float64)):
        inverse, now, scale, zero = np.linalg.inv(h), row.copy(), 1.0, 0.0
        for step, i in enumerate(order):
            if how.static:
                first = i // group * group
                scale, zero = line(row[first : first + group], grid.bits, grid.symmetric)
            elif step % group == 0:
                scale, zero = line(now[order[step : step + group]], grid.bits, grid.symmetric)
            codes[r, i] = min(max(np.rint(now[i] / scale) + zero, 0), 2**grid.bits - 1)
            values[r, i] = scale * (codes[r, i] - zero)
            rest = order[step + 1 :]
            now[rest] -= (now[i] - values[r, i]) / inverse[i, i] * inverse[i, rest]
            inverse = inverse - np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return codes, values


@pytest.mark.parametrize("order", ["in turn", "act order", "static groups"])
@pytest.mark.parametrize(
    ("bits", "group", "symmetric"), [(4, 8, False), (4, 0, True), (3, 8, True), (2, 12, False), (8, 5, False)]
)
def test_codes_are_those_of_the_textbook(bits: int, group: int, symmetric: bool, order: str):
    w, x = problem()
    how = Gptq(Grid(bits, group, symmetric), act_order=order != "in turn", static=order == "static groups")
    codes, values = textbook(w, x, how)
    found = how.round(w, x.T @ x)
    np.testing.assert_array_equal(found.codes, codes)
    index = np.arange(24) // (group or 24) if found.index is None else found.index
    scale, zero = (part[:, index] for part in found.lines)
    np.testing.assert_allclose(scale * (found.codes - zero), values, rtol=1e-12)


@pytest.mark.parametrize("group", [32, 64, 128, 192])
def test_inputs_rounded_together_give_what_single_ones_do(group: int):
    w, x = problem(2, 300, 400)
    how = Gptq(Grid(4, group))
    np.testing.assert_array_equal(how.round(w, x.T @ x).codes, textbook(w, x, how)[0])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_products_change_less_than_with_the_nearest_numbers(bits: int):
    w, x = problem(16, 64, 1000)
    told, held_out = x[:600], x[600:]
    grid = Grid(bits, 16)
    found, lines = Gptq(grid).round(w, told.T @ told), grid.lines(w.astype(np.float64))
    for inputs in (told, held_out):
        change = np.linalg.norm(inputs @ (grid.values(found.codes, found.lines) - w).T)
        plain = np.linalg.norm(inputs @ (grid.values(grid.nearest(w, lines), lines) - w).T)
        assert change < (1 if bits == 2 else 0.9) * plain  # four levels leave less to choose


def test_inputs_that_were_always_zero_are_rounded_to_the_nearest():
    w, x = problem()
    x[:, [3, 9]] = 0
    grid = Grid(4, 8)
    found, lines = Gptq(grid).round(w, np.zeros((24, 24))), grid.lines(w.astype(np.float64))
    np.testing.assert_array_equal(found.codes, grid.nearest(w.astype(np.float64), lines))
    some = Gptq(grid, static=True).round(w, x.T @ x).codes
    np.testing.assert_array_equal(some[:, [3, 9]], found.codes[:, [3, 9]])


def test_what_cannot_be_is_refused():
    w, _ = problem()
    with pytest.raises(ValueError, match="bits = 5"):
        Grid(5)
    with pytest.raises(ValueError, match="damping = 0"):
        Gptq(damping=0)
    with pytest.raises(ValueError, match="no numbers for this text"):
        Gptq(Grid(4, 8)).round(w, np.full((24, 24), np.nan))
    with pytest.raises(ValueError, match="5 numbers of 4 bits"):
        Grid(4, 0).parts(np.zeros((1, 5)), Grid(4, 0).lines(np.ones((1, 5))))
