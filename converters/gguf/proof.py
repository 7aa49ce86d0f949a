"""Proof that a GGUF file says a spec: it is read back as an import would, and held to what llama.cpp insists on."""

import dataclasses
from collections.abc import Container, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from converters import architectures
from converters.gguf.arch import Arch
from converters.gguf.archs import ARCHS
from converters.gguf.config import prefix, read_config
from converters.gguf.facts import feed_forward
from converters.gguf.names import attention_of
from converters.gguf.rope import llama3_factors
from converters.source import TensorInfo
from converters.take import Take
from forge_jax.spec import Llama3, LongRope, ModelSpec, Rope


def check(
    arch: str,
    spec: ModelSpec,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    vectors: Mapping[str, np.ndarray],
    allow: Container[str] = (),
) -> None:
    """Whether llama.cpp's loader takes a file of these metadata and tensors, and an import of it gives this spec.

    Args:
        arch, spec: the architecture and the model.
        metadata, tensors: all that will be written.
        vectors: the values of the tensors that belong to the metadata.
        allow: fields that may differ.

    Raises:
        ValueError: it does not; what the loader insists on, or the first five fields that differ and are not allowed.
    """
    this = f"this model cannot be said in a GGUF of architecture {prefix(arch)!r}"
    if problems := list(insists(ARCHS[arch], spec)):
        raise ValueError(f"{this}: {'; '.join(problems)}")
    _, config, _ = read_config(metadata, tensors, vectors.__getitem__, f"GGUF of {arch}")
    take = Take(config, f"GGUF of {arch}")
    again = architectures.find(config["model_type"], take.where).config(take)
    lost = [item for item in compare(spec, again) if item[0].rpartition(".")[2] not in allow]
    if lost:
        more = f"; and {len(lost) - 5} more" if len(lost) > 5 else ""
        shown = "; ".join(f"{where} is {ours!r}, and would be read as {theirs!r}" for where, ours, theirs in lost[:5])
        fields = ", ".join(repr(field) for field in sorted({where.rpartition(".")[2] for where, *_ in lost}))
        raise ValueError(f"{this}: {shown}{more}. If that does not matter, export with allow={{{fields}}}")


def insists(facts: Arch, spec: ModelSpec) -> Iterator[str]:
    """What llama.cpp's loader of the architecture would refuse."""
    if facts.head != "optional" and spec.tied == (facts.head == "always"):
        yield f"spec.tied is {spec.tied}, and llama.cpp {'needs' if spec.tied else 'takes no'} tensor output.weight"
    if facts.attention != "grouped":
        return
    op, mlp = attention_of(spec), feed_forward(spec)[0]
    if facts.square and op.heads * op.head_dim != spec.dim:
        yield f"llama.cpp takes only heads * head_dim = dim, found {op.heads} * {op.head_dim} and {spec.dim}"
    if op.rope is not None and op.rope.dim != op.head_dim and not facts.partial:
        yield f"llama.cpp rotates whole heads here, found {op.rope.dim} of {op.head_dim} features"
    for what, found in (("attention.o_bias", op.o_bias), ("mlp.bias", mlp.bias)):
        if facts.biases != "optional" and found != (facts.biases == "always"):
            yield f"{what} is {found}, and llama.cpp loads that {facts.biases}"


def compare(ours: Any, theirs: Any, where: str = "spec") -> Iterator[tuple[str, Any, Any]]:
    """The places where two specs differ by more than float32 can say, as (path, ours, theirs)."""
    if isinstance(ours, Rope) and isinstance(theirs, Rope):
        ours, theirs = as_factors(ours, theirs), as_factors(theirs, ours)
    if isinstance(ours, float) and isinstance(theirs, float):
        if np.float32(ours) != np.float32(theirs):
            yield where, ours, theirs
    elif isinstance(ours, tuple) and isinstance(theirs, tuple) and len(ours) == len(theirs):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            yield from compare(a, b, f"{where}.{i}")
    elif dataclasses.is_dataclass(ours) and type(ours) is type(theirs):
        for field in dataclasses.fields(ours):
            yield from compare(getattr(ours, field.name), getattr(theirs, field.name), f"{where}.{field.name}")
    elif ours != theirs:
        yield where, ours, theirs


def as_factors(rope: Rope, other: Rope) -> Rope:
    """Llama 3's scaling as the divisors that GGUF keeps of it, where the other one is known by those only."""
    if isinstance(rope.scaling, Llama3) and isinstance(other.scaling, LongRope):
        values = tuple(float(x) for x in llama3_factors(rope.theta, rope.dim, rope.scaling))
        return replace(rope, scaling=LongRope(values, values, other.scaling.original_len, 1.0))
    return rope
