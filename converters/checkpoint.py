"""A checkpoint that has been understood: its files, its config, its family, and which tensor goes where.

Opening one reads headers and JSON only; everything that can be wrong without touching the weights is found here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters import architectures, rows, rules
from converters.architectures.family import Family
from converters.composite import Part, is_composite, text_config
from converters.detect import open_source
from converters.files import parse_json, read_json
from converters.packed import Packed, Packing, packing_of, unpacked
from converters.packed.leaves import joined
from converters.source import TensorSource, Unwatched, Watch
from converters.take import Take
from forge_jax.params import Param, Tree, abstract, flatten
from forge_jax.spec import ModelSpec
from forge_jax.tensor import QTensor

UNWATCHED = Unwatched()


@dataclass(frozen=True)
class Checkpoint:
    """Everything about a checkpoint but its weights.

    Of a composite, which also sees or hears, it is the language model; `left_out` names the tensors of other parts.
    `half` is the type of 2 bytes that float32 tensors are narrowed to where memory counts.
    """

    path: Path
    source: TensorSource
    config: Mapping[str, Any]
    family: Family
    spec: ModelSpec
    found: tuple[rules.Instance, ...]
    left_out: tuple[str, ...] = ()
    half: str = "bfloat16"

    def read(self, place: Callable[[str, Any], Any], watch: Watch = UNWATCHED, *, packed: bool = False) -> Tree:
        """Read the parameters, one tensor in host memory at a time; `place(path, values)` makes each leaf.

        Args:
            packed: leave packed weights packed: their leaves are `QTensor`s of host arrays.

        Raises:
            ValueError: the bytes of a tensor are not what its header says, or a tied head that differs.
        """
        described = dict(flatten(abstract(self.spec)))
        decode = self.source.packed if packed else self.source.decode

        def values(instance: rules.Instance) -> Sequence[Any]:
            name = instance.theirs
            with watch.stage("reading"):
                raw = self.source.raw(name)
            with watch.stage("decoding"):
                stored = decode(name, raw)
                if isinstance(stored, QTensor):
                    leaves = rows.read(instance.rule, stored, instance.shapes)
                else:
                    leaves = instance.rule.read(stored, instance.shapes)
            watch.advance(self.source.tensors[name].nbytes)
            return leaves

        def placed(path: str, leaf: Any) -> Any:
            if isinstance(leaf, QTensor) and not stays_packed(leaf, described[path]):
                leaf = leaf.dense()
            return place(path, leaf)

        tree = rules.read_tree(list(self.found), values, placed, rows.stack)
        if self.spec.tied:
            self.check_tied()
        return tree

    def packing(self) -> Packing | None:
        """How the weights are packed; None where they are not."""
        if isinstance(self.source, Packed):
            return packing_of(self.source, self.found)
        inside = self.source.whole if isinstance(self.source, Part) else None
        return Packing(inside.method, inside.said) if isinstance(inside, Packed) else None

    def check_tied(self) -> None:
        """A head beside a tied embedding must be the same numbers, or one of the two would be lost.

        Raises:
            ValueError: it is not.
        """
        embed = next(i.theirs for i in self.found if "embed" in i.paths)
        for name in tied_copies(self.family, self.source.tensors):
            if not np.array_equal(self.source.read(name), self.source.read(embed)):
                raise ValueError(
                    f"{self.path}: the config ties the head to the embedding, but {name} differs from {embed}; "
                    "set tie_word_embeddings to false in config.json if the head is its own"
                )


def stays_packed(w: QTensor, param: Param) -> bool:
    """Whether a leaf's rows are what products with it sum over, or the rows of a table."""
    summed = param.summed or (len(param.shape) - 1,)
    return param.fill is None and tuple(range(w.first, w.first + len(w.summed))) == summed


def tied_copies(family: Family, names: Iterable[str]) -> list[str]:
    """Tensors of a tied model that repeat its embedding under the name of the head."""
    heads = tied_heads(family)
    return [name for name in names if name in heads]


def tied_heads(family: Family) -> set[str]:
    """How the head's tensor is called in a family."""
    return {rule.theirs for rule in family.rules if rule.ours == "head"}


