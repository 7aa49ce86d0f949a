"""Each primitive as ONNX nodes, run by onnxruntime, gives what JAX gives."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from jax import export, lax
from onnx import helper

from forge_jax.onnx_export.graph import Graph, element_type
from forge_jax.onnx_export.lowering import run


def ran(function: Callable[..., Any], *arrays: Any, sizes: str | None = None) -> list[np.ndarray]:
    """What onnxruntime makes of a function; `sizes` names the axes of the first array that are left open."""
    arrays = tuple(map(np.asarray, arrays))
    abstract = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
    graph, names = Graph(), [f"input{i}" for i in range(len(arrays))]
    if sizes is not None:
        shape = export.symbolic_shape(sizes, constraints=["n >= 1000"])
        abstract[0] = jax.ShapeDtypeStruct(shape, arrays[0].dtype)
        for axis, size in enumerate(shape):
            if export.is_symbolic_dim(size):
                graph.sizes[str(size)] = graph.emit("Gather", [graph.emit("Shape", ["input0"]), graph.numbers([axis])])
    jaxpr, out = jax.make_jaxpr(function, return_shape=True)(*abstract)
    made = run(graph, jaxpr, names)
    outputs = [f"output{i}" for i in range(len(made))]
    nodes = [*graph.nodes, *(helper.make_node("Identity", [x], [y]) for x, y in zip(made, outputs, strict=True))]

    def info(name: str, x: Any) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, element_type(x.dtype), [None] * x.ndim)

    proto = helper.make_graph(
        nodes,
        "test",
        [info(name, x) for name, x in zip(names, arrays, strict=True)],
        [info(name, x) for name, x in zip(outputs, jax.tree.leaves(out), strict=True)],
        [onnx.numpy_helper.from_array(x, name) for name, x in graph.initializers.items()],
    )
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, dict(zip(names, arrays, strict=True)))


def check(function: Callable[..., Any], *arrays: Any, sizes: str | None = None, rtol: float = 2e-6) -> None:
    """Compare with JAX."""
    expected = jax.tree.leaves(jax.jit(function)(*map(np.asarray, arrays)))
    for found, wanted in zip(ran(function, *arrays, sizes=sizes), expected, strict=True):
        assert found.dtype == wanted.dtype
        # below the smallest normal float32 either side may flush to zero
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=1e-37)


X = np.linspace(-3, 3, 24, dtype=np.float32).reshape(4, 6)
TINY = np.array([-50, -1, -1e-3, -1e-7, 0, 1e-9, 1e-7, 1e-4, 0.5, 3, 40], np.float32)
WHOLE = np.array([[-7, -2, 0], [3, 5, 9]], np.int32)
TRUTH = X > 0.5


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.log1p(jnp.abs(x)),
        lambda x: jnp.log1p(-jnp.exp(-jnp.abs(x) - 1e-3)),
        jnp.expm1,
        jax.nn.softplus,
        lambda x: lax.erf(x),
        lambda x: x**3 + 1 / (x**2 + 1) + lax.integer_pow(x + 100, -2),
        lambda x: lax.rsqrt(jnp.abs(x) + 1) + jnp.sqrt(jnp.abs(x)),
        lambda x: jnp.round(x) + jnp.floor(x) * jnp.ceil(x) - jnp.sign(x),
        lambda x: lax.clamp(-1.0, x, 2.0),
        lambda x: jnp.isfinite(x / jnp.abs(x)),
        lambda x: (x != x) | (x / x != x / x),
        lambda x: lax.reduce_precision(x, 8, 7),
        lambda x: x + (x > jnp.inf).astype(x.dtype),
        lambda x: jnp.nanmax(jnp.where(x > 0, jnp.nan, x)),
    ],
)
def test_numbers(function: Callable[..., Any]) -> None:
    check(function, TINY)


def test_erfc_is_near_zero_where_it_vanishes() -> None:
    np.testing.assert_allclose(ran(lax.erfc, TINY)[0], lax.erfc(TINY), rtol=0, atol=2e-7)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (lax.rem(x, jnp.int32(4)), x % 4, x // 4, lax.div(x, jnp.int32(4)), -x, abs(x)),
        lambda x: (x & 6, x | 9, x ^ 5, ~x, x == 3, x >= 0),
        lambda x: (x.sum(1), x.max(0), x.min(), x.prod(1), x.argmax(1), x.argmin(0)),
        lambda x: (x.cumsum(1), lax.cumsum(x, 1, reverse=True), jnp.flip(x, 1), jnp.sort(x, 1)),
        lambda x: x.astype(jnp.float32) / 2,
        lambda x: jnp.stack(
            [(u := x.astype(jnp.uint32) * jnp.uint32(0x9E3779B9)) >> 7, u << 3, (u - 5) % 77, u + u, u & 255]
        ),
    ],
)
def test_whole_numbers(function: Callable[..., Any]) -> None:
    check(function, WHOLE)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x.any(1), x.all(0), ~x, x & x[::-1], x | x[:, ::-1], x ^ x[::-1], x.any()),
        lambda x: jnp.argsort(x, axis=1, stable=True),
        lambda x: jnp.where(x[:1], x, ~x),
        lambda x: jnp.take_along_axis(x, jnp.array([[0, 2], [9, 1], [5, 5], [-1, 3]]), 1),
    ],
)
def test_truth_values(function: Callable[..., Any]) -> None:
    check(function, TRUTH)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.pad(x, ((1, 2), (0, 3)), constant_values=7.0),
        lambda x: lax.pad(x, 0.0, ((-1, 1, 0), (2, -3, 0))),
        lambda x: (x[1:3, ::2], x[:, -1], jnp.split(x, (2, 3), axis=1), x[None, :, None], x.T.reshape(3, 8)),
        lambda x: (jnp.concatenate([x, x[:1]], 0), jnp.stack([x, -x], 1), jnp.broadcast_to(x[:, None], (4, 2, 6))),
        lambda x: (jnp.arange(5) * 2, lax.broadcasted_iota(jnp.int32, (3, 4), 1), x),
        lambda x: jnp.repeat(x, 3, axis=1),
        lambda x: lax.dynamic_slice(x, (jnp.int32(3), jnp.int32(-9)), (2, 3)),
        lambda x: lax.dynamic_update_slice(x, jnp.ones((2, 3)), (jnp.int32(3), jnp.int32(1))),
        lambda x: lax.top_k(x % 1.3, 4),
    ],
)
def test_moves(function: Callable[..., Any]) -> None:
    check(function, X)


@pytest.mark.parametrize("mode", ["fill", "clip", "promise_in_bounds"])
def test_reads_where_an_index_says(mode: str) -> None:
    at = np.array([[1, 3], [0, 2]] if mode == "promise_in_bounds" else [[1, 9], [-2, 4]], np.int32)
    x = np.arange(120, dtype=np.float32).reshape(4, 5, 6)
    for function in (
        lambda x, at: x.at[at].get(mode=mode),
        lambda x, at: x.at[:, at].get(mode=mode),
        lambda x, at: x.at[at, :, at + 1].get(mode=mode),
        lambda x, at: x.at[:, at[0, 1], 2].get(mode=mode),
        lambda x, at: jnp.take_along_axis(x, at[None].repeat(4, 0)[:, :, :1].repeat(6, 2), 1, mode=mode),
        lambda x, at: jax.vmap(lambda row, i: row.at[i].get(mode=mode))(x[:2], at),
    ):
        check(function, x, at)


@pytest.mark.parametrize("mode", ["drop", "clip"])
def test_writes_where_an_index_says(mode: str) -> None:
    at, x = np.array([[1, 9], [0, 4]], np.int32), np.arange(120, dtype=np.float32).reshape(4, 5, 6)
    for function in (
        lambda x, at: x.at[at[0]].set(-1.0, mode=mode),
        lambda x, at: x.at[at].add(x[None, :2].repeat(2, 0), mode=mode),
        lambda x, at: x.at[jnp.arange(2)[:, None], :, at].set(-x[:2, :2, :5], mode=mode),
        lambda x, at: x.at[:, at[1, 1], 2].set(x[0, :4, 0], mode=mode),
        lambda x, at: x.at[:, 1:3].add(x[:, :2], mode=mode),
        lambda x, at: x.at[at[0, 1]].set(5.0, mode=mode),
        lambda x, at: jax.vmap(lambda row, i: row.at[i].set(0, mode=mode))(x[:2], at),
    ):
        check(function, x, at)


@pytest.mark.parametrize(
    "equation",
    ["ij,jk->ik", "ij,kj->ik", "ji,jk->ki", "bij,bkj->bik", "bijc,bjck->bki", "ijk,jk->i", "i,j->ij", "i,i->"],
)
def test_products(equation: str) -> None:
    sizes, letters = dict(zip("ijkbc", (2, 3, 4, 2, 5), strict=True)), equation.partition("->")[0].split(",")
    a, b = (np.random.default_rng(0).normal(size=[sizes[c] for c in part]).astype(np.float32) for part in letters)
    check(lambda a, b: jnp.einsum(equation, a, b), a, b, rtol=1e-5)


def test_loops_and_branches() -> None:
    def loops(x: jax.Array):
        step = lambda carry, row: (carry * 0.5 + row, carry.sum())  # noqa: E731
        there, sums = lax.scan(step, jnp.zeros(6), x)
        back, reverse = lax.scan(step, there, x, reverse=True)
        counted = lax.fori_loop(0, 3, lambda i, y: y + x[i], jnp.zeros(6))
        found = lax.while_loop(lambda y: y.sum() < 50, lambda y: y * 1.5, jnp.ones(6))
        free, many = lax.scan(lambda carry, _: (carry + 1, carry), 0.0, None, length=4)
        chosen = lax.cond(x[0, 0] < 0, lambda: x * 2, lambda: x)
        other = lax.cond(x[0, 0] > 0, lambda: x * 2, lambda: x)
        return there, sums, back, reverse, counted, found, free, many, chosen, other

    check(loops, X, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_sizes_left_open(rows: int) -> None:
    x = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)

    def open_sizes(x: jax.Array):
        n = x.shape[0]
        line = jnp.arange(2 * n + 1, dtype=jnp.int32)
        filled = jnp.pad(x, ((0, -(-n // 3) * 3 - n), (0, 0))).reshape(-(-n // 3), 12)
        return (
            line,
            x.reshape(2 * n, 2) @ jnp.ones((2, 3)),
            filled,
            jnp.broadcast_to(x[:, None], (n, n, 4)).sum(0),
            x.sum() / n,
            jnp.concatenate([x, x])[:n],
            jnp.zeros((n % 3 + n // 2 + n * n, 2)),
            lax.scan(lambda carry, row: (carry + row, carry), jnp.zeros(4), x),
        )

    check(open_sizes, x, sizes="n, 4", rtol=1e-5)


@pytest.mark.parametrize("rows", [2, 9])
def test_the_best_of_fewer_than_are_asked_for(rows: int) -> None:
    # what comes of a place past the end is dropped
    x = np.random.default_rng(0).normal(size=(rows,)).astype(np.float32)

    def marked(x: jax.Array) -> jax.Array:
        return jnp.zeros(x.shape, bool).at[lax.top_k(x, 5)[1]].set(True, mode="drop")

    (found,) = ran(marked, x, sizes="n")
    np.testing.assert_array_equal(found, x >= np.sort(x)[-min(5, rows)])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: lax.lgamma(x), "primitive lgamma is not written"),
        (lambda x: jnp.fft.fft(x), "numbers of complex64"),
        (lambda x: lax.sort((x, x), num_keys=2), "several keys"),
        (lambda x: lax.pad(x, 0.0, ((0, 0, 1), (0, 0, 0))), "between numbers"),
        (lambda x: lax.round(x), "away from 0"),
        (lambda x: lax.switch(x[0, 0].astype(int), [jnp.sin, jnp.cos, jnp.tanh], x), "3 branches"),
        (lambda x: lax.reduce_precision(x, 4, 3), "4 exponent and 3 mantissa"),
        (lambda x: lax.linalg.triangular_solve(x[:, :4], x, left_side=True), "several unknowns"),
    ],
)
def test_what_is_not_written_is_named(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ran(function, X)
