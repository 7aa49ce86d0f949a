"""The language model inside composite checkpoints: text logits of the reference, and nothing left out in silence."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from oracle_loader import load as load_oracle

import forge_jax as forge
from converters.composite import is_composite, own_name, text_config

CASES = ("gemma3", "llava", "qwen2_audio", "qwen2_vl", "qwen3_vl", "smolvlm")


@pytest.mark.parametrize("name", CASES)
def test_text_logits_are_the_reference(shared: Path, name: str) -> None:
    folder = shared / "oracle" / "multimodal" / name
    with np.load(folder / "ref.npz") as reference:
        ids, expected = reference["text_input_ids"], reference["text_logits"]
    found = load_oracle(folder)(ids)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))


def test_what_is_left_out_is_said(shared: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shared / "oracle" / "multimodal" / "qwen2_vl", tmp_path / "model")
    with pytest.warns(UserWarning, match=r"only the language model is loaded; 31 tensors of other parts \(visual\)"):
        model = forge.load(folder, progress=False)
    assert model.get_config()["model_type"] == "qwen2"


def test_a_tensor_of_no_part_is_an_error(shared: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shared / "oracle" / "multimodal" / "qwen2_vl", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"num_hidden_layers": 1, "layer_types": ["full_attention"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"model\.layers\.1\.\S+ .* is used by nothing"):
        forge.load(folder, progress=False)
    config["text_config"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="text_config is int, expected a dict"):
        forge.load(folder, progress=False)


def test_names_and_configs() -> None:
    names = {
        "language_model.model.layers.0.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight",
        "language_model.lm_head.weight": "lm_head.weight",
        "model.language_model.norm.weight": "model.norm.weight",
        "model.text_model.norm.weight": "model.norm.weight",
        "model.norm.weight": "model.norm.weight",
        "model.visual.blocks.0.norm1.weight": None,
        "vision_tower.embeddings.patch_embedding.weight": None,
        "multi_modal_projector.linear.bias": None,
    }
    assert {name: own_name(name) for name in names} == names
    # the flat dialect: what is said of the language model stands beside the other parts
    rope = {"type": "mrope", "mrope_section": [2, 3, 3]}
    flat = {"model_type": "qwen2_vl", "hidden_size": 8, "rope_scaling": rope, "vision_config": {}, "image_token_id": 5}
    assert is_composite(flat)
    expected = {"model_type": "qwen2", "hidden_size": 8, "rope_scaling": {"type": "mrope"}}
    assert text_config(flat, "here") == expected
    assert not is_composite({"model_type": "qwen2", "vision_config": {}})
