"""The module of a checkpoint that guesses the token after the next one (multi-token prediction, arXiv:2412.19437).

It is a layer of the family's own kind with two norms and a projection before it and a norm behind it; embedding and
head are the model's. Checkpoints store it behind the last layer (model.layers.{L}.) or apart (mtp.). Where there are
several, the first is read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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


def layouts(layers: int) -> tuple[Layout, ...]:
    """Those that are known, for a model of so many layers."""
    behind = f"model.layers.{layers}."
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
            "mtp.layers.0.",
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


def read_head(checkpoint: Checkpoint, place: Callable[[str, Any], Any]) -> tuple[ModelSpec, Tree]:
    """The spec of the module and its parameters: "layers", "final_norm", "embed_norm", "hidden_norm", "join" [2D, D].

    Raises:
        ValueError: the checkpoint has no module, one of another kind, or one with an embedding or head of its own.
    """
    spec, source = checkpoint.spec, checkpoint.source
    layout = next((each for each in layouts(len(spec.layers)) if each.join in source.tensors), None)
    if layout is None or spec.final_norm is None:
        raise ValueError(
            f"{checkpoint.path}: no module that guesses further tokens was found "
            f"(looked for {', '.join(each.join for each in layouts(len(spec.layers)))}); load it without mtp=True"
        )
    same_as_the_models(checkpoint, layout)
    head = head_spec(spec)
    described = {name: abstract(head)[name] for name in ("layers", "final_norm")}
    described |= {"join": Param((2 * spec.dim, spec.dim), (None, "embed"))}
    described |= {name: abstract(head)["final_norm"] for name in ("embed_norm", "hidden_norm")}
    return head, rules.read_tree(instances(checkpoint, head, described, layout), values_of(checkpoint), place)


def instances(checkpoint: Checkpoint, head: ModelSpec, described: Tree, layout: Layout) -> list[rules.Instance]:
    """Which of the module's tensors is which parameter; every one of them is accounted for."""
    family = checkpoint.family.table(head)
    table = (
        Rule("join", layout.join, "d e -> e d"),
        Rule("embed_norm.scale", layout.embed_norm),
        Rule("hidden_norm.scale", layout.hidden_norm),
        Rule("final_norm.scale", layout.norm),
        *(replace(rule, theirs=rule.theirs.replace(f"{LAYER}.", layout.layer)) for rule in family),
    )
    inside = [name for name in checkpoint.source.tensors if name.startswith(layout.start)]
    stored = {name: checkpoint.source.tensors[name].shape for name in inside}
    found = rules.instances(table, described, stored)
    rules.check(found, stored, layout.copies.__contains__, str(checkpoint.path))
    return found


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
