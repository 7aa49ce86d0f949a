"""EAGLE-3 heads as checkpoints (arXiv:2503.01840), in two dialects.

That of the method's authors, which training and serving engines share: a flat config with `draft_vocab_size`, the
layer under `midlayer.`; `eagle_config` names the model's layers whose outputs are mixed. And that of `speculators`: the
layer's config is nested, its tensors lie under `layers.0.`, and the model's layers are named by what enters them.
Ids are stored as offsets: `d2t[i]` added to i is the model's id of the head's i-th; `t2d` marks the ids that it knows.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from converters import architectures, rules
from converters.architectures.common import LAYER, pre_norm
from converters.rules import Rule
from converters.source import TensorSource
from converters.take import Take
from forge_jax.params import Param, Tree, abstract
from forge_jax.spec import Attention, Block, Branch, Mlp, ModelSpec

MAPS = ("d2t", "t2d")
# what such configs say of the model that the head is for, of training and of versions
IDLE = """
    embed_requires_grad speculators_version has_no_defaults_at_init target_model_type decoder_sparse_step
    max_window_layers pretraining_tp
""".split()


@dataclass(frozen=True)
class Said:
    """What a config says of a head.

    taps: before which of the model's layers streams are taken; None: the usual ones. known: ids that the head knows.
    """

    spec: ModelSpec
    rules: tuple[Rule, ...]
    known: int
    target_dim: int
    taps: tuple[int, ...] | None
    mix_norm: str | None
    normed_residual: bool
    normed_output: bool

    @property
    def streams(self) -> int:
        """How many are mixed."""
        return 3 if self.taps is None else len(self.taps)


def is_eagle(config: Mapping[str, Any]) -> bool:
    """Whether a config.json describes a head and no model."""
    names = config.get("architectures")
    named = isinstance(names, list) and any("eagle3" in str(name).lower() for name in names)
    return named or "draft_vocab_size" in config or config.get("speculators_model_type") == "eagle3"


def understood(config: Mapping[str, Any], where: str, allow: Iterable[str] = ()) -> Said:
    """Read a config of either dialect; every key is used, without effect, or an error.

    Raises:
        ValueError: keys or values that are not understood, or a layer of another kind.
    """
    take = Take(config, where, allow)
    take.ignore(*IDLE)
    nested = "speculators_model_type" in config
    if nested:
        take.require("speculators_model_type", "eagle3")
    layer = take.sub("transformer_layer_config") if nested else take
    layer.ignore(*IDLE)
    if layer("use_sliding_window", None) is False:
        layer.ignore("sliding_window")
    family = architectures.find(layer.config.get("model_type"), layer.where)
    spec = family.config(layer)
    together, each = typed(take, "norm_before_fc", False), typed(take, "fc_norm", False)
    if together and each:
        raise ValueError(f"{where}: norm_before_fc and fc_norm are both on; expected one of them at most")
    said = Said(
        layer_spec(spec, layer.where),
        tuple(rule for rule in family.table(spec) if rule.paths[0].startswith("layers.")),
        typed(take, "draft_vocab_size", spec.vocab_size),
        typed(take, "target_hidden_size", spec.dim),
        nested_taps(take) if nested else flat_taps(take),
        "together" if together else "each" if each else None,
        typed(take, "norm_before_residual", False),
        typed(take, "norm_output", False),
    )
    take.done()
    layer.done()
    return said


def typed(take: Take, key: str, default: Any) -> Any:
    """The value of a key.

    Raises:
        ValueError: it is of another type than its default.
    """
    value = take(key, default)
    if type(value) is not type(default):
        raise ValueError(f"{take.where}: {key} = {value!r}; expected {type(default).__name__}")
    return value


def nested_taps(take: Take) -> tuple[int, ...] | None:
    """The layers that a config of `speculators` names: those that the streams enter."""
    take.ignore("tie_word_embeddings")  # of a head that may know a part of the ids, there is nothing to tie
    said = take.sub("speculators_config")
    said.require("algorithm", "eagle3")
    said.ignore("proposal_methods", "default_proposal_method", "verifier")
    said.done()
    return layer_ids(take)


def flat_taps(take: Take) -> tuple[int, ...] | None:
    """The layers that a flat config names: those that the streams leave, or, outside of eagle_config, enter."""
    own = take.sub("eagle_config")
    own.require("use_aux_hidden_state", True)
    left, entered = layer_ids(own), layer_ids(take)
    own.done()
    return entered if left is None else tuple(i + 1 for i in left)


def layer_ids(take: Take) -> tuple[int, ...] | None:
    """The numbers of layers that a config names.

    Raises:
        ValueError: no list of them.
    """
    ids = take("eagle_aux_hidden_state_layer_ids", None)
    if ids is not None and not (isinstance(ids, list) and ids and all(type(i) is int for i in ids)):
        raise ValueError(f"{take.where}: eagle_aux_hidden_state_layer_ids = {ids!r}; expected a list of layer numbers")
    return None if ids is None else tuple(ids)


def layer_spec(spec: ModelSpec, where: str) -> ModelSpec:
    """A model of the one layer of a head, whose attention has no norm of its own: it sees two normalised halves.

    Raises:
        ValueError: several layers, or one of another kind than attention and a feed-forward net with norms before them.
    """
    plain = ModelSpec(spec.vocab_size, spec.dim, spec.layers, spec.max_seq_len, spec.final_norm, tied=spec.tied)
    match spec.layers, spec.final_norm:
        case (Block(branches=(Branch(op=Attention() as attention), Branch(op=Mlp() as mlp))) as block,), norm if (
            norm is not None and spec == plain and block == pre_norm(attention, mlp, norm)
        ):
            branches = (Branch("attention", attention), Branch("mlp", mlp, pre=norm))
            return replace(plain, layers=(Block(branches),), tied=True)
    raise ValueError(
        f"{where}: {len(spec.layers)} layers, or a layer of another kind than an EAGLE-3 head has here: one of "
        "attention and a feed-forward net, with a norm before each"
    )


def described(said: Said, own_embedding: bool) -> Tree:
    """The parameters of a head; its attention takes two halves of D features."""
    spec, dim = said.spec, said.spec.dim
    whole, wide = abstract(spec), abstract(replace(spec, dim=2 * dim))
    layer, halves = whole["layers"]["0"], wide["layers"]["0"]["attention"]
    layer = layer | {"attention": layer["attention"] | {name: halves[name] for name in "qkv"}}
    mixed = said.streams * said.target_dim
    out = {"layers": {"0": layer}, "mix": Param((mixed, dim), (None, "embed"))}
    out |= {name: whole["final_norm"] for name in ("embed_norm", "hidden_norm", "final_norm")}
    out |= {"head": Param((dim, said.known), ("embed", "vocab"))}
    if own_embedding:
        out["embed"] = whole["embed"]
    if said.mix_norm is not None:
        shape = (mixed,) if said.mix_norm == "together" else (said.streams, said.target_dim)
        out["mix_norm"] = Param(shape, (None,) * len(shape), fill=1.0)
    return out


def table(said: Said, start: str) -> list[Rule]:
    """The rules of a head whose layer's names begin with `start`."""
    each = Rule("mix_norm", "fc_norm.{n}.weight", "e -> n e")
    return [
        Rule("mix", "fc.weight", "d e -> e d"),
        each if said.mix_norm == "each" else Rule("mix_norm", "input_norm.weight"),
        Rule("embed", "embed_tokens.weight"),
        Rule("embed_norm.scale", f"{start}input_layernorm.weight"),
        Rule("hidden_norm.scale", f"{start}hidden_norm.weight"),
        Rule("final_norm.scale", "norm.weight"),
        Rule("head", "lm_head.weight", "v d -> d v"),
        *(replace(rule, theirs=rule.theirs.replace(f"{LAYER}.", start)) for rule in said.rules),
    ]


