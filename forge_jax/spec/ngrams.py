"""What a layer adds to its streams for the last few tokens, looked up by a hash of them."""

from dataclasses import dataclass

from forge_jax.spec.ops import Norm


@dataclass(frozen=True)
class NgramInput:
    """Embeddings of n-grams, of 2 tokens up to as many as there are `multipliers`, gated and added to every stream.

    The tokens times their multipliers, from the newest back, are joined by exclusive or in 64 bits; what that leaves of
    division by each of `sizes` is a row of a head's own table. Heads share out the sizes, those of 2 tokens first. What
    lies before a token `end` counts as `end`. An n-gram has `dim` features in all; the table of `rows` is in `parts`.

    Each of `streams` gets the same value, times sigmoid(sqrt|z| * sign z), z its normed product with a key; and silu of
    a convolution over that, normed, of `taps` taps that are as many tokens apart as an n-gram has at most.
    """

    streams: int
    multipliers: tuple[int, ...]
    sizes: tuple[int, ...]
    rows: int
    parts: int
    dim: int
    end: int
    taps: int
    norm: Norm
