"""Attention whose queries and keys go through convolutions."""

from dataclasses import dataclass

from forge_jax.spec.ops import Attention


@dataclass(frozen=True)
class ConvAttention:
    """Compressed convolutional attention (arXiv:2510.04476).

    Queries and keys go through two causal convolutions of `taps` taps, the first over each channel, the second over
    all features of a head; to that is added the mean of a query and its key, or of a key and the mean of its queries.
    Both then have length sqrt(head_dim), a key times a learned number a kv head. Of the values of all heads together,
    the first `half` features are read from the token itself, as many from the one before it.
    """

    attention: Attention
    taps: tuple[int, int]
    half: int
