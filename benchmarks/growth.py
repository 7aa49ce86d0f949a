"""How cost grows with the work: lines through a table's figures, for each engine."""

from typing import Any

import numpy as np

GROWTHS = (
    ("prefill", "prompt", "ms", "ms a token of prompt"),
    ("decode", "context", "ms", "ms a token of context"),
    ("batch", "batch", "peak MB", "MB a row"),
    ("batch", "batch", "ms", "ms a row"),
)


def fitted(tables: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """For each table and engine with two figures or more: slope and start of a line, and the power that fits best.

    A power of 1 is a cost in proportion to the work, 0 one that does not depend on it, 2 its square.
    """
    out = []
    for table, across, up, unit in GROWTHS:
        rows = tables.get(table, [])
        for engine in dict.fromkeys(row["engine"] for row in rows):
            x, y = np.array([(row[across], row[up]) for row in rows if row["engine"] == engine], float).T
            if len(x) < 2:
                continue
            slope, start = np.polyfit(x, y, 1)
            power = np.polyfit(np.log(x), np.log(y), 1)[0]
            out.append(
                {"engine": engine, "slope": float(slope), "unit": unit, "at none": float(start), "power": float(power)}
            )
    return out
