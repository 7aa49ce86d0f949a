"""Which products of rows of whole numbers there is a kernel for, and how much of them a program of it takes."""

import math
from dataclasses import dataclass

from jax import Array

from forge_jax.kernels.formats import Packing, Steps
from forge_jax.kernels.pallas.switch import Target, target

MOST_ROWS = 16  # of x; a matrix that is decoded once is read by more of them
LEAST = 16  # numbers of an axis that a product of matrices in a kernel can have
PROGRAMS = 256  # of a kernel, to keep all of a GPU busy
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Plan:
    """rows: outputs of a program. chunk: bytes of each that it opens at a time, of whole groups or within one."""

    rows: int
    chunk: int


def fits(packing: Packing, parts: dict[str, Array], outputs: tuple[int, ...], x_RI: Array) -> bool:
    """Whether the switch asks for kernels and there is one for this product."""
    aim = target()
    if aim is None or packing.steps is None or packing.rounds:
        return False
    if not 0 < x_RI.shape[0] <= MOST_ROWS or x_RI.dtype.name not in DTYPES:
        return False
    return plan(packing.steps, parts, outputs, x_RI.shape[1], aim) is not None


def plan(steps: Steps, parts: dict[str, Array], outputs: tuple[int, ...], inputs: int, aim: Target) -> Plan | None:
    """How a kernel goes about such rows; None if it cannot: blocks are powers of two, and groups not cut off."""
    count, group = math.prod(outputs), steps.group or inputs
    if steps.bits not in (2, 4, 8) or inputs * steps.bits % 8 or group * steps.bits % 8 or inputs % group:
        return None
    alike = all(part.shape[:-1] == outputs for part in parts.values())
    groups = {part.shape[-1] for name, part in parts.items() if name != "codes"}
    if not alike or groups != {inputs // group} or steps.group & (steps.group - 1):
        return None
    chunk = math.gcd(inputs * steps.bits // 8, 128 if aim.kind == "gpu" else 512)
    if count < LEAST or chunk < LEAST:
        return None
    return Plan(of_program(count, aim), chunk)


def of_program(count: int, aim: Target) -> int:
    """Outputs of a program: a power of two, which need not divide their number."""
    if aim.kind == "tpu":
        return min(128, 1 << count.bit_length() - 1)
    return max(LEAST, min(64, 1 << (count // PROGRAMS or 1).bit_length() - 1))
