"""A strict look at one GGUF model's metadata: every key of its architecture is read, known to be quiet, or an error.

What a header says is hostile: numbers are checked for type and range before anything is built from them. Knows no
architecture.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from converters.source import TensorInfo
from converters.take import Take

MAX_COUNT = 1 << 31

# Keys below the architecture's name without effect on the numbers, or that the tensors themselves say better.
QUIET = ("vocab_size", "pooling_type", "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon")


def shortest(value: Any) -> float:
    """A number stored in float32 as the shortest decimal that means it: 0.1, not 0.10000000149011612."""
    single = np.float32(value)
    return float(str(single)) if single == value else float(value)


class Reading:
    """Metadata and tensors of one model, and what has been read of them."""

    def __init__(
        self,
        arch: str,
        metadata: Mapping[str, Any],
        tensors: Mapping[str, TensorInfo],
        read: Callable[[str], np.ndarray],
        where: str,
        allow: Iterable[str],
    ) -> None:
        prefix = f"{arch}."
        plain = {
            key.removeprefix(prefix): value.tolist() if isinstance(value, np.ndarray) else value
            for key, value in metadata.items()
            if key.startswith(prefix)
        }
        self.take = Take(plain, f"{where}: metadata of {arch}", {name.removeprefix(prefix) for name in allow})
        self.take.ignore(*QUIET)
        self.tensors = tensors
        self.used: set[str] = set()
        self._read = read

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self.tensors

    def vector(self, name: str, size: int) -> np.ndarray:
        """The values of a tensor that says something about the config, float32 [size].

        Raises:
            ValueError: it is missing, of another shape, or not positive and finite.
        """
        info = self.tensors.get(name)
        if info is None or info.shape != (size,):
            found = "missing" if info is None else f"of shape {list(info.shape)}"
            raise ValueError(f"{self.take.where}: the tensor {name} is {found}, expected {size} numbers")
        self.used.add(name)
        values = self._read(name).astype(np.float32)
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"{self.take.where}: the tensor {name} has values that are not positive and finite")
        return values

    def value(self, key: str, *default: Any) -> Any:
        """A value; of one given layer by layer, the one they share.

        Raises:
            ValueError: it is missing and has no default, or layers differ.
        """
        value = self.take(key, *default)
        if isinstance(value, list):
            if not value or any(item != value[0] for item in value):
                raise ValueError(f"{self.take.where}: {key} differs by layer ({value[:8]}), which is not implemented")
            value = value[0]
        return shortest(value) if isinstance(value, float) else value

    def count(self, key: str, *default: int, least: int = 1) -> int:
        """An integer of at least `least`.

        Raises:
            ValueError: it is missing and has no default, or something else.
        """
        value = self.value(key, *default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < MAX_COUNT:
            raise ValueError(f"{self.take.where}: {key} is {value!r}, expected an integer, {least} or more")
        return value

    def number(self, key: str, *default: float, above: float | None = None) -> float:
        """A finite number that is not negative, or above a bound.

        Raises:
            ValueError: it is missing and has no default, or something else.
        """
        value = self.value(key, *default)
        good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
        if not good or (above is not None and value <= above):
            expected = "0 or more" if above is None else f"above {above:g}"
            raise ValueError(f"{self.take.where}: {key} is {value!r}, expected a finite number, {expected}")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false.

        Raises:
            ValueError: it is missing or something else.
        """
        value = self.take(key)
        if not isinstance(value, bool):
            raise ValueError(f"{self.take.where}: {key} is {value!r}, expected true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """A string.

        Raises:
            ValueError: it is something else.
        """
        value = self.take(key, default)
        if not isinstance(value, str):
            raise ValueError(f"{self.take.where}: {key} is {value!r}, expected a string")
        return value
