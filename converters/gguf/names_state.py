"""Between our parameter paths and GGUF's tensor names: ops that keep a state.

llama.cpp stores the decay itself, -exp(a_log), and the taps of a convolution without the axis of size 1.
"""

from typing import Any

from converters.gguf.arch import Arch
from converters.rules import Rule
from forge_jax.spec import DeltaNet, Mamba2, ModelSpec

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


def delta_rules(key_heads: int, tiled: bool) -> tuple[Rule, ...]:
    """The delta rule: queries, keys and values of all heads as one tensor; in old files head by head, with the gate.

    ggml repeats key heads as a whole. `tiled`: value heads lie in the order that this gives them.
    """
    ours, k = "layers.{l}.delta", key_heads
    keys = "(k h) d -> d k h"
    values, heads, number = ("(n v)", "n v", "n") if not tiled else (f"(g {k} v)", f"({k} g) v", f"(g {k})")
    mine = "n" if not tiled else f"({k} g)"
    conv = "(k h) t -> k h t"
    old = "k h d -> d k h"
    together = Rule((f"{ours}.beta", f"{ours}.decay"), f"{BLOCK}.ssm_ba.weight", f"({k} q g) d -> q d ({k} g)")
    apart = tuple(
        Rule(f"{ours}.{name}", f"{BLOCK}.ssm_{theirs}.weight", f"{number} d -> d {mine}")
        for name, theirs in (("beta", "beta"), ("decay", "alpha"))
    )
    return (
        Rule(
            tuple(f"{ours}.{part}" for part in "qkv"),
            f"{BLOCK}.attn_qkv.weight",
            (keys, keys, f"{values} d -> d {heads}"),
            cat="c d",
        ),
        Rule(f"{ours}.gate", f"{BLOCK}.attn_gate.weight", f"{values} d -> d {heads}"),
        Rule(
            tuple(f"{ours}.{part}" for part in ("q", "k", "v", "gate")),
            f"{BLOCK}.ssm_in.weight",
            (old, old, "k (g v) d -> d (k g) v", "k (g v) d -> d (k g) v"),
            cat="(k c) d",
        ),
        *(apart if tiled else (together,)),
        Rule(
            tuple(f"{ours}.{part}_conv" for part in "qkv"),
            f"{BLOCK}.ssm_conv1d.weight",
            (conv, conv, f"{values} t -> {heads} t"),
            cat="c t",
        ),
        Rule(f"{ours}.a_log", f"{BLOCK}.ssm_a", f"{number} -> {mine}", decay=True),
        Rule(f"{ours}.dt_bias", f"{BLOCK}.ssm_dt.bias", f"{number} -> {mine}"),
        Rule(f"{ours}.norm.scale", f"{BLOCK}.ssm_norm.weight"),
        Rule(f"{ours}.o", f"{BLOCK}.ssm_out.weight", f"d {values} -> {heads} d"),
    )


def fading_rules() -> tuple[Rule, ...]:
    """The delta rule with a decay for each feature: projections and convolutions apart, decay and gate of low rank."""
    ours, conv = "layers.{l}.delta", "(n h) one t -> n h one t"
    maps = {"decay": "f", "gate": "g"}
    return (
        *(Rule(f"{ours}.{part}", f"{BLOCK}.attn_{part}.weight", "(n h) d -> d n h") for part in "qkv"),
        *(Rule(f"{ours}.{part}_conv", f"{BLOCK}.ssm_conv1d_{part}.weight", conv) for part in "qkv"),
        *(Rule(f"{ours}.{name}_in", f"{BLOCK}.ssm_{short}_a.weight", "r d -> d r") for name, short in maps.items()),
        *(Rule(f"{ours}.{name}", f"{BLOCK}.ssm_{short}_b.weight", "(n h) r -> r n h") for name, short in maps.items()),
        Rule(f"{ours}.beta", f"{BLOCK}.ssm_beta.weight", "n d -> d n"),
        Rule(f"{ours}.a_log", f"{BLOCK}.ssm_a", "n one -> n one", decay=True),
        Rule(f"{ours}.dt_bias", f"{BLOCK}.ssm_dt.bias", "(n h) -> n h"),
        Rule(f"{ours}.norm.scale", f"{BLOCK}.ssm_norm.weight"),
        Rule(f"{ours}.o", f"{BLOCK}.attn_output.weight", "d (n v) -> n v d"),
    )


def conv_rules() -> tuple[Rule, ...]:
    """A short convolution between two gates."""
    ours = "layers.{l}.conv"
    return (
        Rule(tuple(f"{ours}.{part}" for part in "bcx"), f"{BLOCK}.shortconv.in_proj.weight", "(q c) d -> q d c"),
        Rule(f"{ours}.conv", f"{BLOCK}.shortconv.conv.weight", "c k -> c k"),
        Rule(f"{ours}.out", f"{BLOCK}.shortconv.out_proj.weight", "d c -> c d"),
    )


def named(spec: ModelSpec, name: str) -> Any:
    """The op of the first branch of a name, or None."""
    return next((b.op for block in spec.layers for b in block.branches if b.name == name), None)


def fades(delta: DeltaNet) -> bool:
    """Whether the state of the delta rule has a decay for each feature."""
    return delta.decay.over == "feature"


def state_rules(spec: ModelSpec, facts: Arch) -> tuple[Rule, ...]:
    """The rules of the ops with a state that a spec has."""
    mamba, delta = named(spec, "mamba"), named(spec, "delta")
    return (
        *(mamba2_rules(mamba.groups) if isinstance(mamba, Mamba2) else mamba_rules() if mamba else ()),
        *(() if not delta else fading_rules() if fades(delta) else delta_rules(delta.key_heads, facts.tiled)),
        *conv_rules(),
    )
