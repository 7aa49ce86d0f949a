"""How ops are wired into layers and layers into a model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from forge_jax.spec.compressed import Compressed
from forge_jax.spec.conv_attention import ConvAttention
from forge_jax.spec.differential import Differential
from forge_jax.spec.exchange import Constant, Exchange
from forge_jax.spec.head_mixture import HeadMixture
from forge_jax.spec.joined import Joined, Project
from forge_jax.spec.latent import Latent
from forge_jax.spec.linear import DeltaNet, LinearAttention, ShortConv
from forge_jax.spec.message import Again, Message
from forge_jax.spec.mlstm import Mlstm
from forge_jax.spec.moe import Moe
from forge_jax.spec.ngrams import NgramInput
from forge_jax.spec.ops import Activation, Attention, Mlp, Norm, Smoothing
from forge_jax.spec.own import OwnInput, OwnInputs
from forge_jax.spec.positions import Positions, Sinusoids
from forge_jax.spec.recurrent import RgLru
from forge_jax.spec.selective import Selective
from forge_jax.spec.ssm import ChannelMix, Mamba, Mamba2, Wkv
from forge_jax.spec.streams import GatedStreams, Hyper

Op = (
    Again
    | Attention
    | ChannelMix
    | Compressed
    | ConvAttention
    | Constant
    | DeltaNet
    | Differential
    | Exchange
    | HeadMixture
    | Joined
    | Latent
    | LinearAttention
    | Mamba
    | Mamba2
    | Mlp
    | Mlstm
    | Moe
    | NgramInput
    | OwnInput
    | RgLru
    | Project
    | Selective
    | ShortConv
    | Wkv
)


@dataclass(frozen=True)
class Recall:
    """Attention over depth: what a branch sees is a mix of the streams that earlier ones have kept and of the present.

    Streams are normalised (by their root mean square, no weights); they weigh as in a softmax of their products with a
    learned query, divided by sqrt(D). `queries`: the mixes [B, T, queries, D]; 1: one [B, T, D]; 0: the present alone,
    as it is. `keep`: the present is kept for later branches, of which `count` do so in all.
    """

    count: int
    queries: int = 1
    keep: bool = False
    eps: float = 1e-6


@dataclass(frozen=True)
class Toward:
    """The stream moves part of the way towards what a branch gives: the absolute value of `gain` times a learned
    number, for each feature (arXiv:2410.01131).
    """

    gain: float


@dataclass(frozen=True)
class Adapter:
    """A low-rank update of an op's parameters `names`, base + a b each: they have one `a`, and each a `b`."""

    names: tuple[str, ...]
    rank: int


@dataclass(frozen=True)
class Branch:
    """One residual branch: keep * x + scale * post(op(in_scale * pre(x))), then `after` on the sum (post-norm models).

    `beside`: the op gets what the branch before it got, that one's norm included; it has no `pre` of its own.
    `late`: what it gives joins the stream after the layer's last branch.
    `keep` "learned": the stream is multiplied by a learned vector before the branch is added; a norm: goes through it.
    `Toward`: it is not added to, but moves.
    `smooth`: what the op gives goes through it, before `post`.
    `recall`, then `message`: what comes before `pre`.
    `whole`: in a layer on several streams, the op sees all of them as they are, and says what is added to each.
    `shared`: the name of the parameters that all branches of that name use; its memory is each branch's own.
    `adapters`: updates of the op's parameters; they are the branch's own even where those are shared.
    """

    name: str
    op: "Op | Sum | Chain"
    pre: Norm | None = None
    post: Norm | None = None
    after: Norm | None = None
    scale: float = 1.0
    in_scale: float = 1.0
    beside: bool = False
    late: bool = False
    whole: bool = False
    shared: str | None = None
    keep: float | Literal["learned"] | Norm | Toward = 1.0
    smooth: Smoothing | None = None
    recall: Recall | None = None
    message: Message | None = None
    adapters: tuple[Adapter, ...] = ()


@dataclass(frozen=True)
class Sum:
    """In the place of an op: what branches make of the same x, scale * post(op(pre(x))) each, added to keep * x.

    Their parameters and memory stand in the layer under their own names, like those of any branch.
    """

    branches: tuple[Branch, ...]
    keep: float = 0.0


@dataclass(frozen=True)
class Chain:
    """In the place of an op: branches one after another, each on what the one before it gave, with nothing added to it.

    Their parameters and memory stand in the layer under their own names, like those of any branch.
    """

    branches: tuple[Branch, ...]


@dataclass(frozen=True)
class AltUp:
    """A layer on `count` streams (arXiv:2301.13310): all are predicted from all, the layer runs on the `active` one,
    and what it changes corrects all. `side` is a branch from the corrected active stream to all but the first.
    """

    count: int
    active: int
    norm: Norm
    side: Branch


Streams = AltUp | GatedStreams | Hyper


