"""Whether programs that are traced now take the kernels in Pallas. They do not, unless the environment says so."""

import importlib.util
from dataclasses import dataclass
from typing import Literal

import jax

from forge_jax.kernels import switch

SWITCH = "FORGE_JAX_PALLAS"


@dataclass(frozen=True)
class Target:
    """What kernels are made for. interpret: as ordinary operations of any device, which is slow, and for tests."""

    kind: Literal["gpu", "tpu"]
    interpret: bool = False


def target() -> Target | None:
    """What FORGE_JAX_PALLAS asks for: None if it is not set or 0, kernels for the default device if it is 1, and what
    interprets those for GPUs if it is "interpret". It is read while a program is traced, and not when it runs.

    Raises:
        ValueError: it is something else, or there is no device for kernels.
    """
    match switch.switched(SWITCH, "interpret"):
        case "0":
            return None
        case "interpret":
            return Target("gpu", interpret=True)
        case _:
            return on(jax.default_backend())


def on(platform: str) -> Target:
    """Kernels for a platform of jax.

    Raises:
        ValueError: there are none.
    """
    if platform == "tpu":
        return Target("tpu")
    if platform != "gpu":
        raise ValueError(
            f"{SWITCH} is 1, but the kernels in Pallas are for GPUs and TPUs and the default device is {platform}; "
            f"unset it, or say {SWITCH}=interpret to try them, slowly, on any device"
        )
    if importlib.util.find_spec("jax._src.pallas.triton") is None:
        raise ValueError(
            f"{SWITCH} is 1, but jax {jax.__version__} has no Triton backend of Pallas, which the kernels for GPUs are "
            "written for; unset it, or install a jax that has one (0.10 to 0.12)"
        )
    return Target("gpu")


def interpreted() -> bool:
    """Whether the kernels are taken on every platform."""
    chosen = target()
    return chosen is not None and chosen.interpret


def told() -> str:
    """A line for people."""

    def line() -> str:
        if (chosen := target()) is None:
            return ""
        return "interpreted, for tests" if chosen.interpret else f"on, for this {chosen.kind.upper()}"

    return switch.told(SWITCH, "in Pallas", line)
