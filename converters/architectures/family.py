"""What a family tells the converters about itself."""

from collections.abc import Callable
from dataclasses import dataclass

from converters.rules import Rule
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
    """

    model_types: tuple[str, ...]
    config: Callable[[Take], ModelSpec]
    rules: tuple[Rule, ...]
    prefix: str = "model."
    buffers: tuple[str, ...] = ()
    first: Callable[[ModelSpec], tuple[Rule, ...]] = lambda spec: ()

    def table(self, spec: ModelSpec) -> tuple[Rule, ...]:
        """The rules of a model of this family."""
        return (*self.first(spec), *self.rules)
