"""forge-jax beside other engines on the same checkpoint and prompts, in turns, each beside what the machine allows.

    python benchmarks/speed.py [--rows start,prefill,decode,batch,agree]
                               [--engines forge-float32,forge-stored,torch-float32]
                               [--llama-python .venv-llama/bin/python [--llama-file FILE.gguf]]
                               [--torchax-python .venv-torchax/bin/python] [--rounds 5] [--json out.json]

Engines: forge-DTYPE, forge-stored (packed as the file has it), forge-exact and forge-rounded (kernels for that),
forge-SCHEME (any of `forge.quantize`), torch-DTYPE, torch-DTYPE+compile, torchax-DTYPE (the model of transformers as
programs of JAX; its interpreter needs torchax), llama-stored (llama.cpp; its interpreter needs llama-cpp-python). Each
runs in its own process.
`agree`: at how many places of a text each holds the token for the likeliest that the first engine does.
`limit`: the least time that the bytes to be read, or the operations, take on this machine; `of it`: the part reached.
docs/performance.md says how to repeat a table.
"""

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from growth import fitted
from side import Side, sides
from table import machine, show

from forge_jax.exporting import export_huggingface
from forge_jax.limits import Limits, measured
from forge_jax.loading import load
from forge_jax.params import count
from forge_jax.spec import ModelSpec

LENGTHS, CONTEXTS, BATCHES = (32, 512, 2048), (32, 1024, 4096), (1, 8, 32)
AFTER = 256  # tokens that sessions have room for
ROWS = ("start", "prefill", "decode", "batch", "agree")
TEXT = Path(__file__).parent.parent / "README.md"
PLACES, BEFORE = 200, 32  # of the text at which engines say what comes next, and the tokens that they know of there


class Bench:
    """The engines that run, and what they are measured against."""

    def __init__(
        self, running: list[Side], spec: ModelSpec, text: list[int], limits: Limits, args: argparse.Namespace
    ) -> None:
        self.running, self.spec, self.text, self.limits, self.args = running, spec, text, limits, args

    def prompts(self, length: int, batch: int = 1) -> list[list[int]]:
        """Random ids, the same for every engine."""
        return np.random.default_rng(length).integers(10, self.spec.vocab_size - 10, (batch, length)).tolist()

    def operations(self, tokens: int) -> float:
        """Of the matrix products of a row of so many tokens, the head for the last one only."""
        table = self.spec.vocab_size * self.spec.dim
        body = count(self.spec) - table * (1 if self.spec.tied else 2)
        return 2.0 * (body * tokens + table)

    def in_turns(self, once: Any) -> dict[Side, list[float]]:
        """Seconds of `once(side)` by engine, which take turns; each is called once before. An error ends an engine."""
        times: dict[Side, list[float]] = {side: [] for side in self.running if once(side) is not None}
        for _ in range(self.args.rounds):
            for side, found in times.items():
                seconds = once(side)
                found += [] if seconds is None else [seconds]
        return {side: found for side, found in times.items() if found}

    def row(self, side: Side, what: dict[str, Any], times: list[float], tokens: int, limit: float) -> dict[str, Any]:
        """One line of a table, and what each round took."""
        seconds = statistics.median(times)
        reached = {"ms": seconds * 1e3, "tok/s": tokens / seconds, "limit ms": limit * 1e3, "of it": limit / seconds}
        return {"engine": side.name} | what | reached | {"rounds": times}

    def prefill(self) -> list[dict[str, Any]]:
        """A prompt of each length, one row."""
        rows = []
        for length in self.args.lengths:
            ids = self.prompts(length)
            for side, times in self.in_turns(lambda side, ids=ids: side.ask("begin", rows=ids, room=AFTER)).items():
                limit = self.limits.seconds(side.facts()["weights"], self.operations(length), side.computes_in)
                rows.append(self.row(side, {"prompt": length}, times, length, limit))
        return rows

    def decode(self) -> list[dict[str, Any]]:
        """A token at each context, one row."""
        return [row for context in self.args.contexts for row in self.decoding(context, 1)]

    def batch(self) -> list[dict[str, Any]]:
        """A token of batches of each size, at the first context."""
        return [row for batch in self.args.batches for row in self.decoding(self.args.contexts[0], batch)]

    def decoding(self, context: int, batch: int) -> list[dict[str, Any]]:
        """`--steps` tokens of each row in one go, after prompts of one length."""
        steps, rows = self.args.steps, []
        room = steps * (self.args.rounds + 2)
        able = [s for s in self.running if s.ask("begin", rows=self.prompts(context, batch), room=room) is not None]
        before, self.running = self.running, able
        for side, times in self.in_turns(lambda side: side.ask("go on", count=steps)).items():
            facts = side.facts()
            read = facts["weights"] + batch * context * facts["cache"]
            limit = self.limits.seconds(read, self.operations(1) * batch, side.computes_in)
            what = {"context": context, "batch": batch}
            row = self.row(side, what, [seconds / steps for seconds in times], batch, limit)
            rows.append(row | {"peak MB": facts["peak"] / 1e6})
        self.running = before
        return rows

    def agree(self) -> list[dict[str, Any]]:
        """The share of places of a text where an engine and the first engine hold the same token for the likeliest."""
        starts = np.linspace(0, len(self.text) - BEFORE, PLACES).astype(int)
        told: dict[str, list[int]] = {side.name: [] for side in self.running}
        for side in self.running:
            for at in starts:
                told[side.name] += side.tell("begin", rows=[self.text[at : at + BEFORE]], room=AFTER).get("given", [])
        first = next(iter(told.values()))
        if len(first) < PLACES:  # its error is told; there is nothing to compare the others with
            return []
        return [
            {"engine": name, "places": len(said), "agree": sum(a == b for a, b in zip(said, first, strict=True))}
            for name, said in told.items()
            if len(said) == PLACES
        ]

    def start(self, again: list[Side]) -> list[dict[str, Any]]:
        """From nothing to the first token and the second, cold and warm; `again` are processes started afterwards."""
        cold, rows = {side.name: side.first(self.prompts(32), AFTER) for side in self.running}, []
        for side in again:
            warm = side.first(self.prompts(32), AFTER)
            if not warm or not cold[side.name]:
                continue
            first = {
                name: told["import"] + told["load"] + told["begin"]
                for name, told in (("cold", cold[side.name]), ("warm", warm))
            }
            second = self.in_seconds(side)
            compiling = cold[side.name]["begin"] + cold[side.name]["go on"] - second
            rows.append(
                {"engine": side.name, "import s": warm["import"], "load s": warm["load"]}
                | {f"first token {name} s": seconds for name, seconds in first.items()}
                | {"compiling s": compiling, "peak MB": side.facts()["peak"] / 1e6}
            )
        return rows

    def in_seconds(self, side: Side) -> float:
        """What `first` takes of prompt and token when all is compiled."""
        return (side.ask("begin", rows=self.prompts(32), room=AFTER) or 0.0) + (side.ask("go on", count=1) or 0.0)


