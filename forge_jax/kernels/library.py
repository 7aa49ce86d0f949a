"""The compiled kernels in this process: loaded once, made known to XLA, and what can be said of them."""

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import jax

from forge_jax.kernels import building
from forge_jax.kernels.building import Unbuilt, build
from forge_jax.kernels.formats import FORMATS, ROUNDED
from forge_jax.kernels.switch import switched

SWITCH = "FORGE_JAX_KERNELS"


@dataclass(frozen=True)
class Status:
    """Whether there are kernels, and why not.

    instructions: what they are compiled for. threads: how many work on a call, as many as the process may run on.
    """

    built: bool
    reason: str
    instructions: str = ""
    threads: int = 0
    path: Path | None = None

    def __str__(self) -> str:
        """A line for people."""
        if not self.built:
            return f"for CPUs: none, {self.reason}"
        return f"for CPUs: {self.instructions}, {self.threads} threads ({self.path})"


@functools.cache
def status() -> Status:
    """Load the kernels, compiling them the first time on a machine, and say what came of it.

    FORGE_JAX_KERNELS=0 in the environment leaves them out.

    Raises:
        ValueError: it is neither 0 nor 1.
    """
    if switched(SWITCH, default="1") == "0":
        return Status(False, f"{SWITCH} is 0")
    try:
        path = build()
        library = ctypes.CDLL(str(path))
    except (Unbuilt, OSError) as error:
        return Status(False, str(error))
    exact = [f"{what}_{name}" for name in FORMATS for what in ("product", "product_chosen")]
    rounded = [f"{what}_{name}" for name in ROUNDED for what in ("rounded", "rounded_chosen")]
    for name in ("attention", "write_slots", "hadamard", "norm", "once", *exact, *rounded):
        jax.ffi.register_ffi_target(target(name), jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    library.forge_instructions.restype = ctypes.c_char_p
    return Status(True, "", library.forge_instructions().decode(), library.forge_threads(), path)


def told() -> str:
    """The status as a line for people, whatever the switch says."""
    try:
        return str(status())
    except ValueError as error:
        return f"for CPUs: none, {error}"


def target(name: str) -> str:
    """What XLA calls a function of the library."""
    return f"forge_jax.{name}"


@functools.cache
def available() -> bool:
    """Whether programs that are traced now may use kernels."""
    return jax.default_backend() == "cpu" and status().built


def waits() -> bool:
    """Whether `available` would compile first, as it does once on a machine."""
    return jax.default_backend() == "cpu" and switched(SWITCH, default="1") == "1" and building.waits()
