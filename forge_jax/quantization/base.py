"""What schemes of packed rows have in common, unless they say otherwise: see `forge_jax.tensor.Scheme`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from jax import Array

from forge_jax.kernels import Packing
from forge_jax.products import decoded_products


class Rows(ABC):
    """Rows that run along their parts, each by itself, and are not cut any finer."""

    @abstractmethod
    def factors(self, parts: Mapping[str, Any]) -> tuple[Any, Any | None]:
        """See `forge_jax.tensor.Scheme`."""

    @property
    def whole(self) -> tuple[str, ...]:
        """The parts that do not run along the row."""
        return ()

    @property
    def rounds(self) -> bool:
        """Products take their inputs as they are."""
        return False

    def packing(self, parts: Mapping[str, Any]) -> Packing | None:
        """Kernels have no name for these rows."""
        return None

    def products(
        self, weights: Sequence[dict[str, Array]], outputs: Sequence[tuple[int, ...]], x_RI: Array
    ) -> list[Array]:
        """As `decoded_products` finds best."""
        return decoded_products(self, weights, outputs, x_RI)

    def apart(self, parts: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """As they are."""
        return self, dict(parts)

    def chosen(self, parts: Mapping[str, Any], ids: Any) -> tuple[Any, dict[str, Any]]:
        """The rows of these numbers, of parts [rows, ...], or [1, ...] where all rows share one."""
        several = ids.__array_namespace__()
        return self, {name: part[several.minimum(ids, part.shape[0] - 1)] for name, part in parts.items()}

    def finer(self, parts: Mapping[str, Any], group: int) -> tuple[Any, dict[str, Any]]:
        """As they are."""
        return self, dict(parts)
