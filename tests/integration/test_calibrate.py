"""`forge_jax.calibrate` and `forge_jax.importance` on a model with a tokenizer, and the files they lead to."""

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import read_golden
from tiny_checkpoint import write_chat_model

import forge_jax as forge
from forge_jax.calibrating import windows
from forge_jax.loading import Model
from forge_jax.params import flatten, map_params
from forge_jax.spec import Block, Branch, ModelSpec, Moe, Norm, Router
from forge_jax.tensor import QTensor

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 12


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small model whose tokens are characters."""
    return forge.load(write_chat_model(tmp_path_factory.mktemp("calibrate") / "chat")).model


def test_a_text_makes_a_packed_model_that_still_computes(chat: Model):
    assert chat.tokenizer is not None
    found = forge.calibrate(chat, TEXT, bits=4, group=16, act_order=True, samples=8, length=64)
    packed = {path: leaf for path, leaf in flatten(found.params) if isinstance(leaf, QTensor)}
    assert len(packed) == 14
    assert {leaf.scheme.name for leaf in packed.values()} == {"int4-g16"}
    assert not isinstance(found.params["embed"], QTensor)
    assert found.tokenizer is chat.tokenizer
    ids = np.asarray([chat.tokenizer.encode(TEXT[:64], add_special=False)])
    plain, rounded = (np.asarray(forge.forward(m.spec, m.params, forge.inputs(ids))[0]) for m in (chat, found))
    assert 0 < np.linalg.norm(rounded - plain) < 0.2 * np.linalg.norm(plain)


def test_texts_are_cut_into_windows(chat: Model):
    assert chat.tokenizer is not None
    ids = np.asarray(chat.tokenizer.encode(TEXT, add_special=False))
    whole, halves, plain = (
        np.concatenate(windows(chat, text, 5, 32)) for text in (TEXT, [TEXT[:40], TEXT[40:]], ids.tolist())
    )
    np.testing.assert_array_equal(whole, ids[:160].reshape(5, 32))
    np.testing.assert_array_equal(halves, whole)
    np.testing.assert_array_equal(plain, whole)


def test_importance_is_written_as_an_imatrix(tmp_path: Path):
    golden = read_golden("mixtral")
    model = Model(golden.spec, golden.params, None, MappingProxyType(golden.config))
    ids = np.arange(160, dtype=np.int32)
    found = forge.importance(model, ids, samples=3, length=40, file=tmp_path / "imatrix.gguf")
    reader = gguf.GGUFReader(tmp_path / "imatrix.gguf")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert reader.fields[gguf.Keys.General.TYPE].contents() == "imatrix"
    assert reader.fields[gguf.Keys.IMatrix.CHUNK_COUNT].contents() == 3
    assert reader.fields[gguf.Keys.IMatrix.CHUNK_SIZE].contents() == 40
    assert len(tensors) == 2 * len(found) == 28
    assert tensors["blk.0.attn_q.weight.counts"].item() == 120
    assert tensors["blk.1.ffn_up_exps.weight.counts"].sum() == 240
    for name, path in (("attn_output", "attention.o"), ("ffn_down_exps", "moe.down"), ("ffn_gate_exps", "moe.gate")):
        total, over = (tensors[f"blk.1.{name}.weight.{end}"] for end in ("in_sum2", "counts"))
        mean = np.where(over > 0, total / np.maximum(over, 1), 1)
        np.testing.assert_allclose(mean.squeeze(), found[f"layers.1.{path}"], rtol=1e-6)


def test_what_cannot_be_calibrated_is_said(chat: Model):
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"text": "too short"}, "the text has 9 tokens, a window needs 512"),
        ({"text": TEXT, "length": 513}, "length = 513; expected .* 2 to 512"),
        ({"text": [1, 2, 3, 500], "length": 4}, "ids reach from 1 to 500"),
        ({"text": TEXT, "method": "best", "length": 32}, "method = 'best'; expected gptq or awq"),
        ({"text": TEXT, "method": "awq", "length": 32, "act_order": True}, "options of gptq"),
        ({"text": TEXT, "bits": 6, "length": 32}, "bits = 6"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            forge.calibrate(chat, **options)
    with pytest.raises(ValueError, match="no tokenizer"):
        forge.calibrate(replace(chat, tokenizer=None), TEXT)
    with pytest.raises(ValueError, match="its layers are stacked"):
        forge.importance(replace(chat, params=forge.stack(chat.spec, chat.params)), TEXT)


def test_experts_that_saw_no_token_are_told():
    spec = ModelSpec(8, 8, (Block((Branch("moe", Moe(Router(4, 1), 8), pre=Norm()),)),), 8)
    params = map_params(lambda param: jnp.linspace(-1, 1, param.size).reshape(param.shape), spec)
    with pytest.warns(UserWarning, match="3 parameters are of experts that no token of the text went to"):
        forge.calibrate(Model(spec, params, None, {}), [1, 1], group=0, length=2)
