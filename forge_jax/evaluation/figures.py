"""What is made of the scores of many tokens: means with their standard errors. Sums in float64; NumPy only."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from forge_jax.evaluation import tables

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9, 100.0)


class Estimate(NamedTuple):
    """A figure and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self:.4f}"

    def __format__(self, spec: str) -> str:
        """Both in the format of a number."""
        return f"{self.value:{spec}} ± {self.error:{spec}}"

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

    nll, perplexity, bits_per_byte: the reference's. divergence: mean KL divergence of a token's whole distribution
    (reference || model) in nats; divergence_percentiles: {50.0: the median, ..., 100.0: the largest}. same_top1: per
    cent of places where both find the same token most probable. mean_dp, rms_dp: mean and root mean square of how much
    more probable than the reference the model finds the right token, in percentage points. log_ratio, ratio: of the
    perplexities, model to reference; the error is that of the mean difference token by token, so what both find hard
    does not count. correlation: of the two models' negative log-likelihoods, -1 to 1; None where one does not vary.
    """

    name: str
    nll: Estimate
    perplexity: Estimate
    bits_per_byte: Estimate | None
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
        """The figures for people."""
        return tables.table([self])

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
    """The root mean square; its relative error is half that of the mean square."""
    square = mean(values_N**2)
    value = float(np.sqrt(square.value))
    return Estimate(value, square.error / (2 * value) if value else 0.0)


def compare(
    name: str, logprob_MN: np.ndarray, best_MN: np.ndarray, divergence_N: np.ndarray, bits: float | None
) -> Comparison:
    """A model (row 1) beside its reference (row 0); `bits` a byte are a nat a token."""
    nll_MN = -logprob_MN.astype(np.float64)
    p_MN, divergence_N = np.exp(-nll_MN), divergence_N.astype(np.float64)
    reference, log_ratio = mean(nll_MN[0]), mean(nll_MN[1] - nll_MN[0])
    dp_N = 100 * (p_MN[1] - p_MN[0])
    varies = bool((nll_MN.std(axis=1) > 0).all())
    return Comparison(
        name,
        reference,
        reference.exp(),
        None if bits is None else reference.times(bits),
        mean(divergence_N),
        MappingProxyType({p: float(np.percentile(divergence_N, p)) for p in PERCENTILES}),
        share(best_MN[0] == best_MN[1]).times(100),
        mean(dp_N),
        root_mean_square(dp_N),
        log_ratio,
        log_ratio.exp(),
        float(np.asarray(np.corrcoef(nll_MN))[0, 1]) if varies else None,
    )
