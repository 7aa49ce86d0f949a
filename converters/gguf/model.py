"""A GGUF model, understood: metadata to a config to a spec, and every tensor accounted for.

The counterpart of `checkpoint.understand`, which does the same for HuggingFace names.
"""

from collections.abc import Iterable
from pathlib import Path

from converters import architectures, rules
from converters.checkpoint import Checkpoint
from converters.gguf import names
from converters.gguf.archs import ARCHS
from converters.gguf.config import read_config
from converters.gguf.numbers import Numbered
from converters.source import TensorSource
from converters.take import Take
from forge_jax.params import abstract


def understand(path: Path, source: TensorSource, allow: Iterable[str] = ()) -> Checkpoint:
    """Turn the metadata and the tensors of an opened GGUF file into a spec and concrete rules.

    Args:
        path: what errors name.
        source: the opened file.
        allow: metadata keys that may stay unread.

    Raises:
        ValueError: metadata that is not understood or impossible, or tensors that do not fit it.
    """
    where = str(path)
    arch, config, used = read_config(source.metadata, source.tensors, source.read, where, allow)
    family = architectures.find(config["model_type"], where)
    take = Take(config, where)
    spec = family.config(take)
    take.done()
    source = Numbered(source, ARCHS[arch].numbers, len(spec.layers), where) if ARCHS[arch].numbers else source
    found = rules.instances(names.rules(arch, spec), abstract(spec), source.tensors)
    wanted = {instance.theirs: instance.stored_shape for instance in found}
    stored = {name: as_wanted(info.shape, wanted.get(name)) for name, info in source.tensors.items()}
    buffers = [rules.pattern(name) for name in names.BUFFERS]
    rules.check(found, stored, lambda n: n in used or any(b.match(n) for b in buffers), where)
    return Checkpoint(path, source, config, family, spec, tuple(found))


def as_wanted(shape: tuple[int, ...], wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape that is wanted if only leading axes of size 1 make a difference, which ggml's tools drop."""
    if wanted is None or len(shape) == len(wanted):
        return shape
    short, long = sorted((shape, wanted), key=len)
    return wanted if long == (1,) * (len(long) - len(short)) + short else shape
