"""An engine in a process of its own, seen from the benchmark: questions in, seconds out (engines/protocol.py)."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from forge_jax.machine import cores

ENGINES = Path(__file__).parent / "engines"


class Side:
    """One engine with one kind of weights."""

    def __init__(self, name: str, python: str, script: str, path: str, weights: str, cache: Path) -> None:
        self.name, self.error, self.loaded = name, "", False
        half = weights.partition("+")[0] == "bfloat16"
        self.computes_in = "bfloat16" if half else "float32"
        root = str(ENGINES.parent.parent)
        threads = {name: str(cores()) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        own = {"FORGE_JAX_CACHE": str(cache), "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}
        own |= {"TRANSFORMERS_VERBOSITY": "error"}
        self.process = subprocess.Popen(
            [python, str(ENGINES / script), path, weights],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | threads | own,
        )
        self.importing = self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line; an error is remembered."""
        line = self.process.stdout.readline() if self.process.stdout else ""
        told = json.loads(line) if line else {"error": f"the process ended ({self.process.wait()})"}
        self.error = told.get("error", self.error)
        return told

    def ask(self, what: str, **more: Any) -> float | None:
        """The seconds that a question took; None after an error."""
        if what == "load" and self.loaded:
            return 0.0
        told = self.tell(what, **more)
        self.loaded |= what == "load" and "error" not in told
        return None if "error" in told else told["seconds"]

    def tell(self, what: str, **more: Any) -> dict[str, Any]:
        """The whole answer."""
        if self.process.stdin is None or self.process.poll() is not None:
            return {"error": self.error or "the process ended"}
        print(json.dumps({"do": what} | more), file=self.process.stdin, flush=True)
        return self.answer()

    def facts(self) -> dict[str, Any]:
        """What the engine says of itself."""
        return self.tell("facts")["given"]

    def first(self, rows: list[list[int]], room: int) -> dict[str, float]:
        """Seconds of importing, loading, a prompt, and a token after it; empty after an error."""
        told = {
            "import": self.importing.get("seconds"),
            "load": self.ask("load"),
            "begin": self.ask("begin", rows=rows, room=room),
            "go on": self.ask("go on", count=1),
        }
        found = {name: seconds for name, seconds in told.items() if seconds is not None}
        return found if len(found) == len(told) else {}

    def end(self) -> None:
        """Stop the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def sides(args: argparse.Namespace, path: str, folder: Path) -> list[Side]:
    """Start the engines that were asked for; they share a new folder of compiled programs."""
    out = []
    for name in args.engines:
        kind, _, weights = name.partition("-")
        match kind:
            case "forge":
                out.append(Side(name, sys.executable, "forge_side.py", path, weights, folder / "cache"))
            case "torch":
                out.append(Side(name, sys.executable, "torch_side.py", str(folder / "hf"), weights, folder / "cache"))
            case "torchax":
                python, cache = str(args.torchax_python), folder / "cache"
                out.append(Side(name, python, "torchax_side.py", str(folder / "hf"), weights, cache))
            case _:
                python, file = str(args.llama_python), str(args.llama_file or path)
                out.append(Side(name, python, "llama_side.py", file, weights, folder / "cache"))
    return out
