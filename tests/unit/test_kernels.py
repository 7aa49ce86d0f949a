"""Kernels against the plain path and against einsum in float64; where they are taken, and where they cannot be."""

import functools
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from forge_jax import kernels, loading
from forge_jax.kernels import building, library
from forge_jax.kernels.formats import FORMATS, STEPPED
from forge_jax.params import Param
from forge_jax.products import rounded_product, rounded_runs, tiled
from forge_jax.quantization import encode_leaf, packer
from forge_jax.quantization.schemes import Halves
from forge_jax.quantization.swift import plain_rows
from forge_jax.quantization.tiles import Tiles
from forge_jax.quantization.tiles import tiled as in_tiles
from forge_jax.tensor import QTensor, contract, contract_all, take

pytestmark = pytest.mark.usefixtures("quick_compiles", "kernels_built")
EQ = "BTD,DNH->BTNH"
K, N, H = 512, 3, 7  # outputs are no multiple of what a kernel takes at a time
HALVES = {"BF16": "bfloat16", "F16": "float16"}
GGML = [name for name in FORMATS if name not in (*HALVES, *STEPPED)]
INTEGERS = ["int8", "int8-g64", "int8-g32-asym", "int4", "int4-g32", "int4-g128-asym"]


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@functools.cache
def leaf(scheme: str, outputs: tuple[int, ...] = (N, H)) -> QTensor:
    shape = (K, *outputs)
    w = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    if scheme in HALVES:
        rows = jnp.asarray(np.moveaxis(w, 0, -1)).astype(HALVES[scheme])
        return QTensor({"values": rows}, Halves(HALVES[scheme]), trailing=len(outputs))
    return jax.tree.map(jnp.asarray, encode_leaf(w, Param(shape, (None,) * len(shape), inputs=1), packer(scheme)))


@functools.cache
def tiles(scheme: str) -> QTensor:
    return jax.tree.map(jnp.asarray, in_tiles(jax.tree.map(np.asarray, leaf(scheme, (N, 32)))))


def exact(eq: str, x: jax.Array, w: QTensor) -> np.ndarray:
    return np.einsum(eq, np.asarray(x, np.float64), np.asarray(w.dense(), np.float64))


def close(y: jax.Array, want: np.ndarray, inputs: int = K) -> None:
    # float32 sums of so many products in some order: as many ulps at the very most, and in practice a few
    np.testing.assert_allclose(np.asarray(y), want, rtol=0, atol=4e-7 * np.abs(want).max() * inputs**0.5)


def calls(run, *args, kernel: str = "") -> int:
    return jax.jit(run).lower(*args).as_text().count(f"@forge_jax.{kernel}")


@pytest.mark.parametrize("scheme", [*GGML, *HALVES, *INTEGERS])
def test_a_product_is_that_of_the_decoded_weight(scheme: str):
    q = leaf(scheme)
    for rows in (13, 41):  # 8, 4 and 1 at a time; 12, 4 and 1
        x = normal(rows, 1, K)
        run = functools.partial(contract, EQ)
        assert calls(run, x, q) == 1
        close(jax.jit(run)(x, q), exact(EQ, x, q))


def test_a_prompt_times_more_outputs_than_are_opened_at_once():
    q, x = leaf("Q5_K", (3, 191)), normal(30, 1, K)
    assert calls(functools.partial(contract, EQ), x, q) == 1
    close(contract(EQ, x, q), exact(EQ, x, q))


@pytest.mark.parametrize(("inputs", "outputs"), [(1056, 70), (352, 64), (64, 5)])
def test_a_prompt_times_panels_that_are_not_all_of_one_depth(inputs: int, outputs: int):
    values = normal(outputs, inputs, seed=2).astype("float16")
    q, x = QTensor({"values": values}, Halves("float16"), trailing=1), normal(1, 45, inputs)
    run = functools.partial(contract, "BTD,DF->BTF")
    assert calls(run, x, q) == 1
    close(run(x, q), np.asarray(x, np.float64) @ np.asarray(values, np.float64).T, inputs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_inputs_of_16_bits_are_multiplied_in_float32(dtype: str):
    q, x = leaf("Q4_0"), normal(3, 1, K).astype(dtype)
    run = functools.partial(contract, EQ)
    assert calls(run, x, q) == 1
    y = contract(EQ, x, q)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, contract(EQ, x.astype(jnp.float32), q).astype(dtype))


