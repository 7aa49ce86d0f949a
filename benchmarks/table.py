"""What all benchmarks share: the clock, the machine, the table."""

import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

from forge_jax.machine import cores, processor


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time of a call, and what it gave."""
    start = time.perf_counter()
    out = function()
    return time.perf_counter() - start, out


def peak_mb() -> float:
    """Peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def alternately(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median wall time of each of several calls, which take turns; each is called once before."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run)[0])
    return {name: statistics.median(values) for name, values in times.items()}


def machine() -> dict[str, Any]:
    """What a figure depends on."""
    return {
        "processor": processor(),
        "cpus": cores(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "command": " ".join(sys.argv),
    }


def show(rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Print where it was measured, and a table, a row a measurement, without what is told of each of its rounds."""
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    rows = [{key: value for key, value in row.items() if key != "rounds"} for row in rows]
    names = list(rows[0])
    cells = [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    for line in (names, ["-" * w for w in widths], *cells):
        print("| " + " | ".join(text.rjust(w) for text, w in zip(line, widths, strict=True)) + " |")
