"""Adapters that are for another model, say what is not implemented, or are damaged: each is refused by name."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import same

import forge_jax as forge
from forge_jax.loading import Model, load


@pytest.fixture(scope="module")
def base(shared: Path) -> Callable[[str], Model]:
    """A base by its directory's name."""
    return cache(lambda name: load(shared / "oracle/corpus" / name, dtype="float32", progress=False))


def copied(shared: Path, name: str, target: Path, **config: Any) -> Path:
    """A case's files, keys of its config changed; None takes a key out."""
    shutil.copytree(shared / "oracle/lora" / name, target)
    target.chmod(0o755)
    file = target / "adapter_config.json"
    kept = {key: value for key, value in (json.loads(file.read_text()) | config).items() if value != "absent"}
    file.chmod(0o644)
    file.write_text(json.dumps(kept))
    return target


BAD_CONFIGS = [
    ({"peft_type": "IA3"}, "peft_type is 'IA3'; only LORA"),
    ({"use_qalora": True}, "use_qalora is set, which is not implemented"),
    ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication is set"),
    ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is set"),
    ({"arrow_config": {"top_k": 2}}, "arrow_config is set"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
    ({"brand_new": 3}, "config keys are not understood .*brand_new=3"),
    ({"r": 4}, r"q_proj has factors of shape \[8, 48\] and \[64, 8\], the config says rank 4"),
    ({"r": 0}, "r is 0; expected 1 or more"),
    ({"lora_alpha": "many"}, "lora_alpha has 'many'; expected a number"),
    ({"target_modules": ["q_proj"]}, "v_proj has an update, and target_modules does not name it"),
    ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, "3 tensors do not fit .*k_proj is targeted and has no update"),
    ({"target_modules": "("}, "is no regular expression"),
    ({"use_dora": True}, "q_proj lacks magnitude"),
    ({"modules_to_save": ["lm_head"]}, "lm_head is in modules_to_save and not in the file"),
    ({"modules_to_save": ["lm_heat"]}, "modules_to_save names lm_heat, and the model has none"),
    ({"bias": "some"}, "bias is 'some'; expected none, all or lora_only"),
    ({"layers_to_transform": [0, 1]}, r"layers\.2\.self_attn\..* has an update, and target_modules does not name it"),
    ({"trainable_token_indices": [-1]}, "trainable_token_indices is .*; expected ids"),
]


@pytest.mark.parametrize(("config", "message"), BAD_CONFIGS)
def test_configs_that_cannot_be_honoured(shared: Path, base: Any, tmp_path: Path, config: Any, message: str):
    path = copied(shared, "llama_plain", tmp_path / "a", **config)
    with pytest.raises(ValueError, match=message):
        forge.load_adapter(path, base("llama"))


def changed(path: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Write the tensors of an adapter again, changed."""
    numpy = pytest.importorskip("safetensors.numpy")
    file = path / "adapter_model.safetensors"
    tensors = numpy.load_file(file)
    change(tensors)
    file.unlink()
    numpy.save_file(tensors, file)


Q = "base_model.model.model.layers.0.self_attn.q_proj"
BAD_TENSORS: list[tuple[Callable[[dict[str, np.ndarray]], Any], str]] = [
    (
        lambda t: t.update({"base_model.model.model.norm.weight": np.ones(48, np.float32)}),
        "norm.weight is used by nothing",
    ),
    (lambda t: t.update({f"{Q}.lora_C.weight": np.ones(3, np.float32)}), "lora_C.weight is used by nothing"),
    (lambda t: t.update({f"{Q}.lora_magnitude_vector": np.ones(64, np.float32)}), "lora_magnitude_vector is used by"),
    (lambda t: t.pop(f"{Q}.lora_B.weight"), "q_proj lacks b"),
    (
        lambda t: t.update({f"{Q}.lora_A.weight": np.ones((8, 40), np.float32)}),
        r"are \[40\], those of the model \[48\]",
    ),
    (lambda t: t.update({f"{Q}.lora_A.weight": np.ones((3, 48), np.float32)}), "the config says rank 8"),
    (lambda t: t.update({f"{Q}.lora_A.weight": np.full((8, 48), np.nan, np.float32)}), "NaN or infinite"),
    (
        lambda t: t.update({k.replace("rs.0.", "rs.7."): v for k, v in t.items()}),
        "does not have; the adapter belongs to",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD_TENSORS)
def test_tensors_that_do_not_fit(shared: Path, base: Any, tmp_path: Path, change: Any, message: str):
    path = copied(shared, "llama_plain", tmp_path / "a")
    changed(path, change)
    with pytest.raises(ValueError, match=message):
        forge.load_adapter(path, base("llama"))


def test_names_of_a_language_model_in_a_composite(shared: Path, base: Any, tmp_path: Path):
    regex = r"model\.language_model\.layers\.\d+\.self_attn\.(?:q|v)_proj"
    plain = forge.load_adapter(shared / "oracle/lora/llama_plain", base("llama"))
    path = copied(shared, "llama_plain", tmp_path / "a", target_modules=regex)

    def rename(tensors: dict[str, np.ndarray]) -> None:
        for name in list(tensors):
            tensors[name.replace("model.layers", "model.language_model.layers")] = tensors.pop(name)

    changed(path, rename)
    assert same(forge.load_adapter(path, base("llama")), plain)
    changed(path, lambda tensors: tensors.pop(next(name for name in tensors if "layers.2.self_attn.v" in name)))
    with pytest.raises(ValueError, match=r"language_model\.layers\.2\.self_attn\.v_proj lacks"):
        forge.load_adapter(path, base("llama"))


def test_another_base(shared: Path, base: Any, tmp_path: Path):
    with pytest.raises(ValueError, match="belongs to another model"):
        forge.load_adapter(shared / "oracle/lora/llama_plain", base("gpt2"))
    with pytest.raises(ValueError, match=r"layers\.3\.self_attn\.q_proj is targeted and has no update"):
        forge.load_adapter(shared / "oracle/lora/llama_plain", base("gemma2"))
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json is missing"):
        forge.load_adapter(shared / "oracle/corpus/llama", base("llama"))
    llama = base("llama")
    path = forge.export_adapter(
        forge.load_adapter(shared / "oracle/lora/llama_plain", llama), llama, tmp_path / "a.gguf"
    )
    with pytest.raises(ValueError, match="an adapter of 'llama' models, this model is 'gpt2'"):
        forge.load_adapter(path, base("gpt2"))
    forge.Forge.from_model(llama).export_to_gguf(tmp_path / "m.gguf")
    with pytest.raises(ValueError, match="no GGUF file of an adapter"):
        forge.load_adapter(tmp_path / "m.gguf", llama)