def main() -> None:
    """Run the rows that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    split = lambda text: text.split(",")  # noqa: E731
    numbers = lambda text: [int(number) for number in text.split(",")]  # noqa: E731
    parser.add_argument("--model", default="smollm2", help="a GGUF file, if llama.cpp is to run it")
    parser.add_argument("--engines", type=split, default=["forge-float32", "forge-stored", "torch-float32"])
    parser.add_argument("--rows", type=split, default=list(ROWS), help=f"of {','.join(ROWS)}")
    parser.add_argument("--lengths", type=numbers, default=LENGTHS)
    parser.add_argument("--contexts", type=numbers, default=CONTEXTS)
    parser.add_argument("--batches", type=numbers, default=BATCHES)
    parser.add_argument("--steps", type=int, default=16, help="tokens of a timed call")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--llama-python", type=Path, help="an interpreter that has llama-cpp-python")
    parser.add_argument("--llama-file", type=Path, help="what llama.cpp runs, if not the file of --model")
    parser.add_argument("--torchax-python", type=Path, help="an interpreter that has torchax and transformers")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if unknown := set(args.rows) - set(ROWS):
        parser.error(f"unknown rows {sorted(unknown)}; expected some of {', '.join(ROWS)}")
    others = {"llama": args.llama_python, "torchax": args.torchax_python}
    kinds = {"forge", "torch"} | {kind for kind, python in others.items() if python}
    if unknown := [name for name in args.engines if name.partition("-")[0] not in kinds]:
        expected = "forge-, torch-, llama- or torchax-WEIGHTS, llama and torchax with --llama-python, --torchax-python"
        parser.error(f"unknown engines {unknown}; expected {expected}")
    limits, tables = measured(), {}
    about = machine() | {"copy GB/s": limits.copy / 1e9} | {f"{k} GFLOP/s": v / 1e9 for k, v in limits.products.items()}
    with tempfile.TemporaryDirectory() as folder:
        model = load(args.model, dtype="float32", progress=False)
        spec, path = model.spec, str(model.path)
        text = model.tokenizer.encode(TEXT.read_text()) if model.tokenizer else []
        if any(name.startswith("torch") for name in args.engines):
            export_huggingface(model, Path(folder) / "hf", dtype="float32")
        del model
        running = sides(args, path, Path(folder))
        bench = Bench(running, spec, text, limits, args)
        for side in running:
            about |= side.importing.get("versions", {})
        if "start" in args.rows:
            again = sides(args, path, Path(folder))
            tables["start"] = bench.start(again)
            for side in again:
                side.end()
        for side in running:
            if side.ask("load") is None:
                print(f"{side.name}: {side.error}", file=sys.stderr)
        bench.running = [side for side in running if side.loaded]
        for name in ROWS[1:]:
            if name in args.rows:
                tables[name] = getattr(bench, name)()
        for side in running:
            side.end()
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    for name, rows in tables.items():
        print(f"\n{name}")
        if rows:
            show(rows, {})
    grown = fitted(tables)
    if grown:
        print("\ngrowth")
        show(grown, {})
    errors = {side.name: side.error for side in running if side.error}
    for name, error in errors.items():
        print(f"{name}: {error}")
    if args.json:
        told = {"machine": about, "limits": asdict(limits), "tables": tables, "growth": grown, "errors": errors}
        args.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
