"""Prefill and decode beside transformers on the same checkpoint, in one run, pairwise, medians.

    python benchmarks/generate.py [--model smollm2] [--rounds 5] [--json out.json]

Both run in float32 on the same weights and ids, with the threads that each takes by default. `ceiling` is the time of
the bare matrix products of the same tokens (benchmarks/ceiling.py). Needs torch and transformers beside forge-jax.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import jax
import numpy as np
from ceiling import products
from table import machine, peak_mb, seconds, show

import forge_jax as forge
from forge_jax.exporting import export_huggingface


class ForgeSide:
    """forge-jax under test."""

    def __init__(self, name: str) -> None:
        before = peak_mb()
        self.load_seconds, self.model = seconds(lambda: forge.load(name, dtype="float32", progress=False))
        self.load_peak_mb = peak_mb() - before
        spec, params = self.model.spec, self.model.params
        self.bare = jax.jit(products, static_argnames=("spec", "rows"))
        self.ceiling = lambda rows, steps: self.bare(spec, params, rows, np.int32(steps)).block_until_ready()

    def session(self, ids: list[int], new: int) -> forge.Session:
        """Prefill and the first token."""
        return forge.Session(self.model.spec, self.model.params, [ids], max_new_tokens=new)


class TorchSide:
    """transformers, eager, with its own cache."""

    def __init__(self, directory: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.torch = torch
        load = lambda: AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()  # noqa: E731
        self.load_seconds, self.model = seconds(load)

    def prefill(self, ids: list[int]) -> tuple[Any, Any]:
        """The next id and the cache; logits of the last position only."""
        with self.torch.no_grad():
            out = self.model(input_ids=self.torch.tensor([ids]), use_cache=True, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values

    def decode(self, token: Any, cache: Any, count: int) -> list[int]:
        """Greedy tokens after a prefill."""
        made = [int(token)]
        with self.torch.no_grad():
            for _ in range(count - 1):
                out = self.model(input_ids=token, past_key_values=cache, use_cache=True)
                token, cache = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
                made.append(int(token))
        return made


def measure(ours: ForgeSide, theirs: TorchSide, length: int, new: int, rounds: int) -> dict[str, Any]:
    """One row: `length` tokens of prompt, `new` of output; each round runs both sides and both ceilings."""
    ids = np.random.default_rng(length).integers(10, ours.model.spec.vocab_size - 10, length).tolist()

    def forge_run() -> tuple[float, float, list[int]]:
        prefill, session = seconds(lambda: ours.session(ids, new))
        decode, _ = seconds(session.advance)
        return prefill, decode, session.ids()[0]

    def torch_run() -> tuple[float, float, list[int]]:
        prefill, (token, cache) = seconds(lambda: theirs.prefill(ids))
        decode, made = seconds(lambda: theirs.decode(token, cache, new))
        return prefill, decode, made

    cold, _ = seconds(forge_run)
    torch_run()
    ours.ceiling(length, 1), ours.ceiling(1, 1)
    rows = []
    for _ in range(rounds):
        p, d, made = forge_run()
        tp, td, reference = torch_run()
        cp, _ = seconds(lambda: ours.ceiling(length, 1))
        cd, _ = seconds(lambda: ours.ceiling(1, new - 1))
        rows.append((p, d, tp, td, cp, cd))
    agree = next((i for i, (a, b) in enumerate(zip(made, reference, strict=True)) if a != b), new)

    def middle(column: int) -> float:
        return statistics.median(row[column] for row in rows)

    def ratio(a: int, b: int) -> float:
        return statistics.median(row[a] / row[b] for row in rows)

    return {
        "prompt": length,
        "new": new,
        "prefill tok/s": length / middle(0),
        "transformers prefill tok/s": length / middle(2),
        "prefill x transformers": ratio(2, 0),
        "prefill / ceiling": ratio(4, 0),
        "decode tok/s": (new - 1) / middle(1),
        "transformers decode tok/s": (new - 1) / middle(3),
        "decode x transformers": ratio(3, 1),
        "decode / ceiling": ratio(5, 1),
        "compile s": cold - middle(0) - middle(1),
        "equal ids": agree,
    }


def main() -> None:
    """Run, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--prompts", type=int, nargs="+", default=[32, 512])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ours = ForgeSide(options.model)
    with tempfile.TemporaryDirectory() as folder:
        theirs = TorchSide(export_huggingface(ours.model.model, Path(folder) / "model", dtype="float32"))
    import transformers

    about = machine() | {
        "torch": theirs.torch.__version__,
        "transformers": transformers.__version__,
        "torch threads": theirs.torch.get_num_threads(),
    }
    rows = [measure(ours, theirs, length, options.new, options.rounds) for length in options.prompts]
    print(ours.model)
    show(rows, about)
    print(
        f"load: forge-jax {ours.load_seconds:.2f} s (peak memory + {ours.load_peak_mb:.0f} MB), "
        f"transformers {theirs.load_seconds:.2f} s from its own format; peak memory of the whole run {peak_mb():.0f} MB"
    )
    if options.json:
        options.json.write_text(json.dumps({"machine": about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