@dataclass(frozen=True)
class Block:
    """A layer. Branches run one after another, or all on the layer's input if `parallel`.

    `pre` is one norm shared by every branch of a parallel block. `residual` is what a branch adds to: the stream
    itself, or the output of the branch's own `pre` norm. `scalar`: in the end, times one learned number.
    `streams`: the layer works on several. Unless by alternating updates, each branch then sees its own mixture of them
    and says itself what it adds to each: branches run one after another, and `beside`, `late`, `after` and `keep` are
    not for them.
    """

    branches: tuple[Branch, ...]
    parallel: bool = False
    pre: Norm | None = None
    residual: Literal["stream", "normed"] = "stream"
    streams: Streams | None = None
    scalar: bool = False

    def every(self) -> Iterator[Branch]:
        """All branches, those of sums, of chains and of streams too."""
        yield from flat(self.branches)
        if isinstance(self.streams, AltUp):
            yield from flat((self.streams.side,))

    def with_ops(self, change: Callable[[Op], Op]) -> "Block":
        """The same with every op replaced by what `change` makes of it."""
        return self.with_branches(
            lambda branch: branch if isinstance(branch.op, Sum | Chain) else replace(branch, op=change(branch.op))
        )

    def with_branches(self, change: Callable[[Branch], Branch]) -> "Block":
        """The same with every branch replaced by what `change` makes of it, the branches in it first."""

        def changed(branch: Branch) -> Branch:
            if isinstance(branch.op, Sum | Chain):
                branch = replace(branch, op=replace(branch.op, branches=tuple(map(changed, branch.op.branches))))
            return change(branch)

        streams = self.streams
        if isinstance(streams, AltUp):
            streams = replace(streams, side=changed(streams.side))
        return replace(self, branches=tuple(map(changed, self.branches)), streams=streams)


def flat(branches: tuple[Branch, ...]) -> Iterator[Branch]:
    """The branches, each sum and chain followed by those that it is of."""
    for branch in branches:
        yield branch
        if isinstance(branch.op, Sum | Chain):
            yield from flat(branch.op.branches)


def attention_of(op: "Op | Sum | Chain") -> Attention | None:
    """The softmax attention that an op is, or is made of."""
    match op:
        case Attention():
            return op
        case ConvAttention() | Differential() | HeadMixture() | Joined() | Selective():
            return op.attention
        case _:
            return None


@dataclass(frozen=True)
class HeadTransform:
    """What stands between the final norm and the head: norm(act(dense(x)))."""

    act: Activation
    norm: Norm
    bias: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """A whole decoder, fully expanded: one `Block` a layer."""

    vocab_size: int
    dim: int
    layers: tuple[Block, ...]
    max_seq_len: int
    final_norm: Norm | None = None
    tied: bool = False
    """The output head is the embedding; no second copy exists anywhere."""
    embed_dim: int | None = None
    """Width of the embedding where it differs from `dim`; projections in and out join the two."""
    embed_scale: float = 1.0
    embed_norm: Norm | None = None
    positions: Positions | Sinusoids | None = None
    head_transform: HeadTransform | None = None
    head_bias: bool = False
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    token_gain: float | None = None
    """Logits are multiplied by learned numbers, one an id, times this one."""
    outputs: int | None = None
    """How many ids, the first ones, have logits; None: all of them."""
    head_padded: bool = False
    """The head has rows for the other ids too."""
    own: OwnInputs | None = None
    """What every layer gets besides the stream, through an `OwnInput`."""
    streams: Streams | None = None
    """Several streams enter and leave the layers, each of which has the same value."""

    @property
    def logits(self) -> int:
        """How many logits a token gets."""
        return self.vocab_size if self.outputs is None else self.outputs

    @property
    def head_rows(self) -> int:
        """The rows of the output head."""
        return self.vocab_size if self.head_padded else self.logits


@dataclass(frozen=True)
class Segment:
    """`repeats` runs of the layers `period`, beginning at layer `start`."""

    period: tuple[Block, ...]
    repeats: int
    start: int


def segments(layers: tuple[Block, ...], max_period: int = 16) -> tuple[Segment, ...]:
    """Cover the layers with repeated periods so that the fewest distinct block bodies are traced."""
    count = len(layers)
    best: list[tuple[float, tuple[int, int]]] = [(0.0, (0, 0))] * (count + 1)
    for i in range(count - 1, -1, -1):
        options = []
        for period in range(1, min(max_period, count - i) + 1):
            repeats = 1
            while layers[i + repeats * period : i + (repeats + 1) * period] == layers[i : i + period]:
                repeats += 1
            # a segment costs its period, plus a little so that one long run beats two short ones
            options += [(period + 1e-3 + best[i + period * r][0], (period, r)) for r in {1, repeats}]
        best[i] = min(options)
    out, i = [], 0
    while i < count:
        period, repeats = best[i][1]
        out.append(Segment(layers[i : i + period], repeats, i))
        i += period * repeats
    return tuple(out)
