"""The vocabulary of decoders: frozen, hashable, array-free.

A `ModelSpec` says everything that the mathematics of a model needs and nothing about where it came from: no
architecture's name, no file format. It is a static argument of every jitted function. Nothing here imports jax.

A variation between models is a different value here, never a flag in the decoder. A new field of an op needs two
architectures that want it and touches one place; a boolean that would touch two places is a new op.
"""

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "tanh", "sigmoid", "identity"]


@dataclass(frozen=True)
class Norm:
    """Root-mean-square or layer normalisation: y = (x - [mean]) / sqrt(var + eps) * (offset + w) + b, in float32."""

    eps: float = 1e-6
    kind: Literal["rms", "layer"] = "rms"
    offset: float = 0.0
    """Added to the stored weight: 1 where a checkpoint stores w - 1."""
    scale: bool = True
    bias: bool = False


# ------------------------------------------------------------------------------------------------ positions
@dataclass(frozen=True)
class Linear:
    """Position interpolation: every frequency is divided by `factor` (arXiv:2306.15595)."""

    factor: float


@dataclass(frozen=True)
class DynamicNtk:
    """NTK-aware base that grows with the sequence once that is longer than `max_len`."""

    factor: float
    max_len: int


@dataclass(frozen=True)
class Yarn:
    """NTK by parts (arXiv:2309.00071): fast features keep their frequency, slow ones are interpolated.

    `attention_factor` multiplies cos and sin; `truncate` rounds the ramp's borders to whole features.
    """

    factor: float
    original_len: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True)
class Llama3:
    """Wavelengths beyond original_len / low are stretched by `factor`, those below original_len / high are kept."""

    factor: float
    low: float
    high: float
    original_len: int


@dataclass(frozen=True)
class LongRope:
    """One divisor a feature pair: `short` while the sequence fits `original_len`, `long` beyond (arXiv:2402.13753)."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_len: int
    attention_factor: float


@dataclass(frozen=True)
class Proportional:
    """Only the first `pairs` feature pairs rotate, at their frequencies in the whole head divided by `factor`."""

    pairs: int
    factor: float = 1.0


Scaling = Linear | DynamicNtk | Yarn | Llama3 | LongRope | Proportional


@dataclass(frozen=True)
class Rope:
    """Rotary positions (arXiv:2104.09864) on the first `dim` features of a head.

    `interleaved` pairs features (0, 1), (2, 3), ...; otherwise (0, dim/2), (1, dim/2 + 1), ...
    """

    dim: int
    theta: float = 10000.0
    interleaved: bool = False
    scaling: Scaling | None = None

    @property
    def varies(self) -> bool:
        """Whether the frequencies depend on the length of the sequence, so that a cache must keep keys unrotated."""
        return isinstance(self.scaling, DynamicNtk) or (
            isinstance(self.scaling, LongRope) and self.scaling.short != self.scaling.long
        )


@dataclass(frozen=True)
class Alibi:
    """A bias on the scores, slope times key position (arXiv:2108.12409), one slope a head, in units before `scale`.

    `rounded` computes slope times position in bfloat16, which some checkpoints were trained with.
    """

    slopes: tuple[float, ...]
    scale: float = 1.0
    rounded: bool = False


@dataclass(frozen=True)
class QueryScaling:
    """Queries grow with the position: q * (1 + beta * log(1 + floor(position / original_len)))."""

    beta: float
    original_len: int


@dataclass(frozen=True)
class Positions:
    """A learned table of absolute positions; position p reads row p + offset."""

    size: int
    offset: int = 0


# ------------------------------------------------------------------------------------------------ ops
@dataclass(frozen=True)
class Attention:
    """Softmax attention with grouped heads.

    `window`: a token sees itself and the window - 1 tokens before it. `softcap`: cap * tanh(scores / cap).
    `qk_norm_over`: "head" shares one weight of H features among the heads, "heads" gives each head its own,
    "all" normalises over all heads and features together. `sinks`: one learned logit a head joins the softmax.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: Rope | None = None
    window: int | None = None
    softcap: float | None = None
    alibi: Alibi | None = None
    query_scaling: QueryScaling | None = None
    qk_norm: Norm | None = None
    qk_norm_over: Literal["head", "heads", "all"] = "head"
    qkv_bias: bool = False
    o_bias: bool = False
    sinks: bool = False


@dataclass(frozen=True)
class Mlp:
    """Feed-forward: down(act(gate(x)) * up(x)) if gated, else down(act(up(x)))."""

    dim: int
    act: Activation = "silu"
    gated: bool = True
    bias: bool = False


Op = Attention | Mlp


# ------------------------------------------------------------------------------------------------ wiring
@dataclass(frozen=True)
class Branch:
    """One residual branch: x + scale * post(op(pre(x))), then `after` on the sum (post-norm models)."""

    name: str
    op: Op
    pre: Norm | None = None
    post: Norm | None = None
    after: Norm | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Block:
    """A layer. Branches run one after another, or all on the layer's input if `parallel`.

    `pre` is one norm shared by every branch of a parallel block. `residual` is what a branch adds to: the stream
    itself, or the output of the branch's own `pre` norm.
    """

    branches: tuple[Branch, ...]
    parallel: bool = False
    pre: Norm | None = None
    residual: Literal["stream", "normed"] = "stream"


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
    positions: Positions | None = None
    head_bias: bool = False
    logit_scale: float = 1.0
    logit_softcap: float | None = None


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
