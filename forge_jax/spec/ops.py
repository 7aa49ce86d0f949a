"""The ops that every decoder is made of: norms, attention, feed-forward."""

from dataclasses import dataclass
from typing import Literal

from forge_jax.spec.positions import Alibi, LogScaling, PowerScaling, QueryScaling, Rope

Activation = Literal[
    "silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "tanh", "sigmoid", "softplus", "identity"
]


@dataclass(frozen=True)
class Norm:
    """Root-mean-square or layer normalisation: y = (x - [mean]) / sqrt(var + eps) * (offset + w) + b, in float32.

    "unit" divides by the length of x, sqrt(sum + eps). "affine" normalises nothing: y = (x + b) * (offset + w).
    `gate`: y is then multiplied by sigmoid(up(silu(down(y)))), a map through so many features.
    """

    eps: float = 1e-6
    kind: Literal["rms", "layer", "unit", "affine"] = "rms"
    offset: float = 0.0
    """Added to the stored weight: 1 where a checkpoint stores w - 1."""
    scale: bool = True
    bias: bool = False
    gate: int | None = None


@dataclass(frozen=True)
class Gate:
    """What the output of each head is multiplied by: act of a linear map of what the op sees.

    `over`: one number a head, or one a feature of it. `bias`: what is added before act, as many or one a head.
    `gain`: the map is multiplied by the square of learned numbers, one a feature of a head, times this one.
    """

    over: Literal["head", "feature"] = "feature"
    act: Activation = "sigmoid"
    bias: Literal["head", "feature"] | None = None
    gain: float | None = None


@dataclass(frozen=True)
class Blocks:
    """What picks the `top_k` blocks of `size` tokens that a query looks at, by scores of its own.

    A token leaves behind one key of `dim` features, and meets keys with `heads` queries; both are normed and turned.
    `score`: a block counts as much as the best of its keys, for each query, which picks for an equal share of the
    op's heads ("best"); or as the queries' relu(q k) together, where k is the mean of its keys, normed after that and
    turned as the first of them ("mean"). Then only whole blocks are picked, and the tokens behind them are always seen.
    `local`: so many blocks, up to the query's own, are picked before all others.

    Raises:
        ValueError: more blocks are local than are picked, or the rope depends on the length.
    """

    heads: int
    dim: int
    size: int
    top_k: int
    norm: Norm
    rope: Rope
    score: Literal["best", "mean"]
    local: int = 0

    def __post_init__(self) -> None:
        """Check the counts."""
        if self.rope.varies:
            raise ValueError("attention to blocks: the rope depends on the length; expected one that does not")
        if self.local > self.top_k:
            raise ValueError(f"attention to blocks: {self.local} local ones, but only {self.top_k} are picked")


@dataclass(frozen=True)
class Smoothing:
    """scale * (x + y), y a causal convolution of x over `taps` tokens, one filter a channel.

    `dynamic`: to the filters of a head's channels is added one that is linear in what the op sees at that token. They
    are then stored from the token itself backwards.
    """

    taps: int
    scale: float = 1.0
    dynamic: bool = False


@dataclass(frozen=True)
class Relative:
    """A bias on the scores: what a key gets at each distance below `extent`, a mix of `dim` learned profiles.

    How a query mixes them is linear in its token. `query_scaling` makes the mix grow as it does the query.
    `longest`: the mix times learned numbers is at most so long.
    """

    dim: int
    extent: int
    longest: float | None = None


@dataclass(frozen=True)
class Attention:
    """Softmax attention with grouped heads.

    `window`: a token sees itself and the window - 1 tokens before it. `chunk`: it sees only its own chunk of so many
    tokens, the first of which begins at position 0. `softcap`: cap * tanh(scores / cap).
    `qk_norm_over`: "head" shares one weight of H features among the heads, "heads" gives each head its own,
    "all" normalises over all heads and features together; `qk_norm_late`: after the rope instead of before it.
    `longest`: queries, times learned numbers, and keys are at most so long. `clip`: queries, keys and values are cut at
    +-clip. `sinks`: one logit a head joins the softmax, learned or ("token") linear in what the op sees. It
    may see three streams [B, T, 3, D], of queries, keys and values; all else is made of what queries are. `apart`: it
    normalises what it sees for each of the three by itself.
    `out_norm` normalises the outputs of all heads together; `gate` multiplies each of them, before that.
    `value_dim`: features of a value, where they are not as many as a key's.
    `smooth`: keys and values go through it, before their norms. `relative`: added to the scaled scores.
    `values`: projected on their own, or what the keys are before norm and rope; `v_norm`: over a value's features.
    `publish`: the name under which later layers find the keys and values of this one; `reads`: the name of those that
    this layer looks at, having none of its own.
    `blocks`: a query sees only the tokens of those that it picks.
    `q_gain`: queries, turned, are multiplied by the square of learned numbers, one a feature of a head, times this one.
    `anchors`: besides a window, so many first tokens stay in sight; they never lie further back than the window would
    reach if it began right after them (arXiv:2309.17453).
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: Rope | None = None
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    alibi: Alibi | None = None
    query_scaling: QueryScaling | PowerScaling | LogScaling | None = None
    qk_norm: Norm | None = None
    qk_norm_over: Literal["head", "heads", "all"] = "head"
    qk_norm_late: bool = False
    clip: float | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    out_norm: Norm | None = None
    sinks: bool | Literal["token"] = False
    apart: Norm | None = None
    longest: float | None = None
    gate: Gate | None = None
    v_norm: Norm | None = None
    values: Literal["own", "keys"] = "own"
    publish: str | None = None
    reads: str | None = None
    value_dim: int | None = None
    blocks: Blocks | None = None
    smooth: Smoothing | None = None
    relative: Relative | None = None
    q_gain: float | None = None
    anchors: int = 0

    def __post_init__(self) -> None:
        """Check that what is smoothed is there, and that anchors have a window."""
        if self.anchors and self.window is None:
            raise ValueError(f"attention: {self.anchors} anchors without a window; all tokens are in sight anyway")
        if self.smooth is not None and (self.reads is not None or self.values != "own"):
            raise ValueError("attention: only keys and values that a layer projects on their own can be smoothed")

    @property
    def value_size(self) -> int:
        """Features of a value."""
        return self.head_dim if self.value_dim is None else self.value_dim


@dataclass(frozen=True)
class Clamp:
    """gate is cut at +limit, up at both, then gate * sigmoid(alpha * gate) * (up + offset)."""

    limit: float
    alpha: float = 1.702
    offset: float = 1.0


@dataclass(frozen=True)
class Mlp:
    """Feed-forward: down(norm(act(gate_scale * gate(x)) * up(x))) if gated, else down(norm(act(gate_scale * up(x)))).

    `act` "xielu" has parameters of its own (arXiv:2411.13010). `sparsity`: of a gate's features only what exceeds this
    quantile of a normal distribution with their mean and variance is let through, the excess itself. `clamp` is in the
    place of `act` where it is given. `scalar`: in the end, times one learned number. `gain`: gate and up are multiplied
    by learned numbers, one a feature each, times this one.

    Raises:
        ValueError: no such quantile.
    """

    dim: int
    act: Activation | Literal["xielu"] = "silu"
    gated: bool = True
    bias: bool = False
    norm: Norm | None = None
    gate_scale: float = 1.0
    sparsity: float = 0.0
    clamp: Clamp | None = None
    scalar: bool = False
    gain: float | None = None

    def __post_init__(self) -> None:
        """Check the quantile."""
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"mlp: sparsity {self.sparsity}; expected at least 0 and below 1")
