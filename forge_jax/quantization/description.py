"""Schemes as plain data: {"kind": "Integers", "bits": 4, "group": 64, ...}, and back."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from typing import Any

from forge_jax.quantization.ggml import Ggml
from forge_jax.quantization.schemes import Codebook, Floats, Integers
from forge_jax.tensor import Scheme

KINDS: Mapping[str, type] = {kind.__name__: kind for kind in (Integers, Floats, Codebook, Ggml)}


def describe(scheme: Any) -> dict[str, Any]:
    """A scheme as data."""
    return {"kind": type(scheme).__name__, **asdict(scheme)}


def scheme_of(described: Any, where: str) -> Scheme:
    """The scheme that data describe.

    Raises:
        ValueError: no known kind, or fields that it does not have or that are of another type.
    """
    kind = KINDS.get(str(described.get("kind"))) if isinstance(described, Mapping) else None
    if kind is None:
        raise ValueError(f"{where}: {described!r} is no scheme; expected a kind of {', '.join(KINDS)} and its fields")
    given = {name: value for name, value in described.items() if name != "kind"}
    known = {field.name: field for field in fields(kind)}
    missing = [name for name, field in known.items() if field.default is MISSING and name not in given]
    if missing or given.keys() - known.keys():
        raise ValueError(f"{where}: {kind.__name__} has the fields {', '.join(known)}; found {', '.join(given)}")
    for name, value in given.items():
        if type(value).__name__ != known[name].type and type(value) is not known[name].type:
            raise ValueError(f"{where}: {name} is {value!r}, expected {known[name].type}")
    return kind(**given)
