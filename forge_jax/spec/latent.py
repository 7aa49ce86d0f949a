"""Latent attention: what a head reads out of one compressed entry a token."""

from dataclasses import dataclass
from typing import Literal

from forge_jax.spec.ops import Gate, Norm
from forge_jax.spec.positions import Rope


@dataclass(frozen=True)
class Indexer:
    """What picks the `top_k` tokens that a query looks at (arXiv:2512.02556, 2.1), by a score of its own.

    A token leaves behind one normed key of `dim` features. Queries of as many features come out of the op's query
    latent, for each of `heads`; the score is the sum of the heads' relu(q k / sqrt(dim)), each times a weight that
    the query's token gives. `rope` turns the first features of both, or the `last`.
    """

    heads: int
    dim: int
    top_k: int
    norm: Norm
    rope: Rope
    last: bool = False

    def __post_init__(self) -> None:
        """Check the rope.

        Raises:
            ValueError: it turns more features than there are.
        """
        if self.rope.dim > self.dim:
            raise ValueError(
                f"indexer: {self.rope.dim} features of {self.dim} are to rotate; expected no more than these"
            )


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention (arXiv:2405.04434).

    A token leaves behind a normed latent of `rank` features, times `latent_scale`, and one key of `rope_dim` features
    that all heads share. A head reads from the latent a value of `value_dim` features and the `nope_dim` features of
    its key that do not rotate. Queries come out of a latent of `q_rank` features of their own, or, where that is None,
    straight out of the stream. `norm` is of both latents. `bias` is on the ways into the latents and out of the heads.
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
    """It multiplies what each head reads."""
    sinks: bool = False
    """One learned logit a head joins the softmax."""
    window: int | None = None
    """How many tokens back a query looks, itself included."""
    shared_norm: Norm | None = None
    """Of the shared key, before it is turned."""
    q_raw: bool = False
    """Queries are read out of their latent as it is, beside the normed one; so is the gate, not out of the stream."""
    indexer: Indexer | Literal["shared"] | None = None
    """Queries look only at the tokens that it picks; "shared": at those that the last one before picked."""

    def __post_init__(self) -> None:
        """Check that an indexer has what it reads.

        Raises:
            ValueError: it reads, or queries read, a latent that is not there; or it has only a window to pick from.
        """
        if isinstance(self.indexer, Indexer) and self.q_rank is None:
            raise ValueError("latent attention: an indexer reads the query latent; q_rank is None")
        if self.q_raw and self.q_rank is None:
            raise ValueError("latent attention: queries cannot read their latent; q_rank is None")
        if self.window is not None and self.indexer is not None:
            raise ValueError("latent attention: an indexer picks among all tokens; window is not None")
