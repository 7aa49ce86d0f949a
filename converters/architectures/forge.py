"""The library's own checkpoints: config.json holds a ForgeConfig, tensors have the names and axes of our tree."""

from collections.abc import Mapping
from typing import Any

from converters.architectures.family import Family
from converters.rules import Rule
from converters.take import Take
from forge_jax.config import ForgeConfig
from forge_jax.spec import ModelSpec

NORM = ("scale", "bias")
ATTENTION = ("q", "k", "v", "o", "q_bias", "k_bias", "v_bias", "o_bias")
MLP = ("gate", "up", "down", "gate_bias", "up_bias", "down_bias")

PATHS = (
    "embed",
    "positions",
    *(f"final_norm.{part}" for part in NORM),
    *(f"layers.{{l}}.{branch}.pre.{part}" for branch in ("attention", "mlp", "moe") for part in NORM),
    *(f"layers.{{l}}.attention.{name}" for name in ATTENTION),
    *(f"layers.{{l}}.{branch}.{name}" for branch in ("mlp", "moe") for name in MLP),
    "layers.{l}.moe.router",
)


def forge_config(config: Mapping[str, Any]) -> ForgeConfig:
    """The ForgeConfig that a config.json holds.

    Raises:
        ValueError: a key that is no field (names the nearest), or a wrong value.
    """
    return ForgeConfig.from_dict({k: v for k, v in config.items() if k not in ("model_type", "architectures", "dtype")})


def config(take: Take) -> ModelSpec:
    """The fields of a ForgeConfig, by their names."""
    take.ignore(*take.config)  # forge_config accounts for every key itself
    return forge_config(take.config).to_spec()


FAMILY = Family(("forge",), config, tuple(Rule(path, path) for path in PATHS), prefix="")
