"""forge-jax: any language-model checkpoint as one JAX pytree, run by pure, jitted functions.

>>> import forge_jax as forge
>>> model = forge.load("smollm2")                          # doctest: +SKIP
>>> print(model.complete("The capital of France is"))      # doctest: +SKIP

Names are imported when they are first used, so that `forge_jax.spec` and the converters need not load the front.
"""

import importlib
from typing import TYPE_CHECKING, Any

from forge_jax.garbage import uncollected

__version__ = "0.1.0"

if TYPE_CHECKING:
    from forge_jax.adapting import export_adapter as export_adapter
    from forge_jax.adapting import load_adapter as load_adapter
    from forge_jax.calibrating import calibrate as calibrate
    from forge_jax.calibrating import importance as importance
    from forge_jax.catalogue import Architecture as Architecture
    from forge_jax.catalogue import architectures as architectures
    from forge_jax.config import ForgeConfig as ForgeConfig
    from forge_jax.config import QuantizationConfig as QuantizationConfig
    from forge_jax.decoder import Inputs as Inputs
    from forge_jax.decoder import forward as forward
    from forge_jax.decoder import inputs as inputs
    from forge_jax.drafters import load_drafter as load_drafter
    from forge_jax.evaluation import Evaluation as Evaluation
    from forge_jax.evaluation import evaluate as evaluate
    from forge_jax.forge import Enigma as Enigma
    from forge_jax.forge import Forge as Forge
    from forge_jax.forge import ForgeModel as ForgeModel
    from forge_jax.forge import TinyForge as TinyForge
    from forge_jax.forge import create_model as create_model
    from forge_jax.forge import load as load
    from forge_jax.generation import Session as Session
    from forge_jax.generation import generate as generate
    from forge_jax.generation import stream as stream
    from forge_jax.generation.speculation import DraftModel as DraftModel
    from forge_jax.generation.speculation import EagleHead as EagleHead
    from forge_jax.generation.speculation import EarlyExit as EarlyExit
    from forge_jax.generation.speculation import Lookup as Lookup
    from forge_jax.generation.speculation import MtpHead as MtpHead
    from forge_jax.inspection import Inspection as Inspection
    from forge_jax.inspection import inspect as inspect
    from forge_jax.loading import Model as Model
    from forge_jax.lora import Adapter as Adapter
    from forge_jax.lora import attach as attach
    from forge_jax.lora import choose_adapters as choose_adapters
    from forge_jax.lora import extract as extract
    from forge_jax.lora import merge as merge
    from forge_jax.presets import MODEL_PRESETS as MODEL_PRESETS
    from forge_jax.presets import estimate_memory_usage as estimate_memory_usage
    from forge_jax.presets import estimate_parameters as estimate_parameters
    from forge_jax.presets import get_preset as get_preset
    from forge_jax.presets import list_presets as list_presets
    from forge_jax.quantizing import quantize as quantize
    from forge_jax.sampling import Constraint as Constraint
    from forge_jax.sampling import SamplingParams as SamplingParams
    from forge_jax.sampling import Vocabulary as Vocabulary
    from forge_jax.spec import ModelSpec as ModelSpec
    from forge_jax.stacking import stack as stack
    from forge_jax.stacking import unstack as unstack
    from forge_jax.tensor import QTensor as QTensor
    from forge_jax.tensor import unpacked as unpacked

HOMES = {
    "adapting": ("export_adapter", "load_adapter"),
    "calibrating": ("calibrate", "importance"),
    "catalogue": ("Architecture", "architectures"),
    "config": ("ForgeConfig", "QuantizationConfig"),
    "decoder": ("Inputs", "forward", "inputs"),
    "drafters": ("load_drafter",),
    "evaluation": ("Evaluation", "evaluate"),
    "forge": ("Enigma", "Forge", "ForgeModel", "TinyForge", "create_model", "load"),
    "generation": ("Session", "generate", "stream"),
    "generation.speculation": ("DraftModel", "EagleHead", "EarlyExit", "Lookup", "MtpHead"),
    "inspection": ("Inspection", "inspect"),
    "loading": ("Model",),
    "lora": ("Adapter", "attach", "choose_adapters", "extract", "merge"),
    "presets": ("MODEL_PRESETS", "estimate_memory_usage", "estimate_parameters", "get_preset", "list_presets"),
    "quantizing": ("quantize",),
    "sampling": ("Constraint", "SamplingParams", "Vocabulary"),
    "spec": ("ModelSpec",),
    "stacking": ("stack", "unstack"),
    "tensor": ("QTensor", "unpacked"),
}
HOME = {name: module for module, names in HOMES.items() for name in names}

__all__ = sorted(HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in HOME:
        raise AttributeError(f"module 'forge_jax' has no attribute {name!r}")
    with uncollected():
        found = getattr(importlib.import_module(f"forge_jax.{HOME[name]}"), name)
    globals()[name] = found  # it is asked for once
    return found


def __dir__() -> list[str]:
    """The public names."""
    return [*globals(), *HOME]
