"""contract, take and dense for each kind of leaf, against einsum on the dense weight in float64."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forge_jax import products
from forge_jax.lora import Lora
from forge_jax.params import Param
from forge_jax.products import product
from forge_jax.quantization import encode_leaf, packer
from forge_jax.quantization.schemes import Integers
from forge_jax.tensor import QTensor, contract, dense, take

EQUATIONS = {
    "BTD,DF->BTF": ((2, 3, 8), (8, 6)),
    "BTD,DNH->BTNH": ((2, 3, 8), (8, 4, 5)),
    "BTNH,NHD->BTD": ((2, 3, 4, 5), (4, 5, 8)),
    "BTD,VD->BTV": ((2, 3, 8), (7, 8)),
}


def normal(shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def exact(eq: str, x: jax.Array, w: jax.Array) -> np.ndarray:
    return np.einsum(eq.replace("->", "->"), np.asarray(x, np.float64), np.asarray(w, np.float64))


@pytest.mark.parametrize("eq", EQUATIONS)
def test_plain(eq: str):
    xs, ws = EQUATIONS[eq]
    x, w = normal(xs), normal(ws, 1)
    np.testing.assert_allclose(contract(eq, x, w), exact(eq, x, w), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eq", EQUATIONS)
def test_int8_is_the_product_with_the_dense_weight(eq: str):
    xs, ws = EQUATIONS[eq]
    x = normal(xs)
    inputs = sum(c not in eq.split("->")[1] for c in eq.split(",")[1].split("->")[0])
    param = Param(ws, (None,) * len(ws), inputs=0 if eq.endswith("V") else inputs)
    q = encode_leaf(normal(ws, 1), param, packer("int8"))
    np.testing.assert_allclose(contract(eq, x, q), exact(eq, x, q.dense()), rtol=1e-5, atol=1e-5)
    step = np.asarray(replace(q, parts=q.parts | {"codes": jnp.ones_like(q.parts["codes"])}).dense())
    assert np.all(np.abs(np.asarray(q.dense()) - np.asarray(normal(ws, 1))) <= 0.5 * step * (1 + 1e-6))


def test_groups_of_scales():
    codes = jnp.arange(-16, 16, dtype=jnp.int8).reshape(4, 8)
    q = QTensor({"codes": codes, "scale": jnp.asarray([[1.0, 10.0]])}, Integers(8, group=4), trailing=1)
    want = np.arange(-16, 16).reshape(4, 8).T * np.repeat([[1.0], [10.0]], 4, 0)
    np.testing.assert_array_equal(dense(q), want)
    x = normal((2, 3, 8))
    np.testing.assert_allclose(contract("BTD,DF->BTF", x, q), exact("BTD,DF->BTF", x, q.dense()), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("eq", ["BTD,DF->BTF", "BTD,DNH->BTNH", "BTNH,NHD->BTD"])
def test_lora_is_the_product_with_the_merged_weight(eq: str, quantised: bool):
    xs, ws = EQUATIONS[eq]
    inputs = sum(c not in eq.split("->")[1] for c in eq.split(",")[1].split("->")[0])
    base = normal(ws, 1)
    base = encode_leaf(base, Param(ws, (None,) * len(ws), inputs=inputs), packer("int8")) if quantised else base
    leaf = Lora(base, normal((*ws[:inputs], 2), 2), normal((2, *ws[inputs:]), 3))
    assert leaf.shape == ws
    x = normal(xs)
    np.testing.assert_allclose(contract(eq, x, leaf), exact(eq, x, leaf.dense()), rtol=1e-5, atol=1e-4)


def test_lora_on_a_tied_embedding_serves_both_ends():
    leaf = Lora(normal((7, 8)), normal((7, 2), 1), normal((2, 8), 2))
    x = normal((2, 3, 8), 3)
    eq = "BTD,VD->BTV"
    np.testing.assert_allclose(contract(eq, x, leaf), exact(eq, x, leaf.dense()), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"sums over \['N'\]"):
        contract("BTN,NHD->BTHD", normal((2, 3, 4)), Lora(normal((4, 5, 8)), normal((4, 5, 2)), normal((2, 8))))


def test_take_gives_rows_of_every_kind():
    table, ids = normal((7, 8)), jnp.asarray([[0, 6], [3, 3]])
    np.testing.assert_array_equal(take(table, ids), np.asarray(table)[np.asarray(ids)])
    q = encode_leaf(table, Param((7, 8), (None, None), inputs=0), packer("int8"))
    np.testing.assert_array_equal(take(q, ids), np.asarray(q.dense())[np.asarray(ids)])
    columns = encode_leaf(table, Param((7, 8), (None, None)), packer("int8"))
    np.testing.assert_array_equal(take(columns, ids), np.asarray(columns.dense())[np.asarray(ids)])
    leaf = Lora(table, normal((7, 2), 1), normal((2, 8), 2))
    np.testing.assert_allclose(take(leaf, ids), np.asarray(leaf.dense())[np.asarray(ids)], rtol=1e-5, atol=1e-6)


def test_the_result_has_the_dtype_of_the_activations():
    x, w = normal((2, 3, 8)).astype(jnp.bfloat16), normal((8, 6))
    assert contract("BTD,DF->BTF", x, w).dtype == jnp.bfloat16


def test_a_product_over_two_axes_does_not_transpose_the_weight():
    """Otherwise XLA keeps a second, transposed copy of every output projection."""
    x, w = normal((1, 1, 4, 16)), normal((4, 16, 32))
    text = jax.jit(lambda x, w: product("BTNH,NHD->BTD", x, w)).lower(x, w).compile().as_text()
    assert " dot(" in text
    assert " transpose(" not in text
    assert " copy(" not in text


@pytest.mark.parametrize("scheme", ["int4-g32", "nf4", "int8", "Q4_0"])
def test_a_weight_of_several_tiles_multiplies_like_one(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last tile is no whole one, and begins where the one before has been."""
    w = np.random.default_rng(3).normal(size=(64, 11, 3)).astype(np.float32)
    packed = jax.tree.map(jnp.asarray, encode_leaf(w, Param(w.shape, ("embed", None, None)), packer(scheme)))
    x = normal((2, 3, 64))
    monkeypatch.setattr(products.kernels, "fits", lambda *_: False)
    whole = jax.jit(lambda x, w: contract("BTD,DNH->BTNH", x, w))(x, packed)
    monkeypatch.setattr(products, "TILE", 4 * 3 * 64)
    for rows in (x, x[:1, :1]):
        tiles = jax.jit(lambda x, w: contract("BTD,DNH->BTNH", x, w))(rows, packed)
        np.testing.assert_allclose(tiles, whole[: len(rows), : rows.shape[1]], rtol=0, atol=1e-5 * np.abs(whole).max())
        assert "while" in jax.jit(lambda x, w: contract("BTD,DNH->BTNH", x, w)).lower(rows, packed).as_text()