def read_eagle(said: Said, path: Path, source: TensorSource, place: Callable[[str, Any], Any]) -> Tree:
    """The parameters of a head, "ids" [N] among them: the model's ids of those that it knows.

    Raises:
        ValueError: tensors that are missing, misshapen or used by nothing, or maps of ids that contradict each other.
    """
    stored = {name: info.shape for name, info in source.tensors.items()}
    start = "layers.0." if any(name.startswith("layers.") for name in stored) else "midlayer."
    wanted = described(said, "embed_tokens.weight" in stored)
    found = rules.instances(table(said, start), wanted, stored)
    rules.check(found, stored, MAPS.__contains__, str(path))
    ids = known_ids(said, path, source)
    tree = rules.read_tree(found, lambda i: i.rule.read(source.read(i.theirs), i.shapes), place)
    return tree | {"ids": place("ids", ids)}


def known_ids(said: Said, path: Path, source: TensorSource) -> np.ndarray:
    """The model's ids of those that a head knows, int32, each once.

    Raises:
        ValueError: there is no map and the head knows a part of the ids, or the maps are none.
    """
    size, vocab = said.known, said.spec.vocab_size
    if "d2t" not in source.tensors:
        if size != vocab:
            raise ValueError(f"{path}: the head knows {size} of {vocab} ids; d2t is missing, which says which")
        return np.arange(size, dtype=np.int32)
    offsets = source.read("d2t")
    if offsets.shape != (size,) or not np.issubdtype(offsets.dtype, np.integer):
        raise ValueError(f"{path}: d2t is {offsets.dtype}{list(offsets.shape)}; expected integers [{size}]")
    ids = np.arange(size) + offsets.astype(np.int64)
    if ids.size and (ids.min() < 0 or ids.max() >= vocab or np.unique(ids).size != size):
        raise ValueError(f"{path}: d2t does not lead to {size} different ids below {vocab}; the file is damaged")
    if size != vocab and "t2d" in source.tensors:  # a head that knows all ids may leave it empty
        marks = source.read("t2d")
        if marks.shape != (vocab,) or not np.array_equal(np.flatnonzero(marks), np.sort(ids)):
            raise ValueError(f"{path}: t2d {list(marks.shape)} does not mark the {size} ids that d2t leads to")
    return ids.astype(np.int32)
