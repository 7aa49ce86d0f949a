"""GGUF of models whose layers differ, or have more than two branches: what is written for them, what is refused."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_gguf_model_export import export, read, spec_of

from converters.gguf import open_gguf, write_gguf
from forge_jax.spec import Attention


def test_a_short_table_of_inputs_is_filled_with_its_first_row(tmp_path: Path) -> None:
    spec = spec_of("gemma3n_text")
    assert spec.own is not None
    short = replace(spec, own=replace(spec.own, vocab_size=37))
    params = export(tmp_path / "m.gguf", "gemma3n_text", short)
    again, found = read(tmp_path / "m.gguf")
    assert again == spec
    np.testing.assert_array_equal(found["own.table"][:37], params["own.table"])
    np.testing.assert_array_equal(found["own.table"][37:], np.repeat(params["own.table"][:1], 3, 0))


def test_keys_that_are_shared_stand_there_and_have_no_effect(tmp_path: Path) -> None:
    export(tmp_path / "m.gguf", "gemma3n_text")
    source = open_gguf(tmp_path / "m.gguf")
    for name in ("k", "v", "k_norm"):  # llama.cpp wants them, and never looks at them
        tensor = f"blk.3.attn_{name}.weight"
        assert source.tensors[tensor].shape == source.tensors[f"blk.0.attn_{name}.weight"].shape
        assert not source.read(tensor).any()
    source.close()


def test_an_indexer_that_layers_share_is_refused(tmp_path: Path) -> None:
    spec = spec_of("glm_moe_dsa")
    last = spec.layers[-1]
    first = replace(last.branches[0], op=replace(last.branches[0].op, indexer="shared"))
    shares = replace(spec, layers=(*spec.layers[:-1], replace(last, branches=(first, *last.branches[1:]))))
    with pytest.raises(ValueError, match="layers.2.branches.0.op.indexer is 'shared', and would be read as Indexer"):
        export(tmp_path / "m.gguf", "glm_moe_dsa", shares)


@pytest.mark.parametrize(("edit", "expected"), [({}, 0.707), ({"attention.value_scale": 0.5}, 0.5)])
def test_a_scale_of_values_is_read_or_the_usual_one(tmp_path: Path, edit: dict[str, Any], expected: float) -> None:
    edited(tmp_path, "mimo_v2_flash", {"attention.value_scale": None} | edit)
    assert read(tmp_path / "b.gguf")[0].layers[0].branches[0].scale == expected


def test_a_base_is_stretched_as_its_file_says(tmp_path: Path) -> None:
    edits = {"rope.scaling.alpha": 1000.0, "rope.scaling.type": "none", "rope.dimension_sections": [2, 2, 2, 2]}
    edited(tmp_path, "hunyuan_v1_dense", edits, "hunyuan_vl")
    plain, stretched = (read(tmp_path / f"{name}.gguf")[0].layers[0].branches[0].op for name in "ab")
    assert isinstance(plain, Attention)
    assert isinstance(stretched, Attention)
    assert plain.rope
    assert stretched.rope
    assert stretched.rope.theta == pytest.approx(plain.rope.theta * 1000 ** (16 / 14))


def edited(folder: Path, case: str, edits: dict[str, Any], arch: str | None = None) -> None:
    """Write an export's file again, b.gguf, with other metadata, None for none, and perhaps as of another `arch`."""
    export(folder / "a.gguf", case)
    source = open_gguf(folder / "a.gguf")
    old = source.metadata["general.architecture"]
    arch = arch or old
    metadata = {key.replace(f"{old}.", f"{arch}."): value for key, value in source.metadata.items()}
    metadata |= {"general.architecture": arch} | {f"{arch}.{key}": value for key, value in edits.items()}
    tensors = [(name, info.shape, "F32", partial(source.read, name)) for name, info in source.tensors.items()]
    write_gguf(folder / "b.gguf", {key: value for key, value in metadata.items() if value is not None}, tensors)
    source.close()


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("gemma3n_text", {"activation_sparsity_scale": [0.5, 0.5]}, "activation_sparsity_scale is .* expected 4 numbers"),
    ("gemma3n_text", {"altup.num_inputs": 0}, "altup.num_inputs is 0, expected an integer, 1 or more"),
    ("gemma4_text", {"attention.sliding_window_pattern": [True] * 4}, "the last layer has a window"),
    ("gemma4_text", {"attention.head_count_kv": [2, 1, 2, 1]}, "head_count_kv is .* with values of their own"),
    ("gemma4_text", {"attention.head_count_kv": [2, 2, 1, 2]}, "expected one count for each kind of layers"),
    ("gemma4_text", {"feed_forward_length": [56, 56, 112, 56]}, "expected one width, or twice that"),
    ("gemma4_text", {"feed_forward_length": [56, 56]}, "feed_forward_length is .56, 56., expected one count, or 4"),
    ("mimo_v2_flash", {"attention.head_count_kv": [2, 1, 2]}, "expected one count for each kind of layers"),
    ("glm_moe_dsa", {"expert_gating_func": 1}, "expert_gating_func = 1 is not implemented"),
    ("gemma4_text", {"rope.dimension_count": 16}, "rope.dimension_count = 16 is not implemented"),
]


@pytest.mark.parametrize(("case", "edits", "message"), REFUSED)
def test_metadata_that_is_refused(tmp_path: Path, case: str, edits: dict[str, Any], message: str) -> None:
    edited(tmp_path, case, edits)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "b.gguf")
