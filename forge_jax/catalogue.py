"""Which architectures can be loaded, told from the tables that load them. Part of the front."""

import sys
from dataclasses import dataclass

from converters.architectures import families
from converters.composite import SAME, TYPES
from converters.gguf.archs import ARCHS
from converters.gguf.config import prefix


@dataclass(frozen=True)
class Architecture:
    """One `model_type` of a config.json.

    family: the file in converters/architectures that reads it. summary: what that file says of itself.
    gguf: the architectures of llama.cpp under which such a model is read from GGUF.
    text_of: where the type is a composite that also sees or hears, the type of the language model that is read.
    """

    model_type: str
    family: str
    summary: str
    gguf: tuple[str, ...] = ()
    text_of: str | None = None


def architectures() -> dict[str, Architecture]:
    """Every architecture that can be loaded, by its model_type.

    >>> architectures()["mixtral"].gguf
    ('llama',)
    """
    out: dict[str, Architecture] = {}
    for kind, family in sorted(families().items()):
        module = sys.modules[family.config.__module__]
        gguf = tuple(sorted({prefix(arch) for arch, facts in ARCHS.items() if facts.model_type == kind}))
        summary = " ".join((module.__doc__ or "").strip().partition("\n\n")[0].split())
        out[kind] = Architecture(kind, module.__name__.rpartition(".")[2], summary, gguf)
    for kind, text in sorted({**TYPES, **SAME}.items()):
        if text in out:
            out.setdefault(kind, Architecture(kind, out[text].family, out[text].summary, (), text))
    return out
