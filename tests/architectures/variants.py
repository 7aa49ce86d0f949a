"""All variants, from every `variants_*.py` beside this file."""

import importlib
from pathlib import Path
from typing import Any

VARIANTS: dict[str, dict[str, Any]] = {}
for path in sorted(Path(__file__).parent.glob("variants_*.py")):
    for name, config in importlib.import_module(path.stem).VARIANTS.items():
        if name in VARIANTS:
            raise ValueError(f"{path}: the variant {name!r} stands in another file too")
        VARIANTS[name] = config
