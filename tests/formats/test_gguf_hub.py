"""Models with code of their own, and the text part of models that also see, in GGUF as llama.cpp's converter writes it.

gguf_hub_cases.json holds what its convert_hf_to_gguf.py (May 2026, all in F32) made of a checkpoint with the
parameters of `draw`: the metadata of the architecture, and the checksum of the tensors. `config` is the same model as
one of ours.
"""

import json
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import token_ids, weight
from test_gguf_model_export import checksum, parameters, read, spec_from

from converters import architectures, rules
from converters.gguf import names, open_gguf, write_gguf
from converters.gguf.config import architecture
from converters.gguf.export import export_gguf, values
from converters.gguf.model import understand
from forge_jax.decoder import forward, inputs
from forge_jax.params import abstract, flatten

CASES: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "gguf_hub_cases.json").read_text())


def save(path: Path, case: dict[str, Any], params: dict[str, np.ndarray], **edits: Any) -> Path:
    """A file with the converter's metadata, apart from edits, and the parameters laid out by our tables."""
    arch, spec = case["arch"], spec_from(case["config"])
    said = {key: value for key, value in (case["metadata"] | edits).items() if value is not None}
    metadata = {"general.architecture": arch} | {f"{arch}.{key}": value for key, value in said.items()}
    found = rules.instances(names.rules(architecture(metadata, "case"), spec), abstract(spec))
    write_gguf(
        path,
        metadata,
        [(i.theirs, i.stored_shape, "F32", partial(values, i, params.__getitem__)) for i in found],
    )
    return path


