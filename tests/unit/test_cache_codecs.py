"""Codecs of caches against their formulas in float64, and what they cost."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from quick import QUICK

from forge_jax import cache as caches
from forge_jax import stacking
from forge_jax.cache.codecs import FLOATS, PACKED
from forge_jax.decoder import forward, inputs
from forge_jax.ops import Context
from forge_jax.params import init
from forge_jax.spec import Attention, Block, Branch, Mamba, Mlp, ModelSpec, Norm, Rope

ATTENTION = Attention(4, 2, 24, 0.2, rope=Rope(24))
NEAR = replace(ATTENTION, window=5)


def layer(op: Attention | Mamba) -> Block:
    return Block((Branch("attention", op, pre=Norm()), Branch("mlp", Mlp(64), pre=Norm())))


SPEC = ModelSpec(64, 32, (layer(ATTENTION), layer(NEAR), layer(ATTENTION)), 128, Norm(), tied=True)
IDS = np.random.default_rng(0).integers(0, 64, (2, 24))
MIXED = {"*": "int8", "full.-1": "bf16", "window5": "int4"}
RUN = jax.jit(forward, static_argnums=(0, 4), compiler_options=QUICK)


def numbers(size: int) -> np.ndarray:
    """Heads of very different lengths, one of zeros, one with a number far above the others."""
    x = np.random.default_rng(size).standard_normal((3, 2, 5, size)) * np.array([1e-6, 1.0, 3e4])[:, None, None, None]
    x[0, 0, 0], x[1, 1, 1, 3] = 0, 1e3
    return x.astype(np.float32)


def hadamard(size: int) -> np.ndarray:
    """The block-diagonal matrix, of Kronecker products."""
    power, block = size & -size, np.ones((1, 1))
    while len(block) < power:
        block = np.kron([[1, 1], [1, -1]], block)
    return np.kron(np.eye(size // power), block / power**0.5)


def exact_scale(found: jax.Array, largest: np.ndarray, levels: float) -> np.ndarray:
    """The scale found as float64, which is the largest number over the levels in bfloat16."""
    assert found.dtype == jnp.bfloat16
    scale = np.asarray(found, np.float64)
    np.testing.assert_allclose(scale, largest / levels, rtol=2.0**-8)
    return scale


# ------------------------------------------------------------------------------------------------ formulas
@pytest.mark.parametrize("size", [1, 5, 64])
def test_int8_is_its_formula(size: int):
    x = numbers(max(size, 4))[..., :size]
    parts = jax.jit(PACKED["int8"].encode)(x)
    y = x.astype(np.float64) @ hadamard(size)
    scale = exact_scale(parts["scale"], np.abs(y).max(-1, keepdims=True), 127)
    units = np.divide(y, scale, out=np.zeros_like(y), where=scale > 0).clip(-127, 127)
    apart = np.asarray(parts["codes"]) != np.rint(units)
    assert (np.abs(np.abs(units % 1 - 0.5)[apart]) < 1e-4).all()  # only where float32 falls to another side of a border
    kept = np.asarray(parts["codes"], np.float64) * scale
    np.testing.assert_allclose(PACKED["int8"].decode(parts, jnp.float32), kept, rtol=1e-7)


def test_fp8_is_its_formula():
    x = numbers(24)
    parts = jax.jit(PACKED["fp8"].encode)(x)
    scale = exact_scale(parts["scale"], np.abs(x).max(-1, keepdims=True), 448)
    units = np.divide(x, scale, out=np.zeros_like(scale * x), where=scale > 0).clip(-448, 448)
    codes = units.astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(np.asarray(parts["codes"]).astype(np.float32), codes.astype(np.float32))
    np.testing.assert_allclose(
        PACKED["fp8"].decode(parts, jnp.float32), codes.astype(np.float64) * scale, rtol=1e-7, atol=1e-38
    )


@pytest.mark.parametrize("name", ["int4", "int2"])
@pytest.mark.parametrize(("size", "group"), [(4, 4), (80, 16), (96, 32)])
def test_rotated_codes_are_their_formula(name: str, size: int, group: int):
    x, bits = numbers(size), int(name[-1])
    parts, middle = jax.jit(PACKED[name].encode)(x), 2 ** (bits - 1) - 0.5
    y = (x.astype(np.float64) @ hadamard(size)).reshape(*x.shape[:-1], -1, group)
    largest = np.abs(y).max(-1) if bits == 4 else np.sqrt((y**2).mean(-1))
    scale = exact_scale(parts["scale"], largest, 7.5 if bits == 4 else 1)[..., None]
    units = np.divide(y, scale, out=np.zeros_like(y), where=scale > 0) + middle
    codes = np.rint(units.clip(0, 2 * middle)).reshape(x.shape)
    packed = np.asarray(parts["codes"])
    found = np.concatenate([packed >> shift & (2**bits - 1) for shift in range(0, 8, bits)], -1)
    apart = found != codes  # only where float32 and float64 fall to two sides of a border
    assert (np.abs(np.abs(units.reshape(x.shape) % 1 - 0.5)[apart]) < 1e-4).all()
    kept = ((found.reshape(y.shape) - middle) * scale).reshape(x.shape)
    decode = jax.jit(lambda parts: PACKED[name].decode(parts, jnp.float32))
    np.testing.assert_allclose(decode(parts), kept, rtol=1e-6)
    plain = jax.jit(PACKED[name].turn)(decode(parts))
    np.testing.assert_allclose(plain, kept @ hadamard(size), rtol=0, atol=3e-6 * np.abs(x).max())


@pytest.mark.parametrize("size", [1, 6, 96])
def test_a_turn_keeps_products_and_is_its_own_inverse(size: int):
    x, y = np.random.default_rng(1).standard_normal((2, 7, size)).astype(np.float32)
    turn = jax.jit(PACKED["int4"].turn)
    np.testing.assert_allclose(turn(turn(x)), x, atol=1e-6)
    np.testing.assert_allclose(turn(x), x @ hadamard(size), atol=2e-6)
    np.testing.assert_allclose(turn(x) @ turn(y).T, x @ y.T, atol=2e-5)


@pytest.mark.parametrize("name", [name for name in FLOATS if name != "float64"])
def test_floats_are_casts(name: str):
    x = numbers(24)
    codec = caches.codec(name)
    parts = codec.encode(jnp.asarray(x))
    assert set(parts) == {"values"}
    np.testing.assert_array_equal(parts["values"], jnp.asarray(x).astype(codec.name))
    assert codec.lossless(jnp.float16) == (codec.name != "bfloat16")
    assert codec.lossless(jnp.float32) == (codec.name == "float32")
    assert caches.codec("float64").lossless(jnp.float32)


# ------------------------------------------------------------------------------------------------ in a model
def chunked(sizes: list[int], kept: object, *, fresh: bool = True) -> np.ndarray:
    """Logits of a text that is read piece by piece, through a ring and full layers."""
    cache, out = caches.init(SPEC, 2, IDS.shape[1], slack=4, dtype=caches.policy(kept)), []
    for at, size in zip(itertools.accumulate(sizes, initial=0), sizes, strict=False):
        call, now = inputs(IDS[:, at : at + size], at), Context(fresh=fresh and not at)
        logits, cache = RUN(SPEC, PARAMS, call, cache, now)
        out.append(np.asarray(logits))
    return np.concatenate(out, 1)


PARAMS = init(SPEC, jax.random.key(0))


@pytest.mark.parametrize(
    "kept", [MIXED, *(pytest.param(name, marks=pytest.mark.slow) for name in ("bf16", "fp8", "int8", "int4", "int2"))]
)
def test_a_lossy_cache_shows_each_token_alike_to_every_call(kept: object):
    exact = np.asarray(RUN(SPEC, PARAMS, inputs(IDS), None, Context())[0])
    whole = chunked([24], kept)
    scale = np.abs(exact).max()
    lost = np.abs(whole - exact).max() / scale
    assert lost > 1e-3
    for sizes in ([7, 1, 1, 7, 7, 1], [1] * 24):
        # a number at the border of two codes falls to either side, so not to 1e-6 at all places
        apart = np.abs(chunked(sizes, kept, fresh=False) - whole) / scale
        assert np.quantile(apart, 0.5) < 2e-6
        assert apart.max() < lost / 20


@pytest.mark.parametrize("kept", [None, "bf16", "fp8", "int8", "int4", "int2", MIXED], ids=str)
def test_bytes_are_those_of_the_arrays(kept: object):
    cache = caches.init(SPEC, 3, 40, slack=2, dtype=caches.policy(kept))
    sizes = caches.slot_bytes(SPEC, kept)
    assert set(sizes) == {"full", "window5"}
    assert 3 * (40 * sizes["full"] + 7 * sizes["window5"]) == sum(leaf.nbytes for leaf in jax.tree.leaves(cache.layers))
    assert caches.bytes_per_token(SPEC, kept) == sum(sizes.values())


def test_bytes_of_one_head_are_those_of_the_table():
    for name, size in {"float32": 96, "bf16": 48, "fp8": 26, "int8": 26, "int4": 12 + 3 * 2, "int2": 6 + 3 * 2}.items():
        assert caches.bytes_per_token(SPEC, name) == 3 * 2 * 2 * size


# ------------------------------------------------------------------------------------------------ which slab has which
def names(kept: object) -> list[list[str]]:
    """The codec of keys and values a layer."""
    chosen = caches.codecs(SPEC, caches.policy(kept))
    return [[chosen[i, "attention", name].name for name in "kv"] for i in range(3)]


def test_a_name_for_rules_is_the_rules():
    assert caches.policy("k8v4") == caches.policy({"*": "int4", "*.k": "int8"})
    assert str(caches.policy("k8v4")) == "*: int4, *.k: int8"


def test_the_last_rule_that_matches_decides():
    assert names("int8") == [["int8"] * 2] * 3
    assert names({"layers.-1": "fp8"}) == [["float32"] * 2] * 2 + [["fp8"] * 2]
    assert names({"*": "int4", "*.v": "int8"}) == [["int4", "int8"]] * 3
    assert names({"*": "int8", "full.-1": "bf16"}) == [["int8"] * 2] * 2 + [["bfloat16"] * 2]
    assert names({"full": "int8"}) == [["int8"] * 2, ["float32"] * 2, ["int8"] * 2]
    assert names({"layers.1.attention.k": "int8"}) == [["float32"] * 2, ["int8", "float32"], ["float32"] * 2]


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ("int7", "no codec 'int7' .* expected one of float64, .*int4"),
        (jnp.int8, "no codec .*int8.* keys and values, which are floats"),
        ({"layers.3": "int8"}, "the rule 'layers.3': 'int8' is for nothing"),
    ],
)
def test_what_cannot_be_kept_so_is_an_error(kept: object, said: str):
    with pytest.raises(ValueError, match=said):
        caches.init(SPEC, 1, 8, dtype=caches.policy(kept))


def test_a_codec_that_would_keep_nothing_is_an_error():
    spec = replace(SPEC, layers=(layer(Mamba(32, 16, 4, 4)),))
    caches.init(spec, 1, 8, dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match=r"'\*': 'int8' is for nothing that this model keeps"):
        caches.init(spec, 1, 8, dtype=caches.policy("int8"))


def test_heads_that_cannot_be_packed_are_named():
    spec = replace(SPEC, layers=(layer(replace(ATTENTION, head_dim=5, rope=None)),))
    with pytest.raises(ValueError, match=r"layers\.0\.attention\.k has heads of size 5: int4 packs 2 .* multiple of 2"):
        caches.init(spec, 1, 8, dtype=caches.policy("int4"))


def test_stacked_layers_are_kept_alike():
    spec = replace(SPEC, layers=(layer(ATTENTION),) * 3)
    stacking.stack_cache(spec, caches.init(spec, 1, 8, dtype=caches.policy("int8")))
    mixed = caches.init(spec, 1, 8, dtype=caches.policy({"layers.-1": "int8"}))
    with pytest.raises(ValueError, match="equal and stacked"):
        stacking.stack_cache(spec, mixed)
