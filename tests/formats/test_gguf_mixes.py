"""llama.cpp's mixes of types: against its own snapshots of large models, and against the files that it wrote.

`gguf_mixes.json` has, for seven models, the shapes [..., columns] of their tensors by name and layers, and for each mix
the checksum of what llama.cpp's tests/snapshots (llama-cpp-python 0.3.36) say that each tensor is stored as.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.gguf import encode, mixes, open_gguf
from converters.gguf.export import export_gguf
from converters.gguf.mix_table import MIXES, Facts, Mix
from forge_jax.loading import load
from forge_jax.params import flatten
from forge_jax.quantization.ggml import GGML_TYPES
from forge_jax.spec import ModelSpec

CASES = json.loads(Path(__file__).with_name("gguf_mixes.json").read_text())
SHAPES = {"blk.0.attn_v.weight": (64, 256), "blk.0.ffn_up_exps.weight": (4, 64, 256), "output.weight": (9, 256)}


def shapes_of(case: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a model: a star stands for the number of each layer in the runs [first, last]."""
    return {
        name.replace("*", str(layer)): tuple(shape)
        for name, (shape, runs) in case["tensors"].items()
        for first, last in runs
        for layer in range(first, last + 1)
    }


@pytest.mark.parametrize("model", CASES)
def test_large_models_are_stored_as_llama_cpp_says(model: str) -> None:
    case, shapes = CASES[model], shapes_of(CASES[model])
    assert len(shapes) > 100
    assert len(case["mixes"]) > 30
    for name, wanted in case["mixes"].items():
        kinds = mixes.types(MIXES[name], shapes, Facts(*case["facts"]))
        text = "\n".join(f"{tensor} {kind}" for tensor, kind in sorted(kinds.items()))
        assert f"{zlib.crc32(text.encode()):08x}" == wanted, name


def test_every_file_of_llama_cpp_has_the_types_of_its_mix(shared: Path) -> None:
    files = sorted((shared / "oracle/gguf").glob("*/*.gguf"))
    assert len(files) > 30
    for path in files:
        source, mix = open_gguf(path), MIXES[path.stem]
        metadata, stored = source.metadata, {name: info.dtype for name, info in source.tensors.items()}
        source.close()
        whole = {
            name: info.shape
            for name, info in source.tensors.items()
            if len(info.shape) > 1 and not name.endswith(("_norm.weight", "_inp.weight")) and "position" not in name
        }
        assert metadata["general.file_type"] == mix.id
        weighed = "quantize.imatrix.file" in metadata
        model = mixes.facts(metadata, metadata["general.architecture"], "output.weight" not in stored, weighed)
        assert mixes.types(mix, whole, model) == {name: stored[name] for name in whole}, path


def test_every_type_of_a_mix_is_one() -> None:
    rules = [rules for mix in MIXES.values() for rules in mix.parts.values()]
    named = {kind for found in rules for _, kind in found} | set(mixes.FALLBACK.values()) | set(mixes.FALLBACK)
    named |= {kind for mix in MIXES.values() for kind in (mix.base, mix.head, mix.embedding, mix.experts) if kind}
    assert named <= set(GGML_TYPES)
    assert len({mix.id for mix in MIXES.values()}) == len(MIXES)


@pytest.mark.parametrize(
    ("mix", "columns", "kind"),
    [("Q4_K_S", 256, "Q4_K"), ("Q4_K_S", 288, "Q5_0"), ("Q3_K_S", 96, "Q4_0"), ("IQ4_XS", 32, "IQ4_NL")]
    + [("Q6_K", 64, "Q8_0"), ("Q6_K", 48, "F16"), ("Q4_0", 48, "F16"), ("BF16", 48, "BF16"), ("Q1_0", 64, "F16")],
)
def test_rows_that_no_block_divides(mix: str, columns: int, kind: str) -> None:
    model = Facts("llama", 8, 0, 1, False)
    assert mixes.types(MIXES[mix], {"blk.7.attn_q.weight": (3, columns)}, model) == {"blk.7.attn_q.weight": kind}


def test_falcon_and_eight_experts_are_different() -> None:
    layers = {f"blk.{i}.{part}.weight": (2, 256) for i in range(16) for part in ("ffn_down", "attn_output", "attn_v")}

    def kinds(mix: Mix, part: str, arch: str = "llama", experts: int = 0) -> list[str]:
        found = mixes.types(mix, layers, Facts(arch, 16, experts, 1, False))
        return [found[f"blk.{i}.{part}.weight"] for i in range(16)]

    falcon = kinds(MIXES["Q4_K_M"], "ffn_down", "falcon")
    assert falcon[0] == "Q6_K"
    assert falcon[1:5] == ["Q5_K", "Q4_K", "Q4_K", "Q5_K"]
    assert kinds(MIXES["Q4_K_M"], "ffn_down")[:5] == ["Q6_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K"]
    assert set(kinds(MIXES["Q3_K_L"], "attn_output", "falcon")) == {"Q4_K"}
    assert set(kinds(MIXES["Q3_K_L"], "attn_output")) == {"Q5_K"}
    assert set(kinds(MIXES["Q4_K_M"], "attn_v", experts=8)) == {"Q8_0"}
    assert set(kinds(MIXES["Q4_K_M"], "attn_output", experts=8)) == {"Q5_K"}


def test_unknown_mix() -> None:
    with pytest.raises(ValueError, match="type 'Q9_K' is not written; expected one of F32, F16"):
        mixes.find("Q9_K")


