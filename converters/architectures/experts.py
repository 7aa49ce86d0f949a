"""Pieces that mixtures of experts share: blocks whose branches are named after what they are, and their rules.

A layer's feed-forward branch is "mlp" where it is dense and "moe" where it is a mixture, so that one table of rules
serves models that have both; so are the branches that mix tokens, see `MIXERS`.
"""

from collections.abc import Sequence

from converters.architectures.common import TRANSPOSED, activation, norm_rules, weight_and_bias
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Attention, Block, Branch, DeltaNet, Latent, Mlp, Moe, Norm, Router, ShortConv

OURS = "layers.{l}.moe"

# of a mixture's training, without effect on the numbers
TRAINING = ("output_router_logits", "router_aux_loss_coef", "router_z_loss_coef", "router_jitter_noise")


# what the branch of a mixer is called, if not "attention"
MIXERS: dict[type, str] = {DeltaNet: "delta", ShortConv: "conv"}

# where newer code has the mixture that checkpoints have elsewhere
MOVED = ((".block_sparse_moe.", ".mlp."),)
# and how it calls experts in one tensor
AS_EXPERTS = (
    (".block_sparse_moe.input_linear.weight", ".block_sparse_moe.experts.gate_up_proj"),
    (".block_sparse_moe.output_linear.weight", ".block_sparse_moe.experts.down_proj"),
    (".block_sparse_moe.router.layer.", ".block_sparse_moe.router."),
)

Mixer = Attention | DeltaNet | Latent | ShortConv


def pre_norm(mixer: Mixer, feed_forward: Mlp | Moe, norm: Norm, scale: float = 1.0) -> Block:
    """The common block, its branches named after what they are."""
    first = MIXERS.get(type(mixer), "attention")
    second = "moe" if isinstance(feed_forward, Moe) else "mlp"
    return Block((Branch(first, mixer, pre=norm, scale=scale), Branch(second, feed_forward, pre=norm, scale=scale)))


def sandwich(attention: Attention, feed_forward: Mlp | Moe, norm: Norm) -> Block:
    """A norm before and after each branch, the second one named after what it is."""
    second = "moe" if isinstance(feed_forward, Moe) else "mlp"
    return Block(
        (Branch("attention", attention, pre=norm, post=norm), Branch(second, feed_forward, pre=norm, post=norm))
    )


def sparse_layers(take: Take) -> tuple[bool, ...]:
    """Which layers are mixtures: as they are listed, or every so many behind the first few, or those marked there.

    Raises:
        ValueError: the marks are not as many as the layers.
    """
    count, first, every = take("num_hidden_layers"), take("first_k_dense_replace"), take("moe_layer_freq", 1)
    marks = every if isinstance(every, list) else [i % every == 0 for i in range(count)]
    if len(marks) != count:
        raise ValueError(f"{take.where}: moe_layer_freq has {len(marks)} entries for {count} layers")
    return mixed_layers(take, [i >= first and bool(mark) for i, mark in enumerate(marks)])


def mlp_layer_types(take: Take, count: int, dense: int) -> tuple[str, ...]:
    """What the feed-forward layer of each layer is, "dense" or "sparse": as listed, or dense for the first `dense`."""
    return tuple("sparse" if sparse else "dense" for sparse in mixed_layers(take, [i >= dense for i in range(count)]))


def grouped_moe(take: Take, experts: str = "n_routed_experts", shared: str = "n_shared_experts") -> Moe:
    """Experts chosen by a sigmoid within the best groups, beside others that see every token.

    The bias of the choice, which does not weigh, comes with the method "noaux_tc" and not with others.
    """
    take.require("scoring_func", "sigmoid")
    router = Router(
        take(experts),
        take("num_experts_per_tok"),
        "sigmoid",
        choice_bias=take("topk_method", "noaux_tc") == "noaux_tc",
        groups=(take("n_group", 1), take("topk_group", 1)),
        group_top=2,
        renorm=1.0 if take("norm_topk_prob") else None,
        renorm_eps=1e-20,
        scale=take("routed_scaling_factor", 1.0),
    )
    act, width, count = activation(take, "hidden_act"), take("moe_intermediate_size"), take(shared, 0)
    return Moe(router, width, act, shared=Mlp(width * count, act) if count else None)


def mixed_layers(take: Take, default: Sequence[bool]) -> tuple[bool, ...]:
    """Which layers are mixtures, where the config lists them as "dense" or "sparse", or else `default`.

    Raises:
        ValueError: another kind, or a list of the wrong length.
    """
    kinds, names = take("mlp_layer_types", None), {"dense": False, "sparse": True}
    if kinds is None:
        return tuple(bool(mark) for mark in default)
    if len(kinds) != len(default) or not set(kinds) <= set(names):
        raise ValueError(
            f"{take.where}: mlp_layer_types is {kinds}; expected dense or sparse for {len(default)} layers"
        )
    return tuple(names[kind] for kind in kinds)


def grouped_moe_rules(theirs: str, bias: str = "gate.e_score_correction_bias") -> tuple[Rule, ...]:
    """The router with its bias, the experts and the shared ones, as one."""
    return (
        *router_rules(f"{theirs}.gate"),
        Rule(f"{OURS}.choice_bias", f"{theirs}.{bias}"),
        *expert_rules(f"{theirs}.experts"),
        *shared_rules(f"{theirs}.shared_experts"),
    )


def expert_rules(theirs: str, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj"):
    """Experts stored one by one: {theirs}.{e}.gate_proj.weight [F, D] and so on; or all in one, see below."""
    names = {"gate": gate, "up": up, "down": down}
    one_by_one = (
        Rule(f"{OURS}.{mine}", f"{theirs}.{{e}}.{name}.weight", "a b -> e b a") for mine, name in names.items()
    )
    return (*one_by_one, *fused_expert_rules(f"{theirs}.gate_up_proj", f"{theirs}.down_proj"))


def fused_expert_rules(
    gate_up: str, down: str, into: str = "e (q f) d -> q e d f", out: str = "e d f -> e f d"
) -> tuple[Rule, ...]:
    """All experts in one: gate_up [E, 2F, D], where every gate comes before every up, and down [E, D, F]."""
    return (Rule((f"{OURS}.gate", f"{OURS}.up"), gate_up, into), Rule(f"{OURS}.down", down, out))


def router_rules(theirs: str) -> tuple[Rule, ...]:
    """The router [E, D], and its bias."""
    return weight_and_bias(f"{OURS}.router", theirs, TRANSPOSED)


def shared_rules(theirs: str, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj"):
    """The shared expert."""
    names = {"gate": gate, "up": up, "down": down}
    return tuple(
        rule
        for mine, name in names.items()
        for rule in weight_and_bias(f"{OURS}.shared.{mine}", f"{theirs}.{name}", TRANSPOSED)
    )


def pre_norm_rules(layer: str, first: str = "input_layernorm", second: str = "post_attention_layernorm"):
    """The norms of `pre_norm` blocks, dense or not."""
    return (
        *norm_rules("layers.{l}.attention.pre", f"{layer}.{first}"),
        *norm_rules("layers.{l}.mlp.pre", f"{layer}.{second}"),
        *norm_rules(f"{OURS}.pre", f"{layer}.{second}"),
    )