@pytest.mark.parametrize("scheme", [*GGML, *INTEGERS])
def test_a_rounded_product_is_that_of_rounded_inputs(scheme: str):
    """The kernel rounds as `rounded_runs` does; but for a number in the middle between two codes, which may go to
    either and is then off by a step: at most max |x| / 127 times a weight."""
    exactly, q = leaf(scheme, (N, 32)), tiles(scheme)
    x = normal(15, 1, K)  # 8, 4, 2 and 1 rows at a time
    run = functools.partial(contract, EQ)
    assert calls(run, x, q, kernel="rounded") == 1
    want = exact(EQ, rounded_runs(x.reshape(-1, K)).reshape(x.shape), exactly)
    step = float(jnp.abs(x).max()) / 127 * float(jnp.abs(exactly.dense()).max())
    y = np.asarray(jax.jit(run)(x, q))
    np.testing.assert_allclose(y, want, rtol=0, atol=step)
    assert np.median(np.abs(y - want)) < 1e-6 * np.abs(want).max()
    # and rounding itself: half a step for each of K numbers, of random sign
    plain = exact(EQ, x, exactly)
    assert 0 < np.abs(y - plain).max() < 5 * step * K**0.5 / 12**0.5
    for row in (0, 8, 12, 14):  # whatever it is multiplied with
        np.testing.assert_array_equal(jax.jit(run)(x[row : row + 1], q)[0], y[row])


@pytest.mark.parametrize("scheme", [*GGML, *INTEGERS])
def test_tiles_are_the_same_rows(scheme: str, monkeypatch: pytest.MonkeyPatch):
    """Decoded, apart, one by one: the bits of the rows; a product by another way, where there are no kernels."""
    exactly, q = leaf(scheme, (N, 32)), tiles(scheme)
    assert isinstance(q.scheme, Tiles)
    assert (q.shape, q.outputs) == (exactly.shape, exactly.outputs)
    assert q.nbytes == exactly.nbytes or scheme in INTEGERS  # scales of 16 bits are wider in tiles
    np.testing.assert_array_equal(q.dense(), exactly.dense())
    back = plain_rows(q)
    assert back.scheme == exactly.scheme
    for name, part in back.parts.items():
        np.testing.assert_array_equal(part, exactly.every_row(name), strict=True)
    table = QTensor({name: part.reshape(N * 32, -1) for name, part in q.parts.items()}, q.scheme, trailing=0)
    ids = jnp.asarray([[0, 95, 17], [16, 31, 48]])
    np.testing.assert_array_equal(take(table, ids), exactly.rows().reshape(N * 32, K)[ids])
    x = normal(3, 1, K)
    run = functools.partial(contract, EQ)
    monkeypatch.setattr("forge_jax.kernels.product.available", lambda: False)
    assert calls(run, x, q, kernel="rounded") == 0
    close(run(x, q), exact(EQ, rounded_runs(x.reshape(-1, K)).reshape(x.shape), exactly))


def test_rows_that_fill_no_tile_stay_as_they_are():
    for scheme, outputs in (("Q8_0", (N, H)), ("int4-g128", (N, H)), ("nf4", (N, 32)), ("int8-dynamic", (N, 32))):
        host = jax.tree.map(np.asarray, leaf(scheme, outputs))
        assert in_tiles(host) is host


def test_what_is_no_number_stays_none_when_rounded():
    q = tiles("Q8_0")
    y = contract(EQ, normal(3, 1, K).at[1, 0, 70].set(jnp.nan), q)
    np.testing.assert_array_equal(jnp.isnan(y).all((1, 2, 3)), [False, True, False])
    np.testing.assert_array_equal(jnp.isnan(y).any((1, 2, 3)), [False, True, False])


def test_many_rows_round_too_and_gradients_pass():
    exactly, q, x = leaf("Q4_0", (N, 32)), tiles("Q4_0"), normal(40, 1, K)
    run = functools.partial(contract, EQ)
    assert calls(run, x, q) == 1
    close(run(x, q), exact(EQ, rounded_runs(x.reshape(-1, K)).reshape(x.shape), exactly))
    for rows in (1, 40):
        grad = jax.grad(lambda x: run(x, q).sum())(x[:rows])
        close(grad[0, 0], np.asarray(exactly.dense()).sum((1, 2)))


@pytest.mark.parametrize("rows", [1, 13, 40])
def test_inputs_rounded_token_by_token_are_whole_numbers_that_a_kernel_multiplies(rows: int):
    """The bits of a product of integers, of several weights in one call."""
    weights = [leaf("int8-dynamic", (N, size)) for size in (7, 5)]
    x = normal(rows, 1, K)
    run = functools.partial(contract_all, EQ)
    assert calls(run, x, weights) == 1
    for got, w in zip(jax.jit(run)(x, weights), weights, strict=True):
        codes, factor = w.scheme.factors(w.parts)
        want = jax.jit(functools.partial(rounded_product, "BTD,NHD->BTNH"))(x, codes, factor)
        np.testing.assert_array_equal(got, want, strict=True)


