"""The facts of an understood checkpoint, computed from its spec and the descriptions of its tensors.

Sizes come from where they are decided: the shapes of `abstract`, the slabs of `cache.init`, the casts of `load`.
Knows no format and no architecture.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import isfinite, prod
from types import MappingProxyType
from typing import Any

import jax
import ml_dtypes
import numpy as np

from converters.checkpoint import Checkpoint
from converters.tokenizer import Tokenizer
from forge_jax import cache as caches
from forge_jax.generation import capacity
from forge_jax.generation.sizes import BURST
from forge_jax.inspection import report
from forge_jax.loading import caster, check_vocabulary, read_text_side
from forge_jax.ops.rope import explain
from forge_jax.params import abstract, flatten
from forge_jax.spec import ModelSpec, Norm, Rope, attention_of, segments

# Storage types that are decoded to themselves; all others, the packed ones, to float32 where they do not stay packed.
PLAIN: Mapping[str, np.dtype] = MappingProxyType(
    {
        "F64": np.dtype(np.float64),
        "F32": np.dtype(np.float32),
        "F16": np.dtype(np.float16),
        "BF16": np.dtype(ml_dtypes.bfloat16),
        "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
        "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    }
)
SHOWN = frozenset(("act", "gated"))  # fields that people ask for even where they have their default


@dataclass(frozen=True)
class Storage:
    """The tensors of one storage type: how many, the numbers they hold, and their bytes in the file."""

    type: str
    tensors: int
    numbers: int
    nbytes: int


@dataclass(frozen=True)
class Parameters:
    """How many numbers the model has, tied weights once; `layers` gives each layer's."""

    total: int
    embedding: int
    head: int
    layers: tuple[int, ...]
    other: int


@dataclass(frozen=True)
class Layers:
    """A run of layers: from `first` on, `blocks` one after another, all of it `repeats` times.

    A block is described by its branches, a line each.
    """

    first: int
    repeats: int
    blocks: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class RopePlan:
    """One kind of rotary positions; wavelengths in tokens at the context that memory is counted for.

    `still` counts feature pairs that do not rotate.
    """

    layers: tuple[int, ...]
    kind: str
    settings: Mapping[str, Any]
    attention_factor: float
    shortest: float
    longest: float
    still: int


@dataclass(frozen=True)
class TokenizerFacts:
    """The ids with a meaning, and the names of the chat templates."""

    vocab_size: int
    bos: int | None
    eos: tuple[int, ...]
    pad: int | None
    unk: int | None
    chat_templates: tuple[str, ...]


@dataclass(frozen=True)
class Memory:
    """Bytes that running takes for `batch` rows of `context` tokens; intermediate results come on top.

    dtype: what the parameters are once loaded.
    slots: tokens a row that the cache has room for, by kind of layer: a context is rounded up to a size that programs
    are compiled for, and a window has room for a few tokens more.
    """

    context: int
    batch: int
    dtype: str
    cache_dtype: str
    weights: int
    cache: int
    logits: int
    slots: Mapping[str, int]

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.logits


@dataclass(frozen=True)
class Inspection:
    """Everything that is known of a checkpoint without reading its weights."""

    name: str
    format: str
    model_type: str
    family: str
    model: Mapping[str, Any]
    """What the model is besides its layers: sizes, norms, the head."""
    parameters: Parameters
    storage: tuple[Storage, ...]
    layers: tuple[Layers, ...]
    ropes: tuple[RopePlan, ...]
    tokenizer: TokenizerFacts | None
    memory: Memory

    def to_dict(self) -> dict[str, Any]:
        """The same as dicts, lists, strings and numbers."""
        out = dataclasses.asdict(dataclasses.replace(self, model=dict(self.model)))
        out["memory"]["total"] = self.memory.total
        return out

    def __str__(self) -> str:
        """The facts as a page of text."""
        return report.page(self)


def gather(
    name: str, checkpoint: Checkpoint, context: int | None, batch: int, dtype: str, cache_dtype: Any
) -> Inspection:
    """Collect the facts of an opened checkpoint. Errors as in `inspect`."""
    spec = checkpoint.spec
    length = spec.max_seq_len if context is None else context
    if batch < 1 or length < 1:
        raise ValueError(f"inspect: context {length} and batch {batch}; both must be at least 1")
    memory = measure(checkpoint, length, batch, dtype, cache_dtype)
    tokenizer, _ = read_text_side(checkpoint)
    check_vocabulary(checkpoint, tokenizer)
    ropes = find_ropes(spec)
    return Inspection(
        name,
        checkpoint.source.format,
        str(checkpoint.config.get("model_type")),
        checkpoint.family.config.__module__.rpartition(".")[2],
        {key: value for key, value in settings(spec).items() if key != "layers"},
        count(spec),
        stored(checkpoint),
        plan(spec, ropes),
        tuple(rope_plan(rope, layers, length) for rope, layers in ropes.items()),
        tokenizer and tokenizer_facts(tokenizer),
        memory,
    )


# ------------------------------------------------------------------------------------------------ sizes
def count(spec: ModelSpec) -> Parameters:
    """Count the parameters by where they are."""
    sizes: dict[str, int] = defaultdict(int)
    for path, param in flatten(abstract(spec)):
        top, _, rest = path.partition(".")
        sizes[f"layers.{rest.partition('.')[0]}" if top == "layers" else top] += param.size
    layers = tuple(sizes[f"layers.{i}"] for i in range(len(spec.layers)))
    total, embedding, head = sum(sizes.values()), sizes["embed"], sizes["head"]
    return Parameters(total, embedding, head, layers, total - embedding - head - sum(layers))


