"""A model as one GGUF file: llama.cpp loads it, and reading it back gives the same spec and the same numbers.

Everything is derived from the spec. Before anything is written, the metadata is read back as an import would; where
that gives another spec, GGUF cannot say this model, and the error names the field.

Storage: F32, F16 and BF16 hold every matrix; one-dimensional tensors, norms and learned positions are always F32. All
other types are llama.cpp's mixes (`mixes`): "Q4_K_M" stores most matrices as Q4_K and some finer.
"""

import os
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from converters import rules
from converters.gguf import kept, mixes, names
from converters.gguf.archs import ARCHS
from converters.gguf.config import prefix
from converters.gguf.describe import describe
from converters.gguf.facts import mixture
from converters.gguf.names_own import idle
from converters.gguf.numbers import lists
from converters.gguf.proof import check
from converters.gguf.values import Typed
from converters.gguf.writer import TensorToWrite, write_gguf
from converters.source import TensorInfo
from forge_jax.params import abstract
from forge_jax.quantization.ggml import encode, lookup
from forge_jax.spec import ModelSpec, Moe
from forge_jax.tensor import dense

PRECISE = (
    *("_norm.weight", ".bias", "_inp.weight", "shortconv.conv.weight", "ssm_a", "ssm_d", "_coef.weight"),
    *(f"ssm_conv1d{part}.weight" for part in ("", "_q", "_k", "_v")),
)
"""How the names of matrices end that are never packed: norms, routers, short convolutions, decays, small mixtures."""

COARSE = ("altup", "laurel", "per_layer_model_proj")
"""Parts of the names of matrices that are not packed either, but may be F16: streams, shortcuts, inputs of layers."""

MERGES = "tokenizer.ggml.merges"
PADDING: Mapping[str, Any] = {"tokenizer.ggml.scores": -1000.0, "tokenizer.ggml.token_type": 5}
"""What an unused token has; 5 is "unused"."""

WITHOUT_EXPERTS = {"nemotron_h_moe": "nemotron_h"}
"""Architectures that have another name without experts."""

STORED = "stored"
"""The type of an export that leaves everything as it is."""

BY_SIGMOIDS = {"bailingmoe": "bailingmoe2"}
"""Architectures that have another name where experts are scored by sigmoids."""

SHARED = {
    "forge": "llama",
    "mistral": "llama",
    "internlm3": "llama",
    "iquestcoder": "llama",
    "glm4_moe_lite": "deepseek2",
    "solar_open": "glm4moe",
    "apertus1p5_text": "apertus",
    "gemma4_unified_text": "gemma4",
    "gpt-sw3": "gpt2",
    "emu3_text_model": "llama",
    "ministral": "llama",
    "helium": "ernie4_5",
    "sarvam_mla": "deepseek2",
    "sarvam_moe": "glm4moe",
    "aria_text": "granitemoe:shared",
}
"""Families that another's architecture can say."""


def architecture(model_type: str) -> str:
    """The GGUF architecture of a family.

    Raises:
        ValueError: there is none.
    """
    known = {facts.model_type: arch for arch, facts in ARCHS.items() if not facts.alias} | SHARED
    if model_type not in known:
        raise ValueError(
            f"model_type {model_type!r} has no GGUF architecture: llama.cpp knows no such model. Export to safetensors "
            f"instead; GGUF can hold {', '.join(sorted(known))}"
        )
    return known[model_type]


def variant(arch: str, moe: Moe | None) -> str:
    """The architecture of a model of a family, where that is not always the same."""
    if moe is None:
        return WITHOUT_EXPERTS.get(arch, arch)
    return BY_SIGMOIDS.get(arch, arch) if moe.router.score == "sigmoid" else arch


