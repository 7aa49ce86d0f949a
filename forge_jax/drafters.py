"""From a path or a hub id to what drafts for a model: an EAGLE-3 head, or a smaller model. Part of the front."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from converters.detect import open_source
from converters.eagle import is_eagle, read_eagle, understood
from converters.files import read_json
from forge_jax import loading, text
from forge_jax.generation.speculation import Drafter, DraftModel, EagleHead
from forge_jax.hub import resolve
from forge_jax.loading import Model


def load_drafter(
    name: str | Path,
    model: Model,
    *,
    tokens: int | None = None,
    dtype: DTypeLike | str = "auto",
    allow: Iterable[str] = (),
    progress: bool = True,
) -> Drafter:
    """Load what drafts for a model.

    Args:
        name: a directory or hub id of an EAGLE-3 head, in the dialect of its authors or of `speculators`; or whatever
            `load` takes, for a smaller model of the same vocabulary.
        model: the one that it drafts for.
        tokens: drafted a round at most; None: 4.
        dtype, allow, progress: as `load` takes them.

    Raises:
        FileNotFoundError: no such file, directory or hub id.
        ValueError: a head or a model that does not fit, or as `load`.
    """
    path = resolve(name, progress=progress)
    config = read_json(path / "config.json") if (path / "config.json").is_file() else None
    if isinstance(config, dict) and is_eagle(config):
        drafter: DraftModel | EagleHead = load_eagle(path, config, model, dtype, allow)
    else:
        drafter = text.draft_model(model, loading.load(path, dtype=dtype, allow=allow, progress=progress))
    drafter = drafter if tokens is None else replace(drafter, tokens=tokens)
    try:
        drafter.check(model.spec, model.params, text.known_ids(model))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return drafter


def load_eagle(
    path: Path, config: dict[str, Any], model: Model, dtype: DTypeLike | str, allow: Iterable[str]
) -> EagleHead:
    """The EAGLE-3 head of a directory. Errors as `load_drafter`, but for what `EagleHead.check` finds."""
    said, cast = understood(config, str(path / "config.json"), allow), loading.caster(dtype)

    def place(name: str, values: np.ndarray) -> Any:
        loading.check_finite(path, name, values)
        return jnp.asarray(cast(name, values))

    source = open_source(path)
    try:
        params = read_eagle(said, path, source, place)
    finally:
        source.close()
    depth = len(model.spec.layers)
    taps = (2, depth // 2, depth - 3) if said.taps is None else said.taps
    return EagleHead(said.spec, params, taps, normed_residual=said.normed_residual, normed_output=said.normed_output)
