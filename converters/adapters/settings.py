"""adapter_config.json of PEFT, read strictly: which modules an adapter is for, with what rank and scale.

Every key is read, known to have no effect on the numbers of a loaded adapter, or an error that names it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.files import quote, read_json
from converters.packed.patterns import matches
from converters.take import Take

CONFIG = "adapter_config.json"

# training, bookkeeping, and settings of parts that are refused when they are on
WITHOUT_EFFECT = (
    *("base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping", "lora_dropout"),
    *("megatron_core", "qalora_group_size", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    *("runtime_config", "fan_in_fan_out"),
)

REFUSED: Mapping[str, str] = {
    "layer_replication": "the base has layers that are repeated, which is another model",
    "use_qalora": "inputs are averaged in groups before A",
    "alora_invocation_tokens": "it is off until certain tokens have come",
    "arrow_config": "adapters are chosen token by token",
    "use_bdlora": "its factors are block-diagonal",
    "megatron_config": "its layers are Megatron's",
    "velora_config": "its layers are of another kind",
    "kasa_config": "its updates have singular values of their own",
    "monteclora_config": "its factors are random",
}
"""Settings that are errors when on, and what they would mean."""

CHANGED_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""How initialisations begin that take something out of the base's weights, so that the adapter is for other weights."""


