"""A graph that this library wrote: notes in the file say which stored tensor is which parameter.

The nodes are not looked at, so the notes must say everything: one that is not known here is an error, like a tensor
that is not where its note says. Written by `forge_jax.onnx_export.writing`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from converters import rules
from converters.checkpoint import Checkpoint, account, interpret
from converters.files import parse_json, quote, read_json
from converters.onnx.source import PREFIX, OnnxSource
from converters.packed.leaves import with_packed
from converters.source import View
from forge_jax.params import abstract

NOTES = ("config", "packed", "parameters", "states")
"""What the file says of itself: the config, how leaves are packed, which tensors are parameters, what inputs are."""


class Named(View):
    """The tensors that are parameters, under our paths."""

    def __init__(self, whole: OnnxSource, names: Mapping[str, str]) -> None:
        """`names`: the stored tensor of each path."""
        self.names = names
        super().__init__(whole, {path: replace(whole.tensors[name], name=path) for path, name in names.items()})

    def raw(self, name: str) -> np.ndarray:
        """The stored bytes of one parameter."""
        return self.whole.raw(self.names[name])

    def decode(self, name: str, raw: np.ndarray) -> np.ndarray:
        """The values of one parameter from its bytes."""
        return self.whole.decode(self.names[name], raw)

    packed = decode  # packed leaves are several arrays


def understand(path: Path, source: OnnxSource, allow: Iterable[str] = ()) -> Checkpoint:
    """Turn the notes of a file into a spec and a rule for each parameter.

    Args:
        path: the file, or its directory, in which config.json must say the same as the file.
        source: the opened file.
        allow: config keys that may stay unread.

    Raises:
        ValueError: notes that are missing, unknown or damaged, or tensors that do not fit them.
    """
    file = source.store.path
    notes = read_notes(file, source.notes)
    config = notes["config"]
    if path.is_dir() and (path / "config.json").exists():
        check_same(path / "config.json", config)
    tensors = with_packed(
        Named(source, names_of(source, notes["parameters"])), notes["packed"], f"{file}: {PREFIX}packed"
    )
    family, spec = interpret(config, str(file), allow)
    return account(path, tensors, config, family, spec, rules.identity(abstract(spec)))


def read_notes(file: Path, notes: Sequence[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """Every note by its name.

    Raises:
        ValueError: not those of `NOTES`, each once, or one that is no JSON object.
    """
    if sorted(key for key, _ in notes) != list(NOTES):
        found, wanted = (", ".join(quote(PREFIX + key) for key in keys) for keys in (dict(notes), NOTES))
        raise ValueError(f"{file}: found the notes {found}; expected {wanted}, each once: another version wrote it")
    out = {}
    for key, text in notes:
        out[key] = parse_json(text.encode(), f"{file}: {PREFIX}{key}", file_size=len(text))
        if not isinstance(out[key], dict):
            raise ValueError(f"{file}: {PREFIX}{key}: expected a JSON object, found {type(out[key]).__name__}")
    return out


def names_of(source: OnnxSource, said: Mapping[str, Any]) -> dict[str, str]:
    """The tensor of each parameter, by our path.

    Raises:
        ValueError: a tensor that is not there, or a path that is none or of two tensors.
    """
    names: dict[str, str] = {}
    for name, path in said.items():
        if not isinstance(path, str) or path in names:
            raise ValueError(
                f"{source.store.path}: tensor {quote(name)} is parameter {quote(str(path))}, as is another"
            )
        if name not in source.tensors:
            raise ValueError(
                f"{source.store.path}: parameter {quote(path)} should be the tensor {quote(name)}, which is not there: "
                "the file was changed after its export; load the model that it was exported from"
            )
        names[path] = name
    return names


def check_same(beside: Path, config: Mapping[str, Any]) -> None:
    """Raise ValueError if a config.json differs from the config of the graph beside it."""
    found = read_json(beside)
    if not isinstance(found, dict):
        raise ValueError(f"{beside}: expected a JSON object, found {type(found).__name__}")
    if odd := sorted(key for key in {**found, **config} if found.get(key, beside) != config.get(key, beside)):
        raise ValueError(
            f"{beside}: {', '.join(map(quote, odd[:5]))} differ from the config inside the graph, which it was made "
            "with; export the model again with what config.json says, or load the .onnx file itself"
        )
