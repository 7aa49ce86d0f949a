"""Speculative decoding beside plain steps on the same model and prompts, in one run, pairwise, medians.

    python benchmarks/speculation.py [--model smollm2] [--rounds 5] [--new 128] [--tokens 8] [--cache int8]
                                     [--json out.json]

Greedy, batch 1, float32 weights, prompt lookup. Every round runs each prompt plainly and with drafts and checks that
both give the same ids. The first prompts repeat their text (an edit, a summary by extracts, code); the last do not.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from table import machine, seconds, show

import forge_jax as forge
from forge_jax import text

PASSAGE = (
    "The lighthouse at Cape Wrath was built in 1828 by Robert Stevenson and was manned until 1998, when it was "
    "converted to automatic operation by the Northern Lighthouse Board. The light can be seen from 22 nautical miles "
    "away. A ferry crosses the Kyle of Durness in summer, and a minibus runs eleven miles along a rough track from the "
    "ferry to the lighthouse. Most of the land around the cape is used by the navy as a range, so the road is closed "
    "on some days of the year. Visitors should bring warm clothes, food and water, as there is no shop."
)
CODE = """class Account:
    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        self.balance = self.balance + amount
        return self.balance

    def withdraw(self, amount):
        if amount > self.balance:
            raise ValueError("not enough money")
        self.balance = self.balance - amount
        return self.balance
"""
PROMPTS = {
    "edit": f"Original text:\n{PASSAGE}\n\nThe same text, copied without any change:\nThe lighthouse at Cape Wrath",
    "summary": f"{PASSAGE}\n\nThe most important sentences, quoted from the text above:\n1. The lighthouse at",
    "code": f"# account.py\n{CODE}\n\n# account_copy.py, the same class again\nclass Account:\n    def __init__(self,",
    "story": "Once upon a time, in a village between two rivers, there lived a clockmaker who",
    "essay": "Write about why people travel. People travel for many reasons. Some",
}


def main() -> None:
    """Run, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--shortest", type=int, default=3)
    parser.add_argument("--cache", help="what the cache is kept in: int8, bfloat16, ...")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = forge.load(options.model, packed=False, progress=False).model
    lookup = forge.Lookup(tokens=options.tokens, shortest=options.shortest)

    def run(ids: list[int], draft: Any) -> tuple[float, forge.Session]:
        asked = {"max_new_tokens": options.new, "draft": draft, "cache_dtype": options.cache}
        session = forge.Session(model.spec, model.params, [ids], **asked)
        taken, _ = seconds(session.advance)
        return taken, session

    rows = []
    for name, prompt in PROMPTS.items():
        ids = text.encode(model, prompt)
        run(ids, None), run(ids, lookup)  # compiles
        times = []
        for _ in range(options.rounds):
            plain, one = run(ids, None)
            drafted, other = run(ids, lookup)
            times.append((plain, drafted))
            if one.ids() != other.ids():
                raise SystemExit(f"{name}: the drafted text differs from the plain one")
        report = other.speculation
        rows.append(
            {
                "prompt": name,
                "tokens": len(ids),
                "plain tok/s": options.new / statistics.median(p for p, _ in times),
                "lookup tok/s": options.new / statistics.median(d for _, d in times),
                "times as fast": statistics.median(p / d for p, d in times),
                "accepted": f"{report.acceptance:.0%}",
                "tokens a pass": (options.new - 1) / report.passes,
                "on": report.on,
            }
        )
        print(rows[-1], flush=True)
    about = machine() | {
        "new tokens": options.new,
        "drafts a round": options.tokens,
        "cache": options.cache or "float32",
    }
    show(rows, about)
    if options.json:
        options.json.write_text(json.dumps({"machine": about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
