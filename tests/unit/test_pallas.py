"""Kernels in Pallas, interpreted, against the plain path and float64; when they are taken, and that they lower."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import normal
from jax.sharding import Mesh, PartitionSpec

from forge_jax import Session, kernels
from forge_jax import params as P
from forge_jax.cache import codec, keep, view
from forge_jax.kernels import pallas
from forge_jax.ops.found import Keys, attend, attend_plainly
from forge_jax.ops.packed import Held
from forge_jax.params import Param
from forge_jax.products import matrix, multiplied
from forge_jax.quantization import encode_leaf, packer, quantize
from forge_jax.spec import Attention, Block, Branch, Mlp, ModelSpec, Norm, Rope
from forge_jax.tensor import QTensor, contract

pytestmark = pytest.mark.usefixtures("quick_compiles")
EQ = "BTD,DNH->BTNH"
N, H = 3, 11  # outputs are no multiple of what a program takes
SCHEMES = ("int8", "int8-g256", "int8-asym", "int4", "int4-g32", "int4-g128", "int4-g64-asym", "int2-g32")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch):
    kernels.available()  # asked once a process, and not while a test says that the device is another one
    monkeypatch.setenv(pallas.SWITCH, "interpret")


@functools.cache
def leaf(scheme: str, inputs: int = 512, outputs: tuple[int, ...] = (N, H)) -> QTensor:
    shape = (inputs, *outputs)
    w = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    return jax.tree.map(jnp.asarray, encode_leaf(w, Param(shape, (None,) * len(shape), inputs=1), packer(scheme)))


def exact(eq: str, x: jax.Array, w: QTensor) -> np.ndarray:
    return np.einsum(eq, np.asarray(x, np.float64), np.asarray(w.dense(), np.float64))


def close(y: jax.Array, want: np.ndarray, step: float = 4e-6) -> None:
    np.testing.assert_allclose(np.asarray(y, np.float64), want, rtol=0, atol=step * np.abs(want).max())


def calls(run, *args) -> int:
    return str(jax.make_jaxpr(run)(*args)).count("pallas_call")


# ------------------------------------------------------------------------------------------------ products
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_product_is_that_of_the_decoded_weight(scheme: str):
    q, run = leaf(scheme), functools.partial(contract, EQ)
    for rows in (1, 16 if scheme == "int8" else 3):
        x = normal(rows, 1, 512)
        assert calls(run, x, q) == 1
        close(jax.jit(run)(x, q), exact(EQ, x, q))


@pytest.mark.parametrize("inputs", [96, 576])
def test_rows_of_an_odd_number_of_blocks(inputs: int):
    q, x = leaf("int4-g32", inputs), normal(2, 1, inputs)
    assert calls(functools.partial(contract, EQ), x, q) == 1
    close(contract(EQ, x, q), exact(EQ, x, q))


@pytest.mark.parametrize("scheme", ["int8", "int4-g64-asym"])
@pytest.mark.parametrize("rows", [1, 5])
def test_in_bfloat16(scheme: str, rows: int):
    """Inputs and, of several rows, weights are rounded, as the plain path rounds them; sums are not."""
    q, x = leaf(scheme), normal(rows, 1, 512, dtype="bfloat16")
    y = contract(EQ, x, q)
    assert y.dtype == jnp.bfloat16
    values, factor = q.scheme.factors(q.parts)
    values = values if rows == 1 else values.astype(jnp.bfloat16)
    want = np.einsum("rk,nhk->rnh", np.asarray(x[:, 0], np.float64), np.asarray(values, np.float64))
    close(y[:, 0], want if factor is None else want * np.asarray(factor, np.float64), 2.0**-8)


def test_derivatives_are_those_of_the_plain_path():
    x, q = normal(2, 1, 512), leaf("int4-g64-asym")

    def plain(x: jax.Array, q: QTensor) -> jax.Array:
        return multiplied(*q.scheme.factors(q.parts), x.reshape(-1, 512), matrix)

    def loss(x: jax.Array, q: QTensor) -> jax.Array:
        return (contract(EQ, x, q) ** 2).sum()

    slope, scales = jax.grad(loss, (0, 1), allow_int=True)(x, q)
    want, wanted = jax.grad(lambda x, q: (plain(x, q) ** 2).sum(), (0, 1), allow_int=True)(x, q)
    close(slope, np.asarray(want), 1e-4)
    close(scales.parts["scale"], np.asarray(wanted.parts["scale"], np.float64), 1e-2)
    _, change = jax.jvp(functools.partial(contract, EQ, w=q), (x,), (x,))
    close(change, exact(EQ, x, q))


def test_under_vmap_over_either_or_both():
    x, q = normal(2, 2, 1, 512), leaf("int4-g32")
    many = jax.tree.map(lambda part: jnp.stack([part, part[::-1]]), q)
    run = functools.partial(contract, EQ)
    one = exact(EQ, x.reshape(4, 1, 512), q).reshape(2, 2, 1, N, H)
    close(jax.vmap(run, (0, None))(x, q), one)
    close(jax.vmap(run)(x, many), np.stack([one[0], one[1][:, :, ::-1]]))
    close(jax.vmap(run, (None, 0))(x[0], many)[1], one[0][:, :, ::-1])


def test_under_shard_map():
    mesh = Mesh(np.array(jax.devices()[:2]), ("m",))
    x, q = normal(2, 1, 512), leaf("int4-g32", 512, (4, 10))
    split = jax.shard_map(
        functools.partial(contract, EQ),
        mesh=mesh,
        in_specs=(PartitionSpec(), jax.tree.map(lambda _: PartitionSpec("m"), q)),
        out_specs=PartitionSpec(None, None, "m"),
        check_vma=False,
    )
    assert calls(split, x, q) == 1
    close(jax.jit(split)(x, q), exact(EQ, x, q))


def test_what_has_no_kernel_takes_the_plain_path():
    run = functools.partial(contract, EQ)
    assert calls(run, normal(17, 1, 512), leaf("int8")) == 0
    for scheme in ("Q8_0", "nf4", "int3", "int4-g24"):
        assert calls(run, normal(1, 1, 768), leaf(scheme, 768)) == 0
    assert calls(run, normal(1, 1, 512), leaf("int8", 512, (3, 5))) == 0


# ------------------------------------------------------------------------------------------------ attention
def keys(name: str, heads: int, slots: int, sizes: tuple[int, int], dtype: str = "float32", seed: int = 0) -> Keys:
    k, v = (keep(normal(2, heads, slots, n, seed=seed + n + i), codec(name)) for i, n in enumerate(sizes))
    seen = jnp.asarray(np.random.default_rng(seed).random((2, 1, slots)) < 0.7)
    return Keys(view(k, dtype), view(v, dtype), seen, held=Held(k, v, None))


@pytest.mark.parametrize(
    ("name", "heads", "slots", "sizes", "options"),
    [
        ("int8", (6, 3), 300, (64, 64), {"softcap": None, "sinks_N": None}),
        ("int8", (4, 2), 300, (128, 16), {"softcap": 20.0, "sinks_N": normal(4)}),
        ("int4", (4, 2), 300, (128, 32), {"softcap": 20.0, "sinks_N": normal(4)}),
        ("int2", (6, 3), 300, (64, 64), {"softcap": None, "sinks_N": None}),
    ],
)
def test_attention_is_that_of_the_plain_path(name: str, heads, slots: int, sizes, options):
    q, near = normal(2, 1, heads[0], sizes[0]) * 3, keys(name, heads[1], slots, sizes)
    near = replace(near, seen_BTS=near.seen_BTS & (jnp.arange(slots)[None, None] > slots - 250))  # as with a window
    new = replace(keys(name, heads[1], 1, sizes, seed=7), seen_BTS=jnp.ones((2, 1, 1), bool))
    options = options | {"scale": sizes[0] ** -0.5}
    assert calls(lambda q: attend(q, [near, new], **options), q) == 1
    y, want = (jax.jit(lambda q, way=way: way(q, [near, new], **options))(q) for way in (attend, attend_plainly))
    np.testing.assert_allclose(y, want, rtol=2e-5, atol=5e-6)


def test_attention_is_softmax_in_float64():
    q, near = normal(2, 1, 4, 64), keys("int8", 2, 256, (64, 64))
    wide, k, v = (np.asarray(x, np.float64) for x in (q, near.k_BKSH, near.v_BKSH))
    z = np.einsum("bkgh,bksh->bkgs", wide.reshape(2, 2, 2, 64), k) * 0.125
    weight = np.where(np.asarray(near.seen_BTS)[:, :, None], np.exp(z), 0)
    want = np.einsum("bkgs,bksh->bkgh", weight, v) / weight.sum(-1, keepdims=True)
    run = jax.jit(lambda q: attend(q, [near], scale=0.125))
    close(run(q).reshape(2, 2, 2, 64), want)
    low = run(q.astype(jnp.bfloat16))
    close(low.reshape(2, 2, 2, 64), want, 2.0**-6)


def test_what_nobody_sees_does_not_matter():
    q, near = normal(2, 1, 4, 64), keys("int4", 2, 300, (64, 64))
    run = jax.jit(lambda v, held, seen: attend(q, [replace(near, v_BKSH=v, held=held, seen_BTS=seen)], scale=0.125))
    hidden = ~near.seen_BTS[:, 0, None, :, None]
    spoilt = jax.tree.map(lambda x: jnp.where(hidden, jnp.nan, x) if x.dtype == jnp.bfloat16 else x, near.held)
    want = run(near.v_BKSH, near.held, near.seen_BTS)
    np.testing.assert_array_equal(run(jnp.where(hidden, 0, near.v_BKSH), spoilt, near.seen_BTS), want)
    np.testing.assert_array_equal(run(near.v_BKSH, near.held, jnp.zeros_like(near.seen_BTS)), 0)


def test_attention_under_grad_and_vmap():
    near = keys("int8", 2, 128, (32, 32))
    run = functools.partial(attend, parts=[near], scale=0.2)
    plain = functools.partial(attend_plainly, parts=[near], scale=0.2, softcap=None, sinks_N=None)
    q = normal(3, 2, 1, 4, 32)
    np.testing.assert_allclose(jax.jit(jax.vmap(run))(q), jax.jit(jax.vmap(plain))(q), rtol=2e-5, atol=5e-6)
    slope, want = (jax.jit(jax.grad(lambda q, way=way: (way(q) ** 2).sum()))(q[0]) for way in (run, plain))
    np.testing.assert_allclose(slope, want, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ a model
OP = Attention(4, 2, 32, 32**-0.5, rope=Rope(32))
LAYER = Block((Branch("attention", OP, pre=Norm()), Branch("mlp", Mlp(64), pre=Norm())))
SPEC = ModelSpec(96, 64, (LAYER,), 512, Norm(), tied=True)


@pytest.mark.slow
def test_a_session_makes_the_same_tokens(monkeypatch: pytest.MonkeyPatch):
    params = quantize(SPEC, P.init(SPEC, jax.random.key(0)), "int4-g32")
    rows = [list(range(9)), list(range(40, 60))]
    found = []
    for value in ("0", "interpret"):
        monkeypatch.setenv(pallas.SWITCH, value)
        jax.clear_caches()
        session = Session(SPEC, params, rows, max_new_tokens=200, cache_dtype="int4")
        session.advance(8)
        found.append(session.ids())
    jax.clear_caches()
    assert found[0] == found[1]
    assert list(map(len, found[0])) == [9, 9]


# ------------------------------------------------------------------------------------------------ the switch
def test_without_the_switch_there_are_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(pallas.SWITCH)
    assert calls(functools.partial(contract, EQ), normal(1, 1, 512), leaf("int8")) == 0
    assert pallas.told() == "in Pallas: off (FORGE_JAX_PALLAS is not set)"


def test_a_switch_that_cannot_be_honoured_is_an_error(monkeypatch: pytest.MonkeyPatch):
    for value, words in (("1", "default device is cpu; unset it"), ("yes", "is 'yes'; expected 1, 0 or interpret")):
        monkeypatch.setenv(pallas.SWITCH, value)
        with pytest.raises(ValueError, match=words):
            contract(EQ, normal(1, 1, 512), leaf("int8"))
        assert words in pallas.told()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # jax 0.11 warns that Pallas' Triton backend will go
@pytest.mark.parametrize(("device", "platform", "name"), [("gpu", "cuda", "triton"), ("tpu", "tpu", "tpu_custom_call")])
def test_kernels_lower_for_devices_that_are_not_here(device: str, platform: str, name: str, monkeypatch):
    monkeypatch.setenv(pallas.SWITCH, "1")
    monkeypatch.setattr(jax, "default_backend", lambda: device)
    assert pallas.told() == f"in Pallas: on, for this {device.upper()}"

    def lowered(run, *args) -> str:
        return jax.jit(run).trace(*args).lower(lowering_platforms=(platform,)).as_text()

    for scheme in ("int8", "int4-g64-asym"):
        for dtype, rows in (("float32", 1), ("bfloat16", 16)):
            text = lowered(
                functools.partial(contract, EQ), normal(rows, 1, 512, dtype=dtype), leaf(scheme, 512, (8, 64))
            )
            assert text.count("stablehlo.custom_call") >= 1
            assert name in text
    for kind, dtype in (("int8", "float32"), ("int4", "bfloat16")):
        near = keys(kind, 2, 300, (64, 64), dtype)
        assert name in lowered(lambda q, near=near: attend(q, [near], scale=0.125), normal(2, 1, 4, 64, dtype=dtype))
