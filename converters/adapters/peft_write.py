"""PEFT's directories of adapters, written: what PEFT loads, and what reading it back gives bit for bit.

Every module is named in full in the config, so that an adapter of any shape can be said. Ranks and scales that differ
from the most frequent ones go into the patterns.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Container, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from converters import rules
from converters.adapters.base import base_of
from converters.adapters.gather import Stored, stored_updates
from converters.adapters.peft import INNER, PREFIX
from converters.adapters.settings import CONFIG
from converters.files import atomic_directory
from converters.safetensors_file import Entry, dtype_name, write_safetensors
from forge_jax.lora import Adapter
from forge_jax.params import unflatten
from forge_jax.spec import ModelSpec

ENDS = (("embed",), ("head",))

VERSION = "0.19.0"
"""Of PEFT: from here on stacked experts are laid out as they are written here."""


def write_peft(
    directory: Path, adapter: Adapter, model_type: str, spec: ModelSpec, *, base: str = "", overwrite: bool = False
) -> None:
    """Write adapter_config.json and adapter_model.safetensors.

    Args:
        base: what the config says that the adapter is for; a name, for people.

    Raises:
        FileExistsError: the directory is there and not empty, and `overwrite` is false.
        ValueError: what PEFT cannot say: a parameter of ours that is only a part of one of its tensors, or none.
        OSError: the disk is full; nothing is left behind.
    """
    known = base_of(model_type, spec)
    if unknown := sorted({*adapter.paths()} - known.params.keys()):
        raise ValueError(f"PEFT: the model has no {', '.join(unknown[:5])}; the adapter belongs to another model")
    # experts as one, as the library that trains has them
    whole = {name for name, i in known.named.items() if i.axis is None and known.params[i.paths[0]].stacked}
    every = [
        replace(i, theirs=known.family.trained_name(i.theirs))
        for i in rules.instances(known.family.table(spec), unflatten(dict(known.params)), whole)
    ]
    stored = list(stored_updates(every, known.params, adapter.updates))
    values = dict(replaced(adapter, every))
    inner = {name for each in stored for name in (f"{module_of(each)}.bias", f"{module_of(each)}.weight")} & {*values}
    if odd := [i.theirs for i in every if i.theirs in inner and i.theirs.endswith(".weight") and i.paths not in ENDS]:
        raise ValueError(f"PEFT: {odd[0]} is replaced and has an update; it can have one of the two")
    config = {"base_model_name_or_path": base or None, "task_type": "CAUSAL_LM", "peft_type": "LORA"}
    config |= {"peft_version": VERSION, "inference_mode": True, **described(stored)}
    config |= replacing(values, inner) | tokens_of(adapter, every)
    named = ((f"{INNER}.".join(n.rsplit(".", 1)) if n in inner else n, x) for n, x in values.items())
    tensors = [*factors(stored), *named, *rows_of(adapter, every)]
    with atomic_directory(directory, overwrite=overwrite) as part:
        (part / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        made = [Entry(f"{PREFIX}{name}", x.shape, dtype_name(x.dtype), lambda x=x: x) for name, x in tensors]
        write_safetensors(part / "adapter_model.safetensors", made, {"format": "pt"})


def is_parameter(each: Stored) -> bool:
    """Whether a tensor is a parameter of a module that does more than multiply: one that numbers experts."""
    return bool(each.layout.numbers) or not each.instance.theirs.endswith(".weight")


def module_of(each: Stored) -> str:
    """What patterns of the config are matched with."""
    return each.instance.theirs if is_parameter(each) else each.instance.theirs.removesuffix(".weight")


def described(stored: list[Stored]) -> dict[str, Any]:
    """Which modules have updates, of what rank and scale.

    Raises:
        ValueError: some updates have magnitudes or biases of their own and others none.
    """
    for what, found in (("magnitudes", [s.magnitude for s in stored]), ("biases", [s.bias for s in stored])):
        if any(x is None for x in found) and any(x is not None for x in found):
            raise ValueError(f"PEFT: some updates have {what} and others none; it has one switch for all")
    rank = most([s.rank for s in stored], 8)
    alphas = {module_of(s): s.scale * s.rank for s in stored}
    alpha = most(list(alphas.values()), 8)
    exact = {name: value for name, value in alphas.items() if value != alpha}
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {re.escape(module_of(s)): s.rank for s in stored if s.rank != rank},
        "alpha_pattern": {re.escape(name): value for name, value in exact.items()},
        "target_modules": sorted(module_of(s) for s in stored if not is_parameter(s)),
        "target_parameters": sorted(module_of(s) for s in stored if is_parameter(s)) or None,
        "use_dora": any(s.magnitude is not None for s in stored),
        "lora_bias": any(s.bias is not None for s in stored),
        "fan_in_fan_out": any(s.layout.stored[0] == s.layout.axes["inputs"] for s in stored if plain(s)),
    }


def plain(each: Stored) -> bool:
    """Whether a tensor is the weight of a linear layer, not a table."""
    return not is_parameter(each) and each.layout.params[0].inputs > 0


def most(values: list[Any], default: Any) -> Any:
    """The most frequent value."""
    return Counter(values).most_common(1)[0][0] if values else default


def factors(stored: list[Stored]) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of every update under their names in PEFT."""
    levels = Counter[str]()
    for each in reversed(stored):  # a module's last parameter is wrapped last, so it is the outermost
        module = module_of(each)
        if is_parameter(each):
            outer = module.rpartition(".")[0]
            module = outer + INNER * levels[outer]
            levels[outer] += 1
            experts = math.prod(each.layout.numbers)
            a = np.moveaxis(each.into.reshape(experts, *each.into.shape[-2:]), -1, 1)
            yield f"{module}.lora_A.weight", a.reshape(experts * each.rank, -1)
            b = np.moveaxis(each.out.reshape(experts, *each.out.shape[-2:]), 0, -1)
            yield f"{module}.lora_B.weight", b.reshape(b.shape[0], each.rank * experts)
            continue
        table = not plain(each)
        yield module + (".lora_embedding_A" if table else ".lora_A.weight"), each.into.T
        yield module + (".lora_embedding_B" if table else ".lora_B.weight"), each.out
        if each.magnitude is not None:
            yield f"{module}.lora_magnitude_vector", each.magnitude
        if each.bias is not None:
            yield f"{module}.lora_B.bias", each.bias


