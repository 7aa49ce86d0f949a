"""Caches on disk: what one process has read, another goes on with. Part of the front.

    >>> session = Session(model.spec, model.params, [ids], max_new_tokens=0)            # doctest: +SKIP
    >>> prompt_cache.save("system.cache", model, session.held())                        # doctest: +SKIP
    >>> held = prompt_cache.load("system.cache", model)                                 # doctest: +SKIP
    >>> session = Session(model.spec, model.params, [ids + more], held=held)            # doctest: +SKIP

A file is safetensors, written whole or not at all. It says which spec and weights it belongs to, and is refused beside
others; so is one whose arrays are not exactly those of such a cache.
"""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from converters.files import parse_json
from converters.safetensors_file import Entry, SafetensorsSource, dtype_name, open_safetensors, write_safetensors
from forge_jax import cache as caches
from forge_jax.cache import Policy
from forge_jax.generation.held import Held, named
from forge_jax.generation.sizes import BURST, compute_dtype
from forge_jax.loading import Model
from forge_jax.params import Tree, flatten
from forge_jax.stacking import unstack

FORMAT = "forge-jax prompt cache 1"
SAMPLE = 256  # numbers of each array that tell one model's weights from another's


def fingerprint(model: Model) -> dict[str, str]:
    """Digests of what a model computes and of the beginning of all its weights, stacked or not."""
    shapes, weights = (dict(flatten(tree)) for tree in by_layer(model))
    digest = hashlib.sha256()
    for path in sorted(shapes):
        for part, numbers in zip(jax.tree.leaves(shapes[path]), jax.tree.leaves(weights[path]), strict=True):
            digest.update(f"{path} {part.dtype} {part.shape}".encode())
            digest.update(np.asarray(numbers).tobytes())
    return {"spec": hashlib.sha256(repr(model.spec).encode()).hexdigest(), "weights": digest.hexdigest()}


def by_layer(model: Model) -> tuple[Tree, Tree]:
    """The shapes of the parameters with an entry a layer, and the beginning of each of them."""
    params, stacks = model.params, model.params.get("stacked")
    rest = {key: value for key, value in params.items() if key != "stacked"}
    first = jax.tree.map(lambda part: part.ravel()[:SAMPLE], rest)
    if stacks is None:
        return params, first
    first["stacked"] = jax.tree.map(lambda part: part.reshape(part.shape[0], -1)[:, :SAMPLE], stacks)
    return jax.eval_shape(partial(unstack, model.spec), params), unstack(model.spec, first)


def save(path: str | Path, model: Model, held: Held, cache_dtype: Any = None) -> None:
    """Write what a session left behind.

    Args:
        cache_dtype: as it was given to the session.

    Raises:
        ValueError: the cache is not one of this model kept so, or heads are padded for the devices that it is on.
    """
    kept = policy(model, cache_dtype)
    expected = shapes(model, kept, len(held.texts), held.cache.length)
    if described(expected) != described(held.cache):
        raise ValueError(
            f"{path}: the cache is not kept as cache_dtype={cache_dtype!r} says, or on devices among which its heads "
            "are not split evenly; give what the session got, or read the text on one device"
        )
    lengths = np.array([len(text) for text in held.texts], np.int32)
    arrays = named(held.cache) | {
        "texts": np.array([token for text in held.texts for token in text], np.int32),
        "lengths": lengths,
    }
    rules = [[pattern, codec.name] for pattern, codec in kept.rules]
    facts = {"length": held.cache.length, "plain": kept.plain.name, "rules": rules}
    entries = [
        Entry(name, tuple(array.shape), dtype_name(array.dtype), partial(np.asarray, array))
        for name, array in arrays.items()
    ]
    write_safetensors(Path(path), entries, {"format": FORMAT, "cache": json.dumps(facts), **fingerprint(model)})


def load(path: str | Path, model: Model) -> Held:
    """Read what was saved beside the same model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no cache, one of another model, or damaged.
    """
    source = open_safetensors(Path(path))
    try:
        said = source.metadata
        if said.get("format") != FORMAT:
            raise ValueError(f"{path}: no {FORMAT}; it says format {said.get('format')!r}")
        for name, digest in fingerprint(model).items():
            if said.get(name) != digest:
                raise ValueError(f"{path}: it belongs to a model with another {name}; read the text again and save it")
        return read(source, model, str(path))
    finally:
        source.close()


def read(source: SafetensorsSource, model: Model, path: str) -> Held:
    """The arrays of a cache, which must be those that its facts imply."""
    text = str(source.metadata.get("cache", ""))
    facts = parse_json(text.encode(), path, file_size=len(text))
    length, rules = (facts.get(key) for key in ("length", "rules")) if isinstance(facts, dict) else (None, None)
    if not isinstance(length, int) or not isinstance(rules, list) or not 0 < length <= model.spec.max_seq_len:
        raise ValueError(f"{path}: its metadata says {text[:200]!r}; expected a length and the rules of a cache")
    pairs = {str(pair[0]): pair[1] for pair in rules if isinstance(pair, list) and len(pair) == 2}
    plain = policy(model, facts.get("plain")).plain
    kept = Policy(plain, policy(model, pairs).rules)
    lengths = whole(source, "lengths", path)
    expected = shapes(model, kept, len(lengths), length)
    wanted, found = described(expected), {name: (info.shape, info.dtype) for name, info in source.tensors.items()}
    wrong = [name for name in wanted if found.get(name) != wanted[name]]
    if wrong or set(found) != {*wanted, "texts", "lengths"}:
        raise ValueError(
            f"{path}: its arrays are not those of such a cache, {(wrong or sorted(found))[:3]} for example"
        )
    tokens = whole(source, "texts", path)
    if (
        (lengths < 0).any()
        or lengths.sum() != len(tokens)
        or (tokens < 0).any()
        or (tokens >= model.spec.vocab_size).any()
    ):
        raise ValueError(f"{path}: its texts are not ids of this model in rows of {lengths.tolist()[:5]} tokens")
    leaves, tree = jax.tree.flatten(expected)
    names = list(described(expected))
    cache = jax.tree.unflatten(tree, [jnp.asarray(source.read(name)) for name, _ in zip(names, leaves, strict=True)])
    ends = np.cumsum(lengths)
    texts = tuple(tuple(tokens[end - size : end].tolist()) for end, size in zip(ends, lengths, strict=True))
    return Held(caches.rewind(cache, jnp.asarray(lengths)), texts)


def whole(source: SafetensorsSource, name: str, path: str) -> np.ndarray:
    """One list of whole numbers."""
    info = source.tensors.get(name)
    if info is None or info.dtype != "I32" or len(info.shape) != 1:
        raise ValueError(f"{path}: {name} is missing or no list of int32")
    return source.read(name)


def policy(model: Model, cache_dtype: Any) -> Policy:
    """How a session of this model keeps keys and values."""
    return caches.policy(cache_dtype, compute_dtype(model.params))


def shapes(model: Model, kept: Policy, rows: int, length: int) -> caches.Cache:
    """The arrays of what sessions hold, as shapes."""
    return jax.eval_shape(partial(caches.init, model.spec, rows, length, slack=BURST, dtype=kept))


def described(cache: caches.Cache) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and safetensors type of every array."""
    return {name: (tuple(leaf.shape), dtype_name(np.dtype(leaf.dtype))) for name, leaf in named(cache).items()}
