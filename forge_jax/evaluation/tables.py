"""Evaluations for people: aligned tables, a row a model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forge_jax.evaluation.figures import Comparison, Evaluation

PERPLEXITY = ("perplexity", "nats/token", "bits/byte")
DIVERGENCE = ("nats/token", "median", "90 %", "95 %", "99 %", "99.9 %", "max")
DIFFERENCE = ("ln(PPL ratio)", "PPL ratio", "correlation", "same top-1 %", "mean dp %", "RMS dp %")


def table(evaluations: Sequence["Evaluation"]) -> str:
    """Evaluations on one text: what was scored and how, how well each model did, how far each is from the reference."""
    first = evaluations[0]
    how = "second halves of windows, as llama.cpp" if first.stride is None else f"every token, stride {first.stride}"
    lines = [f"{first.tokens:,} tokens scored in {first.windows:,} windows of {first.context} ({how})"]
    compared = [(each.name, each.comparison) for each in evaluations if each.comparison is not None]
    reference = [c for _, c in compared[:1]]
    rows = [(f"{c.name} (reference)", *perplexity(c)) for c in reference]
    rows += [(each.name, *perplexity(each)) for each in evaluations]
    lines += ["", *aligned([("model", *PERPLEXITY), *rows])]
    if reference:
        name = reference[0].name
        lines += ["", *aligned([(f"KL from {name}", *DIVERGENCE), *((n, *divergence(c)) for n, c in compared)])]
        lines += ["", *aligned([(f"beside {name}", *DIFFERENCE), *((n, *difference(c)) for n, c in compared)])]
    return "\n".join(lines)


def perplexity(of: "Evaluation | Comparison") -> tuple[str, ...]:
    """How well a model did; of a comparison, the reference."""
    return str(of.perplexity), str(of.nll), "-" if of.bits_per_byte is None else str(of.bits_per_byte)


def divergence(of: "Comparison") -> tuple[str, ...]:
    """How far its distributions are from the reference's."""
    return f"{of.divergence:.6f}", *(f"{value:.5f}" for value in of.divergence_percentiles.values())


def difference(of: "Comparison") -> tuple[str, ...]:
    """What else tells it from the reference."""
    correlation = "-" if of.correlation is None else f"{of.correlation:.5f}"
    probabilities = (f"{of.same_top1:.2f}", f"{of.mean_dp:.3f}", f"{of.rms_dp:.3f}")
    return f"{of.log_ratio:.5f}", f"{of.ratio:.5f}", correlation, *probabilities


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns: names to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<", *[">"] * (len(widths) - 1)]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)) for row in rows
    ]
