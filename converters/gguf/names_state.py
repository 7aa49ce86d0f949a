"""Between our parameter paths and GGUF's tensor names: ops that keep a state.

llama.cpp stores the decay itself, -exp(a_log), and the taps of a convolution without the axis of size 1.
"""

from converters.rules import Rule
from forge_jax.spec import Mamba2, ModelSpec

OURS, BLOCK = "layers.{l}.mamba", "blk.{l}"


def mamba_rules() -> tuple[Rule, ...]:
    """A selective state space; the norms of its step size, B and C."""
    low = tuple(f"{OURS}.{part}" for part in ("dt_in", "b", "c"))
    return (
        Rule((f"{OURS}.x", f"{OURS}.z"), f"{BLOCK}.ssm_in.weight", "(q n h) d -> q d n h"),
        Rule(f"{OURS}.conv", f"{BLOCK}.ssm_conv1d.weight", "(n h) k -> n h k"),
        Rule(f"{OURS}.conv_bias", f"{BLOCK}.ssm_conv1d.bias", "(n h) -> n h"),
        Rule(low, f"{BLOCK}.ssm_x.weight", ("r n h -> n h r", "s n h -> n h s", "s n h -> n h s"), cat="c (n h)"),
        Rule(f"{OURS}.dt", f"{BLOCK}.ssm_dt.weight", "(n h) r -> n r h"),
        Rule(f"{OURS}.dt_bias", f"{BLOCK}.ssm_dt.bias", "(n h) -> n h"),
        Rule(f"{OURS}.a_log", f"{BLOCK}.ssm_a", "(n h) s -> n h s", decay=True),
        Rule(f"{OURS}.skip", f"{BLOCK}.ssm_d", "(n h) -> n h"),
        Rule(f"{OURS}.out", f"{BLOCK}.ssm_out.weight", "d (n h) -> n h d"),
        *(
            Rule(f"{OURS}.{ours}_norm.scale", f"{BLOCK}.ssm_{theirs}_norm.weight")
            for ours, theirs in (("dt_in", "dt"), ("b", "b"), ("c", "c"))
        ),
    )


def mamba2_rules(groups: int) -> tuple[Rule, ...]:
    """A state space with one decay a head: z, x, B, C and the step size come from one projection."""
    head, group, step = "(n h)", "(g s)", "n"
    parts = {"z": head, "x": head, "b": group, "c": group, "dt_in": step}
    convolved = ("x", "b", "c")

    def folded(names: tuple[str, ...], layout: str) -> tuple[str, ...]:
        return tuple(layout.format(parts[name], parts[name].strip("()")) for name in names)

    def paths(names: tuple[str, ...], suffix: str) -> tuple[str, ...]:
        return tuple(f"{OURS}.{name}{suffix}" for name in names)

    return (
        Rule(paths((*parts,), ""), f"{BLOCK}.ssm_in.weight", folded((*parts,), "{0} d -> d {1}"), cat="c d"),
        Rule(paths(convolved, "_conv"), f"{BLOCK}.ssm_conv1d.weight", folded(convolved, "{0} k -> {1} k"), cat="c k"),
        Rule(paths(convolved, "_conv_bias"), f"{BLOCK}.ssm_conv1d.bias", folded(convolved, "{0} -> {1}"), cat="c"),
        Rule(f"{OURS}.dt_bias", f"{BLOCK}.ssm_dt.bias"),
        Rule(f"{OURS}.a_log", f"{BLOCK}.ssm_a", "n one -> n one", decay=True),
        Rule(f"{OURS}.skip", f"{BLOCK}.ssm_d", "n one -> n one"),
        Rule(f"{OURS}.norm.scale", f"{BLOCK}.ssm_norm.weight", f"{groups} (m h) -> ({groups} m) h"),
        Rule(f"{OURS}.out", f"{BLOCK}.ssm_out.weight", "d (n h) -> n h d"),
    )


def state_rules(spec: ModelSpec) -> tuple[Rule, ...]:
    """The rules of the state space models that a spec has."""
    ops = [branch.op for block in spec.layers for branch in block.branches]
    second = next((op for op in ops if isinstance(op, Mamba2)), None)
    return mamba2_rules(second.groups) if second else mamba_rules()