def test_a_table_and_its_rows():
    w = np.random.default_rng(2).standard_normal((70, K), dtype=np.float32)
    q = jax.tree.map(jnp.asarray, encode_leaf(w, Param(w.shape, (None, None), inputs=0), packer("Q8_0")))
    x = normal(2, 1, K)
    close(contract("BTD,VD->BTV", x, q), exact("BTD,VD->BTV", x, q))


def test_derivatives_are_those_of_the_plain_path():
    x, q = normal(2, 1, K), leaf("Q4_0")

    def plain(x: jax.Array) -> jax.Array:
        return tiled(q.scheme, q.parts, q.outputs, x.reshape(-1, K))

    def loss(x: jax.Array) -> jax.Array:
        return (contract(EQ, x, q) ** 2).sum()

    want = jax.grad(lambda x: (plain(x) ** 2).sum())(x)
    np.testing.assert_allclose(jax.grad(loss)(x), want, rtol=1e-4, atol=1e-4 * float(jnp.abs(want).max()))
    _, change = jax.jvp(functools.partial(contract, EQ, w=q), (x,), (x,))
    close(change, exact(EQ, x, q))
    scales = jax.grad(lambda w: contract(EQ, x, w).sum(), allow_int=True)(q).parts["d"]
    assert float(jnp.abs(scales.astype(jnp.float32)).sum()) > 0


def test_weights_packed_alike_are_multiplied_by_in_one_call():
    """Whatever stands between them; the same bits as one by one, of several matrices of x, and the same derivatives."""
    alike = [leaf("Q4_0", (N, size)) for size in (1, 32, 5)] + [tiles("Q4_0"), leaf("Q8_0"), tiles("Q4_0")]
    weights = [alike[0], jnp.ones((K, 2, 3)), *alike[1:]]
    run = functools.partial(contract_all, EQ)

    def one_by_one(x: jax.Array, weights: list) -> list[jax.Array]:
        return [contract(EQ, x, w) for w in weights]

    x = normal(2, 1, K)
    assert calls(run, x, weights, kernel="product") == 2  # three of Q4_0, one of Q8_0
    assert calls(run, x, weights, kernel="rounded") == 1
    assert calls(one_by_one, x, weights) == len(alike)
    for got, want in zip(jax.jit(run)(x, weights), jax.jit(one_by_one)(x, weights), strict=True):
        np.testing.assert_array_equal(got, want, strict=True)
    both = normal(2, 3, 1, K)
    for got, want in zip(jax.vmap(run, (0, None))(both, alike), one_by_one(both.reshape(6, 1, K), alike), strict=True):
        close(got.reshape(want.shape), np.asarray(want, np.float64))
    slopes = [jax.grad(lambda x, way=way: sum((y**2).sum() for y in way(x, alike)))(x) for way in (run, one_by_one)]
    np.testing.assert_allclose(*slopes, rtol=1e-5, atol=1e-4)


def test_under_vmap_over_either_or_both():
    x, q = normal(4, 2, 1, K), leaf("Q8_0")
    many = jax.tree.map(lambda part: jnp.stack([part, part[::-1]] * 2), q)
    run = functools.partial(contract, EQ)
    one = exact(EQ, x.reshape(8, 1, K), q).reshape(4, 2, 1, N, H)
    close(jax.vmap(run, (0, None))(x, q), one)
    turned = np.stack([one[0], one[1][:, :, ::-1], one[2], one[3][:, :, ::-1]])
    close(jax.vmap(run)(x, many), turned)
    close(jax.vmap(run, (None, 0))(x[0], many)[1], one[0][:, :, ::-1])
    twice = jax.vmap(jax.vmap(run, (0, None)), (None, 0))(x, many)
    close(twice[1], one[:, :, :, ::-1])


def test_under_shard_map_split_by_outputs_and_by_inputs():
    mesh = Mesh(np.array(jax.devices()[:2]), ("m",))
    x, q = normal(2, 1, K), leaf("Q4_1", (4, 6))
    heads = jax.tree.map(lambda _: PartitionSpec("m"), q)
    split = jax.shard_map(
        functools.partial(contract, EQ),
        mesh=mesh,
        in_specs=(PartitionSpec(), heads),
        out_specs=PartitionSpec(None, None, "m"),
    )
    close(jax.jit(split)(x, q), exact(EQ, x, q))
    along = jax.tree.map(lambda _: PartitionSpec(None, None, "m"), q)
    summed = jax.shard_map(
        lambda x, w: jax.lax.psum(contract(EQ, x, w), "m"),
        mesh=mesh,
        in_specs=(PartitionSpec(None, None, "m"), along),
        out_specs=PartitionSpec(),
    )
    assert calls(summed, x, q) == 1
    close(jax.jit(summed)(x, q), exact(EQ, x, q))


