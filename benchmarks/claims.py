"""What is claimed of speed on a CPU: what was measured beside what was asked, claim after claim.

    python benchmarks/claims.py FILES --llama-python .venv-llama/bin/python --torchax-python .venv-torchax/bin/python
                                [--only Q8_0.gguf,start] [--json claims.json]

FILES holds SmolLM2 as each of `CHECKPOINTS`; without one of those asked for nothing is run:

    forge-jax convert smollm2 FILES/Q8_0.gguf --type Q8_0    (and all other .gguf but MXFP4, which no mix has:
    `forge.quantize(forge.load(F16).model, "MXFP4", outside="Q8_0")`, then `exporting.export_gguf` as "stored")
    forge-jax quantize smollm2 FILES/int4-g64 --scheme int4-g64 --to gptq --requantize --dtype float16
    forge-jax quantize smollm2 FILES/awq64 --scheme int4-g64-asym --to awq --requantize --dtype float16

Each part is one run of speed.py, or several: the same ids for every engine, in turns; a ratio is the median of those of
the turns. Two to seven minutes a checkpoint on two cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from side import Side
from speed import AFTER
from table import machine, show

SPEED = Path(__file__).parent / "speed.py"
TOKENS = ["--contexts", "32,1024", "--lengths", "512", "--steps", "32"]
GROWTH = ["--contexts", "32,1024,4096", "--lengths", "32,512,2048", "--batches", "1,8,32", "--rounds", "3"]
PROMPT, BATCH = 1.1, 4.0  # times as fast as llama.cpp; tokens of eight rows over those of one
Line = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A checkpoint.

    tokens: how many times as fast as llama.cpp they are to be. beside: what llama.cpp runs, if not the same file.
    whole: whether batches and numerics are part of the claim.
    """

    name: str
    tokens: float = 1.2
    engine: str = "forge-rounded"
    beside: str = ""
    whole: bool = False


CHECKPOINTS = (
    Kind("Q8_0.gguf", 1.8, whole=True),
    Kind("Q4_0.gguf", 1.5, whole=True),
    Kind("Q4_1.gguf", 2.0, whole=True),
    Kind("F16.gguf", 1.05, engine="forge-exact", whole=True),
    *(Kind(f"{name}.gguf") for name in ("Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_NL", "MXFP4")),
    Kind("int4-g64", beside="Q4_0.gguf"),
    Kind("awq64", beside="Q4_1.gguf"),  # which has zeros too
)


class Claims:
    """The parts of the list, each a method that gives its lines."""

    def __init__(self, files: Path, llama: Path, torchax: Path) -> None:
        self.files = files
        self.pythons = ["--llama-python", llama, "--torchax-python", torchax]
        self.parts: dict[str, Callable[[], list[Line]]] = {
            kind.name: partial(self.checkpoint, kind) for kind in CHECKPOINTS
        }
        others = self.transformers, self.peers, self.plain, self.start, self.growth
        self.parts |= {part.__name__: part for part in others}

    def speed(self, name: str, engines: str, rows: str, *flags: Any, **environment: str) -> dict[str, list[Line]]:
        """What one run of speed.py has told."""
        with tempfile.TemporaryDirectory() as folder:
            told = Path(folder) / "told.json"
            asked = ["--model", self.files / name, "--engines", engines, "--rows", rows, "--json", told]
            command = [str(each) for each in (sys.executable, SPEED, *asked, *self.pythons, *flags)]
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
            if done.returncode:
                raise SystemExit(done.stderr)
            answer = json.loads(told.read_text())
        if answer["errors"]:
            raise SystemExit(f"{name}: {answer['errors']}")
        return answer["tables"] | {"growth": answer["growth"]}

    def checkpoint(self, kind: Kind) -> list[Line]:
        """Beside llama.cpp: tokens, a prompt where it is the same file, eight rows beside one, the likeliest tokens."""
        engines, rows = f"{kind.engine},llama-stored", "decode" if kind.beside else "decode,prefill"
        flags = ["--llama-file", self.files / kind.beside] if kind.beside else []
        batches = ["--batches", "1,8"] if kind.whole else []
        tables = self.speed(kind.name, engines, rows + ",batch" * kind.whole, *TOKENS, *flags, *batches)
        out = beside(kind.name, tables, {"decode": kind.tokens, "prefill": PROMPT})
        if kind.whole:
            one, eight = (row for row in tables["batch"] if row["engine"] == kind.engine)
            ratios = [8 * a / b for a, b in zip(one["rounds"], eight["rounds"], strict=True)]
            out.append(line(f"{kind.name}: tokens of 8 rows, of one", BATCH, ratios, eight["ms"], one["ms"]))
            agreed = self.speed(kind.name, f"forge-float32,{engines}", "agree")["agree"]
            ours, theirs = (row["agree"] for row in agreed[1:])
            out.append(line(f"{kind.name}: likeliest token as in float32", theirs, [ours], ours, theirs))
        return out

    def transformers(self) -> list[Line]:
        """In the better of its dtypes."""
        engines = "forge-rounded,torch-float32,torch-bfloat16"
        tables = self.speed("Q8_0.gguf", engines, "decode,prefill", *TOKENS)
        return beside("Q8_0, transformers", tables, {"decode": 3.0, "prefill": 1.3})

    def peers(self) -> list[Line]:
        """torchax, in the better of its dtypes."""
        engines = "forge-rounded,torchax-float32,torchax-bfloat16"
        tables = self.speed("Q8_0.gguf", engines, "decode,prefill", *TOKENS)
        return beside("Q8_0, torchax", tables, {"decode": 1.0, "prefill": 1.0})

    def plain(self) -> list[Line]:
        """Without kernels, in float32."""
        engines = "forge-float32,torch-float32"
        tables = self.speed("Q8_0.gguf", engines, "decode,prefill", *TOKENS, FORGE_JAX_KERNELS="0")
        return beside("no kernels, transformers", tables, {"decode": 1.0, "prefill": 1.0})

    def start(self) -> list[Line]:
        """In turns: importing JAX, importing this package, and a process that finds its programs compiled."""
        imports = ["jax", "forge_jax", "forge_jax; forge_jax.load, forge_jax.Session"]
        ids = [np.random.default_rng(32).integers(10, 40_000, 32).tolist()]
        rounds: list[list[float]] = []
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(6):
                asked = [sys.executable, "forge_side.py", str(self.files / "Q8_0.gguf"), "rounded", Path(folder)]
                times = [importing(modules) for modules in imports]
                side = Side("forge-rounded", *asked)
                told = side.first(ids, AFTER)
                side.end()
                rounds.append([*times, times[0] + told["load"], told["import"] + told["load"] + told["begin"]])
        jax, lazy, whole, least, first = np.array(rounds[1:]).T  # the first finds nothing compiled
        pairs = {
            ("import forge_jax, at most so many import jax", 1.3): (lazy, jax),
            ("import forge_jax and load, at most so many import jax", 1.3): (whole, jax),
            ("first token, at most so many import jax + loading", 1.5): (first, least),
        }
        return [
            line(*asked, list(a / b), float(np.median(a)) * 1e3, float(np.median(b)) * 1e3, most=True)
            for asked, (a, b) in pairs.items()
        ]

    def growth(self) -> list[Line]:
        """No claim but the figures: how cost grows with the work."""
        tables = self.speed("Q4_0.gguf", "forge-rounded", "prefill,decode,batch", *GROWTH)
        for name, rows in tables.items():
            print(f"\n{name}")
            show(rows, {})
        return []