@pytest.mark.parametrize("name", CASES)
def test_a_file_of_the_converter_is_the_model(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    params = parameters(spec_from(case["config"]))
    path = save(tmp_path / "m.gguf", case, params)
    source = open_gguf(path)
    crc = checksum(source)
    source.close()
    assert crc == case["crc"]
    spec, found = read(path)
    assert spec == spec_from(case["config"])
    assert found.keys() == params.keys()
    for leaf, value in params.items():
        # stored are sums with a number that has no few digits, 1/5
        inexact = 1e-6 if name == "plamo3" and leaf.endswith("post.scale") else 0
        np.testing.assert_allclose(found[leaf], value, rtol=inexact, atol=inexact, err_msg=leaf)


REFUSED = [
    ("qwen2_vl", {"rope.dimension_sections": [2, 3, 3]}, "dimension_sections is .2, 3, 3., expected four counts"),
    ("qwen3_vl", {"rope.dimension_sections": "all"}, "dimension_sections is 'all', expected four counts"),
    ("plamo", {"attention.head_count_kv": 3}, "4 heads cannot share 3 key-value heads"),
    ("deepseek", {"expert_weights_scale": 2.0}, "expert_weights_scale = 2.0 is not implemented; only 1.0 is"),
    ("bailing_moe_v2", {"expert_gating_func": 1}, "expert_gating_func = 1 is not implemented; only 2 is"),
    ("jais", {"attention.max_alibi_bias": None}, "'attention.max_alibi_bias' is missing"),
    ("jais", {"attention.max_alibi_bias": 4.0}, "max_alibi_bias is 4.0; only 8.0 is implemented"),
    ("gpt_refact", {"attention.head_count_kv": None}, "head_count_kv is 4; only 1 is implemented"),
    ("openelm", {"attention.layer_norm_rms_epsilon": 1e-5}, "epsilon is 1e-05; only 1e-06 is implemented"),
    ("openelm", {"attention.head_count": [2, 4, 4]}, "head_count is .2, 4, 4., expected 2 counts of 1 or more"),
    ("openelm", {"attention.head_count_kv": [1, 3]}, "4 heads cannot share 3 key-value heads"),
    ("openelm", {"feed_forward_length": [32, 0]}, "feed_forward_length is .32, 0., expected 2 counts of 1 or more"),
    ("plamo3", {"attention.sliding_window_pattern": [True]}, "sliding_window_pattern is .True.; expected one entry"),
    ("qwen3_vl_moe", {"n_deepstack_layers": -1}, "n_deepstack_layers is -1, expected an integer, 0 or more"),
]


@pytest.mark.parametrize(("name", "edits", "message"), REFUSED)
def test_metadata_that_is_refused(tmp_path: Path, name: str, edits: dict[str, Any], message: str) -> None:
    case = CASES[name]
    path = save(tmp_path / "m.gguf", case, parameters(spec_from(case["config"])), **edits)
    with pytest.raises(ValueError, match=message):
        read(path)


def test_layers_without_windows(tmp_path: Path) -> None:
    """Then the pattern says nothing; llama.cpp's converter leaves it out."""
    case = CASES["plamo3"]
    config = case["config"] | {"window_size": None, "rope_local_theta": 10000.0}
    edits = dict.fromkeys(("attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base_swa"))
    path = save(tmp_path / "m.gguf", case | {"config": config}, parameters(spec_from(config)), **edits)
    assert read(path)[0] == spec_from(config)


def test_the_second_ling_goes_by_the_name_of_the_first(tmp_path: Path) -> None:
    config = CASES["bailing_moe_v2"]["config"]
    spec = spec_from(config | {"model_type": "bailing_moe"})
    assert spec == spec_from(config)
    export_gguf(tmp_path / "m.gguf", spec, parameters(spec).__getitem__, "bailing_moe")
    source = open_gguf(tmp_path / "m.gguf")
    assert source.metadata["general.architecture"] == "bailingmoe2"
    source.close()
    assert read(tmp_path / "m.gguf")[0] == spec


UNSAID = [
    ("jais", {"embeddings_scale": 3.0}, "spec.embed_scale is 3.0, and would be read as 1.0"),
    ("plm", {"tie_word_embeddings": False}, "spec.tied is False, and llama.cpp takes no tensor output.weight"),
    ("deepseek", {"norm_topk_prob": True}, "router.renorm is 1.0, and would be read as None"),
]


@pytest.mark.parametrize(("name", "edits", "message"), UNSAID)
def test_what_cannot_be_said_is_refused(tmp_path: Path, name: str, edits: dict[str, Any], message: str) -> None:
    config = CASES[name]["config"] | edits
    spec = spec_from(config)
    with pytest.raises(ValueError, match=message):
        export_gguf(tmp_path / "m.gguf", spec, parameters(spec).__getitem__, config["model_type"])


# ------------------------------------------------------------------------------------------------ numbers
SEEING = {
    "qwen2_vl": ("qwen2_vl", "Qwen2VLText"),
    "qwen3_vl": ("qwen3_vl", "Qwen3VLText"),
    "paddleocr_vl": ("paddleocr_vl", "PaddleOCRText"),
    "hunyuan_vl": ("hunyuan_vl", "HunYuanVLText"),
}
SECTIONS = {"mrope_section": [2, 3, 3]}


@pytest.fixture(scope="module")
def models() -> ModuleType:
    """transformers' models, or a skip."""
    pytest.importorskip("torch")
    return pytest.importorskip("transformers.models")


@pytest.mark.torch
@pytest.mark.parametrize("name", SEEING)
def test_text_alone_is_what_the_whole_model_makes_of_it(models: ModuleType, tmp_path: Path, name: str) -> None:
    """The witness is transformers' model with its positions along several axes, given text."""
    import torch

    case, (module, prefix) = CASES[name], SEEING[name]
    spec = spec_from(case["config"])
    shapes = {path: param.shape for path, param in flatten(abstract(spec))}
    params = {path: weight(path, shape) for path, shape in shapes.items()}
    config = {key: value for key, value in case["config"].items() if key != "model_type"}
    config["rope_parameters"] = config["rope_parameters"] | SECTIONS
    theirs = getattr(models, module)
    model = getattr(theirs, f"{prefix}Model")(getattr(theirs, f"{prefix}Config")(**config)).double()
    family = architectures.find(case["config"]["model_type"], name)
    found = rules.instances(family.table(spec), abstract(spec))
    tensors = {i.theirs: torch.from_numpy(np.array(i.write(params.__getitem__))).double() for i in found}
    head = tensors.pop("lm_head.weight", tensors["model.embed_tokens.weight"])
    model.load_state_dict({key.removeprefix("model."): tensor for key, tensor in tensors.items()})
    tokens = token_ids(vocabulary=40)
    with torch.no_grad():
        expected = (model.eval()(torch.from_numpy(tokens).long()).last_hidden_state @ head.T).numpy()
    source = open_gguf(save(tmp_path / "m.gguf", case, params))
    checkpoint = understand(tmp_path / "m.gguf", source)
    tree = checkpoint.read(lambda _, array: jnp.asarray(array, jnp.float32))
    source.close()
    logits = np.asarray(forward(checkpoint.spec, tree, inputs(tokens))[0])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
