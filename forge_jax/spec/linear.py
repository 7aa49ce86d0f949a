"""Ops whose cost grows linearly with the text: a state of fixed size takes the place of keys and values."""

from dataclasses import dataclass
from typing import Literal

from forge_jax.spec.ops import Activation, Gate, Norm


@dataclass(frozen=True)
class ShortConv:
    """A gated causal convolution of `taps` taps over `dim` channels: out(c * conv(b * x)), all linear in the input.

    bias: of the projections and of the convolution.
    """

    dim: int
    taps: int
    bias: bool = False


@dataclass(frozen=True)
class Decay:
    """How a state forgets: each token multiplies it by exp(-exp(a) * softplus(z)), z linear in the input.

    over: one number a head, or one for each of its key features. rank: z goes through that many features.
    floor: exp(floor * sigmoid(exp(a) * z)) instead, which is never below exp(floor).
    """

    over: Literal["head", "feature"] = "head"
    rank: int | None = None
    floor: float | None = None


@dataclass(frozen=True)
class DeltaNet:
    """The gated delta rule: a state that maps keys to values, corrected by what it gets wrong.

    One decay a head: arXiv:2412.06464. One a feature: arXiv:2510.26692. Each key head serves an equal share of the
    value heads. q, k and v go through a convolution of `taps` taps and `act`; q and k then have length 1.
    beta_scale: the rate of correction lies in (0, beta_scale). gate: the output of each head is normalised, then
    multiplied by it, a linear map (through `gate_rank` features) of the input.

    Raises:
        ValueError: the value heads cannot be shared out.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    taps: int
    norm: Norm
    decay: Decay = Decay()
    act: Activation = "silu"
    beta_scale: float = 1.0
    gate: Activation = "silu"
    gate_rank: int | None = None

    def __post_init__(self) -> None:
        """Check the heads."""
        if self.value_heads % self.key_heads:
            raise ValueError(f"delta rule: {self.value_heads} value heads cannot share {self.key_heads} key heads")


@dataclass(frozen=True)
class LinearAttention:
    """A state that maps keys to values and forgets at a fixed rate (arXiv:2401.04658).

    rate: by how much the logarithm of the first head's state falls with each token; `ratio`: that of each further head
    to the one before it. act: of queries, keys and values. norm: of the outputs of all heads together; gate: what
    multiplies them after that.
    """

    heads: int
    head_dim: int
    rate: float
    ratio: float
    norm: Norm
    gate: Gate
    act: Activation = "silu"