# ------------------------------------------------------------------------------------------------ importance
def test_importance_takes_the_shapes_of_its_tensors() -> None:
    kinds = mixes.types(MIXES["Q4_K_M"], SHAPES, Facts("llama", 1, 4, 1, False))
    flat = np.arange(1024, dtype=np.float32)
    fitted = mixes.fit_importance(
        "Q4_K_M", kinds, SHAPES, {"blk.0.attn_v.weight": flat[:256], "blk.0.ffn_up_exps.weight": flat}
    )
    np.testing.assert_array_equal(fitted["blk.0.attn_v.weight"], flat[:256])
    np.testing.assert_array_equal(fitted["blk.0.ffn_up_exps.weight"], flat.reshape(4, 256))


@pytest.mark.parametrize(
    ("mix", "given", "message"),
    [
        ("Q4_K_M", {"blk.9.attn_v.weight": 256}, "1 entries of tensors that this model does not have.*blk.9.attn_v"),
        ("Q4_K_M", {"blk.0.attn_v.weight": 64}, r"64 numbers for blk.0.attn_v.weight of \[64, 256\]; expected one"),
        ("Q8_0", {"blk.0.attn_v.weight": 256}, "Q8_0 stores no tensor of the importance matrix in a way that it would"),
        ("BF16", {"blk.0.attn_v.weight": 256}, "BF16 stores no tensor of the importance matrix"),
        ("IQ2_XS", {}, "IQ2_XS stores 1 tensors, for example blk.0.ffn_up_exps.weight as IQ2_XS, in so few bits"),
        (
            "Q2_K_S",
            {"blk.0.attn_v.weight": 256},
            "Q2_K_S stores 1 tensors, .*ffn_up_exps.weight as Q2_K",
        ),
    ],
)
def test_importance_of_another_model_or_none_is_refused(mix: str, given: dict[str, int], message: str) -> None:
    kinds = mixes.types(MIXES[mix], SHAPES, Facts("llama", 1, 4, 1, False))
    importance = {name: np.ones(size, np.float32) for name, size in given.items()}
    with pytest.raises(ValueError, match=message):
        mixes.fit_importance(mix, kinds, SHAPES, importance)


def float_model(shared: Path) -> tuple[ModelSpec, dict[str, Any]]:
    """The model whose file in F32 llama.cpp's quantiser was given."""
    model = load(shared / "oracle/gguf/llama/F32.gguf", progress=False)
    return model.spec, dict(flatten(model.params))


PLAIN_MIXES = """F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q1_0 Q2_0 Q2_K Q3_K_M Q4_K_M Q5_K_M Q6_K TQ1_0 TQ2_0""".split()
"""The files of llama.cpp's quantiser that it wrote without an importance matrix."""


@pytest.mark.parametrize("type", PLAIN_MIXES)
def test_float_weights_become_the_file_that_llama_cpp_makes_of_them(shared: Path, tmp_path: Path, type: str) -> None:
    spec, params = float_model(shared)
    source = open_gguf(shared / f"oracle/gguf/llama/{type}.gguf")
    tokenizer = {key: value for key, value in source.typed_metadata().items() if key.startswith("tokenizer.")}
    export_gguf(tmp_path / "m.gguf", spec, params.__getitem__, "llama", type=type, tokenizer=tokenizer)
    again = open_gguf(tmp_path / "m.gguf")
    assert set(source.tensors) == set(again.tensors)
    for name, info in source.tensors.items():
        assert again.tensors[name].dtype == info.dtype
        np.testing.assert_array_equal(again.raw(name), source.raw(name), err_msg=name)
    for key in ("general.file_type", "general.quantization_version"):
        assert again.metadata[key] == source.metadata[key]
    for key in tokenizer:
        np.testing.assert_array_equal(again.metadata[key], source.metadata[key], err_msg=key)
    source.close()
    again.close()


def test_importance_reaches_the_blocks_and_gguf_py_reads_them(shared: Path, tmp_path: Path) -> None:
    spec, params = float_model(shared)
    source = open_gguf(shared / "oracle/gguf/llama/F32.gguf")
    up, embedding = "blk.0.ffn_up.weight", "token_embd.weight"
    importance = {up: np.random.RandomState(0).gamma(0.3, size=256).astype(np.float32)}
    export_gguf(tmp_path / "m.gguf", spec, params.__getitem__, "llama", type="Q4_K_S", importance=importance)
    again = open_gguf(tmp_path / "m.gguf")
    assert again.metadata["quantize.imatrix.entries_count"] == 1
    np.testing.assert_array_equal(again.raw(up), encode("Q4_K", source.read(up), importance[up]))
    np.testing.assert_array_equal(again.raw(embedding), encode("Q4_K", source.read(embedding)))
    assert (again.raw(up) != encode("Q4_K", source.read(up))).mean() > 0.1
    gguf = pytest.importorskip("gguf")
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert set(theirs) == set(again.tensors)
    for name, tensor in theirs.items():
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(again.read(name), values.reshape(again.tensors[name].shape), err_msg=name)
    with pytest.raises(ValueError, match="type IQ2_XXS stores 6 tensors"):
        export_gguf(tmp_path / "n.gguf", spec, params.__getitem__, "llama", type="IQ2_XXS", importance={})
    assert not (tmp_path / "n.gguf").exists()
    source.close()
    again.close()
