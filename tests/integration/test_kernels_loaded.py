"""Models whose weights lie as kernels want them: what is computed, what is kept, what is refused."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from tiny_checkpoint import write_golden_directory

from forge_jax import Session, forward, inputs, kernels, loading, parallel
from forge_jax.cli import main
from forge_jax.exporting import export_gguf, export_onnx, export_orbax
from forge_jax.exporting_packed import export_packed
from forge_jax.params import flatten, unflatten
from forge_jax.quantization.ordered import Ordered
from forge_jax.quantization.swift import plain_rows
from forge_jax.quantization.tiles import Tiles
from forge_jax.tensor import QTensor

pytestmark = pytest.mark.usefixtures("quick_compiles")
IDS = [[3, 1, 4, 1, 5, 9, 2, 6]]


@pytest.fixture(autouse=True)
def built():
    if not kernels.available():
        pytest.skip(kernels.status().reason)


def load(path: Path, **options: Any) -> loading.Model:
    return loading.load(path, progress=False, **options)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama in two files: float16, and Q4_0."""
    folder = tmp_path_factory.mktemp("stored")
    model = load(write_golden_directory("llama", folder / "llama"))
    for kind in ("F16", "Q4_0"):
        export_gguf(model, folder / f"{kind}.gguf", type=kind)
    return folder


def logits(model: loading.Model) -> np.ndarray:
    return np.asarray(forward(model.spec, model.params, inputs(IDS))[0])


def schemes(model: loading.Model) -> set[str]:
    return {leaf.scheme.name for _, leaf in flatten(model.params) if isinstance(leaf, QTensor)}


def test_weights_of_16_bits_give_the_numbers_of_float32(stored: Path):
    plain, exact = load(stored / "F16.gguf"), load(stored / "F16.gguf", kernels="exact")
    assert schemes(plain) == set()
    assert schemes(exact) == {"float16"}
    want = logits(plain)
    np.testing.assert_allclose(logits(exact), want, rtol=0, atol=1e-5 * np.abs(want).max())
    np.testing.assert_array_equal(exact.unpacked().params["embed"], plain.params["embed"])
    sizes = [sum(x.nbytes for x in jax.tree.leaves(model.params)) for model in (exact, plain)]
    assert sizes[0] < 0.55 * sizes[1]


def test_rounded_inputs_are_close_and_exact_ones_the_default(stored: Path):
    default, rounded = load(stored / "Q4_0.gguf"), load(stored / "Q4_0.gguf", kernels="rounded")
    plain, near = logits(load(stored / "Q4_0.gguf", packed=False)), logits(rounded)
    np.testing.assert_allclose(logits(default), plain, rtol=0, atol=1e-5 * np.abs(plain).max())
    error = np.abs(near - plain).max() / np.abs(plain).max()
    assert 1e-4 < error < 0.05  # of 8 bits, through two layers
    # with a cache, a token at a time, by the kernel for attention
    session = Session(rounded.spec, rounded.params, IDS, max_new_tokens=4)
    session.advance()
    at = np.asarray(forward(rounded.spec, rounded.params, inputs([IDS[0] + session.ids()[0]]))[0])[0]
    assert session.ids()[0] == at[len(IDS[0]) - 1 : -1].argmax(-1).tolist()


def test_what_kernels_cannot_do_is_refused(stored: Path, monkeypatch: pytest.MonkeyPatch):
    file = stored / "F16.gguf"
    with pytest.raises(ValueError, match=r"kernels = 'fast'; expected 'exact' or 'rounded', or None"):
        load(file, kernels="fast")
    with pytest.raises(ValueError, match=r"multiply in float32, and dtype is 'bfloat16'"):
        load(file, kernels="exact", dtype="bfloat16")
    monkeypatch.setattr(loading, "available", lambda: False)
    monkeypatch.setattr(loading, "status", lambda: kernels.Status(False, "no C++ compiler is found"))
    with pytest.raises(ValueError, match=r"kernels = 'exact', and there are none: no C\+\+ compiler is found"):
        load(file, kernels="exact")


