"""GGUF files of adapters, as llama.cpp reads them: general.type "adapter", a pair of tensors for each of the model's.

"blk.0.attn_q.weight.lora_a" is [rank, inputs] and ".lora_b" [outputs, rank], stacked experts have an axis before them,
the table of tokens has its rows in a, [vocabulary, rank]. Layouts are those of the model's own GGUF file, rotated heads
included. A scale is adapter.lora.alpha / rank; an alpha of 0 means 1. Norms may be replaced, which llama.cpp ignores.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from converters import rules
from converters.adapters.gather import stored_updates
from converters.adapters.layout import Layout
from converters.detect import open_source
from converters.gguf import names
from converters.gguf.config import prefix
from converters.gguf.export import architecture, variant
from converters.gguf.facts import mixture
from converters.gguf.values import Typed
from converters.gguf.writer import TensorToWrite, write_gguf
from converters.source import TensorSource
from converters.take import Take
from forge_jax.lora import Adapter, Update
from forge_jax.params import Param, abstract, flatten
from forge_jax.spec import ModelSpec

TABLE = "token_embd.weight"
QUIET = ("general.", "GGUF.", "split.")
"""How metadata begins that says nothing of the numbers."""


def arch_of(model_type: str, spec: ModelSpec) -> str:
    """The GGUF architecture of a model."""
    return variant(architecture(model_type), mixture(spec))


def read_gguf_adapter(path: Path, model_type: str, spec: ModelSpec, allow: Iterable[str] = ()) -> Adapter:
    """Read an adapter for a model; arrays of the host, packed types decoded.

    Raises:
        ValueError: not an adapter, one for another architecture or of another kind, tensors that are unpaired,
            misshapen or for another model.
    """
    with closing(open_source(path)) as source:
        if source.format != "gguf" or source.metadata.get("general.type") != "adapter":
            raise ValueError(f"{path}: no GGUF file of an adapter (general.type); load a model without adapter=")
        arch = check_metadata(path, source.metadata, arch_of(model_type, spec), allow)
        alpha = float(source.metadata.get("adapter.lora.alpha", 0.0))
        return Adapter(*read_tensors(path, source, arch, spec, alpha))


def check_metadata(path: Path, metadata: Mapping[str, Any], arch: str, allow: Iterable[str]) -> str:
    """Hold the metadata against what is implemented; returns the architecture whose names the tensors have.

    Raises:
        ValueError: another kind of adapter or architecture, or keys that are not understood.
    """
    take = Take({key: value for key, value in metadata.items() if not key.startswith(QUIET)}, str(path), allow)
    take.require("adapter.type", "lora")
    take("adapter.lora.alpha", 0.0)
    take.ignore("adapter.lora.task_name", "adapter.lora.prompt_prefix")
    if take("adapter.alora.invocation_tokens", None):
        raise ValueError(f"{path}: adapter.alora.invocation_tokens is set, which is not implemented")
    take.done()
    if metadata.get("general.architecture") != prefix(arch):
        raise ValueError(
            f"{path}: an adapter of {metadata.get('general.architecture')!r} models, this model is {prefix(arch)!r}"
        )
    return arch


def read_tensors(
    path: Path, source: TensorSource, arch: str, spec: ModelSpec, alpha: float
) -> tuple[dict[str, Update], dict[str, Any]]:
    """The updates, and the norms that are replaced.

    Raises:
        ValueError: tensors that are unpaired, misshapen or for another model.
    """
    params = dict(flatten(abstract(spec)))
    known = known_tensors(arch, spec, params)
    updates: dict[str, Update] = {}
    values: dict[str, Any] = {}
    pairs = {name.removesuffix(end) for name in source.tensors for end in (".lora_a", ".lora_b") if name.endswith(end)}
    alone = [name for name in pairs for end in (".lora_a", ".lora_b") if f"{name}{end}" not in source.tensors]
    others = [name for name in source.tensors if not name.endswith((".lora_a", ".lora_b"))]
    if unknown := sorted(name for name in (*pairs, *others) if name not in known):
        raise ValueError(f"{path}: the model has no {', '.join(unknown[:5])}; the adapter belongs to another model")
    if alone:
        raise ValueError(f"{path}: {sorted(alone)[0]} has only one of lora_a and lora_b")
    for name in sorted(pairs):
        instance = known[name]
        if instance.rule.add or instance.rule.decay or instance.axis is not None:
            raise ValueError(f"{path}: an update of {name} is not implemented")
        for our, update in read_pair(path, source, name, instance, params, alpha):
            if our in updates:
                raise ValueError(f"{path}: two updates of {our}, one of them by {name}")
            updates[our] = update
    for name in others:
        instance, x = known[name], source.read(name)
        if not name.endswith("_norm.weight") or x.shape != instance.stored_shape:
            raise ValueError(f"{path}: {name} {list(x.shape)} is used by nothing; only norms are replaced whole")
        values |= zip(instance.paths, instance.rule.read(x, instance.shapes), strict=True)
    return updates, values


def known_tensors(arch: str, spec: ModelSpec, params: Mapping[str, Param]) -> dict[str, rules.Instance]:
    """Every tensor of the model by every name that it can have."""
    shapes = {our: param.shape for our, param in params.items()}
    found: dict[str, rules.Instance] = {}
    for rule in names.rules(arch, spec):
        for made in rules.matches(rule, shapes):
            for instance in made:
                found.setdefault(instance.theirs, instance)
    return found


def read_pair(
    path: Path, source: TensorSource, name: str, instance: rules.Instance, params: Mapping[str, Param], alpha: float
) -> Iterator[tuple[str, Update]]:
    """The updates of our leaves that a tensor of theirs holds."""
    layout = Layout(instance, tuple(params[our] for our in instance.paths))
    a, b = (source.read(f"{name}.{end}") for end in ("lora_a", "lora_b"))
    if a.ndim < 2 or a.ndim != b.ndim:
        raise ValueError(f"{path}: {name} has factors of shape {list(a.shape)} and {list(b.shape)}; expected matrices")
    a = a if name == TABLE else a.swapaxes(-1, -2)
    if a.shape[-1] != b.shape[-1] or not a.shape[-1]:
        raise ValueError(f"{path}: the factors of {name} have ranks {a.shape[-1]} and {b.shape[-1]}")
    scale = alpha / a.shape[-1] if alpha else 1.0
    a_s, b_s = layout.read("inputs", a), layout.read("outputs", b)
    for our, mine, other in zip(instance.paths, a_s, b_s, strict=True):
        b_ours = np.moveaxis(other, -1, layout.stacked)
        yield our, Update(mine, b_ours, scale=scale, stacked=layout.stacked)


def write_gguf_adapter(path: Path, adapter: Adapter, model_type: str, spec: ModelSpec) -> None:
    """Write an adapter in float32.

    Raises:
        ValueError: what the format cannot say (magnitudes, biases, parameters replaced), or no architecture for it.
        OSError: the disk is full; nothing is left behind.
    """
    bad = [f"the magnitudes of {our}" for our, update in adapter.updates.items() if update.magnitude is not None]
    bad += [f"the bias of the update of {our}" for our, update in adapter.updates.items() if update.bias is not None]
    bad += [f"{our}, which is replaced" for our in (*adapter.values, *adapter.tokens)]
    if bad:
        raise ValueError(f"GGUF: an adapter cannot have {bad[0]}; export it for PEFT, or merge it and export the model")
    if spec.tied and "head" in adapter.updates:
        raise ValueError("GGUF: an update of a head that is tied to the embedding cannot be said; merge it")
    arch, params = arch_of(model_type, spec), dict(flatten(abstract(spec)))
    every = rules.instances(names.rules(arch, spec), abstract(spec))
    stored = list(stored_updates(every, params, adapter.updates))
    alphas = {each.scale * each.rank for each in stored}
    alpha = alphas.pop() if len(alphas) == 1 else 0.0  # different ones go into the factors
    metadata = {"general.architecture": prefix(arch), "general.type": "adapter", "adapter.type": "lora"}
    tensors: list[TensorToWrite] = []
    for each in stored:
        out = each.out if alpha else each.out * np.asarray(each.scale, each.out.dtype)
        a = each.into if each.instance.theirs == TABLE else each.into.swapaxes(-1, -2)
        for end, x in (("lora_a", a), ("lora_b", out)):
            name = f"{each.instance.theirs}.{end}"
            tensors.append((name, x.shape, "F32", partial(np.ascontiguousarray, x, np.float32)))
    write_gguf(path, metadata | {"adapter.lora.alpha": Typed("float32", alpha)}, tensors)
