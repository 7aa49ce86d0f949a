"""The families: one small file each, the only place where an architecture's name stands.

A file defines `FAMILY`: which model types it reads, how a config becomes a `ModelSpec`, and the table of rules between
our parameter tree and the checkpoint's tensors. Adding a file here adds the architecture; nothing else changes.
"""

import difflib
import importlib
import pkgutil
from functools import cache

from converters.architectures.family import Family

__all__ = ["Family", "families", "find"]

SHARED = ("family", "common", "experts", "ssm", "latent")  # pieces of families, no family


@cache
def families() -> dict[str, Family]:
    """Every model type that can be read, with its family."""
    out: dict[str, Family] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name in SHARED:
            continue
        family: Family = importlib.import_module(f"{__name__}.{module.name}").FAMILY
        out |= dict.fromkeys(family.model_types, family)
    return out


def find(model_type: str | None, where: str) -> Family:
    """The family of a config's model_type.

    Raises:
        ValueError: there is none; the message lists the nearest names.
    """
    known = families()
    if model_type in known:
        return known[model_type]
    near = difflib.get_close_matches(str(model_type), known, n=3, cutoff=0.5)
    hint = f"; nearest are {', '.join(near)}" if near else ""
    raise ValueError(
        f"{where}: model_type {model_type!r} is not a known architecture{hint}. Known: {', '.join(sorted(known))}"
    )