def replaced(adapter: Adapter, every: list[rules.Instance]) -> Iterator[tuple[str, np.ndarray]]:
    """Parameters that are replaced whole, under their own names.

    Raises:
        ValueError: only a part of a tensor is replaced.
    """
    for instance in every:
        given = [path for path in instance.paths if path in adapter.values]
        if not given:
            continue
        if len(given) < len(instance.paths):
            raise ValueError(f"PEFT: {', '.join(given)} are replaced, and {instance.theirs} holds more than them")
        yield instance.theirs, instance.write(lambda path: np.asarray(adapter.values[path]))


def replacing(values: Collection[str], inner: Container[str]) -> dict[str, Any]:
    """How the config says which parameters are replaced: biases by their switch, others by their modules.

    Args:
        inner: those of modules with updates, which need not be said.
    """
    modules = sorted({name.rpartition(".")[0] for name in values if not name.endswith(".bias") and name not in inner})
    biased = any(name.endswith(".bias") and name.rpartition(".")[0] not in modules for name in values)
    return {"modules_to_save": modules or None, "bias": "all" if biased else "none"}


def tokens_of(adapter: Adapter, every: list[rules.Instance]) -> dict[str, Any]:
    """Which rows of which tables are replaced."""
    names = {i.paths: i.theirs.removesuffix(".weight") for i in every}
    found = {names[(path,)]: np.asarray(t.ids).tolist() for path, t in own_tokens(adapter).items() if (path,) in names}
    return {"trainable_token_indices": found or None}


def own_tokens(adapter: Adapter) -> Mapping[str, Any]:
    """Replaced rows, those of the head only if they are not the embedding's."""
    head, table = adapter.tokens.get("head"), adapter.tokens.get("embed")
    pairs = [(np.asarray(t.ids).tolist(), np.asarray(t.rows).tolist()) for t in (head, table) if t is not None]
    same = len(pairs) == 2 and pairs[0] == pairs[1]
    return {path: each for path, each in adapter.tokens.items() if not (same and path == "head")}


def rows_of(adapter: Adapter, every: list[rules.Instance]) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of replaced rows."""
    names = {i.paths: i.theirs.removesuffix(".weight") for i in every}
    for path, each in own_tokens(adapter).items():
        yield f"{names[(path,)]}.token_adapter.trainable_tokens_delta", np.asarray(each.rows)
