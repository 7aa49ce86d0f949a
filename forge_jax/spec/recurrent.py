"""Linear recurrences whose state is a number a channel."""

from dataclasses import dataclass

from forge_jax.spec.ops import Activation


@dataclass(frozen=True)
class RgLru:
    """A real-gated linear recurrent unit behind a short convolution, beside a gate (arXiv:2402.19427).

    dim: channels in `heads` equal parts; what a channel forgets and lets in depends on all channels of its part and
    no other. conv: taps of the convolution. act: of the gate, a linear map of the input that multiplies the state.

    Raises:
        ValueError: the channels cannot be parted.
    """

    heads: int
    dim: int
    conv: int = 4
    act: Activation = "gelu_tanh"

    def __post_init__(self) -> None:
        """Check the heads."""
        if self.dim % self.heads:
            raise ValueError(f"rg-lru: {self.dim} channels cannot be parted among {self.heads} heads")

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.dim // self.heads