def importing(modules: str) -> float:
    """Seconds that a new process takes for it."""
    script = f"import time; start = time.perf_counter(); import {modules}; print(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)


def beside(what: str, tables: dict[str, list[Line]], asked: dict[str, float]) -> list[Line]:
    """A claim for each context and length: the first engine beside the fastest of the others."""
    out = []
    for table, wanted in asked.items():
        rows = tables.get(table, [])
        for work in dict.fromkeys((row.get("context"), row.get("prompt")) for row in rows):
            ours, *others = (row for row in rows if (row.get("context"), row.get("prompt")) == work)
            theirs = min(others, key=lambda row: row["ms"])
            ratios = [b / a for a, b in zip(ours["rounds"], theirs["rounds"], strict=True)]
            place = f"a token, {work[0]} before" if work[0] else f"a prompt of {work[1]}"
            out.append(line(f"{what}: {place}", wanted, ratios, ours["ms"], theirs["ms"]))
    return out


def line(claim: str, asked: float, ratios: list[float], ours: float, theirs: float, most: bool = False) -> Line:
    """A claim: the median of ratios, which must reach what was asked, or stay below it."""
    found = statistics.median(ratios)
    holds = "yes" if (found <= asked if most else found >= asked) else "no"
    return {"claim": claim, "here": ours, "there": theirs, "asked": asked, "measured": found, "holds": holds}


def main() -> None:
    """Go down the list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path)
    parser.add_argument("--llama-python", type=Path, required=True)
    parser.add_argument("--torchax-python", type=Path, required=True)
    parser.add_argument("--only", help="parts, with commas between; all without")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or every start would compile the sources of this package again
    claims = Claims(args.files, args.llama_python, args.torchax_python)
    wanted = args.only.split(",") if args.only else list(claims.parts)
    if unknown := set(wanted) - set(claims.parts):
        parser.error(f"unknown parts {sorted(unknown)}; expected some of {', '.join(claims.parts)}")
    chosen = [kind for kind in CHECKPOINTS if kind.name in wanted]
    files = {each for kind in chosen for each in (kind.name, kind.beside) if each}
    files |= {"Q8_0.gguf", "Q4_0.gguf"} if len(chosen) < len(wanted) else set()  # which the other parts take
    if missing := sorted(each for each in files if not (args.files / each).exists()):
        parser.error(f"{args.files} has no {', '.join(missing)}; the commands at the top of this list make them")
    lines: list[Line] = []
    for name in wanted:
        start = time.perf_counter()
        found = claims.parts[name]()
        lines += found
        for each in found:
            print(f"{each['claim']}: {each['measured']:.2f} of {each['asked']:.2f}", flush=True)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        if args.json:
            args.json.write_text(json.dumps({"machine": machine(), "claims": lines}, indent=1))
    show(lines, machine())


if __name__ == "__main__":
    main()
