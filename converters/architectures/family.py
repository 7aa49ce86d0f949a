"""What a family tells the converters about itself."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from converters.rules import Rule, pattern
from converters.take import Take
from forge_jax.spec import ModelSpec


@dataclass(frozen=True)
class Family:
    """One architecture as data.

    model_types: the values of `model_type` in config.json that it reads.
    config: reads every key that matters and returns the spec. The caller checks that nothing was left unread.
    rules: between our tree and the HuggingFace names; the first rule that fits a leaf is taken.
    first: rules that go before these for some specs, where one leaf has different names in them.
    prefix: what the names of a checkpoint saved from the bare model lack ("model.").
    buffers: names of tensors that are no parameters and are left unread, with {l} for a layer's number.
    drafts: what the names of modules that guess further tokens begin with, left unread too; {l} is a layer's number
    past the last.
    trained: parts of names that the library which trains, and so an adapter, has otherwise: (in checkpoints, there).
    """

    model_types: tuple[str, ...]
    config: Callable[[Take], ModelSpec]
    rules: tuple[Rule, ...]
    prefix: str = "model."
    buffers: tuple[str, ...] = ()
    drafts: tuple[str, ...] = ()
    trained: tuple[tuple[str, str], ...] = ()
    first: Callable[[ModelSpec], tuple[Rule, ...]] = lambda spec: ()

    def table(self, spec: ModelSpec) -> tuple[Rule, ...]:
        """The rules of a model of this family."""
        return (*self.first(spec), *self.rules)

    def trained_name(self, name: str) -> str:
        """The name that a checkpoint's tensor has in the library that trains."""
        for stored, there in self.trained:
            name = name.replace(stored, there)
        return name

    def stored_name(self, name: str) -> str:
        """The name in checkpoints of a tensor of the library that trains."""
        for stored, there in self.trained:
            name = name.replace(there, stored)
        return name

    def unread(self, spec: ModelSpec, name: str) -> bool:
        """Whether a tensor is none of the model's parameters, but known: a buffer, or part of a draft module."""
        names = (name, f"{self.prefix}{name}")
        drafts = (re.compile(re.escape(start).replace(r"\{l\}", r"(\d+)")) for start in self.drafts)
        found = [match for draft in drafts for match in map(draft.match, names) if match]
        return any(pattern(buffer).match(known) for buffer in self.buffers for known in names) or any(
            not match.groups() or int(match[1]) >= len(spec.layers) for match in found
        )
