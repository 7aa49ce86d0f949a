"""Attention to a few tokens as they are, and to the rest in compressed form."""

from dataclasses import dataclass

from forge_jax.spec.latent import Indexer
from forge_jax.spec.ops import Norm
from forge_jax.spec.positions import Rope


@dataclass(frozen=True)
class Compression:
    """One entry for every `every` tokens, which stands for them once they are all there.

    It is a mean of a linear map of the tokens, each feature with its own weights: a softmax over the tokens of another
    map, plus a learned number for each place among them. Then it is normed, and turned as the first of the tokens.
    `overlap`: the tokens before take part too, by maps of their own.
    `indexer`: a query looks only at the entries that it picks, by keys compressed like the entries; None: at all.
    """

    every: int
    overlap: bool = False
    indexer: Indexer | None = None


@dataclass(frozen=True)
class Compressed:
    """Attention to the last `window` tokens and to compressions of all, which one softmax weighs together.

    All heads share one key of `head_dim` features, which is the value too, normed and turned (`rope`, its last
    features); what a head reads is turned back by the query's own position. Queries come out of a normed latent of
    `rank` features, and each is normed. `sinks`: one learned logit a head joins the softmax. On the way out, each of
    `groups` groups of heads goes through a map to `out_rank` features of its own.

    Raises:
        ValueError: the heads cannot be grouped, or the rope depends on the length.
    """

    heads: int
    head_dim: int
    rank: int
    window: int
    groups: int
    out_rank: int
    scale: float
    norm: Norm
    rope: Rope
    compression: Compression | None = None

    def __post_init__(self) -> None:
        """Check the heads and the rope."""
        if self.heads % self.groups:
            raise ValueError(f"compressed attention: {self.heads} heads cannot be put into {self.groups} groups")
        if self.rope.varies:
            raise ValueError("compressed attention: the rope depends on the length; expected one that does not")
