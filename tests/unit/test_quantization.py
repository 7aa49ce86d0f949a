"""Whole models in fewer bits: which weights are packed, and that the model computes what they decode to."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parallel_check import assert_sharded_equals_plain, distance
from quick import QUICK

from forge_jax.decoder import forward, inputs
from forge_jax.generation import generate
from forge_jax.lora import Lora
from forge_jax.params import Param, Tree, flatten, map_params, unflatten
from forge_jax.quantization import encode_leaf, packer, quantize
from forge_jax.spec import Attention, Block, Branch, Mlp, ModelSpec, Moe, Norm, Rope, Router
from forge_jax.tensor import QTensor, contract, dense

pytestmark = pytest.mark.usefixtures("quick_compiles")

RMS = Norm(1e-5)
ATTENTION = Branch("attention", Attention(8, 4, 16, 0.25, rope=Rope(16)), pre=RMS)
DENSE = Block((ATTENTION, Branch("mlp", Mlp(128), pre=RMS)))
SPARSE = Block((ATTENTION, Branch("moe", Moe(Router(4, 2), 64), pre=RMS)))
SPEC = ModelSpec(vocab_size=40, dim=64, layers=(DENSE, DENSE), max_seq_len=32, final_norm=RMS)
ONE = replace(SPEC, layers=(DENSE,))
MIXTURE = replace(SPEC, layers=(SPARSE,), tied=True)
IDS = np.random.default_rng(0).integers(0, 40, (2, 11)).astype(np.int32)

run = jax.jit(forward, static_argnums=0, compiler_options=QUICK)


def weights(spec: ModelSpec) -> Tree:
    """Parameters on the device."""
    rng = np.random.default_rng(0)

    def draw(param: Param) -> jax.Array:
        if param.fill is not None:
            return jnp.full(param.shape, param.fill, jnp.float32)
        return jnp.asarray(rng.standard_normal(param.shape) * max(param.fan_in, 64) ** -0.5, jnp.float32)

    return map_params(draw, spec)


PARAMS = weights(SPEC)


def kinds(params: Tree) -> dict[str, str]:
    """The scheme of every packed leaf."""
    return {path: leaf.scheme.name for path, leaf in flatten(params) if isinstance(leaf, QTensor)}


def unpacked(params: Tree) -> Tree:
    """The same numbers, not packed."""
    return unflatten({path: dense(leaf) for path, leaf in flatten(params)})


# ------------------------------------------------------------------------------------------------ what is computed
EACH = {
    "*.q": "int4-g32",
    "*.k": "int3-g64-asym",
    "*.v": "nf4",
    "*.o": "nvfp4",
    "*.gate": "Q4_0",
    "*.up": "fp8-block",
    "*.down": "mxfp4",
    "embed": "fp8",
    "head": "Q8_0",
}


def test_a_model_computes_what_its_weights_decode_to() -> None:
    """Every matrix in another scheme."""
    params = quantize(ONE, weights(ONE), "int8", policy=EACH)
    assert set(kinds(params).values()) == {packer(name).scheme.name for name in EACH.values()}
    found, _ = run(ONE, params, inputs(IDS))
    expected, _ = run(ONE, unpacked(params), inputs(IDS))
    assert distance(found, expected) < 1e-5


def test_mixtures_compute_what_their_weights_decode_to() -> None:
    """Experts are stacked; a tied head reads the embedding."""
    params = quantize(MIXTURE, weights(MIXTURE), "int4-g32-asym", policy={"embed": "nf4"})
    assert kinds(params)["layers.0.moe.up"] == "int4-g32"
    assert kinds(params)["embed"] == "nf4"
    assert "layers.0.moe.router" not in kinds(params)
    found, _ = run(MIXTURE, params, inputs(IDS))
    expected, _ = run(MIXTURE, unpacked(params), inputs(IDS))
    assert distance(found, expected) < 1e-5


def test_text_is_generated_by_the_same_loop() -> None:
    """The cache has the dtype of activations, whatever the parts of the embedding have."""
    params = quantize(ONE, weights(ONE), "int4-g32", outside="Q8_0")
    prompts = [IDS[0, :5].tolist(), IDS[1, :8].tolist()]
    found, expected = (generate(ONE, tree, prompts, max_new_tokens=6) for tree in (params, unpacked(params)))
    assert [reply.ids for reply in found] == [reply.ids for reply in expected]


def test_layers_of_one_kind_are_one_program() -> None:
    """What jit sees of packed layers, kinds of leaves, schemes, shapes and dtypes, is the same for all of them."""
    layers = quantize(SPEC, PARAMS, "int4-g32")["layers"]
    seen = [jax.tree.map(jax.typeof, layer) for layer in layers.values()]
    assert seen[0] == seen[1]
    assert jax.tree.structure(seen[0]) == jax.tree.structure(seen[1])


@pytest.mark.parametrize("shards", [pytest.param(2, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("scheme", ["int4-g32", pytest.param("int4-g64-asym", marks=pytest.mark.slow), "Q4_0"])
def test_packed_models_on_a_mesh(scheme: str, shards: int) -> None:
    """Rows of 128 are cut into 64 or 32; groups of 64 become finer, blocks of 32 stay whole."""
    params = quantize(ONE, jax.tree.map(np.asarray, weights(ONE)), scheme)
    assert isinstance(params["layers"]["0"]["attention"]["o"].parts["scale" if "int" in scheme else "d"], np.ndarray)
    assert_sharded_equals_plain(ONE, params, IDS, shards)


# ------------------------------------------------------------------------------------------------ rounded inputs
@pytest.mark.parametrize(
    ("eq", "x_shape", "w_shape", "summed"),
    [
        ("BTD,DF->BTF", (2, 3, 64), (64, 6), 1),
        ("BTD,DNH->BTNH", (1, 1, 64), (64, 4, 5), 1),
        ("BTNH,NHD->BTD", (2, 3, 4, 16), (4, 16, 8), 2),
        ("BTD,VD->BTV", (2, 3, 64), (7, 64), 0),
        ("NED,EDF->NEF", (3, 2, 64), (2, 64, 5), 1),
    ],
)
def test_dynamic_int8_is_a_product_of_integers(
    eq: str, x_shape: tuple[int, ...], w_shape: tuple[int, ...], summed: int
) -> None:
    """x and w each rounded to 127 steps of their largest numbers, by place and by output; all in float64."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in (x_shape, w_shape))
    x[0, 1:2] = 0
    param = Param(w_shape, (None,) * len(w_shape), inputs=summed, stacked=int(eq.startswith("NED")))
    q = encode_leaf(jnp.asarray(w), param, packer("int8-dynamic"))
    xs, ws, out = (*eq.split("->")[0].split(","), eq.split("->")[1])
    along = [tuple(i for i, c in enumerate(axes) if c not in out) for axes in (xs, ws)]
    steps = [np.abs(v.astype(np.float64)).max(axes, keepdims=True) / 127 for v, axes in zip((x, w), along, strict=True)]
    steps = [np.where(step > 0, step, 1 / 127) for step in steps]
    codes = [np.rint(v / step) for v, step in zip((x, w), steps, strict=True)]
    expected = np.einsum(eq, codes[0] * steps[0], codes[1] * steps[1])
    found = np.asarray(contract(eq, jnp.asarray(x), q))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    exact = np.einsum(eq, x.astype(np.float64), w.astype(np.float64))
    assert 1e-4 < np.abs(found - exact).max() / np.abs(exact).max() < 0.03
    assert contract(eq, jnp.asarray(x, jnp.bfloat16), q).dtype == jnp.bfloat16


