"""Pieces that state space models share: small readers, and the rules of their mixers."""

from collections.abc import Sequence

from converters.architectures.common import HEADS_IN, activation, norm_rules, weight_and_bias
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Attention, Block, Branch, Mamba, Mamba2, Mlp, ModelSpec, Moe, Norm, Op

# how a state is initialised, which program computes it, and how much of it together: without effect on the numbers
QUIET = (
    "time_step_scale",
    "time_step_min",
    "time_step_max",
    "time_step_init_scheme",
    "time_step_floor",
    "rescale_prenorm_residual",
    "residual_in_fp32",
    "use_mambapy",
    "use_mamba_kernels",
    "use_associative_scan",
    "chunk_size",
    "mamba_chunk_size",
    "num_logits_to_keep",
)

ENDLESS = 2**20  # the context of a model that has no limit


# settings of Mamba 2 in hybrids whose defaults are the same
DEFAULTS = {
    "mamba_n_heads": 128,
    "mamba_d_head": "auto",
    "mamba_n_groups": 1,
    "mamba_d_state": 256,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
}

NAMES: dict[type, str] = {Attention: "attention", Mamba: "mamba", Mamba2: "mamba", Mlp: "mlp", Moe: "moe"}


def layer(norm: Norm, *ops: Op, scale: float = 1.0) -> Block:
    """A norm before each op, each in a branch named after what it is: one table of rules serves every mixture."""
    return Block(tuple(Branch(NAMES[type(op)], op, pre=norm, scale=scale) for op in ops))


def kinds(take: Take, given: Sequence[str], count: int) -> tuple[str, ...]:
    """What each layer is, where it may have its older name.

    Raises:
        ValueError: a name that is neither, or a list of the wrong length.
    """
    names = {"mamba": "linear_attention", "attention": "full_attention"}
    out = tuple(names.get(kind, kind) for kind in given)
    if odd := sorted(set(out) - {"linear_attention", "full_attention"}):
        raise ValueError(f"{take.where}: layer types {odd}; expected linear_attention or full_attention")
    if len(out) != count:
        raise ValueError(f"{take.where}: {len(out)} layer types for {count} layers")
    return out


