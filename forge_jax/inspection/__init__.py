"""What a checkpoint is, told from its headers alone: no weight is read, and none is downloaded. Part of the front.

>>> import forge_jax as forge
>>> print(forge.inspect("org/name", context=4096))     # doctest: +SKIP
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from converters.checkpoint import open_checkpoint
from forge_jax.inspection.facts import Inspection, Memory, gather
from forge_jax.inspection.headers import locate

__all__ = ["Inspection", "Memory", "inspect"]


def inspect(
    name: str | Path,
    *,
    context: int | None = None,
    batch: int = 1,
    dtype: str = "auto",
    cache_dtype: Any = None,
    revision: str | None = None,
    subfolder: str | None = None,
    file: str | None = None,
    allow: Iterable[str] = (),
) -> Inspection:
    """Find out what a checkpoint is and what running it takes.

    Args:
        name: a directory, a file, a hub id or "smollm2". Of a hub id, headers, configs and tokenizer are fetched.
        context, batch: the tokens a row and the rows that memory is counted for; None: the model's whole context.
        dtype: of the parameters once loaded, as for `forge_jax.load`.
        cache_dtype: how keys and values are kept, as for `Session`.
        revision, subfolder, file, allow: as for `forge_jax.load`.

    Returns:
        Facts with names; `print` shows them as a page, `to_dict` gives what JSON can say.

    Raises:
        FileNotFoundError: no such file, directory or hub id.
        ValueError: an unknown format or architecture, config keys not understood, tensors that do not fit, or a
            context that is longer than the model's.
        NotImplementedError: a hub id whose weights have no header to fetch (PyTorch files).
    """
    with locate(name, revision, subfolder, file) as path:
        checkpoint = open_checkpoint(path, allow=allow)
        try:
            return gather(str(name), checkpoint, context, batch, dtype, cache_dtype)
        finally:
            checkpoint.source.close()
