"""What an engine under measurement answers, a line of JSON a question. Needs nothing but Python, so any interpreter.

Each engine has a process of its own, so that threads, memory and imports of one are not those of another. Times are
taken inside, around the work alone.
"""

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol


class Engine(Protocol):
    """A model that reads prompts and makes greedy tokens."""

    def begin(self, rows: Sequence[Sequence[int]], room: int) -> list[int]:
        """Read prompts of equal length, with room for so many tokens after them; the first new id of every row."""
        ...

    def go_on(self, count: int) -> None:
        """Make `count` more tokens of every row, and wait for them."""
        ...

    def facts(self) -> dict[str, Any]:
        """`weights`: bytes that a token reads of them; `cache`: bytes that it reads of the cache, a token and row."""
        ...


def serve(packages: Sequence[str], imports: Callable[[], Any], load: Callable[[Any, str, str], Engine]) -> None:
    """Answer until the questions end.

    Args:
        packages: modules among them whose versions are told.
        imports: import what the engine needs; its time is told.
        load: what was imported, the file or folder, and how to hold the weights, to the engine.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever an engine prints is no answer
    engine: list[Engine] = []

    def work(question: dict[str, Any]) -> Any:
        match question["do"]:
            case "load":
                engine.append(load(imported, *sys.argv[1:3]))
                return None
            case "begin":
                forget_peak()
                return engine[0].begin(question["rows"], question["room"])
            case "go on":
                return engine[0].go_on(question["count"])
        return engine[0].facts() | {"peak": peak()}

    start = time.perf_counter()
    imported = imports()
    seconds, versions = time.perf_counter() - start, {name: sys.modules[name].__version__ for name in packages}
    print(json.dumps({"seconds": seconds, "versions": versions}), file=answers, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        try:
            answer: dict[str, Any] = {"given": work(json.loads(line))}
        except Exception as error:  # told, not raised: the other engines go on
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        print(json.dumps(answer | {"seconds": time.perf_counter() - start}), file=answers, flush=True)


def forget_peak() -> None:
    """Count the peak of memory from here, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """The most bytes of memory that this process has held, since `forget_peak` on Linux."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
