"""Pieces that state space models share: small readers, and the rules of their mixers."""

from converters.architectures.common import HEADS_IN, norm_rules, weight_and_bias
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Block, Branch, Mamba, Mamba2, ModelSpec, Norm, Op

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


def single(name: str, op: Op, norm: Norm) -> Block:
    """A layer of one branch: x + op(norm(x))."""
    return Block((Branch(name, op, pre=norm),))


def rank(take: Take, key: str) -> int:
    """The rank of the step size; "auto" is a sixteenth of the width."""
    value = take(key)
    return -(-take("hidden_size") // 16) if value == "auto" else int(value)


def limits(take: Take, key: str = "time_step_limit") -> tuple[float, float]:
    """The bounds of the step size; infinity is written as a number, or in one of two ways that JSON has for it."""
    low, high = (value["__float__"] if isinstance(value, dict) else value for value in take(key, (0.0, "inf")))
    return float(low), float(high)


def pure(take: Take, op: Mamba | Mamba2, norm: Norm) -> ModelSpec:
    """A model of nothing but equal state space layers."""
    layers = (single("mamba", op, norm),) * take("num_hidden_layers")
    return ModelSpec(
        take("vocab_size"), take("hidden_size"), layers, ENDLESS, norm, tied=take("tie_word_embeddings", False)
    )


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
