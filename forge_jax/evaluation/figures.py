"""What is made of the scores of many tokens: means with their standard errors, and tables of them. Sums in float64."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9, 100.0)


class Estimate(NamedTuple):
    """A figure and its standard error."""

    value: float
    error: float

    def times(self, factor: float) -> "Estimate":
        """In another unit."""
        return Estimate(self.value * factor, self.error * abs(factor))

    def exp(self) -> "Estimate":
        """The exponential, its error to first order."""
        value = float(np.exp(self.value))
        return Estimate(value, value * self.error)


@dataclass(frozen=True)
class Comparison:
    """How far a model is from a reference on the same tokens.

    nll, perplexity: the reference's. divergence: mean KL divergence of a token's whole distribution (reference ||
    model) in nats; divergence_percentiles: {50.0: the median, ..., 100.0: the largest}. same_top1: per cent of places
    where both find the same token most probable. mean_dp, rms_dp: mean and root mean square of how much more probable
    than the reference the model finds the right token, in percentage points. log_ratio, ratio: of the perplexities,
    model to reference; the error is that of the mean difference token by token, so what both find hard does not count.
    correlation: of the two models' negative log-likelihoods, -1 to 1; None where one of them does not vary.
    """

    name: str
    nll: Estimate
    perplexity: Estimate
    divergence: Estimate
    divergence_percentiles: Mapping[float, float]
    same_top1: Estimate
    mean_dp: Estimate
    rms_dp: Estimate
    log_ratio: Estimate
    ratio: Estimate
    correlation: float | None


@dataclass(frozen=True)
class Evaluation:
    """What a text showed of a model.

    tokens: how many were scored, in `windows` windows of `context` tokens. stride: None where second halves of windows
    were scored, else every token. nll: mean negative log-likelihood of a token in nats; perplexity: its exponential.
    bits_per_byte: of the bytes that the scored tokens stand for; None where the text was given as ids. seconds: of
    wall time, compiling included.
    """

    name: str
    tokens: int
    windows: int
    context: int
    stride: int | None
    nll: Estimate
    perplexity: Estimate
    bits_per_byte: Estimate | None
    comparison: Comparison | None
    seconds: float

    def table(self) -> str:
        """The figures for people; as `forge_jax.evaluation.table` of this one alone."""
        return table([self])

    def to_dict(self) -> dict[str, Any]:
        """The figures for machines: plain numbers, an estimate as {"value", "error"}."""
        return plain(self)


def plain(figure: Any) -> Any:
    """Figures as JSON has them."""
    match figure:
        case Estimate(value, error):
            return {"value": value, "error": error}
        case Mapping():
            return {f"{key:g}": value for key, value in figure.items()}
        case Evaluation() | Comparison():
            return {field.name: plain(vars(figure)[field.name]) for field in fields(figure)}
    return figure


# ------------------------------------------------------------------------------------------------ statistics
def mean(values_N: np.ndarray) -> Estimate:
    """The mean of N values and its standard error, from their own spread."""
    return Estimate(float(values_N.mean()), float(values_N.std(ddof=1) / np.sqrt(len(values_N))))


def share(hits_N: np.ndarray) -> Estimate:
    """The share of N trials that hit, with the binomial error."""
    p = float(hits_N.mean())
    return Estimate(p, float(np.sqrt(p * (1 - p) / (len(hits_N) - 1))))


def root_mean_square(values_N: np.ndarray) -> Estimate:
    """The root mean square; its error is half the relative error of the mean square."""
    square = mean(values_N**2)
    value = float(np.sqrt(square.value))
    return Estimate(value, square.error / (2 * value) if value else 0.0)


def compare(name: str, logprob_MN: np.ndarray, best_MN: np.ndarray, divergence_N: np.ndarray) -> Comparison:
    """A model (row 1) beside its reference (row 0)."""
    nll_MN, p_MN = -logprob_MN, np.exp(logprob_MN)
    reference, log_ratio = mean(nll_MN[0]), mean(nll_MN[1] - nll_MN[0])
    dp_N = 100 * (p_MN[1] - p_MN[0])
    varies = bool((nll_MN.std(axis=1) > 0).all())
    return Comparison(
        name,
        reference,
        reference.exp(),
        mean(divergence_N),
        MappingProxyType({p: float(np.percentile(divergence_N, p)) for p in PERCENTILES}),
        share(best_MN[0] == best_MN[1]).times(100),
        mean(dp_N),
        root_mean_square(dp_N),
        log_ratio,
        log_ratio.exp(),
        float(np.corrcoef(nll_MN)[0, 1]) if varies else None,
    )


# ------------------------------------------------------------------------------------------------ for people
def table(evaluations: Sequence[Evaluation]) -> str:
    """Evaluations of one text, a row a model: what was scored and how well, and how far from the reference."""
    first = evaluations[0]
    how = "second halves of windows, as llama.cpp" if first.stride is None else f"every token, stride {first.stride}"
    lines = [f"{first.tokens:,} tokens scored in {first.windows:,} windows of {first.context} ({how})"]
    rows: list[tuple[str, ...]] = [("model", "perplexity", "nats/token", "bits/byte")]
    if first.comparison is not None:
        rows.append((first.comparison.name, shown(first.comparison.perplexity), shown(first.comparison.nll), ""))
    for each in evaluations:
        bits = "" if each.bits_per_byte is None else shown(each.bits_per_byte)
        rows.append((each.name, shown(each.perplexity), shown(each.nll), bits))
    lines += ["", *aligned(rows)]
    beside = [(each.name, each.comparison) for each in evaluations if each.comparison is not None]
    if beside:
        names = ["median", *(f"{p:g} %" for p in PERCENTILES[1:-1]), "max"]
        head = (
            "KL (nats)",
            *names,
            "same top-1 %",
            "mean dp %",
            "RMS dp %",
            "ln(PPL ratio)",
            "PPL ratio",
            "correlation",
        )
        rows = [(f"beside {beside[0][1].name}", *head)]
        for name, c in beside:
            figures = [shown(c.divergence), *(f"{value:.5f}" for value in c.divergence_percentiles.values())]
            figures += [shown(c.same_top1, 2), shown(c.mean_dp, 3), shown(c.rms_dp, 3)]
            figures += [
                shown(c.log_ratio, 5),
                shown(c.ratio, 5),
                "-" if c.correlation is None else f"{c.correlation:.5f}",
            ]
            rows.append((name, *figures))
        lines += ["", *aligned(rows)]
    return "\n".join(lines)


def shown(figure: Estimate, digits: int = 4) -> str:
    """A figure and its error."""
    return f"{figure.value:.{digits}f} ± {figure.error:.{digits}f}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns: names to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
