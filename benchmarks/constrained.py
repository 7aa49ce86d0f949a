"""What a constraint costs a step: the whole step, free and constrained in turn, and the host's part alone; medians.

    python benchmarks/constrained.py [--model smollm2] [--layers 1] [--rounds 5] [--rows 1 8] [--json out.json]

Rows never end, so that every run makes the same number of tokens. With few of the model's layers, what a constraint
adds is not lost in the noise of the rest.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from table import alternately, machine, seconds, show

import forge_jax as forge
from forge_jax import text
from forge_jax.sampling import Matcher

NEW = 33
PEOPLE = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "born": {"type": "integer"}, "works": {"type": "array"}},
        "required": ["name", "born", "works"],
    },
}
PYTHON = 'start: (line "\\n"){1000,}\nline: NAME "(" sum ("," sum)* ")"\nsum: NUMBER ("+" NUMBER)*\n'
PYTHON += "NAME: /[a-z_]{3,12}/\nNUMBER: /[0-9]{1,6}/"
KINDS = {
    "free": None,
    "any text": forge.Constraint.regex("(?s:.*)"),
    "JSON schema": forge.Constraint.json(PEOPLE),
    "grammar": forge.Constraint.grammar(PYTHON),
}


def run(model: forge.Model, ids: list[int], rows: int, constraint: forge.Constraint | None) -> list[int]:
    """Make NEW tokens a row; gives those of the first."""
    sampling = forge.SamplingParams(temperature=0, constraint=constraint)
    options: dict[str, Any] = {"vocabulary": model.vocabulary, "programs": model.programs}
    session = forge.Session(model.spec, model.params, [ids] * rows, max_new_tokens=NEW, sampling=sampling, **options)
    session.advance()
    return session.ids()[0]


def masks(matcher: Matcher, made: list[int], words: int) -> None:
    """Ask for the mask of every place of a text."""
    for n in range(len(made)):
        matcher.allowed(np.array(made[:n], np.int32), words)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--layers", type=int, help="so many of the model's layers; all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=[1])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = forge.load(args.model, progress=False).model
    if args.layers:
        layers = {str(i): model.params["layers"][str(i)] for i in range(args.layers)}
        spec = replace(model.spec, layers=model.spec.layers[: args.layers])
        model = replace(model, spec=spec, params={**model.params, "layers": layers})
    ids = text.encode(model, [{"role": "user", "content": "List ten scientists with their works."}])
    vocabulary = model.vocabulary
    if vocabulary is None:
        raise ValueError(f"{args.model} has no tokenizer")
    once = [{"once": "vocabulary", "ms": 1e3 * seconds(lambda: vocabulary.tokenizer)[0]}]
    kinds = {name: constraint for name, constraint in KINDS.items() if constraint is not None}
    matchers = {}
    for name, constraint in kinds.items():
        spent, matchers[name] = seconds(lambda c=constraint: Matcher(c, vocabulary))
        once.append({"once": name, "ms": 1e3 * spent})
    words = -(-model.spec.logits // 32)
    made = {name: run(model, ids, 1, constraint) for name, constraint in kinds.items()}
    asking = {name: lambda name=name: masks(matchers[name], made[name], words) for name in kinds}
    host = {name: 1e6 * spent / NEW for name, spent in alternately(asking, args.rounds).items()}
    steps = []
    for rows in args.rows:
        runs = {name: lambda c=constraint, rows=rows: run(model, ids, rows, c) for name, constraint in KINDS.items()}
        spent = {name: 1e3 * whole / NEW for name, whole in alternately(runs, args.rounds).items()}
        for name, ms in spent.items():
            extra = ms - spent["free"]
            steps.append({"rows": rows, "text": name, "ms a step": ms, "more": extra, "mask, us": host.get(name, 0.0)})
    show(once, machine())
    show(steps, {})
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "once": once, "steps": steps}, indent=2))


if __name__ == "__main__":
    main()
