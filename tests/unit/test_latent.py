"""Latent attention against its formula in float64, and its two forms against each other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forge_jax import cache as caches
from forge_jax.decoder import forward, inputs
from forge_jax.lora import Lora
from forge_jax.ops import Context
from forge_jax.ops.latent import absorbed, entries, expanded
from forge_jax.params import Tree, init
from forge_jax.quantization import quantize
from forge_jax.spec import Block, Branch, DynamicNtk, Latent, ModelSpec, Norm, Rope

pytestmark = pytest.mark.usefixtures("quick_compiles")

OP = Latent(3, 10, 6, 4, 5, 0.37, Norm(1e-3), Rope(4, 123.0, interleaved=True), 7, latent_scale=1.3, bias=True)
IDS = np.random.default_rng(0).integers(0, 37, (2, 13)).astype(np.int32)
run = jax.jit(forward, static_argnums=(0, 4))


def model(op: Latent, layers: int = 1) -> ModelSpec:
    """Attention and nothing else."""
    return ModelSpec(37, 16, (Block((Branch("attention", op),)),) * layers, 64)


def weights(spec: ModelSpec) -> Tree:
    """Random parameters, those that begin as constants too."""
    params = init(spec, jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([x + 0.2 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)])


def formula(op: Latent, p: Tree, x_TD: np.ndarray) -> np.ndarray:
    """The op of the paper, equations 9 to 19, one row in float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), p)

    def normed(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + op.norm.eps) * scale

    def turned(x):
        angle = np.arange(len(x))[:, None] * op.rope.theta ** (-np.arange(0, op.rope_dim, 2) / op.rope_dim)
        pairs = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angle.reshape(len(x), *(1,) * (x.ndim - 2), -1))
        return np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)

    q = np.einsum("tq,qnh->tnh", normed(x_TD @ p["q_a"] + p["q_a_bias"], p["q_norm"]["scale"]), p["q"])
    kv = x_TD @ p["kv_a"] + p["kv_a_bias"]
    c = normed(kv[:, : op.rank], p["kv_norm"]["scale"]) * op.latent_scale
    scores = np.einsum("tnh,snh->nts", q[..., : op.nope_dim], np.einsum("sr,rnh->snh", c, p["k"]))
    scores += np.einsum("tnp,sp->nts", turned(q[..., op.nope_dim :]), turned(kv[:, op.rank :]))
    scores = np.where(np.tri(len(x_TD), dtype=bool), scores * op.scale, -np.inf)
    chance = np.exp(scores - scores.max(-1, keepdims=True))
    chance /= chance.sum(-1, keepdims=True)
    y = np.einsum("nts,snv->tnv", chance, np.einsum("sr,rnv->snv", c, p["v"]))
    return np.einsum("tnv,nvd->td", y, p["o"]) + p["o_bias"]


def in_chunks(spec: ModelSpec, params: Tree, sizes: list[int], *, fresh: bool = True) -> np.ndarray:
    """Logits of a text that is read piece by piece."""
    cache = caches.init(spec, len(IDS), IDS.shape[1])
    found, start = [], 0
    for size in sizes:
        now = Context(fresh=fresh and not start)
        logits, cache = run(spec, params, inputs(IDS[:, start : start + size], start), cache, now)
        found.append(np.asarray(logits))
        start += size
    return np.concatenate(found, 1)


def test_is_the_formula() -> None:
    spec = model(OP)
    params = weights(spec)
    stream = np.asarray(params["embed"], np.float64)[IDS]
    expected = np.stack([x + formula(OP, params["layers"]["0"]["attention"], x) for x in stream])
    found, _ = run(spec, params, inputs(IDS))
    np.testing.assert_allclose(found, expected @ np.asarray(params["head"], np.float64), rtol=0, atol=2e-6)


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize(
    "op",
    [
        OP,
        Latent(4, 8, 5, 6, 7, 0.4, Norm(1e-6, bias=True), q_rank=None),
        pytest.param(Latent(2, 8, 4, 4, 4, 0.4, Norm(), Rope(2)), id="partial"),
    ],
)
def test_a_past_is_looked_at_as_the_present(op: Latent, fresh: bool) -> None:
    """The absorbed form against the expanded one, through a cache; the first piece may be either."""
    spec = model(op, 2)
    params = weights(spec)
    expected, _ = run(spec, params, inputs(IDS))
    found = in_chunks(spec, params, [5, 1, 7], fresh=fresh)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * float(jnp.abs(expected).max()))


def test_keys_turn_late_where_frequencies_depend_on_the_length() -> None:
    op = Latent(2, 8, 4, 4, 4, 0.4, Norm(), Rope(4, 123.0, scaling=DynamicNtk(2.0, 8)))
    spec = model(op)
    params = weights(spec)
    expected, _ = run(spec, params, inputs(IDS))
    found = in_chunks(spec, params, [12, 1])  # the last token sees every angle of the whole text
    np.testing.assert_allclose(found[:, -1], np.asarray(expected)[:, -1], rtol=0, atol=1e-5)


def test_scores_and_values_of_the_two_forms_agree() -> None:
    params = weights(model(OP))["layers"]["0"]["attention"]
    x, q = jax.random.normal(jax.random.key(2), (2, 5, 16)), jax.random.normal(jax.random.key(3), (2, 5, 3, 10))
    entry = entries(OP, params, x)
    k, v = expanded(OP, params, entry)
    np.testing.assert_allclose(
        jnp.einsum("btnr,bsr->bnts", absorbed(OP, params, q), entry), jnp.einsum("btnh,bnsh->bnts", q, k), atol=1e-4
    )
    values = jnp.einsum("bsr,rnv->bnsv", entry[..., : OP.rank], params["v"])
    np.testing.assert_allclose(values, v, atol=1e-5)


def test_a_cache_holds_one_entry_for_all_heads() -> None:
    cache = caches.init(model(OP), 2, 16, dtype=jnp.bfloat16)
    assert {name: (x.shape, x.parts["values"].dtype) for name, x in cache.layers[0]["attention"].items()} == {
        "entry": ((2, 1, 16, 14), jnp.bfloat16)
    }


def test_int8_weights_are_read_by_both_forms() -> None:
    spec = model(OP)
    params = quantize(spec, weights(spec), "int8")
    expected, _ = run(spec, params, inputs(IDS))
    np.testing.assert_allclose(in_chunks(spec, params, [1] * 13), expected, rtol=0, atol=1e-5)


def test_a_low_rank_update_is_read_by_both_forms() -> None:
    spec = model(OP)
    params = weights(spec)
    attention = params["layers"]["0"]["attention"]
    normal = partial(jax.random.normal, jax.random.key(5))
    for name in ("q_a", "q", "kv_a", "k", "v"):
        base = attention[name]
        attention[name] = Lora(base, normal((base.shape[0], 2)), normal((2, *base.shape[1:])) * 0.1)
    expected, _ = run(spec, params, inputs(IDS))
    np.testing.assert_allclose(in_chunks(spec, params, [1] * 13), expected, rtol=0, atol=3e-5)
