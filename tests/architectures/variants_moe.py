"""Variants of mixtures of experts. Data only; see variants_a.py."""

from typing import Any

from variants_a import COMMON, model

Config = dict[str, Any]

MIXTRAL = model("mixtral", COMMON, {"num_local_experts": 4, "num_experts_per_tok": 2})

VARIANTS: dict[str, Config] = {
    "mixtral": MIXTRAL,
    "mixtral_window": MIXTRAL | {"sliding_window": 8, "num_experts_per_tok": 3},
}
