"""A model back to files: a HuggingFace directory, one safetensors file, GGUF, orbax, ONNX. Part of the front.

Every writer but orbax streams: one tensor is on the host at a time. A file is there whole or not at all.
"""

import importlib.util
import json
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from converters import architectures, rules
from converters.files import atomic_directory
from converters.orbax import PARAMS, write_orbax
from converters.packed.leaves import FILE as PACKED
from converters.packed.leaves import split as leaves_as_arrays
from converters.safetensors_file import Entry, entry_bytes, write_safetensors, write_sharded
from forge_jax.loading import DTYPES, Model, narrowed
from forge_jax.params import abstract, flatten, unflatten
from forge_jax.quantization.swift import as_stored
from forge_jax.tensor import Around, dense

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


def own_leaves(model: Model) -> dict[str, Any]:
    """Every leaf by its path.

    Raises:
        ValueError: a leaf is adapted, or has not the shape of the spec: an export would not be this model.
    """
    leaves = {path: as_stored(leaf) for path, leaf in flatten(model.params)}
    wanted = {path: param.shape for path, param in flatten(abstract(model.spec))}
    if odd := sorted(wanted.keys() ^ leaves.keys()):
        raise ValueError(f"export: parameters and spec differ in {len(odd)} leaves, for example {', '.join(odd[:5])}")
    for path, leaf in leaves.items():
        if isinstance(leaf, Around):
            raise ValueError(f"export: {path} is adapted; export the model as it was before, or merge first")
        if tuple(leaf.shape) != wanted[path]:
            raise ValueError(
                f"export: {path} is {list(leaf.shape)}, the spec asks {list(wanted[path])}; a model that was split "
                "over a mesh has padded weights, load it without a mesh to export it"
            )
    return leaves


def entries(model: Model, dtype: str) -> Iterator[Entry]:
    """Every tensor under its HuggingFace name, made when it is written."""
    family = architectures.find(model.config.get("model_type"), "export")
    kind, leaves = storage_types(model, dtype), own_leaves(model)
    for instance in rules.instances(family.table(model.spec), abstract(model.spec)):
        yield plain_entry(instance, leaves, kind(instance.paths[0]))


def plain_entry(instance: rules.Instance, leaves: Mapping[str, Any], stored: str) -> Entry:
    """One tensor of theirs, dense, stored as a type of NUMPY."""

    def make() -> np.ndarray:
        values = instance.write(lambda path: np.asarray(dense(leaves[path])))
        return np.ascontiguousarray(narrowed(values, NUMPY[stored], instance.theirs))

    return Entry(instance.theirs, instance.stored_shape, stored, make)


def hf_config(model: Model, dtype: str) -> dict[str, Any]:
    """The config.json of an export: the model's own, with the dtype of the weights ("float32", ...)."""
    kept = {key: value for key, value in model.config.items() if key not in ("torch_dtype", "quantization_config")}
    return kept | {"dtype": dtype}


def embedding_dtype(model: Model, dtype: str) -> str:
    """The dtype that config.json tells of an export: that of the embedding."""
    named = {short: long for long, short in STORAGE.items()}
    return named[storage_types(model, dtype)("embed")]


