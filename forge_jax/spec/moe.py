"""Mixture of experts: who is chosen, and what the chosen do."""

from dataclasses import dataclass
from math import isqrt
from typing import Literal

from forge_jax.spec.ops import Activation, Clamp, Mlp, Norm


@dataclass(frozen=True)
class SoftClamp:
    """cap(gate) * sigmoid(gate) * cap(up), cap(x) = limit * tanh(x / limit), each with its limit."""

    gate: float
    up: float


@dataclass(frozen=True)
class RouterMlp:
    """What a router's logits are a linear map of, instead of the stream: act(l2(act(l1(norm(h))))), all of width `dim`.

    h is a linear map of the stream, plus the h of the router that has published one under the name `reads`, times a
    learned vector. `publish`: the name under which a later router finds this one.
    """

    dim: int
    norm: Norm
    act: Activation = "gelu"
    publish: str | None = None
    reads: str | None = None


@dataclass(frozen=True)
class Router:
    """How a token chooses `top_k` of `experts`, and how much each of them weighs. Computed in float32.

    score: what a logit becomes. "softmax", "sigmoid" and "sqrt_softplus" are taken over all experts, the "chosen_" ones
    over the chosen only; "sparsemixer" is the two masked softmaxes of arXiv:2310.00811, as used at inference.
    logit_bias: a learned bias on the logits. choice_bias: one on the scores that choose, but not on those that weigh.
    table: a table of so many tokens says which experts each of them goes to, and scores only how much these weigh.
    groups: (count, kept): experts lie in `count` groups, of which the `kept` best are open to choice; a group is as
    good as the sum of its `group_top` best experts. closed: the score that the experts of other groups choose with.
    renorm: the p of the norm that the chosen weights are divided by; None: they stay as they are. renorm_min: the least
    that this norm counts as; renorm_eps is added to it. scale: times that.
    jitter: the tolerance of sparsemixer.
    norm: of what it sees. logit_scale: times the logits; softcap: cap * tanh(logits / cap).
    expert_scale: weights end as theirs times a learned number an expert.
    mlp: what stands between the stream and the logits.
    product: logit i * sqrt(experts) + j is the sum of one of i and one of j, each linear (arXiv:1907.05242, 3.1).
    sinks: that many more logits, which cannot be chosen but count in the norm; they weigh the equal parts, as many, of
    the expert that every token goes through. scalar: all weights are multiplied by one learned number.

    Raises:
        ValueError: more to choose than there are experts that can be chosen, or groups of unequal size.
    """

    experts: int
    top_k: int
    score: Literal["softmax", "sigmoid", "sqrt_softplus", "chosen_softmax", "chosen_sigmoid", "sparsemixer"] = "softmax"
    logit_bias: bool = False
    choice_bias: bool = False
    table: int | None = None
    groups: tuple[int, int] = (1, 1)
    group_top: int = 1
    closed: float = -1e30  # never among the best, finite so that no NaN comes of it
    renorm: float | None = None
    renorm_min: float = 0.0
    renorm_eps: float = 0.0
    scale: float = 1.0
    jitter: float = 0.0
    norm: Norm | None = None
    logit_scale: float = 1.0
    softcap: float | None = None
    expert_scale: bool = False
    mlp: RouterMlp | None = None
    sinks: int = 0
    scalar: bool = False
    product: bool = False

    def __post_init__(self) -> None:
        """Check the counts."""
        count, kept = self.groups
        if self.experts % count or not 1 <= kept <= count or self.group_top > self.experts // count:
            raise ValueError(f"router: {self.experts} experts in {count} groups, {kept} kept by {self.group_top} each")
        if not 1 <= self.top_k <= self.experts // count * kept:
            raise ValueError(f"router: {self.top_k} of {self.experts} experts, {kept} of {count} groups of them open")
        if self.product and (isqrt(self.experts) ** 2 != self.experts or self.logit_bias or self.sinks):
            raise ValueError(f"router: {self.experts} experts cannot be pairs, or their logits are more than sums")
        if self.sinks and (self.renorm is None or self.score.startswith("chosen") or self.score == "sparsemixer"):
            raise ValueError(f"router: {self.sinks} sinks need a norm of scores that are those of all experts")


@dataclass(frozen=True)
class Moe:
    """A mixture of feed-forward experts of width `dim` (arXiv:1701.06538). No token is ever dropped.

    shared: an expert that every token goes through; shared_gate: times the sigmoid of a learned score.
    identity: that many more experts, after the others, hand back the token itself; skip: after those, give nothing.
    scale_input: weights multiply what enters an expert, not what leaves it.
    latent: the routed experts work on a projection of the stream to this width; latent_bias: of it and of the way back.
    norm: of what the experts see, but not the router. out_bias: one for all experts together.
    """

    router: Router
    dim: int
    act: Activation = "silu"
    gated: bool = True
    bias: bool = False
    clamp: Clamp | SoftClamp | None = None
    shared: Mlp | None = None
    shared_gate: bool = False
    identity: int = 0
    skip: int = 0
    scale_input: bool = False
    latent: int | None = None
    latent_bias: bool = False
    norm: Norm | None = None
    out_bias: bool = False

    @property
    def choices(self) -> int:
        """How many experts there are to choose from, with those that have no weights."""
        return self.router.experts + self.identity + self.skip
