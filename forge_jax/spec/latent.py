"""Latent attention: what a head reads out of one compressed entry a token."""

from dataclasses import dataclass

from forge_jax.spec.ops import Gate, Norm
from forge_jax.spec.positions import Rope


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention (arXiv:2405.04434).

    A token leaves behind a normed latent of `rank` features, times `latent_scale`, and one key of `rope_dim` features
    that all heads share. A head reads from the latent a value of `value_dim` features and the `nope_dim` features of
    its key that do not rotate. Queries come out of a latent of `q_rank` features of their own, or, where that is None,
    straight out of the stream. `norm` is of both latents. `bias` is on the ways into the latents and out of the heads.
    `gate` multiplies what each head reads.
    """

    heads: int
    rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    scale: float
    norm: Norm
    rope: Rope | None = None
    q_rank: int | None = None
    latent_scale: float = 1.0
    bias: bool = False
    gate: Gate | None = None