def write_sides(model: Model, directory: Path, config: Mapping[str, Any]) -> None:
    """Write all that stands beside the weights: config, generation config, tokenizer."""
    write_json(directory / "config.json", config)
    generation = dict(model.generation)
    if model.tokenizer is not None:
        model.tokenizer.save(directory)
        if len(model.tokenizer.eos_ids) > 1:  # a GGUF may name several; tokenizer files have room for one
            generation.setdefault("eos_token_id", list(model.tokenizer.eos_ids))
    if generation:
        write_json(directory / "generation_config.json", generation)


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
        ValueError: a leaf is adapted, or an unknown dtype.
        OSError: the disk is full; nothing is left behind.
    """
    directory = Path(directory)
    tensors = list(entries(model, dtype))
    size = sum(entry_bytes(entry) for entry in tensors)
    with atomic_directory(directory, size, overwrite=overwrite) as part:
        write_sides(model, part, hf_config(model, embedding_dtype(model, dtype)))
        write_sharded(part, tensors, max_shard_bytes, {"format": "pt"})
    return directory


def export_safetensors(model: Model, path: str | Path, *, dtype: str = "stored") -> Path:
    """Write all weights to one safetensors file, HuggingFace names; the config goes into its metadata.

    Raises: as `export_huggingface`.
    """
    config = json.dumps(hf_config(model, embedding_dtype(model, dtype)))
    write_safetensors(Path(path), entries(model, dtype), {"format": "pt", "config": config})
    return Path(path)


def export_gguf(
    model: Model,
    path: str | Path,
    *,
    type: str = "F16",
    importance: Mapping[str, np.ndarray] | None = None,
    allow: Container[str] = (),
) -> Path:
    """Write a GGUF file with the tokenizer in it, for llama.cpp and everything built on it.

    Args:
        type: how matrices are stored: F32, F16, BF16 or a mix of llama.cpp's, such as Q8_0 or Q4_K_M
            (`converters.gguf.mixes.MIXES`); "stored": as they are, ggml blocks byte for byte.
        importance: what columns weigh when matrices are packed, by GGUF names (`converters.gguf.imatrix.read_imatrix`).
        allow: fields of the spec that the file may lose, if an error named them and they do not matter.

    Raises:
        ValueError: GGUF cannot say this model or its tokenizer (names what), a leaf is adapted, or importance does not
            fit.
        OSError: the disk is full; nothing is left behind.
    """
    from converters.gguf.export import export_gguf as write_gguf_model

    leaves, spec = own_leaves(model), model.spec
    write_gguf_model(
        path,
        spec,
        leaves.__getitem__,
        str(model.config.get("model_type")),
        type=type,
        stored=model.stored,
        importance=importance,
        tokenizer=model.tokenizer.to_gguf_metadata() if model.tokenizer is not None else None,
        name=model.path.stem if model.path is not None else None,
        allow=allow,
    )
    return Path(path)


def export_orbax(model: Model, directory: str | Path, *, overwrite: bool = False) -> Path:
    """Write a directory with the parameter tree as an orbax checkpoint in `params`, the config and the tokenizer.

    Leaves keep the dtype they have now; packed ones become dicts of their parts, and `packed.json` says how they are
    packed. orbax brings the whole tree to the host. Training code restores `params` with
    orbax alone; `load` reads the directory.

    Raises:
        FileExistsError: the directory is there and not empty, and `overwrite` is false.
        ImportError: orbax is not installed.
        ValueError: a leaf is adapted.
        OSError: the disk is full; nothing is left behind.
    """
    leaves = own_leaves(model)
    arrays, packed = leaves_as_arrays(unflatten(leaves))
    size = sum(leaf.nbytes for leaf in leaves.values())
    with atomic_directory(Path(directory), size, overwrite=overwrite) as part:
        write_sides(model, part, hf_config(model, str(leaves["embed"].dtype)))
        write_orbax(part / PARAMS, arrays)
        if packed:
            write_json(part / PACKED, packed)
    return Path(directory)


def export_onnx(
    model: Model,
    path: str | Path,
    *,
    opset: int = 18,
    dtype: str = "float32",
    packed: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write an ONNX graph of the decoder with its cache, for onnxruntime and what reads the files of optimum.

    A path that ends in .onnx is a file; any other is a directory, which gets model.onnx, the config and the tokenizer.
    Weights of more than 1.5 GB go to a file beside the graph, `<name>.onnx.data`. See docs/onnx.md for inputs and
    outputs.

    Args:
        opset: 18 to 21.
        dtype: of weights, cache and most numbers: float32, bfloat16 (few kernels on CPUs), float16, or stored (that of
            the embedding in the checkpoint).
        packed: quantised leaves stay so in the file, and the graph decodes them; False decodes them now.
        overwrite: replace a directory that holds files.

    Raises:
        FileExistsError: the directory is there and not empty, and `overwrite` is false.
        ImportError: onnx is not installed.
        ValueError: an unknown opset or dtype, an adapted leaf, or a primitive of JAX that has no ONNX form, with its
            name and that of the op.
        OSError: the disk is full; nothing is left behind.
    """
    if importlib.util.find_spec("onnx") is None:
        raise ImportError('ONNX files need onnx: pip install "forge-jax[onnx]"')
    from forge_jax.onnx_export.writing import write_onnx

    params = unflatten(own_leaves(model))
    named, path = embedding_dtype(model, dtype), Path(path)
    config = hf_config(model, named)

    def write(file: Path) -> None:
        said = {"config": config}
        write_onnx(file, model.spec, params, opset=opset, dtype=DTYPES[named], packed=packed, metadata=said)

    if path.suffix == ".onnx":
        write(path)
        return path
    with atomic_directory(path, overwrite=overwrite) as part:
        write_sides(model, part, config)
        write(part / "model.onnx")
    return path


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, keys sorted, for people."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