@dataclass(frozen=True)
class Settings:
    """What adapter_config.json says; names of modules are those of the model that was trained.

    targets: names, or an expression for whole names, or "all-linear"; None: none. layers: the only ones, None: all.
    """

    where: str
    rank: int
    alpha: float
    rslora: bool
    dora: bool
    bias: str
    lora_bias: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    targets: Sequence[str] | str | None
    excluded: Sequence[str] | str
    layers: Sequence[int] | None
    layer_patterns: Sequence[str]
    saved: Sequence[str]
    tokens: Mapping[str, Sequence[int]] | Sequence[int]
    parameters: Sequence[str]
    tie: bool
    version: tuple[int, ...]

    def rank_of(self, module: str) -> int:
        """The rank of the update of a module."""
        return self.ranks.get(self.key(self.ranks, module), self.rank)

    def scale_of(self, module: str) -> float:
        """What the product of the factors of a module is multiplied by."""
        rank = self.rank_of(module)
        alpha = self.alphas.get(self.key(self.alphas, module), self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def key(self, patterns: Iterable[str], module: str) -> str:
        """The first pattern that fits a module's name or the end of it behind a dot, or the name itself."""
        return next((p for p in patterns if matches(rf"(.*\.)?({p})$", module, self.where)), module)

    def targeted(self, module: str, head: str | None) -> bool:
        """Whether an update of a module is asked for; `head` is the output layer, which "all-linear" leaves out."""
        if self.excludes(module) or self.targets is None:
            return False
        if isinstance(self.targets, str):
            if self.targets.lower() == "all-linear":
                return module != head
            return matches(rf"(?:{self.targets})\Z", module, self.where)
        return named(module, self.targets) and self.in_layers(module)

    def excludes(self, module: str) -> bool:
        """Whether a module is left out, by name or because it is saved whole."""
        if isinstance(self.excluded, str):
            out = bool(self.excluded) and matches(rf"(?:{self.excluded})\Z", module, self.where)
        else:
            out = named(module, self.excluded)
        return out or any(matches(rf"(^|.*\.){name}($|\..*)", module, self.where) for name in self.saved)

    def in_layers(self, module: str) -> bool:
        """Whether a module is in one of the layers: the first number that follows a name, or what a pattern fits."""
        if self.layers is None:
            return True
        parts = module.split(".")
        for i, part in enumerate(parts[1:-1], 1):
            if not (part.isascii() and part.isdigit()):
                continue
            before = ".".join(parts[:i])
            if not self.layer_patterns:
                if i > 1:
                    return int(part) in self.layers
            elif any(matches(rf"(?:^|.*\.)(?:{p})$", before, self.where) for p in self.layer_patterns):
                return int(part) in self.layers
        return False

    def saves(self, module: str) -> bool:
        """Whether a module is stored whole."""
        return any(module.endswith(name) for name in self.saved)


def named(module: str, names: Iterable[str]) -> bool:
    """Whether a module has one of the names, or ends with one behind a dot."""
    return any(module == name or module.endswith(f".{name}") for name in names)


def read_settings(directory: Path, allow: Iterable[str] = ()) -> Settings:
    """Read and check adapter_config.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: another kind of adapter, a setting that is not implemented or not understood, a wrong type.
    """
    file = directory / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: it says what the adapter's tensors are for")
    config = read_json(file)
    if not isinstance(config, dict):
        raise ValueError(f"{file}: expected a JSON object, found {type(config).__name__}")
    take = Take(config, str(file), allow)
    if (kind := str(take("peft_type")).upper()) != "LORA":
        raise ValueError(f"{file}: peft_type is {quote(kind)}; only LORA (with DoRA and rsLoRA) is implemented")
    take.ignore(*WITHOUT_EFFECT)
    refuse(take)
    settings = Settings(
        where=str(file),
        rank=whole(take, "r", 8),
        alpha=number(take, take("lora_alpha", 8), "lora_alpha"),
        rslora=flag(take, "use_rslora"),
        dora=flag(take, "use_dora"),
        bias=str(take("bias", "none")),
        lora_bias=flag(take, "lora_bias"),
        ranks={key: int(number(take, value, "rank_pattern")) for key, value in table(take, "rank_pattern").items()},
        alphas={key: number(take, value, "alpha_pattern") for key, value in table(take, "alpha_pattern").items()},
        targets=names(take, "target_modules") if take.has("target_modules") else none(take, "target_modules"),
        excluded=names(take, "exclude_modules"),
        layers=layers(take),
        layer_patterns=listed(names(take, "layers_pattern")),
        saved=listed(names(take, "modules_to_save")),
        tokens=tokens(take),
        parameters=listed(names(take, "target_parameters")),
        tie=flag(take, "ensure_weight_tying"),
        version=version(str(take("peft_version", "0"))),
    )
    take.done()
    if settings.bias not in ("none", "all", "lora_only"):
        raise ValueError(f"{file}: bias is {quote(settings.bias)}; expected none, all or lora_only")
    if any(rank < 1 for rank in (settings.rank, *settings.ranks.values())):
        raise ValueError(f"{file}: a rank is {min(settings.rank, *settings.ranks.values())}; expected 1 or more")
    return settings


def refuse(take: Take) -> None:
    """Raise ValueError for settings that are on and not implemented."""
    for key, meaning in REFUSED.items():
        if take(key, None):
            raise ValueError(f"{take.where}: {key} is set, which is not implemented: {meaning}")
    start = take("init_lora_weights", None)
    if isinstance(start, str) and start.startswith(CHANGED_BASE):
        raise ValueError(
            f"{take.where}: init_lora_weights is {start!r}: the adapter is for weights that this initialisation has "
            "changed, not for the base's; saved with path_initial_model_for_weight_conversion it is a plain one"
        )


def whole(take: Take, key: str, default: int) -> int:
    """A positive number without a fraction."""
    value = take(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{take.where}: {key} is {value!r}; expected 1 or more")
    return value


def number(take: Take, value: Any, key: str) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{take.where}: {key} has {value!r}; expected a number")
    return value


def flag(take: Take, key: str) -> bool:
    """True or false."""
    value = take(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{take.where}: {key} is {value!r}; expected true or false")
    return value


def table(take: Take, key: str) -> Mapping[str, Any]:
    """A dict."""
    value = take(key, {})
    if not isinstance(value, Mapping):
        raise ValueError(f"{take.where}: {key} is {type(value).__name__}; expected a dict")
    return value


def none(take: Take, key: str) -> None:
    """A key that is null or absent."""
    take(key, None)


def names(take: Take, key: str) -> Sequence[str] | str:
    """Names, or one text."""
    value = take(key, [])
    if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        raise ValueError(f"{take.where}: {key} is {value!r}; expected names")
    return value


def listed(value: Sequence[str] | str) -> Sequence[str]:
    """Names, one of them or several."""
    return [value] if isinstance(value, str) else value


def layers(take: Take) -> Sequence[int] | None:
    """The numbers of the only layers that are adapted; None for all."""
    value = take("layers_to_transform", None)
    value = [value] if isinstance(value, int) else value
    if value is not None and not (isinstance(value, list) and all(isinstance(i, int) for i in value)):
        raise ValueError(f"{take.where}: layers_to_transform is {value!r}; expected numbers of layers")
    return value or None


def tokens(take: Take) -> Mapping[str, Sequence[int]] | Sequence[int]:
    """Which rows of which tables are replaced: of the embedding if a list."""
    value = take("trainable_token_indices", [])
    every = value.values() if isinstance(value, dict) else [value]
    if not all(isinstance(ids, list) and all(isinstance(i, int) and i >= 0 for i in ids) for ids in every):
        raise ValueError(f"{take.where}: trainable_token_indices is {value!r}; expected ids")
    return value


def version(text: str) -> tuple[int, ...]:
    """A version's numbers, as far as they are numbers."""
    parts = text.split(".")
    return tuple(int(part) for part in parts[:2] if part.isdigit())
