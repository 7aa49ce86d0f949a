"""The part of `Forge` that holds adapters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from jax.sharding import Mesh

from forge_jax import loading
from forge_jax.adapting import Held, export_adapter, load_adapter
from forge_jax.config import ForgeConfig
from forge_jax.forge_files import ForgeFiles, Summary
from forge_jax.loading import Model


class ForgeAdapters(ForgeFiles):
    """Adapters by name, one of them active; the base's parameters are kept as they are."""

    adapters: Held

    @classmethod
    def from_any(
        cls, path: str | Path, *, adapter: str | Path | None = None, mesh: Mesh | None = None, **options: Any
    ) -> Self:
        """Load a directory, a file or a hub id, whatever its format, and an adapter beside it.

        Args:
            mesh: what to split the weights over; with an adapter after all of them were read.
            options: of `forge_jax.loading.load`.

        Raises: as `forge_jax.loading.load` and `load_lora`.
        """
        if adapter is None:
            return cls.from_model(loading.load(path, mesh=mesh, **options))
        self = cls.from_model(loading.load(path, **options))
        self.adapters.mesh = mesh
        self.load_lora(adapter)
        return self

    def become(self, model: Model, config: ForgeConfig | Summary, held: Held) -> None:
        """Become the facade of a model with the adapters that it holds."""
        self.adopt(model, config)
        self.adapters = held

    def load_lora(self, path: str | Path, adapter_name: str = "default", merge: bool = False) -> None:
        """Load an adapter for the base, a directory of PEFT or a GGUF file, and make it the active one.

        With `merge` it goes into the weights, which are then as fast as the base's; `unmerge_lora` takes it out.

        Raises:
            FileNotFoundError: nothing there.
            ValueError: the name is taken, or the adapter cannot be honoured; see `forge_jax.load_adapter`.
        """
        self.adapters.add(adapter_name, load_adapter(path, self.adapters.base))
        self._activate(adapter_name, merge)

    def merge_lora(self, adapter_name: str | None = None) -> None:
        """Put an adapter, the active one by default, into the weights.

        Raises:
            ValueError: none is active, or there is none of that name.
        """
        name = self.adapters.active if adapter_name is None else adapter_name
        if name is None:
            raise ValueError("merge_lora: no adapter is active; load_lora loads one, set_adapter chooses one")
        self._activate(name, True)

    def unmerge_lora(self, adapter_name: str | None = None) -> None:
        """Take the merged adapter out of the weights, bit for bit, and leave it active beside them.

        Raises:
            ValueError: none is merged, or another one.
        """
        name, active = adapter_name, self.adapters.active
        if not self.adapters.merged or (name is not None and name != active):
            there = f"{active!r} is" if self.adapters.merged else "no adapter is"
            raise ValueError(f"unmerge_lora: {there} merged{'' if name is None else f', not {name!r}'}")
        self._activate(active, False)

    def set_adapter(self, adapter_name: str | None) -> None:
        """Choose the active adapter, None for the base alone.

        Raises:
            ValueError: no adapter of that name, or one is merged.
        """
        if self.adapters.merged:
            raise ValueError(f"set_adapter: {self.adapters.active!r} is merged; call unmerge_lora first")
        self._activate(adapter_name, False)

    def export_lora(self, path: str | Path, adapter_name: str | None = None, *, overwrite: bool = False) -> Path:
        """Write an adapter, the active one by default: a GGUF file if the path ends in .gguf, else PEFT's directory.

        Raises:
            ValueError: none is active or of that name, or the format cannot say it.
        """
        name = self.adapters.active if adapter_name is None else adapter_name
        if name not in self.adapters.known:
            raise ValueError(f"export_lora: there is no adapter {name!r}")
        return export_adapter(self.adapters.known[name], self.adapters.base, path, overwrite=overwrite)

    def _by_row(self, names: Sequence[str | None] | None) -> tuple[Model, list[int] | None]:
        """The model, and the number of each row's adapter where rows have some by name.

        Raises:
            ValueError: no adapter of a name, or adapters that rows cannot have apart; see `forge_jax.attach`.
        """
        return (self.model, None) if names is None else self.adapters.by_row(names)

    def _activate(self, name: str | None, merge: bool) -> None:
        """Become the base with one adapter."""
        self.become(self.adapters.model(name, merge=merge), self.config, self.adapters)
