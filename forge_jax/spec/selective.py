"""Attention to the keys that matter most."""

from dataclasses import dataclass

from forge_jax.spec.ops import Attention


@dataclass(frozen=True)
class Selective:
    """Attention in which each token says how much it matters as a key (arXiv:2508.02124).

    exp(rate * softplus(linear(values))), one number a kv head, is added to the scores of a key, and a query sees only
    the `keep` visible keys of which it is largest. `bias`: of the linear map.
    """

    attention: Attention
    keep: int
    bias: bool = False