def test_a_loop_copies_no_weights():
    q = leaf("Q8_0", (64, 32))

    def steps(x: jax.Array, q: QTensor) -> jax.Array:
        return jax.lax.fori_loop(
            0, 9, lambda _, x: contract("BTD,DNH->BTNH", x, q).reshape(1, 1, -1)[..., :K] * 0.01, x
        )

    found = jax.jit(steps).lower(normal(1, 1, K), q).compile().memory_analysis()
    assert found is not None
    assert found.temp_size_in_bytes < 4 * 64 * 32 * 4 < q.nbytes


def test_what_has_no_kernel_takes_the_plain_path():
    q, x = leaf("Q8_0"), normal(1, 1, K)
    run = functools.partial(contract, EQ)
    assert calls(run, x.astype(jnp.int32), q) == 0
    assert calls(run, x, leaf("Q3_K")) == 0
    assert calls(functools.partial(contract, "BTN,DNH->BTDH"), normal(1, 1, N), q) == 0


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64"])
@pytest.mark.slow
def test_other_processors_give_the_same(target: str):
    """The code for machines with AVX2 and with neither, which this one can run as well."""
    here = Path(__file__)
    files = [str(here.with_name(f"test_kernel{what}.py")) for what in ("s", "_caches", "_experts")]
    script = (
        "import functools\nfrom forge_jax.kernels import building, library\n"
        f"library.build = functools.partial(building.build, {target!r})\n"
        "import pytest, sys\n"
        f"sys.exit(pytest.main(['-q', *{files!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_reason_is_told_where_there_are_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "no-such-compiler -x")
    with pytest.raises(building.Unbuilt, match=r"CXX is 'no-such-compiler -x'.*apt install"):
        building.build()
    monkeypatch.setenv("FORGE_JAX_KERNELS", "0")
    assert str(kernels.status.__wrapped__()) == "for CPUs: none, FORGE_JAX_KERNELS is 0"
    monkeypatch.setenv("FORGE_JAX_KERNELS", "off")
    monkeypatch.setattr(library, "status", kernels.status.__wrapped__)
    with pytest.raises(ValueError, match="FORGE_JAX_KERNELS is 'off'; expected 1 or 0"):
        kernels.available.__wrapped__()
    assert kernels.told() == "for CPUs: none, FORGE_JAX_KERNELS is 'off'; expected 1 or 0"


@pytest.mark.skipif(os.name != "posix", reason="rights of other users")
def test_what_others_may_have_written_is_not_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels").chmod(0o777)
    monkeypatch.setenv("FORGE_JAX_CACHE", str(tmp_path))
    with pytest.raises(building.Unbuilt, match="others may write there"):
        building.build()


def test_a_compiler_that_fails_is_an_error_with_its_words(monkeypatch: pytest.MonkeyPatch, tmp_path):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'oops: error: no' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("FORGE_JAX_CACHE", str(tmp_path))
    with pytest.raises(building.Unbuilt, match=r"could not compile the kernels: oops: error: no"):
        building.build()
    assert os.listdir(tmp_path / "kernels") == []


@pytest.mark.skipif(os.name != "posix", reason="groups of processes")
def test_a_compiler_that_takes_too_long_is_stopped_with_what_it_started(monkeypatch: pytest.MonkeyPatch, tmp_path):
    slow, child = tmp_path / "c++", tmp_path / "child"
    slow.write_text(f"#!/bin/sh\n[ $1 = --version ] && exit\nsleep 100 &\necho $! > {child}\nwait\n")
    slow.chmod(0o755)
    monkeypatch.setenv("CXX", str(slow))
    monkeypatch.setenv("FORGE_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(building, "SECONDS", 2)
    with pytest.raises(building.Unbuilt, match="took more than 2 s"):
        building.build()
    started = Path("/proc", child.read_text().strip(), "status")
    gone = lambda: not started.exists() or "zombie" in started.read_text()  # noqa: E731
    assert any(gone() or time.sleep(0.1) for _ in range(50))


def test_compiling_is_announced_and_done_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    made: list[str] = []
    monkeypatch.setattr(loading, "waits", lambda: not made)
    monkeypatch.setattr(loading, "available", lambda: made.append("kernels"))
    for _ in range(2):
        loading.make_kernels(True)
    assert made == ["kernels"]
    assert capsys.readouterr().err == "compiling kernels for this processor, which is done once\n"