def export_gguf(
    path: str | os.PathLike[str],
    spec: ModelSpec,
    fetch: Callable[[str], Any],
    model_type: str,
    *,
    type: str = "F32",
    stored: Mapping[str, str] | None = None,
    importance: Mapping[str, np.ndarray] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    name: str | None = None,
    allow: Container[str] = (),
) -> None:
    """Write a model as one GGUF file, one tensor in memory at a time.

    Args:
        path: the file; it appears when it is complete.
        spec, model_type: the model, and the family whose conventions it follows.
        fetch: gives a parameter by its path, "layers.0.attention.q", an array or a packed leaf.
        type: how matrices are stored, one of `mixes.MIXES`; or STORED: packed ones as they are, plain ones as `stored`.
        stored: the storage type of each of our paths, where the model's checkpoint had one.
        importance: what the columns of matrices weigh when they are packed, by the file's own names, float32 [columns]
            or [experts, columns] (see `importance` of `forge_jax.quantization.ggml.encode`, and `imatrix`).
        tokenizer: the "tokenizer." metadata, plain or `Typed`; a shorter vocabulary is padded with unused tokens.
        name: general.name.
        allow: fields of the spec that the file may lose, such as "window".

    Raises:
        ValueError: the family has no GGUF architecture, GGUF cannot say the spec (with the field), the vocabulary or a
            value does not fit, or importance is for other tensors or missing where a type needs it.
        OSError: the disk is full or the path cannot be written.
    """
    mix = mixes.find("F32" if type == STORED else type)
    arch = variant(architecture(model_type), mixture(spec))
    spec, fetch = with_all_rows(spec, fetch)
    said, vectors = describe(arch, spec)
    every = rules.instances(names.rules(arch, spec), abstract(spec))
    found, numbers = lists(every, ARCHS[arch].numbers, len(spec.layers), partial(values, fetch=fetch))
    metadata: dict[str, Any] = {"general.architecture": prefix(arch), "general.type": "model"}
    metadata |= {"general.name": name} if name else {}
    metadata |= said | numbers
    metadata |= {"general.file_type": mix.id, "general.quantization_version": mixes.QUANTIZATION_VERSION}
    metadata |= {"quantize.imatrix.entries_count": len(importance)} if importance else {}
    made = {instance.theirs: (instance.stored_shape, partial(values, instance, fetch)) for instance in found}
    raw = {i.theirs: blocks for i in found if (blocks := kept.blocks(i, fetch))} if type == STORED else {}
    if ARCHS[arch].idle_keys:
        made |= {n: (shape, partial(np.zeros, shape)) for n, shape in idle(spec)}
    model = mixes.facts(metadata, prefix(arch), spec.tied, importance is not None)
    shapes = {n: shape for n, (shape, _) in made.items()}
    kinds = storage(mix, shapes, model)
    if type == STORED:
        matrices = [i for i in found if i.theirs not in raw and not precise(i.theirs, i.stored_shape)]
        kinds |= {i.theirs: kept.plain_kind(i, fetch, stored or {}) for i in matrices}
        kinds |= {n: kind for n, (kind, _) in raw.items()}
        metadata["general.file_type"] = kept.file_type(kinds, shapes)
    fitted = mixes.fit_importance(type, kinds, shapes, importance or {})
    tensors: list[TensorToWrite] = [(n, v.shape, "F32", partial(np.asarray, v)) for n, v in vectors.items()]
    for n, (shape, make) in made.items():
        tensors.append((n, shape, kinds[n], raw[n][1] if n in raw else partial(packed, kinds[n], make, fitted.get(n))))
    infos = {n: TensorInfo(n, tuple(shape), kind, 0, Path(path)) for n, shape, kind, _ in tensors}
    check(arch, spec, metadata, infos, vectors, allow)
    write_gguf(path, metadata | vocabulary(tokenizer or {}, spec.vocab_size), tensors)


def with_all_rows(spec: ModelSpec, fetch: Callable[[str], Any]) -> tuple[ModelSpec, Callable[[str], Any]]:
    """The same model with a row in its table of inputs for every token, as llama.cpp wants: the first, repeated."""
    own = spec.own
    if own is None or own.vocab_size >= spec.vocab_size:
        return spec, fetch

    def padded(path: str) -> Any:
        rows = np.asarray(dense(fetch(path)))
        more = spec.vocab_size - own.vocab_size
        return np.concatenate([rows, np.repeat(rows[:1], more, 0)]) if path == "own.table" else rows

    return replace(spec, own=replace(own, vocab_size=spec.vocab_size)), padded


def storage(mix: mixes.Mix, shapes: Mapping[str, tuple[int, ...]], model: mixes.Facts) -> dict[str, str]:
    """The storage type of every tensor of a file."""
    kinds: dict[str, str] = {}
    packable: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if precise(name, shape):
            kinds[name] = "F32"
        elif any(part in name for part in COARSE) and not lookup(mix.base).plain:
            kinds[name] = "F16"
        else:
            packable[name] = shape
    return kinds | mixes.types(mix, packable, model)


def precise(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is always F32."""
    return len(shape) < 2 or name.endswith(PRECISE) or name == "position_embd.weight"


def packed(kind: str, make: Callable[[], np.ndarray], importance: np.ndarray | None) -> np.ndarray:
    """The stored bytes of one tensor."""
    return encode(kind, make(), importance)


def values(instance: rules.Instance, fetch: Callable[[str], Any]) -> np.ndarray:
    """A tensor of theirs in float32, from our leaves: sums with a norm's offset must not be rounded further."""
    return instance.write(lambda path: np.asarray(dense(fetch(path)), np.float32))


def vocabulary(tokenizer: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The tokenizer's metadata with as many tokens as the embedding has rows, which llama.cpp insists on.

    Raises:
        ValueError: more tokens than rows, or lists of different lengths.
    """
    out = dict(tokenizer)
    if "tokenizer.ggml.tokens" not in out:
        return {"tokenizer.ggml.model": "none"} | out
    if out.get(MERGES) == []:  # an empty list does not say what it is a list of
        out[MERGES] = Typed("string[]", [])
    tokens = [f"[PAD{i}]" for i in range(size)]
    count = len(plain(out["tokenizer.ggml.tokens"]))
    if count > size:
        raise ValueError(f"the tokenizer has {count} tokens, but the model has only {size}")
    for key, unused in {"tokenizer.ggml.tokens": "", **PADDING}.items():
        if key not in out:
            continue
        given = plain(out[key])
        if len(given) != count:
            raise ValueError(f"the tokenizer has {count} tokens, but {key} has {len(given)} entries")
        more = tokens[count:] if not unused else [unused] * (size - count)
        if isinstance(given, np.ndarray):
            out[key] = np.concatenate([given, np.array(more, given.dtype)])
        else:
            out[key] = Typed(out[key].type, [*given, *more]) if isinstance(out[key], Typed) else [*given, *more]
    return out


def plain(value: Any) -> Any:
    """A metadata value without its type."""
    return value.value if isinstance(value, Typed) else value