def test_dynamic_int8_models() -> None:
    """Inputs of the layers' matrices are rounded; experts keep theirs, because they are multiplied in several ways."""
    params = weights(MIXTURE)
    dynamic = quantize(MIXTURE, params, "int8-dynamic")
    assert kinds(dynamic)["layers.0.attention.o"] == "int8-dynamic"
    assert kinds(dynamic)["layers.0.moe.down"] == kinds(dynamic)["embed"] == "int8"
    found, _ = run(MIXTURE, dynamic, inputs(IDS))
    same, _ = run(MIXTURE, unpacked(dynamic), inputs(IDS))
    assert 1e-4 < distance(found, same) < 0.05


# ------------------------------------------------------------------------------------------------ what is packed
def test_the_usual_choice() -> None:
    found = kinds(quantize(SPEC, PARAMS, "nf4"))
    linear = [*(f"attention.{name}" for name in "qkvo"), *(f"mlp.{name}" for name in ("gate", "up", "down"))]
    assert found == {
        **{f"layers.{i}.{name}": "nf4" for i in (0, 1) for name in linear},
        "embed": "int8",
        "head": "int8",
    }


def test_the_first_pattern_that_matches_decides() -> None:
    policy = {"layers.1.mlp.down": "int8", "*.mlp.*": None, "layers.0.*": "fp8", "head": "Q8_0"}
    found = kinds(quantize(SPEC, PARAMS, "int4-g16", policy=policy))
    assert found["layers.1.mlp.down"] == "int8"
    assert "layers.1.mlp.up" not in found
    assert "layers.0.mlp.down" not in found
    assert found["layers.0.attention.q"] == "fp8"
    assert found["layers.1.attention.q"] == "int4-g16"
    assert found["head"] == "Q8_0"


