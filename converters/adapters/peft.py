"""PEFT's directories of adapters, read: adapter_config.json and adapter_model.safetensors (or .bin).

A tensor is called after the module that it adapts, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight".
The module's own tensor has a rule, which moves the factors to our leaves. Every tensor is used, and every module that
the config asks for is there, or reading fails and names them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from converters import rules
from converters.adapters.base import Base, base_of, side_by_side, stacked
from converters.adapters.layout import Layout
from converters.adapters.settings import Settings, named, read_settings
from converters.detect import open_source
from converters.source import TensorSource
from forge_jax.lora import Adapter, Tokens, Update
from forge_jax.params import unflatten
from forge_jax.spec import ModelSpec

PREFIX = "base_model.model."
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

# how a tensor's name ends -> what it is
KINDS = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_B.bias": "bias",
    "lora_embedding_A": "a",
    "lora_embedding_B": "b",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "token_adapter.trainable_tokens_delta": "tokens",
}
INNER = ".base_layer"  # what stands between a module's name and a part of it that was there before

SWAPPED = (0, 19)


@dataclass(frozen=True)
class Target:
    """One update: what patterns of the config are matched with, the tensors of its parts by kind, what it adapts."""

    key: str
    parts: Mapping[str, str]
    instance: rules.Instance
    parameter: bool


def read_peft(directory: Path, model_type: str, spec: ModelSpec, allow: Iterable[str] = ()) -> Adapter:
    """Read an adapter for a model of a family; arrays of the host, in the dtypes of the file.

    Args:
        allow: config keys that may stay unread.

    Raises:
        FileNotFoundError: no adapter_config.json, or no weights beside it.
        ValueError: a setting that is not implemented, tensors that are missing, unused, misshapen or for another model.
    """
    settings = read_settings(directory, allow)
    file = next((directory / name for name in WEIGHTS if (directory / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{directory}: no {' or '.join(WEIGHTS)} beside the config of the adapter")
    with closing(open_source(file)) as source:
        return Reader(settings, base_of(model_type, spec), source, file).adapter()


class Reader:
    """One adapter on its way from a file to our paths."""

    def __init__(self, settings: Settings, base: Base, source: TensorSource, file: Path) -> None:
        self.settings, self.base, self.source, self.file = settings, base, source, file
        self.modules: dict[str, dict[str, str]] = {}
        self.whole: dict[str, str] = {}  # a parameter's name -> the tensor that replaces it
        self.updates: dict[str, Update] = {}
        self.values: dict[str, np.ndarray] = {}
        self.tokens: dict[str, Tokens] = {}
        self.slices: dict[str, dict[rules.Instance, Update]] = {}

    def adapter(self) -> Adapter:
        """Sort the tensors, check that they are those of the config, read them."""
        for name in self.source.tensors:
            self.sort(name)
        targets = self.targets()
        self.check(targets)
        for target in targets:
            self.read_update(target)
        for module, parts in self.modules.items():
            if "tokens" in parts:
                self.read_tokens(module, parts["tokens"])
        for name, tensor in self.whole.items():
            self.read_value(name, tensor)
        self.stack_slices()
        self.tie()
        return Adapter(self.updates, self.values, self.tokens)

    # -------------------------------------------------------------------------------------------- sorting
    def sort(self, name: str) -> None:
        """Find out what a tensor is by its name."""
        own = name.removeprefix(PREFIX)
        for ending, kind in KINDS.items():
            if own.endswith(f".{ending}"):
                module = own.removesuffix(f".{ending}")
                parts = self.modules.setdefault(module, {})
                if kind in parts:
                    raise ValueError(f"{self.file}: {name} and {parts[kind]} are the same part of {module}")
                parts[kind] = name
                return
        self.whole[own.replace(f"{INNER}.", ".").replace(".modules_to_save.", ".")] = name

    @property
    def head(self) -> str | None:
        """What the output layer is called."""
        found = (name for name, instance in self.base.named.items() if instance.paths == ("head",))
        return next((name.removesuffix(".weight") for name in found), None)

    def targets(self) -> list["Target"]:
        """Every update of the file with what it is of.

        Raises:
            ValueError: the model has no such tensor.
        """
        by_outer: dict[str, list[str]] = {}
        for module, parts in self.modules.items():
            if "tokens" not in parts:
                by_outer.setdefault(module.replace(INNER, ""), []).append(module)
        out = []
        for outer, levels in by_outer.items():
            names = self.parameters(outer) or [f"{outer}.weight"]
            if len(names) != len(levels):
                raise ValueError(
                    f"{self.file}: {outer} has {len(levels)} updates, the config names {len(names)} of its parameters: "
                    f"{', '.join(names)}"
                )
            # a wrapper goes around the module each time, so the first parameter is the innermost
            for name, module in zip(names, sorted(levels, key=len, reverse=True), strict=True):
                parts = self.modules[module]
                key = name if self.parameters(outer) else outer
                out.append(Target(key, parts, self.find(name, next(iter(parts.values()))), key != outer))
        return out

    def parameters(self, module: str) -> list[str]:
        """The parameters of a module itself that target_parameters names, in the model's order."""
        short = {name.rpartition(".")[2] for name in self.settings.parameters}
        full = [f"{module}.{name}" for name in short if named(f"{module}.{name}", self.settings.parameters)]
        order = {id(instance): i for i, instance in enumerate(self.base.named.values())}
        known = {name: self.base.instance(name) for name in full}
        return sorted((n for n, found in known.items() if found), key=lambda n: order[id(known[n])])

    def find(self, name: str, tensor: str) -> rules.Instance:
        """The tensor of the base that a name stands for.

        Raises:
            ValueError: there is none.
        """
        instance = self.base.instance(name)
        if instance is None:
            raise ValueError(
                f"{self.file}: {tensor} is for {name}, which a {self.base.family.model_types[0]} model of this config "
                "does not have; the adapter belongs to another model"
            )
        return instance

    # -------------------------------------------------------------------------------------------- checking
    def check(self, targets: list["Target"]) -> None:
        """Hold what the file has against what the config asks for.

        Raises:
            ValueError: tensors that are there and not asked for, or asked for and not there; the first five, the count.
        """
        problems = [*self.not_asked_for(targets), *self.not_there(targets), *self.not_named()]
        if problems:
            more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise ValueError(
                f"{self.file}: {len(problems)} tensors do not fit the config: {'; '.join(problems[:5])}{more}"
            )

    def not_asked_for(self, targets: list["Target"]) -> Iterator[str]:
        """Updates and parts of updates that the config does not switch on, or that lack what it does."""
        config = self.settings
        wanted = {"a", "b"} | ({"magnitude"} if config.dora else set()) | ({"bias"} if config.lora_bias else set())
        for target in targets:
            if missing := sorted(wanted - target.parts.keys()):
                yield f"{target.key} lacks {', '.join(missing)}"
            if extra := [name for kind, name in target.parts.items() if kind not in wanted]:
                yield f"{extra[0]} is used by nothing: the config does not switch it on"
            tied = config.tie and target.instance.paths == ("head",)
            if not (target.parameter or tied or config.targeted(target.key, self.head)):
                yield f"{target.key} has an update, and target_modules does not name it"
        ends = {target.instance.paths[0] for target in targets} & {"embed", "head"}
        if config.tie and self.base.spec.tied and len(ends) == 1:
            yield "ensure_weight_tying: only one of embedding and head has an update"

    def not_named(self) -> Iterator[str]:
        """Parameters stored whole that nothing in the config names. Ends may be, for a vocabulary that was resized."""
        for name, tensor in self.whole.items():
            module, _, kind = name.rpartition(".")
            found = self.base.instance(name)
            end = found is not None and found.paths in (("embed",), ("head",))
            if not (end or self.settings.saves(module) or (kind == "bias" and self.settings.bias != "none")):
                yield f"{tensor} is used by nothing: neither bias nor modules_to_save names it"

    def not_there(self, targets: list["Target"]) -> Iterator[str]:
        """What the config asks for and the file lacks. Of experts all or none are asked for."""
        config, asked = self.settings, self.settings.targets not in (None, "all-linear")
        described = unflatten(dict(self.base.params))
        renamed, stored = self.renaming(targets), {target.instance.theirs for target in targets}
        there = {id(target.instance) for target in targets}
        whole = {id(self.base.instance(name)) for name in self.whole}
        some, saved = {target.instance.paths for target in targets}, set[str]()
        for instance in rules.instances(self.base.family.table(self.base.spec), described, stored):
            same, module = id(self.base.named[instance.theirs]), renamed(instance.theirs).removesuffix(".weight")
            if not instance.theirs.endswith(".weight"):
                continue
            if config.saves(module):
                saved |= {name for name in config.saved if module.endswith(name)}
                if same not in whole and not (instance.paths == ("head",) and self.base.spec.tied):
                    yield f"{module} is in modules_to_save and not in the file"
            matrix = len(instance.shapes[0]) > 1 and self.base.params[instance.paths[0]].fill is None
            alone = instance.axis is not None and instance.paths not in some
            if asked and matrix and not alone and same not in there and config.targeted(module, self.head):
                yield f"{module} is targeted and has no update"
        yield from (f"modules_to_save names {name}, and the model has none" for name in {*config.saved} - saved)

    def renaming(self, targets: list["Target"]) -> Callable[[str], str]:
        """From a checkpoint's names to those of the model that was trained, as far as one module tells."""
        target = next((target for target in targets if not target.parameter), None)
        if target is None:
            return lambda name: name
        trained, stored = target.key.split("."), target.instance.theirs.removesuffix(".weight").split(".")
        while trained and stored and trained[-1] == stored[-1]:
            trained.pop()
            stored.pop()
        new, old = "".join(f"{part}." for part in trained), "".join(f"{part}." for part in stored)
        return lambda name: new + name.removeprefix(old) if name.startswith(old) else name

    # -------------------------------------------------------------------------------------------- reading
    def read_update(self, target: "Target") -> None:
        """Move the factors of one tensor to our leaves."""
        layout = self.base.layout(target.instance)
        rank, scale = self.settings.rank_of(target.key), self.settings.scale_of(target.key)
        into, out = self.factors(target, layout, rank)
        if target.instance.rule.add or target.instance.rule.decay or self.base.params[target.instance.paths[0]].fill:
            raise ValueError(f"{self.file}: {target.key} is no matrix of weights, an update of it is not implemented")
        a_s, b_s = layout.read("inputs", into), layout.read("outputs", out)
        outputs = {kind: self.outputs(target, layout, kind) for kind in ("magnitude", "bias")}
        if outputs["magnitude"] and layout.split("inputs"):
            raise ValueError(f"{self.file}: {target.key}: magnitudes of a tensor whose inputs we keep apart")
        for part, path in enumerate(target.instance.paths):
            stacked = layout.stacked
            b = np.moveaxis(b_s[part], -1, stacked)
            magnitude, bias = (found[part] if found else None for found in outputs.values())
            self.put(target.instance, path, Update(a_s[part], b, magnitude, bias, scale, stacked))

    def factors(self, target: "Target", layout: Layout, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """The factors of inputs and of outputs, [*numbers, size, rank] both.

        Raises:
            ValueError: they are no matrices of the rank that the config says.
        """
        a, b = (self.source.read(target.parts[kind]) for kind in "ab")
        numbers = [
            n
            for n, axis in zip(target.instance.stored_shape, layout.stored, strict=True)
            if axis not in layout.axes.values()
        ]
        experts = prod(numbers)
        if a.ndim != 2 or b.ndim != 2 or (a.shape[0], b.shape[1]) != (rank * experts,) * 2:
            raise ValueError(
                f"{self.file}: {target.key} has factors of shape {list(a.shape)} and {list(b.shape)}, the config says "
                f"rank {rank}{f' for each of {experts} experts' if numbers else ''}"
            )
        if not numbers:
            return a.T, b
        # A numbers its rows expert by expert, B its columns rank by rank
        a = a.reshape(experts, rank, -1).swapaxes(1, 2)
        b = np.moveaxis(b.reshape(b.shape[0], rank, experts), -1, 0)
        return (b, a) if self.exchanged(layout, a.shape[1], b.shape[1]) else (a, b)

    def exchanged(self, layout: Layout, first: int, second: int) -> bool:
        """Whether A has the outputs of stacked experts: before version 0.19 PEFT took all as [E, in, out]."""
        sizes = layout.size("inputs"), layout.size("outputs")
        if sizes[0] != sizes[1]:
            return (first, second) == sizes[::-1]
        inputs_last = layout.stored.index(layout.axes["inputs"]) > layout.stored.index(layout.axes["outputs"])
        return inputs_last and self.settings.version < SWAPPED

    def outputs(self, target: "Target", layout: Layout, kind: str) -> list[np.ndarray] | None:
        """One number for each output of a tensor, at our leaves; None where the file has none."""
        if kind not in target.parts:
            return None
        return [x[..., 0] for x in layout.read("outputs", self.source.read(target.parts[kind]).reshape(-1, 1))]

    def put(self, instance: rules.Instance, path: str, update: Update) -> None:
        """Keep an update, or the slice of one where the file has one tensor for each expert.

        Raises:
            ValueError: a second one of the same weight.
        """
        if instance.axis is None:
            if path in self.updates:
                raise ValueError(f"{self.file}: two updates of {path}, one of them by {instance.theirs}")
            self.updates[path] = update
        else:
            self.slices.setdefault(path, {})[instance] = update

    def stack_slices(self) -> None:
        """Put the updates of single experts together; ranks are padded with zeros."""
        for path, found in self.slices.items():
            if path in self.updates:
                raise ValueError(f"{self.file}: two updates of {path}, one of them expert by expert")
            param, axis = self.base.params[path], next(iter(found)).axis or 0
            join = stacked if axis < param.stacked else side_by_side
            self.updates[path] = join(path, {each.index: update for each, update in found.items()}, param, axis)

    def read_value(self, name: str, tensor: str) -> None:
        """A parameter that is replaced whole. The base of an adapted embedding is that of a tied head too."""
        instance = self.find(name, tensor)
        x = self.source.read(tensor)
        if x.shape != instance.stored_shape:
            raise ValueError(
                f"{self.file}: {tensor} is {list(x.shape)}, the model's {list(instance.stored_shape)}; a vocabulary "
                "that was resized for the adapter needs a base that was resized too"
            )
        if instance.axis is not None:
            raise ValueError(f"{self.file}: {tensor} replaces one of several weights, which is not implemented")
        for path, leaf in zip(instance.paths, instance.rule.read(x, instance.shapes), strict=True):
            self.values[path] = leaf
        apart = self.settings.saves(name.rpartition(".")[0]) and not self.settings.tie
        if self.base.spec.tied and instance.paths == ("embed",) and not apart:
            self.values.setdefault("head", self.values["embed"].T)

    def read_tokens(self, module: str, tensor: str) -> None:
        """Rows of a table that are replaced, in a tied head too unless it has rows of its own."""
        given = self.settings.tokens
        ids = given if not isinstance(given, Mapping) else next((v for k, v in given.items() if named(module, [k])), [])
        rows, instance = self.source.read(tensor), self.find(f"{module}.weight", tensor)
        (path,) = instance.paths
        if path not in ("embed", "head") or rows.shape != (len(ids), self.base.params["embed"].shape[1]):
            raise ValueError(
                f"{self.file}: {tensor} is {list(rows.shape)}; trainable_token_indices names {len(ids)} rows of "
                f"{module}"
            )
        if len(set(ids)) != len(ids) or max(ids, default=0) >= self.base.spec.vocab_size:
            raise ValueError(f"{self.file}: trainable_token_indices names an id twice, or one past the vocabulary")
        self.tokens[path] = Tokens(np.asarray(ids, np.int32), rows)

    def tie(self) -> None:
        """Rows that are replaced in an embedding are so in a head that is tied to it."""
        if self.base.spec.tied and "embed" in self.tokens:
            self.tokens.setdefault("head", self.tokens["embed"])