def test_the_command_line_takes_them_where_they_are(stored: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []

    def remember(name: str, **options: Any) -> None:
        asked.append(options["kernels"])
        raise ValueError("that will do")

    monkeypatch.setattr(loading, "load", remember)
    for words in ([], ["--kernels", "exact"], ["--kernels", "plain"], ["--dtype", "bfloat16"]):
        assert main(["generate", "x", "-m", str(stored / "F16.gguf"), *words]) == 1
    assert asked == ["rounded", "exact", None, None]


def test_a_cache_is_not_copied_by_a_step(stored: Path):
    """What a loop of steps takes besides its arguments is less than a tenth of the cache that it reads and writes."""
    model = load(stored / "F16.gguf", kernels="exact")
    session = Session(model.spec, model.params, IDS, max_new_tokens=4)
    slots = session.programs.new_cache(model.spec, 1, 32768)
    state = jax.tree.map(lambda x: x, session.state)
    state = loading.replace(state, cache=slots)
    run = session.programs.advance.lower(
        model.spec, session.plan, model.params, session.values, state, jnp.int32(3), session.ctx
    )
    found = run.compile().memory_analysis()
    assert found.temp_size_in_bytes < 0.1 * sum(x.nbytes for x in jax.tree.leaves(slots.layers))


def test_tiles_are_written_as_rows_and_split_as_rows(stored: Path, tmp_path: Path):
    """An export is the file that was read; on a mesh there are no tiles, and nothing is rounded."""
    rounded, default = load(stored / "Q4_0.gguf", kernels="rounded"), load(stored / "Q4_0.gguf")
    assert any(isinstance(leaf.scheme, Tiles) for _, leaf in flatten(rounded.params) if isinstance(leaf, QTensor))
    for name, model in (("rounded", rounded), ("default", default)):
        export_gguf(model, tmp_path / f"{name}.gguf", type="Q4_0")
    assert (tmp_path / "rounded.gguf").read_bytes() == (tmp_path / "default.gguf").read_bytes()
    mesh = Mesh(np.array(jax.devices()[:2]), ("model",))
    with pytest.raises(ValueError, match=r"kernels = 'rounded' lays weights out for one device, and there is a mesh"):
        load(stored / "Q4_0.gguf", kernels="rounded", mesh=mesh)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        split = parallel.prepare(rounded.spec, rounded.params, 2)
    assert "Q4_0 in tiles for kernels that round is for one device; on a mesh it is multiplied exactly" in {
        str(one.message) for one in said
    }
    tiles = [leaf for leaf in jax.tree.leaves(split, is_leaf=is_packed) if is_packed(leaf)]
    assert tiles
    assert not any(isinstance(leaf.scheme, Tiles) for leaf in tiles)


def is_packed(leaf: Any) -> bool:
    return isinstance(leaf, QTensor)


def test_inputs_in_the_order_of_activations_take_kernels(shared: Path, tmp_path: Path):
    """Exact ones by themselves; exports and meshes see what was in the file."""
    original = shared / "oracle/quant/gptq_4b_g32_v2_asym_actorder"
    if not original.exists():
        pytest.skip(f"{original} is not there")
    with np.load(original / "ref.npz") as file:
        batch, want = inputs(file["input_ids"]), file["logits"]
    for asked, most in ((None, 1e-5), ("exact", 1e-5), ("rounded", 0.05)):
        model = load(original, kernels=asked)
        packed = [leaf for _, leaf in flatten(model.params) if is_packed(leaf) and leaf.scheme.name != "float16"]
        assert packed
        assert all(isinstance(leaf.scheme, Ordered) for leaf in packed)
        assert all(isinstance(leaf.scheme.rows, Tiles) == (asked == "rounded") for leaf in packed)
        text = jax.jit(partial(forward, model.spec)).lower(model.params, batch).as_text()
        assert f"@forge_jax.{'rounded' if asked == 'rounded' else 'product'}" in text
        found = np.asarray(forward(model.spec, model.params, batch)[0])
        assert np.abs(found - want).max() < most * np.abs(want).max()
        written = export_packed(model, tmp_path / str(asked))
        assert (written / "model.safetensors").read_bytes() == (original / "model.safetensors").read_bytes()
        export_orbax(model, tmp_path / f"orbax {asked}")
        np.testing.assert_array_equal(logits(load(tmp_path / f"orbax {asked}", kernels=asked)), logits(model))
        export_onnx(model, tmp_path / f"{asked}.onnx", packed=True)
        plain = unflatten({path: plain_rows(leaf) for path, leaf in flatten(model.params)})
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            split = parallel.prepare(model.spec, model.params, 2)
            wanted = parallel.prepare(model.spec, plain, 2)
        assert any("in tiles for kernels" in str(one.message) for one in said) == (asked == "rounded")
        for one, other in zip(*map(jax.tree.leaves, (split, wanted)), strict=True):
            np.testing.assert_array_equal(one, other)
    assert len({path.read_bytes() for path in tmp_path.glob("*.onnx")}) == 1
