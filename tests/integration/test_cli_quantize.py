"""`forge-jax quantize`: GGUF mixes and directories of packed weights, and what is refused before anything is read."""

from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoint import write_golden_directory

from forge_jax.cli import main
from forge_jax.inspection import inspect
from forge_jax.loading import load
from forge_jax.params import flatten
from forge_jax.quantizing import quantize
from forge_jax.tensor import QTensor, dense


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return write_golden_directory("llama", tmp_path / "llama")


def test_a_mix(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of llama.cpp's types; of a packed source only if asked."""
    small, smaller = tmp_path / "small.gguf", tmp_path / "smaller.gguf"
    assert main(["quantize", str(llama), str(small), "--scheme", "Q8_0"]) == 0
    assert capsys.readouterr().out.split()[-1] == str(small)
    assert "Q8_0" in {row.type for row in inspect(small).storage}
    assert main(["quantize", str(small), str(smaller), "--scheme", "Q4_0"]) == 1
    assert "weights are packed already, for example embed as Q8_0" in capsys.readouterr().err
    assert not smaller.exists()
    assert main(["quantize", str(small), str(smaller), "--scheme", "Q4_0", "--requantize"]) == 0
    assert "Q4_0" in {row.type for row in inspect(smaller).storage}


@pytest.mark.parametrize("scheme", ["int4-g16", "int8", "fp8", "nvfp4"])
def test_a_directory(llama: Path, tmp_path: Path, scheme: str) -> None:
    """What is loaded is what quantise gives, bit for bit; a pattern has its own scheme."""
    target = tmp_path / "packed"
    words = ["--scheme", scheme, "--policy", "layers.*.mlp.down=none"]
    assert main(["quantize", str(llama), str(target), *words]) == 0
    found = dict(flatten(load(target, progress=False).params))
    wanted = quantize(load(llama, progress=False), scheme, policy={"layers.*.mlp.down": None}, outside=None)
    packed = {path for path, leaf in found.items() if isinstance(leaf, QTensor)}
    assert {path.split(".")[-1] for path in packed} == {*"qkvo", "gate", "up"}
    for path, leaf in flatten(wanted.params):
        np.testing.assert_array_equal(dense(found[path]), dense(leaf), err_msg=path)
        assert isinstance(leaf, QTensor) == (path in packed)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.gguf", "--scheme", "int4-g16"], "type 'int4-g16' is not written; expected one of F32"),
        (["a.gguf", "--scheme", "Q8_0", "--policy", "embed=int8"], "--policy does not apply to a .gguf"),
        (["a", "--scheme", "Q4_K"], "a: Q4_K is a type of GGUF files; name a target that ends in .gguf"),
        (["a", "--scheme", "int4-g16", "--policy", "embed"], "--policy 'embed': expected PATTERN=SCHEME"),
        (["a", "--scheme", "int12"], "there is no scheme 'int12'; did you mean int"),
        (["a", "--scheme", "int8-dynamic"], "a: no file keeps that inputs are rounded"),
        (["a", "--scheme", "nf4", "--importance", "b"], "--importance does not apply to a directory"),
        (["llama", "--scheme", "nf4"], "llama: is there already; choose another name or add --overwrite"),
    ],
)
def test_what_cannot_be_is_found_before_anything_is_read(
    tmp_path: Path,
    llama: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["quantize", "no/model", *words]) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]