def rank(take: Take, key: str) -> int:
    """The rank of the step size; "auto" is a sixteenth of the width."""
    value = take(key)
    return -(-take("hidden_size") // 16) if value == "auto" else int(value)


def limits(take: Take, key: str = "time_step_limit") -> tuple[float, float]:
    """The bounds of the step size; infinity is written as a number, or in one of two ways that JSON has for it."""
    low, high = (value["__float__"] if isinstance(value, dict) else value for value in take(key, (0.0, "inf")))
    return float(low), float(high)


def read_mamba2(take: Take, norm: Norm | None) -> Mamba2:
    """Mamba 2 as the configs of hybrids describe it.

    Raises:
        ValueError: heads times their width is not what the expansion says.
    """
    heads, size = take("mamba_n_heads"), take("mamba_d_head")
    width = int(take("mamba_d_ssm", None) or take("mamba_expand") * take("hidden_size"))
    size = width // heads if size == "auto" else size
    if heads * size != width:
        raise ValueError(f"{take.where}: mamba has {heads} heads of {size}, which is not its width of {width}")
    bias = take("mamba_proj_bias")
    return Mamba2(
        heads,
        size,
        take("mamba_d_state"),
        take("mamba_n_groups"),
        take("mamba_d_conv"),
        act=activation(take, "hidden_act"),
        in_bias=bias,
        out_bias=bias,
        conv_bias=take("mamba_conv_bias"),
        norm=norm,
        dt_limit=limits(take),
    )


def pure(take: Take, op: Mamba | Mamba2, norm: Norm) -> ModelSpec:
    """A model of nothing but equal state space layers."""
    layers = (layer(norm, op),) * take("num_hidden_layers")
    return ModelSpec(
        take("vocab_size"), take("hidden_size"), layers, ENDLESS, norm, tied=take("tie_word_embeddings", False)
    )


def pre_rules(layer: str, first: str, second: str) -> tuple[Rule, ...]:
    """The norms before a layer's two branches, whatever they are."""
    before = {"attention": first, "mamba": first, "mlp": second, "moe": second}
    pairs = ((f"layers.{{l}}.{mine}.pre", f"{layer}.{name}") for mine, name in before.items())
    return tuple(rule for mine, theirs in pairs for rule in norm_rules(mine, theirs))


def mamba_rules(theirs: str) -> tuple[Rule, ...]:
    """A selective state space, and the norms of its step size, B and C."""
    ours = "layers.{l}.mamba"
    low = tuple(f"{ours}.{part}" for part in ("dt_in", "b", "c"))
    both = (f"{ours}.x", f"{ours}.z")
    return (
        Rule(both, f"{theirs}.in_proj.weight", "(q n h) d -> q d n h"),
        Rule(tuple(f"{path}_bias" for path in both), f"{theirs}.in_proj.bias", "(q n h) -> q n h"),
        *weight_and_bias(f"{ours}.conv", f"{theirs}.conv1d", "(n h) one k -> n h one k", "(n h) -> n h"),
        Rule(low, f"{theirs}.x_proj.weight", ("r n h -> n h r", "s n h -> n h s", "s n h -> n h s"), cat="c (n h)"),
        *weight_and_bias(f"{ours}.dt", f"{theirs}.dt_proj", "(n h) r -> n r h", "(n h) -> n h"),
        Rule(f"{ours}.a_log", f"{theirs}.A_log", "(n h) s -> n h s"),
        Rule(f"{ours}.skip", f"{theirs}.D", "(n h) -> n h"),
        *weight_and_bias(f"{ours}.out", f"{theirs}.out_proj", HEADS_IN),
        *(
            rule
            for mine, name in (("dt_in", "dt"), ("b", "b"), ("c", "c"))
            for rule in norm_rules(f"{ours}.{mine}_norm", f"{theirs}.{name}_layernorm")
        ),
    )


def mamba2_rules(theirs: str) -> tuple[Rule, ...]:
    """A state space with one decay a head: z, x, B, C and the step size come from one projection."""
    ours = "layers.{l}.mamba"
    head, group, step = "(n h)", "(g s)", "n"
    parts = {"z": head, "x": head, "b": group, "c": group, "dt_in": step}
    into = tuple(f"{axes} d -> d {axes.strip('()')}" for axes in parts.values())
    bias = tuple(f"{axes} -> {axes.strip('()')}" for axes in parts.values())
    convolved = {name: axes for name, axes in parts.items() if name in ("x", "b", "c")}
    conv = tuple(f"{axes} one k -> {axes.strip('()')} one k" for axes in convolved.values())
    conv_bias = tuple(f"{axes} -> {axes.strip('()')}" for axes in convolved.values())
    return (
        Rule(tuple(f"{ours}.{name}" for name in parts), f"{theirs}.in_proj.weight", into, cat="c d"),
        Rule(tuple(f"{ours}.{name}_bias" for name in parts), f"{theirs}.in_proj.bias", bias, cat="c"),
        Rule(tuple(f"{ours}.{name}_conv" for name in convolved), f"{theirs}.conv1d.weight", conv, cat="c one k"),
        Rule(tuple(f"{ours}.{name}_conv_bias" for name in convolved), f"{theirs}.conv1d.bias", conv_bias, cat="c"),
        Rule(f"{ours}.dt_bias", f"{theirs}.dt_bias"),
        Rule(f"{ours}.a_log", f"{theirs}.A_log"),
        Rule(f"{ours}.skip", f"{theirs}.D"),
        Rule(f"{ours}.norm.scale", f"{theirs}.norm.weight", "(n h) -> n h"),
        *weight_and_bias(f"{ours}.out", f"{theirs}.out_proj", HEADS_IN),
    )
