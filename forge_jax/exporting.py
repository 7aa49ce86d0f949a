"""A model back to files: a HuggingFace directory, one safetensors file, GGUF. Part of the front.

Every writer streams: one tensor is on the host at a time, and a file is there whole or not at all.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from converters import architectures, rules
from converters.files import atomic_directory
from converters.safetensors_file import Entry, write_safetensors, write_sharded
from forge_jax.loading import Model
from forge_jax.params import abstract, flatten
from forge_jax.tensor import Lora, QTensor

STORAGE = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
NUMPY = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}


def storage_types(model: Model, dtype: str) -> Callable[[str], str]:
    """What type each of our paths is stored as.

    `dtype` is "stored" (as in the checkpoint that the model came from, packed and unknown types in the dtype they
    have now), or "float32", "bfloat16", "float16".

    Raises:
        ValueError: another name.
    """
    if dtype not in ("stored", *STORAGE):
        raise ValueError(f"export: dtype {dtype!r} is unknown; expected stored, {', '.join(STORAGE)}")
    leaves = dict(flatten(model.params))

    def kind(path: str) -> str:
        if dtype != "stored":
            return STORAGE[dtype]
        stored = model.stored.get(path)
        return stored if stored in NUMPY else STORAGE[str(leaves[path].dtype)]

    return kind


def fetcher(model: Model) -> Callable[[str], np.ndarray]:
    """A function that brings one leaf to the host.

    Raises:
        ValueError: the leaf is quantised or adapted, so that a plain export would not be this model.
    """
    leaves = dict(flatten(model.params))

    def fetch(path: str) -> np.ndarray:
        leaf = leaves[path]
        if isinstance(leaf, QTensor | Lora):
            raise ValueError(
                f"export: {path} is a {type(leaf).__name__}; export the model as it was before it was quantised or "
                "adapted, or merge first"
            )
        return np.asarray(leaf)

    return fetch


def entries(model: Model, dtype: str) -> Iterator[Entry]:
    """Every tensor under its HuggingFace name, made when it is written."""
    family = architectures.find(model.config.get("model_type"), "export")
    kind, fetch = storage_types(model, dtype), fetcher(model)
    for instance in rules.instances(family.rules, abstract(model.spec)):
        stored = kind(instance.paths[0])

        def make(instance: rules.Instance = instance, stored: str = stored) -> np.ndarray:
            values = instance.rule.write([fetch(path) for path in instance.paths])
            return np.ascontiguousarray(values.astype(NUMPY[stored], copy=False))

        yield Entry(instance.theirs, instance.stored_shape, stored, make)


def hf_config(model: Model, dtype: str) -> dict[str, Any]:
    """The config.json of an export: the model's own, with the dtype of the weights."""
    named = {short: long for long, short in STORAGE.items()}
    kept = {key: value for key, value in model.config.items() if key not in ("torch_dtype", "quantization_config")}
    return kept | {"dtype": named[storage_types(model, dtype)("embed")]}


def export_huggingface(
    model: Model,
    directory: str | Path,
    *,
    dtype: str = "stored",
    max_shard_bytes: int = 5 * 10**9,
    overwrite: bool = False,
) -> Path:
    """Write a HuggingFace directory: config, weights in shards with an index, tokenizer, generation config.

    Raises:
        FileExistsError: the directory is there and not empty, and `overwrite` is false.
        ValueError: a leaf is quantised or adapted, or an unknown dtype.
        OSError: the disk is full; nothing is left behind.
    """
    directory = Path(directory)
    tensors = list(entries(model, dtype))
    size = sum(NUMPY[e.dtype].itemsize * int(np.prod(e.shape)) for e in tensors)
    with atomic_directory(directory, size, overwrite=overwrite) as part:
        write_json(part / "config.json", hf_config(model, dtype))
        if model.generation:
            write_json(part / "generation_config.json", dict(model.generation))
        write_sharded(part, tensors, max_shard_bytes, {"format": "pt"})
        if model.tokenizer is not None:
            model.tokenizer.save(part)
    return directory


def export_safetensors(model: Model, path: str | Path, *, dtype: str = "stored") -> Path:
    """Write all weights to one safetensors file, HuggingFace names; the config goes into its metadata.

    Raises: as `export_huggingface`.
    """
    config = json.dumps(hf_config(model, dtype))
    write_safetensors(Path(path), entries(model, dtype), {"format": "pt", "config": config})
    return Path(path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, keys sorted, for people."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
