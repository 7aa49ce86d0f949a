"""State space models: ops that sum up the past in a state of fixed size."""

from dataclasses import dataclass
from math import inf

from forge_jax.spec.ops import Activation, Norm


@dataclass(frozen=True)
class Mamba:
    """Selective state space (arXiv:2312.00752): every channel has its own decay for each of `state` features.

    dim: channels, in `heads` equal parts that do not mix on the way to the step size (of rank `rank`), B and C.
    conv: taps of the short convolution before the state; `act` follows it. bias: of the projections in and out.
    norm: of the step size (before its projection up), B and C, each with weights of its own.
    """

    dim: int
    state: int
    rank: int
    conv: int = 4
    heads: int = 1
    act: Activation = "silu"
    bias: bool = False
    conv_bias: bool = True
    norm: Norm | None = None


@dataclass(frozen=True)
class Wkv:
    """Time mixing (arXiv:2305.13048): an average of all values so far, by weights exp(key) that decay with distance.

    dim: channels, each with its own decay. What enters is a mix of a token and the one before it.
    """

    dim: int


@dataclass(frozen=True)
class ChannelMix:
    """Feed-forward on a mix of a token and the one before it: sigmoid(r(x)) * down(relu(up(x)) ** 2)."""

    dim: int


@dataclass(frozen=True)
class Mamba2:
    """State space duality (arXiv:2405.21060): every head has one decay, B and C are shared by a group of heads.

    dt_limit: the step size stays within it. scales: what z, x, B, C and the step size are multiplied by after their
    projection. in_bias, out_bias: of the projections. norm: before the projection out, over each group;
    `norm_first`: before the gate and not after it.
    """

    heads: int
    head_dim: int
    state: int
    groups: int = 1
    conv: int = 4
    act: Activation = "silu"
    in_bias: bool = False
    out_bias: bool = False
    conv_bias: bool = True
    norm: Norm | None = None
    norm_first: bool = False
    dt_limit: tuple[float, float] = (0.0, inf)
    scales: tuple[float, float, float, float, float] = (1.0, 1.0, 1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        """Check the groups.

        Raises:
            ValueError: the heads cannot be grouped.
        """
        if self.heads % self.groups:
            raise ValueError(f"mamba2: {self.heads} heads cannot share {self.groups} groups")