def test_routers_are_packed_if_they_are_named() -> None:
    params = weights(MIXTURE)
    assert "layers.0.moe.router" not in kinds(quantize(MIXTURE, params, "int8", policy={"layers.*": "fp8"}))
    named = quantize(MIXTURE, params, "int8", policy={"layers.*.router": "fp8"})
    assert kinds(named)["layers.0.moe.router"] == "fp8"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"policy": {"layers.*.mpl.down": "int8"}},
            r"'layers.\*.mpl.down' matches no parameter; near are layers.1.mlp.down",
        ),
        ({"policy": {"final_norm.*": "int8"}}, r"'final_norm.\*' matches only what is not packed, such as final_norm"),
        ({"policy": {"embed": "int11"}}, "there is no scheme 'int11'; did you mean int"),
        ({"scheme": "Q4_K"}, r"14 parameters .*layers.0.attention.q of 64, blocks of 256 \(Q4_K\).*fallback='int8'"),
        ({"scheme": "Q4_K", "fallback": "int4-g48"}, "14 parameters have rows"),
        ({"importance": {"layers.0.mlp.dwn": np.ones(128, np.float32)}}, "for layers.0.mlp.dwn, and there is no"),
        ({"importance": {"layers.0.mlp.down": np.ones(64, np.float32)}}, r"float32 \[64\], expected float32 \[128\]"),
        ({"importance": {"layers.0.mlp.down": np.full(128, -1, np.float32)}}, "negative or not finite"),
    ],
)
def test_what_cannot_be_is_an_error_before_anything_is_done(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(SPEC, PARAMS, **{"scheme": "int4-g16", **options})


def test_a_fallback_takes_what_does_not_fit() -> None:
    found = kinds(quantize(SPEC, PARAMS, "int4-g128", fallback="int4-g32"))
    assert found["layers.0.mlp.down"] == "int4-g128"
    assert found["layers.0.mlp.up"] == "int4-g32"


def test_packed_weights_are_packed_again_only_if_asked() -> None:
    once = quantize(SPEC, PARAMS, "int8")
    with pytest.raises(ValueError, match=r"16 parameters are packed already, for example embed as int8.*packed=False"):
        quantize(SPEC, once, "int4-g32")
    twice = quantize(SPEC, once, "int4-g32", requantize=True)
    plain = quantize(SPEC, unpacked(once), "int4-g32")
    jax.tree.map(np.testing.assert_array_equal, twice, plain)


def test_the_base_of_an_adapted_weight_is_packed() -> None:
    params = jax.tree.map(lambda x: x, PARAMS)
    mlp, normal = params["layers"]["0"]["mlp"], np.random.default_rng(0).standard_normal
    a, b = (jnp.asarray(normal(shape), jnp.float32) for shape in ((64, 2), (2, 128)))
    mlp["up"] = Lora(mlp["up"], a, b)
    found = quantize(SPEC, params, "nf4")["layers"]["0"]["mlp"]["up"]
    assert found.base.scheme.name == "nf4"
    np.testing.assert_array_equal(found.a, mlp["up"].a)


def test_parameters_of_another_shape_or_place_are_refused() -> None:
    params = jax.tree.map(lambda x: x, PARAMS)
    with pytest.raises(ValueError, match="differ in 1 leaves, for example head"):
        quantize(SPEC, {key: leaf for key, leaf in params.items() if key != "head"}, "int8")
    with pytest.raises(ValueError, match=r"embed is \[41, 64\], the spec asks \[40, 64\]; quantise parameters before"):
        quantize(SPEC, params | {"embed": jnp.zeros((41, 64))}, "int8")
    mesh = jax.make_mesh((2,), ("model",))
    split = jax.device_put(params["embed"], jax.NamedSharding(mesh, jax.P("model")))
    with pytest.raises(ValueError, match="embed is split over devices"):
        quantize(SPEC, params | {"embed": split}, "int8")


def test_half_precision_stays() -> None:
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    found = quantize(SPEC, params, "int4-g32")
    assert found["layers"]["0"]["mlp"]["up"].dtype == "bfloat16"
    logits, _ = run(SPEC, found, inputs(IDS))
    assert bool(jnp.isfinite(logits).all())
