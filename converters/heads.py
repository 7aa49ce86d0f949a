"""The modules of a checkpoint that guess tokens after the next one (multi-token prediction, arXiv:2412.19437).

Each is a layer of the family's own kind with two norms and a projection before it and a norm behind it; embedding and
head are the model's. Checkpoints store them behind the last layer (model.layers.{L}., model.layers.{L + 1}., ...), or
their layers apart (mtp.layers.0., ...) with norms and a projection for all of them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, takewhile
from typing import Any

import numpy as np

from converters import rules
from converters.architectures.common import LAYER
from converters.checkpoint import Checkpoint
from converters.rules import Rule
from forge_jax.params import Param, Tree, abstract
from forge_jax.spec import Attention, Latent, ModelSpec


@dataclass(frozen=True)
class Layout:
    """How a checkpoint names the module: what it and its layer begin with, its ends, copies of the model's tensors."""

    start: str
    layer: str
    join: str
    embed_norm: str
    hidden_norm: str
    norm: str
    copies: Mapping[str, str]


def layouts(layers: int, module: int = 0) -> tuple[Layout, ...]:
    """Those that are known, for a model of so many layers and its module of that number."""
    behind = f"model.layers.{layers + module}."
    copies = {f"{behind}embed_tokens.weight": "model.embed_tokens.weight"}
    copies[f"{behind}shared_head.head.weight"] = "lm_head.weight"
    return (
        Layout(
            behind,
            behind,
            f"{behind}eh_proj.weight",
            f"{behind}enorm.weight",
            f"{behind}hnorm.weight",
            f"{behind}shared_head.norm.weight",
            copies,
        ),
        Layout(
            "mtp.",
            f"mtp.layers.{module}.",
            "mtp.fc.weight",
            "mtp.pre_fc_norm_embedding.weight",
            "mtp.pre_fc_norm_hidden.weight",
            "mtp.norm.weight",
            {},
        ),
    )


def head_spec(spec: ModelSpec) -> ModelSpec:
    """A model of one layer like the last of `spec` that attends; embedding and head are not its own."""
    attending = [block for block in spec.layers if any(isinstance(b.op, Attention | Latent) for b in block.every())]
    return ModelSpec(spec.vocab_size, spec.dim, (attending[-1],), spec.max_seq_len, spec.final_norm, tied=True)


def read_head(checkpoint: Checkpoint, place: Callable[[str, Any], Any]) -> tuple[ModelSpec, tuple[Tree, ...]]:
    """The spec of a module and the parameters of each: "layers", "final_norm", "embed_norm", "hidden_norm", "join".

    Raises:
        ValueError: the checkpoint has no module, one of another kind, or one with an embedding or head of its own.
    """
    spec, source = checkpoint.spec, checkpoint.source
    depth = len(spec.layers)
    kind = next((i for i, each in enumerate(layouts(depth)) if each.join in source.tensors), None)
    if kind is None or spec.final_norm is None:
        raise ValueError(
            f"{checkpoint.path}: no module that guesses further tokens was found "
            f"(looked for {', '.join(each.join for each in layouts(depth))}); load it without mtp=True"
        )
    modules = [*takewhile(lambda each: stored_in(source.tensors, each), (layouts(depth, k)[kind] for k in count()))]
    for layout in modules:
        same_as_the_models(checkpoint, layout)
    head = head_spec(spec)
    described = {name: abstract(head)[name] for name in ("layers", "final_norm")}
    described |= {"join": Param((2 * spec.dim, spec.dim), (None, "embed"))}
    described |= {name: abstract(head)["final_norm"] for name in ("embed_norm", "hidden_norm")}
    found = instances(checkpoint, head, described, modules)
    return head, tuple(rules.read_tree(each, values_of(checkpoint), place) for each in found)


def stored_in(names: Iterable[str], layout: Layout) -> bool:
    """Whether there is a tensor of a module's layer."""
    return any(name.startswith(layout.layer) for name in names)


def instances(
    checkpoint: Checkpoint, head: ModelSpec, described: Tree, modules: Sequence[Layout]
) -> list[list[rules.Instance]]:
    """Which tensors of each module are which parameters; every one of them is accounted for."""
    tensors, copies = checkpoint.source.tensors, {name for layout in modules for name in layout.copies}
    starts = tuple(layout.start for layout in modules)
    stored = {name: info.shape for name, info in tensors.items() if name.startswith(starts)}
    found = [rules.instances(table_of(checkpoint, head, layout), described, stored) for layout in modules]
    rules.check([i for each in found for i in each], stored, copies.__contains__, str(checkpoint.path))
    return found


def table_of(checkpoint: Checkpoint, head: ModelSpec, layout: Layout) -> list[Rule]:
    """The rules of a module: those of the family for its layer, and those of its ends."""
    family = checkpoint.family.table(head)
    return [
        Rule("join", layout.join, "d e -> e d"),
        Rule("embed_norm.scale", layout.embed_norm),
        Rule("hidden_norm.scale", layout.hidden_norm),
        Rule("final_norm.scale", layout.norm),
        *(replace(rule, theirs=rule.theirs.replace(f"{LAYER}.", layout.layer)) for rule in family),
    ]


def values_of(checkpoint: Checkpoint) -> Callable[[rules.Instance], Sequence[Any]]:
    """What reads the tensor of an instance."""
    source = checkpoint.source
    return lambda i: i.rule.read(source.decode(i.theirs, source.raw(i.theirs)), i.shapes)


def same_as_the_models(checkpoint: Checkpoint, layout: Layout) -> None:
    """Raise ValueError if the module has an embedding or a head that is not the model's."""
    source = checkpoint.source
    for copy, original in layout.copies.items():
        if copy in source.tensors and original in source.tensors:
            if not np.array_equal(source.raw(copy), source.raw(original)):
                raise ValueError(
                    f"{checkpoint.path}: {copy} differs from {original}; the module must share the model's"
                )
