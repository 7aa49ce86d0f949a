"""docs/architectures.md is of this tree: every architecture is in it, with figures that hold."""

import re
from pathlib import Path

import pytest
from test_parity import TOLERANCE

import forge_jax as forge

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
if not PAGE.exists():
    pytest.skip("docs/architectures.md is not written yet: run tests/architectures/report.py", allow_module_level=True)
TEXT = PAGE.read_text()
ROWS = {
    cells[0].strip("`"): cells
    for row in TEXT.splitlines()
    if row.startswith("| `") and (cells := [cell.strip() for cell in row.strip("|").split("|")])
}


def test_every_architecture_has_a_row() -> None:
    known = forge.architectures()
    assert set(ROWS) == {kind for kind, facts in known.items() if facts.text_of is None} - {"forge"}
    for kind, facts in known.items():
        if facts.text_of:
            assert f"`{kind}`: `{facts.text_of}`" in TEXT
        elif kind != "forge":
            assert ROWS[kind][1] == facts.family
            assert ROWS[kind][8] == (", ".join(facts.gguf) or "-")
            assert len(facts.summary) > 20


@pytest.mark.parametrize("kind", sorted(ROWS))
def test_figures_hold(kind: str) -> None:
    _, _, _, goldens, parity, round_trip, sharded, *_ = ROWS[kind]
    assert int(goldens) >= 1
    assert float(parity) <= TOLERANCE
    assert round_trip == "exact"
    assert float(sharded) <= 1e-5
    assert re.fullmatch(r"\d+", goldens)
