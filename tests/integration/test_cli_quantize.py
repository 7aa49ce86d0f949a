"""`forge-jax quantize`: GGUF mixes and directories of packed weights, and what is refused before anything is read."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from tiny_checkpoint import write_golden_directory, write_tokenizer

from forge_jax.calibrating import calibrate, importance
from forge_jax.cli import main
from forge_jax.inspection import inspect
from forge_jax.loading import Model, load
from forge_jax.params import flatten
from forge_jax.quantizing import quantize
from forge_jax.tensor import QTensor, dense

pytestmark = pytest.mark.usefixtures("quick_compiles")


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


def test_a_directory_of_a_packed_file(llama: Path, tmp_path: Path) -> None:
    """What a scheme does not take is plain, since a directory holds no packed tables."""
    file, target = tmp_path / "file.gguf", tmp_path / "packed"
    assert main(["quantize", str(llama), str(file), "--scheme", "Q8_0"]) == 0
    words = ["--scheme", "int4-g16-asym", "--to", "awq", "--requantize", "--policy", "layers.*.mlp.down=none"]
    assert main(["quantize", str(file), str(target), *words]) == 0
    found, source = dict(flatten(load(target, progress=False).params)), dict(flatten(load(file, progress=False).params))
    assert isinstance(source["embed"], QTensor)
    packed = {path.split(".")[-1] for path, leaf in found.items() if isinstance(leaf, QTensor)}
    assert packed == {*"qkvo", "gate", "up"}
    for path in ("embed", "head"):
        np.testing.assert_array_equal(dense(found[path]), dense(source[path]))


TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 4
WINDOWS = ["--samples", "4", "--length", "48"]


@pytest.fixture
def chat(llama: Path, tmp_path: Path) -> Path:
    (tmp_path / "text").write_text(TEXT)
    return write_tokenizer(llama)


def same(target: Path, wanted: Model) -> None:
    """A written directory loads as a model, bit for bit."""
    found = dict(flatten(load(target, progress=False).params))
    for path, leaf in flatten(wanted.params):
        np.testing.assert_array_equal(dense(found[path]), dense(leaf), err_msg=path)
        assert isinstance(leaf, QTensor) == isinstance(found[path], QTensor)


@pytest.mark.parametrize(
    ("method", "scheme", "words", "format"),
    [
        ("gptq", "int4-g8-asym", ["--act-order", "--damping", "0.02"], "gptq"),
        ("gptq", "int8", [], "compressed-tensors"),
        ("awq", "int4-g8", [], "compressed-tensors"),
        ("awq", "int4-g8-asym", ["--to", "awq"], "awq"),
    ],
)
def test_rounded_on_a_text(
    chat: Path, tmp_path: Path, method: Literal["gptq", "awq"], scheme: str, words: list[str], format: str
) -> None:
    """What is loaded is what calibrate gives."""
    target, file = tmp_path / "packed", str(tmp_path / "text")
    options = ["--scheme", scheme, "--method", method, "--text", file, *WINDOWS, *words]
    assert main(["quantize", str(chat), str(target), *options]) == 0
    packing = load(target, progress=False).packing
    assert packing is not None
    assert packing.method == format
    grid = {"bits": int(scheme[3]), "group": 8 if "g8" in scheme else 0, "symmetric": "asym" not in scheme}
    more = {"act_order": True, "damping": 0.02} if "--act-order" in words else {}
    same(target, calibrate(load(chat, progress=False), TEXT, method, samples=4, length=48, **grid, **more))


def test_importance_from_a_text_or_a_file(chat: Path, tmp_path: Path) -> None:
    """The same from both, and what quantise gives for it; a GGUF has it in its blocks."""
    text, file = ["--text", str(tmp_path / "text"), *WINDOWS], tmp_path / "imatrix.gguf"
    model = load(chat, progress=False)
    weights = importance(model, TEXT, samples=4, length=48, file=file)
    wanted = quantize(model, "int3-g8", outside=None, importance=weights)
    plain = quantize(model, "int3-g8", outside=None)
    assert (dense(wanted.params["layers"]["0"]["mlp"]["up"]) != dense(plain.params["layers"]["0"]["mlp"]["up"])).any()
    for name, words in (("text", text), ("file", ["--importance", str(file)])):
        target = tmp_path / f"by-{name}"
        assert main(["quantize", str(chat), str(target), "--scheme", "int3-g8", *words]) == 0
        same(target, wanted)
        assert main(["quantize", str(chat), str(tmp_path / f"{name}.gguf"), "--scheme", "Q4_0", *words]) == 0
    assert (tmp_path / "text.gguf").read_bytes() == (tmp_path / "file.gguf").read_bytes()
    assert main(["quantize", str(chat), str(tmp_path / "none.gguf"), "--scheme", "Q4_0"]) == 0
    assert (tmp_path / "text.gguf").read_bytes() != (tmp_path / "none.gguf").read_bytes()


def test_what_stays_is_written_in_the_dtype_that_was_asked_for(llama: Path, tmp_path: Path) -> None:
    """And by itself as it was stored."""
    for words, kind in (([], "F32"), (["--dtype", "bfloat16"], "BF16")):
        target = tmp_path / kind
        assert main(["quantize", str(llama), str(target), "--scheme", "int8", *words]) == 0
        assert load(target, progress=False).stored["embed"] == kind


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.gguf", "--scheme", "int4-g16"], "type 'int4-g16' is not written; expected one of F32"),
        (["a.gguf", "--scheme", "Q8_0", "--policy", "embed=int8"], "--policy does not apply to a .gguf"),
        (["a", "--scheme", "Q4_K"], "a: Q4_K is a type of GGUF files; name a target that ends in .gguf"),
        (["a", "--scheme", "int4-g16", "--policy", "embed"], "--policy 'embed': expected PATTERN=SCHEME"),
        (["a", "--scheme", "int12"], "there is no scheme 'int12'; did you mean int"),
        (["a", "--scheme", "int8-dynamic"], "a: no file keeps that inputs are rounded"),
        (["a", "--scheme", "nf4", "--importance", "b"], "importance changes nothing in nf4, whose scales follow"),
        (["a", "--scheme", "fp8", "--text", "b"], "leave out --text, or choose integers, such as int4-g128"),
        (["a", "--scheme", "int4", "--text", "b", "--importance", "c"], "both say what matters; give one of them"),
        (["a", "--scheme", "int4", "--method", "gptq"], "--method needs a text to round by; add --text FILE"),
        (["a", "--scheme", "int4", "--samples", "4"], "--samples needs a text to round by; add --text FILE"),
        (["a", "--scheme", "int4", "--text", "b", "--act-order"], "--act-order is an option of --method gptq"),
        (["a", "--scheme", "nf4", "--text", "b", "--method", "awq"], "integers of 2, 3, 4, 8 bits, such as int4-g128"),
        (["a", "--scheme", "int5", "--text", "b", "--method", "awq"], "or int4-g128-asym, not to int5"),
        (
            ["a", "--scheme", "int4", "--text", "b", "--method", "awq", "--policy", "head=int8"],
            "--policy does not apply to --method awq, which rounds all matrices of the layers alike",
        ),
        (["a.gguf", "--scheme", "Q4_0", "--text", "b", "--method", "awq"], "--method awq does not apply to a .gguf"),
        (
            ["a", "--scheme", "int4", "--text", "b", "--method", "gptq", "--act-order", "--to", "awq"],
            "--to awq holds no inputs in another order than their groups; add --static-groups",
        ),
        (["a.gguf", "--scheme", "Q4_0", "--to", "awq"], "--to does not apply to a .gguf"),
        (["a", "--scheme", "int4", "--text", "b"], "No such file or directory: 'b'"),
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
