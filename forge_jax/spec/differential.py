"""Attention as the difference of two."""

from dataclasses import dataclass

from forge_jax.spec.ops import Attention, Norm


@dataclass(frozen=True)
class Differential:
    """Differential attention (arXiv:2410.05258): softmax(q1 k1) v - lambda softmax(q2 k2) v for pairs of heads.

    `attention` says what a head is and what it sees; its counts are those of pairs. A pair of key heads shares one
    value, twice as wide. lambda is `init` plus a learned difference. What comes out of a pair is normalised, and
    multiplied by 1 - init.
    """

    attention: Attention
    init: float
    norm: Norm
