"""Adapters from files to models and back. Part of the front: it sees both the pure functions and the formats."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from forge_jax import parallel
from forge_jax.loading import Model, finite
from forge_jax.lora import Adapter, Apart, Tokens, attach, merge
from forge_jax.lora.leaves import Turned
from forge_jax.params import flatten
from forge_jax.tensor import dense


def load_adapter(path: str | Path, model: Model, *, allow: Iterable[str] = ()) -> Adapter:
    """Read an adapter for a model: a directory of PEFT, or a GGUF file of llama.cpp. The model is not changed.

    Args:
        allow: config keys that may stay unread, if an error named them and they do not matter.

    Raises:
        FileNotFoundError: nothing there, or no adapter_config.json in it.
        ValueError: a kind of adapter or a setting that is not implemented; tensors that are missing, unused, misshapen,
            not finite or for another model. The message names them.
    """
    path, kind = Path(path), str(model.config.get("model_type"))
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or directory")
    if path.is_dir():
        from converters.adapters.peft import read_peft as read
    else:
        from converters.adapters.gguf import read_gguf_adapter as read
    return placed(without_copies(read(path, kind, model.spec, allow), model), path)


def without_copies(adapter: Adapter, model: Model) -> Adapter:
    """The adapter without parameters that are the model's own, number for number: PEFT stores adapted embeddings."""
    leaves = dict(flatten(model.params))

    def copied(name: str, value: np.ndarray) -> bool:
        if name not in leaves and name != "head":
            return False
        own = np.asarray(dense(leaves[name] if name in leaves else Turned(leaves["embed"])))
        return own.shape == value.shape and np.array_equal(own, value.astype(own.dtype))

    kept = {name: value for name, value in adapter.values.items() if not copied(name, np.asarray(value))}
    return replace(adapter, values=kept)


def placed(adapter: Adapter, where: Path) -> Adapter:
    """The adapter on the device, in float32.

    Raises:
        ValueError: values that are not finite.
    """

    def put(path: str, values: Any) -> Any:
        if values is None:
            return None
        if not finite(np.asarray(values)):
            raise ValueError(f"{where}: the adapter of {path} has NaN or infinite values; the file is damaged")
        return jnp.asarray(values, jnp.float32)

    updates = {
        path: replace(
            update,
            a=put(path, update.a),
            b=put(path, update.b),
            magnitude=put(path, update.magnitude),
            bias=put(path, update.bias),
        )
        for path, update in adapter.updates.items()
    }
    values = {path: put(path, value) for path, value in adapter.values.items()}
    tokens = {path: Tokens(jnp.asarray(each.ids), put(path, each.rows)) for path, each in adapter.tokens.items()}
    return Adapter(updates, values, tokens)


def adapted(model: Model, adapter: Adapter | Sequence[Adapter]) -> Model:
    """A model with an adapter beside its weights, or with several among which rows choose; see `attach`.

    Raises:
        ValueError: as `attach`, or the model is split over a mesh already.
    """
    if model.mesh is not None:
        raise ValueError("adapter: the model is split over a mesh; give it to load(..., adapter=..., mesh=...)")
    return replace(model, params=attach(model.params, adapter))


def merged(model: Model) -> Model:
    """The model with its adapter in its weights. One whose embedding was adapted apart from the head gets a head.

    Raises:
        ValueError: as `merge`.
    """
    params, spec, config = merge(model.params), model.spec, dict(model.config)
    if isinstance(params.get("embed"), Apart):
        table = params["embed"]
        params = params | {"embed": dense(table.base), "head": table.head}
        spec = replace(spec, tied=False)
        config |= {"tie_word_embeddings": False}
    return replace(model, params=params, spec=spec, config=MappingProxyType(config))


def sharded(model: Model, mesh: Mesh) -> Model:
    """A model of one device split over a mesh, its adapters with it."""
    params = parallel.shard(model.spec, model.params, mesh)
    return replace(model, params=params, mesh=mesh, programs=parallel.programs(mesh))


def export_adapter(adapter: Adapter, model: Model, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write an adapter of a model: a GGUF file for llama.cpp if the path ends in .gguf, else a directory for PEFT.

    Raises:
        FileExistsError: the directory is there and not empty, and `overwrite` is false.
        ValueError: the format cannot say it; the message names what.
        OSError: the disk is full; nothing is left behind.
    """
    path, kind = Path(path), str(model.config.get("model_type"))
    if path.suffix == ".gguf":
        from converters.adapters.gguf import write_gguf_adapter

        write_gguf_adapter(path, adapter, kind, model.spec)
    else:
        from converters.adapters.peft_write import write_peft

        write_peft(path, adapter, kind, model.spec, base=str(model.path or ""), overwrite=overwrite)
    return path


@dataclass
class Held:
    """The adapters that a facade holds: by name, which one is active, and whether it is in the weights.

    mesh: what the adapted model is split over; the base is not. pool: the base with all of them, of which rows choose.
    """

    base: Model
    mesh: Mesh | None = None
    known: dict[str, Adapter] = field(default_factory=dict)
    active: str | None = None
    merged: bool = False
    pool: Model | None = None

    def add(self, name: str, adapter: Adapter) -> None:
        """Keep an adapter under a name.

        Raises:
            ValueError: the name is taken.
        """
        if name in self.known:
            raise ValueError(f"load_lora: there is an adapter {name!r} already; give this one another adapter_name")
        self.known[name], self.pool = adapter, None

    def check(self, name: str | None) -> None:
        """Raise ValueError if there is no adapter of a name."""
        if name is not None and name not in self.known:
            there = ", ".join(map(repr, self.known)) or "none; load_lora loads one"
            raise ValueError(f"there is no adapter {name!r}; there is {there}")

    def by_row(self, names: Sequence[str | None]) -> tuple[Model, list[int] | None]:
        """The base with all adapters beside its weights, and the number of each of some; None is the base alone.

        Raises:
            ValueError: no adapter of a name, or adapters among which rows cannot choose.
        """
        for name in names:
            self.check(name)
        if not self.known:
            return self.base, None
        if self.pool is None:
            model = adapted(self.base, list(self.known.values()))
            self.pool = model if self.mesh is None else sharded(model, self.mesh)
        numbers = {name: number for number, name in enumerate(self.known)}
        return self.pool, [-1 if name is None else numbers[name] for name in names]

    def model(self, name: str | None, *, merge: bool) -> Model:
        """The base with one adapter beside its weights or in them, or with none.

        Raises:
            ValueError: no adapter of the name, or it does not fit.
        """
        self.check(name)
        model = self.base if name is None else adapted(self.base, self.known[name])
        model = merged(model) if merge and name is not None else model
        self.active, self.merged = name, merge and name is not None
        return model if self.mesh is None else sharded(model, self.mesh)
