"""Adapters: low-rank updates and what else is trained beside a model, as leaves and functions of trees."""

from forge_jax.lora.adapter import Adapter, Tokens, Update, attach, choose_adapters, merge
from forge_jax.lora.extract import extract
from forge_jax.lora.leaves import Apart, Chosen, Lora, Replaced, Turned

__all__ = [
    "Adapter",
    "Apart",
    "Chosen",
    "Lora",
    "Replaced",
    "Tokens",
    "Turned",
    "Update",
    "attach",
    "choose_adapters",
    "extract",
    "merge",
]