def open_checkpoint(path: Path, *, allow: Iterable[str] = (), file: str | None = None) -> Checkpoint:
    """Open a directory or file, find its family and account for every tensor.

    Args:
        path: a HuggingFace or orbax directory, or a GGUF / safetensors / PyTorch / ONNX file (config.json beside it).
        allow: config keys that may stay unread.
        file: which file, where a directory holds several checkpoints.

    Raises:
        FileNotFoundError: nothing there, or no config.
        ValueError: an unknown format or architecture, config keys not understood, tensors that do not fit.
    """
    source = open_source(path, file=file)
    try:
        if source.format == "gguf":
            from converters.gguf import model

            return model.understand(path, source, allow)
        if source.format == "onnx":
            from converters.onnx import model as onnx_model
            from converters.onnx import own
            from converters.onnx.source import OnnxSource

            if isinstance(source, OnnxSource):
                return (own if source.notes else onnx_model).understand(path, source, allow)
        return understand(path, source, read_config(path, source), allow)
    except BaseException:
        source.close()
        raise


def read_config(path: Path, source: TensorSource) -> dict[str, Any]:
    """The config.json of a directory, the one beside a file, or the one inside a safetensors file we wrote.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no JSON object.
    """
    file = (path if path.is_dir() else path.parent) / "config.json"
    inside = source.metadata.get("config")
    if path.is_file() and isinstance(inside, str):
        config = parse_json(inside.encode(), f"{path}: config", file_size=len(inside))
    elif file.exists():
        config = read_json(file)
    else:
        raise FileNotFoundError(
            f"{file} is missing: without it the architecture of {path.name} is unknown. "
            "Put the model's config.json beside the weights"
        )
    if not isinstance(config, dict):
        raise ValueError(f"{file}: expected a JSON object, found {type(config).__name__}")
    return config


def interpret(config: Mapping[str, Any], where: str, allow: Iterable[str] = ()) -> tuple[Family, ModelSpec]:
    """The family and the spec that a config describes; every key must be understood.

    Raises:
        ValueError: an unknown architecture, keys not understood (but those in `allow`), or wrong values.
    """
    family = architectures.find(config.get("model_type"), where)
    take = Take(config, where, allow)
    spec = family.config(take)
    take.done()
    return family, spec


def config_dtype(config: Mapping[str, Any]) -> Any:
    """The dtype of a model as its config names it; None where it does not."""
    text = config.get("text_config")
    levels = [config, text] if isinstance(text, Mapping) else [config]
    return next((level[key] for level in levels for key in ("dtype", "torch_dtype") if level.get(key)), None)


def understand(path: Path, source: TensorSource, config: Mapping[str, Any], allow: Iterable[str]) -> Checkpoint:
    """Turn a config and a list of tensors into a spec and concrete rules; names are HuggingFace's, or ours in orbax."""
    left_out: tuple[str, ...] = ()
    if source.format == "orbax":
        source = joined(source, path)
    else:
        source, config = unpacked(path, source, config, allow)
    # weights that are packed are decoded to float32; what they were before, the config says
    half = "float16" if isinstance(source, Packed) and config_dtype(config) == "float16" else "bfloat16"
    if is_composite(config):
        source = Part(source)
        config = text_config(config, str(path), any(name.endswith("lm_head.weight") for name in source.tensors))
        left_out = source.left_out
    family, spec = interpret(config, str(path / "config.json" if path.is_dir() else path), allow)
    table = rules.identity(abstract(spec)) if source.format == "orbax" else family.table(spec)
    return account(path, source, config, family, spec, table, left_out, half)


def account(
    path: Path,
    source: TensorSource,
    config: Mapping[str, Any],
    family: Family,
    spec: ModelSpec,
    table: Sequence[rules.Rule],
    left_out: tuple[str, ...] = (),
    half: str = "bfloat16",
) -> Checkpoint:
    """Match every tensor of a source with a leaf of the spec, by a table of rules.

    Raises:
        ValueError: tensors that are missing, misshapen or used by nothing.
    """
    described = abstract(spec)
    stored = {name: info.shape for name, info in source.tensors.items()}
    if family.prefix and not any(name.startswith(family.prefix) for name in stored):
        table = rules.without_prefix(table, family.prefix)
    found = rules.instances(table, described, stored)
    extra = set(tied_copies(family, stored)) if spec.tied else set()
    rules.check(found, stored, lambda n: n in extra or family.unread(spec, n), str(path))
    return Checkpoint(path, source, config, family, spec, tuple(found), left_out, half)
