"""Layers on more than one stream, each of the width of the model."""

from dataclasses import dataclass

from forge_jax.spec.ops import Norm


@dataclass(frozen=True)
class Hyper:
    """Hyper-connections (arXiv:2409.19606): a branch sees a sum of `count` streams, and what it gives is added to each.

    Streams enter the sum times sigmoid(z) + `eps`, and get what comes out times `reach` * sigmoid(z) + `reach_eps`;
    z = scale * W norm(x) + base, of all streams together, with one scale for each kind. `norm` has no weights.
    `sinkhorn`: before they get it, streams are mixed by softmax(z) + `eps`, whose columns and rows are made to sum to 1
    by so many iterations (arXiv:2512.24880); 0: they stay as they are.
    """

    count: int
    norm: Norm
    eps: float
    reach: float = 2.0
    reach_eps: float = 0.0
    sinkhorn: int = 0


@dataclass(frozen=True)
class GatedStreams:
    """A branch sees the mean of `count` normed streams, each feature times a gate; what it gives is added to each.

    The gates are sigmoid(up(silu(down(n / count)))), n the normed streams and the maps of rank `rank`; each stream gets
    what comes out times 2 * sigmoid(inject(n / count)).
    """

    count: int
    rank: int
    norm: Norm
