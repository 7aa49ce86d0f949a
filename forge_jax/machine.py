"""What this machine is: its processor, its memory, its accelerators. Read from the system, measured by nobody.

What it can do at most is measured in `forge_jax.limits`. Numbers that the system does not tell are None.
"""

import ctypes
import os
import platform
import sys
from pathlib import Path

INSTRUCTIONS = (
    "avx avx2 fma f16c avx512f avx512bw avx512vl avx512_vnni avx_vnni avx512_bf16 avx512_fp16 amx_tile amx_int8 "
    "amx_bf16 asimd asimdhp asimddp bf16 i8mm sve sve2"
).split()
"""Those that matrix products are made of, as Linux names them."""


def described() -> dict[str, str]:
    """The first processor as Linux describes it; empty where there is no /proc/cpuinfo."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = file.read(8192).split("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def processor() -> str:
    """The name of the processor, as far as the system tells it."""
    return described().get("model name") or platform.processor() or platform.machine()


def features() -> list[str]:
    """The sets of instructions that the processor has, sorted; empty where the system does not tell."""
    facts = described()
    return sorted(facts.get("flags", facts.get("Features", "")).split())


def kind() -> str:
    """What tells processors apart that need programs of their own."""
    part = described().get("CPU part", "")  # of ARM, which gives no name
    return " ".join(filter(None, (platform.machine(), processor(), part, *features())))


def cores() -> int:
    """The cores that this process may run on: those of its affinity mask where there is one."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def memory() -> tuple[int | None, int | None]:
    """Bytes of memory of the machine and those of them that are free; of the container where it has a smaller limit."""
    if sys.platform == "win32":
        return _windows_memory()
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = _meminfo("MemAvailable")
    limit, used = (_number(Path("/sys/fs/cgroup", name)) for name in ("memory.max", "memory.current"))
    if limit is None or limit >= total:
        return total, free
    left = limit - (used or 0)
    return limit, left if free is None else min(free, left)


def _meminfo(name: str) -> int | None:
    """A line of /proc/meminfo in bytes."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), None)


def _number(path: Path) -> int | None:
    """The number in a file of the system; None if there is no such file or it says "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _windows_memory() -> tuple[int | None, int | None]:
    """`memory` from GlobalMemoryStatusEx."""

    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            *((name, ctypes.c_uint64) for name in ("total", "free", "a", "b", "c", "d", "e")),
        )

    status = Status(length=ctypes.sizeof(Status))
    if not ctypes.WinDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(status)):  # type: ignore[attr-defined]
        return None, None
    return status.total, status.free