def stored(checkpoint: Checkpoint) -> tuple[Storage, ...]:
    """The storage types of the file, the one with most bytes first."""
    rows: dict[str, Storage] = {}
    for info in checkpoint.source.tensors.values():
        row = rows.get(info.dtype, Storage(info.dtype, 0, 0, 0))
        rows[info.dtype] = Storage(
            info.dtype, row.tensors + 1, row.numbers + prod(info.shape), row.nbytes + info.nbytes
        )
    return tuple(sorted(rows.values(), key=lambda row: -row.nbytes))


def measure(checkpoint: Checkpoint, context: int, batch: int, dtype: str, cache_dtype: Any = None) -> Memory:
    """Count what loading and a session would allocate.

    Raises:
        ValueError: a context that is longer than the model's, an unknown dtype, or a codec that the model has no use
            for.
    """
    spec, cast = checkpoint.spec, caster(dtype, checkpoint.half)
    params = dict(flatten(abstract(spec)))
    computed: dict[str, np.dtype] = {}  # by storage type: what its numbers are multiplied in
    weights, embedding, kinds = 0, np.dtype(np.float32), set[str]()
    for instance in checkpoint.found:
        info = checkpoint.source.tensors[instance.theirs]
        if info.dtype not in computed:
            computed[info.dtype] = cast("", np.zeros(1, PLAIN.get(info.dtype, PLAIN["F32"]))).dtype
        wide = computed[info.dtype]
        # what is packed stays so, but for the parameters that are never matrices
        plain = info.dtype in PLAIN or any(params[path].fill is not None for path in instance.paths)
        weights += wide.itemsize * sum(prod(shape) for shape in instance.shapes) if plain else info.nbytes
        kinds.add(str(wide) if plain else info.dtype)
        embedding = wide if "embed" in instance.paths else embedding
    size = capacity(context, spec.max_seq_len)
    kept = caches.policy(cache_dtype, embedding)
    cache = jax.eval_shape(partial(caches.init, spec, batch, size, slack=BURST, dtype=kept))
    return Memory(
        context,
        batch,
        ", ".join(sorted(kinds)),
        str(kept),
        weights,
        sum(prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache)),
        batch * spec.logits * np.dtype(np.float32).itemsize,
        {key: places.order_BS.shape[1] for key, places in cache.places.items()},
    )


# ------------------------------------------------------------------------------------------------ plans
def settings(value: Any) -> dict[str, Any]:
    """The fields of a part of a spec that say something: not those at their default, nor what is None or False."""
    out = {}
    for field in dataclasses.fields(value):
        held = vars(value)[field.name]
        if held is None or held is False or (held == field.default and field.name not in SHOWN):
            continue
        out[field.name] = short(held)
    return out


def short(value: Any) -> Any:
    """A setting as JSON can say it: a part of a spec as its name and settings, a tuple as a list."""
    if dataclasses.is_dataclass(value):
        name = f"{value.kind} norm" if isinstance(value, Norm) else type(value).__name__
        inner = report.listed({key: held for key, held in settings(value).items() if key != "kind"})
        return f"{name} ({inner})" if inner else name
    return [short(item) for item in value] if isinstance(value, tuple) else value


def find_ropes(spec: ModelSpec) -> dict[Rope, tuple[int, ...]]:
    """Every kind of rotary positions, with the layers that have it."""
    out: dict[Rope, list[int]] = defaultdict(list)
    for i, block in enumerate(spec.layers):
        for rope in {
            v
            for branch in block.every()
            for v in vars(attention_of(branch.op) or branch.op).values()
            if isinstance(v, Rope)
        }:
            out[rope].append(i)
    return {rope: tuple(layers) for rope, layers in out.items()}


def plan(spec: ModelSpec, ropes: Mapping[Rope, Any]) -> tuple[Layers, ...]:
    """The layers as runs of repeated blocks."""
    names = {rope: f"#{i}" for i, rope in enumerate(ropes, 1)}

    def op_settings(op: Any) -> dict[str, Any]:
        named = {field: names[held] for field, held in vars(op).items() if isinstance(held, Rope)}
        return settings(op) | named

    def block_lines(block: Any) -> tuple[str, ...]:
        lines = []
        for branch in block.every():
            around = {key: value for key, value in settings(branch).items() if key not in ("name", "op")}
            lines.append(f"{branch.name}: {report.listed(op_settings(branch.op) | around)}")
        wiring = {key: value for key, value in settings(block).items() if key != "branches"}
        return (*lines, report.listed(wiring)) if wiring else tuple(lines)

    return tuple(
        Layers(segment.start, segment.repeats, tuple(map(block_lines, segment.period)))
        for segment in segments(spec.layers)
    )


def rope_plan(rope: Rope, layers: tuple[int, ...], length: int) -> RopePlan:
    """What one kind of rotary positions does in sequences of `length` tokens."""
    explained = explain(rope, length)
    waves = [float(wave) for wave in explained.wavelengths if isfinite(wave)]
    said: dict[str, Any] = {"dim": rope.dim, "theta": rope.theta, "interleaved": rope.interleaved}
    scaling = vars(rope.scaling) if rope.scaling else {}
    said |= {key: short(value) for key, value in scaling.items() if key != "attention_factor"}
    still = len(explained.wavelengths) - len(waves)
    return RopePlan(layers, explained.kind, said, explained.attention_factor, min(waves), max(waves), still)


def tokenizer_facts(tokenizer: Tokenizer) -> TokenizerFacts:
    """What a tokenizer says of itself."""
    return TokenizerFacts(
        tokenizer.vocab_size,
        tokenizer.bos_id,
        tokenizer.eos_ids,
        tokenizer.pad_id,
        tokenizer.unk_id,
        tuple(tokenizer.chat_templates),
    )
