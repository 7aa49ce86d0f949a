"""ONE table between our parameter paths and GGUF's tensor names, for every architecture.

GGUF names a tensor by its role ("blk.3.attn_q.weight"), whatever the model, so architectures differ only in the few
layouts that `archs.Arch` lists and in what can be read off the spec. A model that stores q, k and v as one tensor, or
gate and up, is read either way; the one that llama.cpp's converter writes comes first. Knows no metadata.
"""

from collections.abc import Mapping
from dataclasses import replace

from converters.gguf.arch import Arch
from converters.gguf.archs import ARCHS
from converters.gguf.names_own import own_rules
from converters.gguf.names_state import state_rules
from converters.rules import Rule
from forge_jax.spec import Attention, Latent, ModelSpec, Norm

LAYER, BLOCK = "layers.{l}", "blk.{l}"
MOE = f"{LAYER}.moe"

NORMS = (
    ("embed_norm", "token_embd_norm"),
    ("final_norm", "output_norm"),
    (f"{LAYER}.pre", f"{BLOCK}.attn_norm"),
    (f"{LAYER}.attention.pre", f"{BLOCK}.attn_norm"),
    (f"{LAYER}.attention.post", f"{BLOCK}.post_attention_norm"),
    (f"{LAYER}.mlp.pre", f"{BLOCK}.ffn_norm"),
    (f"{LAYER}.mlp.norm", f"{BLOCK}.ffn_sub_norm"),
    (f"{LAYER}.mlp.post", f"{BLOCK}.post_ffw_norm"),
    *((f"{LAYER}.{branch}.pre", f"{BLOCK}.attn_norm") for branch in ("mamba", "delta", "conv")),
    (f"{MOE}.pre", f"{BLOCK}.ffn_norm"),
    (f"{MOE}.post", f"{BLOCK}.post_ffw_norm"),
)
"""Our norm -> theirs."""

HEAD, HALVES = ("h", "h"), ("(j two)", "(two j)")
"""A head's features (theirs, ours): as they are, or with the two halves interleaved."""

BUFFERS = (f"{BLOCK}.attn_rot_embd.weight",)
"""Tensors of old files that repeat what the metadata says."""


def offsets(spec: ModelSpec) -> Mapping[str, float]:
    """What is added to the stored weight of each norm on the stream or on heads, by our name; GGUF stores the sum.

    Raises:
        ValueError: it differs from layer to layer.
    """
    found: dict[str, set[float]] = {}

    def add(ours: str, norm: Norm | None) -> None:
        if norm is not None:
            found.setdefault(ours, set()).add(norm.offset)

    add("embed_norm", spec.embed_norm)
    add("final_norm", spec.final_norm)
    for block in spec.layers:
        add(f"{LAYER}.pre", block.pre)
        for branch in block.every():
            for part in ("pre", "post", "after"):
                add(f"{LAYER}.{branch.name}.{part}", getattr(branch, part))
            if isinstance(branch.op, Attention):
                for part in ("q_norm", "k_norm"):
                    add(f"{LAYER}.{branch.name}.{part}", branch.op.qk_norm)
                add(f"{LAYER}.{branch.name}.out_norm", branch.op.out_norm)
    for ours, values in found.items():
        if len(values) > 1:
            raise ValueError(f"GGUF: {ours} with different offsets {sorted(values)} is not implemented")
    return {ours: values.pop() for ours, values in found.items()}


def latents(spec: ModelSpec) -> list[Latent]:
    """Every latent attention."""
    ops = [branch.op for block in spec.layers for branch in block.every()]
    return [op for op in ops if isinstance(op, Latent)]


def attention_of(spec: ModelSpec) -> Attention:
    """The attention of the first layer that has one.

    Raises:
        ValueError: no layer has.
    """
    for block in spec.layers:
        for branch in block.every():
            if isinstance(branch.op, Attention):
                return branch.op
    raise ValueError("GGUF: no layer of the model has attention")


def rules(arch: str, spec: ModelSpec) -> tuple[Rule, ...]:
    """The table for one architecture.

    Raises:
        ValueError: a norm whose offset differs from layer to layer.
    """
    facts, added = ARCHS[arch], offsets(spec)
    named = (*((f"{LAYER}.{ours}", f"{BLOCK}.{theirs}") for ours, theirs in facts.norms.items()), *NORMS)
    table = (
        *own_rules(spec),
        Rule("embed", "token_embd.weight"),
        Rule("positions", "position_embd.weight"),
        *linear("head", "output", "v d -> d v"),
        *(rule for ours, theirs in named for rule in norm(ours, theirs, added.get(ours, 0.0))),
        *(attention_rules(facts, attention_of(spec), added) if facts.attention in ("grouped", "mixed") else ()),
        *(latent_rules(latents(spec)[0].q_rank is not None, facts.fused_kv) if facts.attention == "latent" else ()),
        *mlp_rules(facts),
        *moe_rules(facts.fused_experts),
        *state_rules(spec, facts),
    )
    return tuple(replace(rule, theirs=renamed(rule.theirs, facts.names)) for rule in table)


def renamed(theirs: str, names: Mapping[str, str]) -> str:
    """A tensor's name, "blk.{l}.ffn_norm.weight", where the architecture has another one for its role."""
    block, _, rest = theirs.rpartition("}.")
    rest = names.get(rest, rest)
    rest = ".".join(names.get(part, part) for part in rest.split("."))
    return f"{block}}}.{rest}" if block else rest


def linear(ours: str, theirs: str, layout: str, bias_layout: str = "") -> tuple[Rule, ...]:
    """A linear layer, stored [out, in], with its bias."""
    return (Rule(ours, f"{theirs}.weight", layout), Rule(f"{ours}_bias", f"{theirs}.bias", bias_layout))


def norm(ours: str, theirs: str, offset: float, layout: str = "") -> tuple[Rule, ...]:
    """A norm; theirs is the whole factor, ours what is stored of it beside the offset."""
    return (
        Rule(f"{ours}.scale", f"{theirs}.weight", layout, add=-offset),
        Rule(f"{ours}.bias", f"{theirs}.bias", layout),
    )


def attention_rules(facts: Arch, attention: Attention, added: Mapping[str, float]) -> tuple[Rule, ...]:
    """q, k, v apart and as one tensor (all of q, then all of k, then all of v), o, and norms of q and k."""
    turned = HALVES if facts.permuted else HEAD
    parts = (("q", "n", *turned), ("k", "k", *turned), ("v", "m", "w", "w"))
    ours = f"{LAYER}.attention"
    apart = tuple(
        rule
        for name, heads, theirs, mine in parts
        for rule in linear(
            f"{ours}.{name}",
            f"{BLOCK}.attn_{name}",
            f"{rows(heads, theirs)} d -> d {heads} {mine}",
            f"{rows(heads, theirs)} -> {heads} {mine}",
        )
    )
    fused = (
        Rule(
            tuple(f"{ours}.{name}" for name, *_ in parts),
            f"{BLOCK}.attn_qkv.weight",
            tuple(f"{rows(heads, theirs)} d -> d {heads} {mine}" for _, heads, theirs, mine in parts),
            cat="c d",
        ),
        Rule(
            tuple(f"{ours}.{name}_bias" for name, *_ in parts),
            f"{BLOCK}.attn_qkv.bias",
            tuple(f"{rows(heads, theirs)} -> {heads} {mine}" for _, heads, theirs, mine in parts),
            cat="c",
        ),
    )
    if facts.gated_queries:
        both = Rule((f"{ours}.q", f"{ours}.gate"), f"{BLOCK}.attn_q.weight", "(n q h) d -> q d n h")
        fused = (both, *fused)
    per_head = "(n h) -> n h" if attention.qk_norm_over == "all" else ""
    rest = (
        *linear(f"{ours}.o", f"{BLOCK}.attn_output", "d (n h) -> n h d"),
        *(
            rule
            for mine, theirs, layout in (
                (f"{ours}.q_norm", f"{BLOCK}.attn_q_norm", per_head),
                (f"{ours}.k_norm", f"{BLOCK}.attn_k_norm", per_head),
                (f"{ours}.out_norm", f"{BLOCK}.attn_sub_norm", "(n h) -> n h"),
            )
            for rule in norm(mine, theirs, added.get(mine, 0.0), layout)
        ),
        Rule(f"{ours}.sinks", f"{BLOCK}.attn_sinks.weight"),
        Rule(f"{ours}.gate", f"{BLOCK}.attn_gate.weight", "(n h) d -> d n h"),
    )
    return (*fused, *apart, *rest) if facts.fused_qkv or facts.gated_queries else (*apart, *fused, *rest)


def latent_rules(low_queries: bool, fused: bool) -> tuple[Rule, ...]:
    """Latent attention, and what picks the tokens to look at; old files have the ways out of the latent as one."""
    ours = f"{LAYER}.attention"
    parts = (f"{ours}.k", f"{ours}.v")
    apart = (
        Rule(parts[0], f"{BLOCK}.attn_k_b.weight", "n r h -> r n h"),
        Rule(parts[1], f"{BLOCK}.attn_v_b.weight", "n v r -> r n v"),
    )
    together = Rule(parts, f"{BLOCK}.attn_kv_b.weight", ("n h r -> r n h", "n v r -> r n v"), "(n c) r")
    return (
        Rule(f"{ours}.q_a", f"{BLOCK}.attn_q_a.weight", "q d -> d q"),
        *norm(f"{ours}.q_norm", f"{BLOCK}.attn_q_a_norm", 0.0),
        Rule(f"{ours}.q", f"{BLOCK}.attn_q{'_b' if low_queries else ''}.weight", "(n h) d -> d n h"),
        Rule(f"{ours}.kv_a", f"{BLOCK}.attn_kv_a_mqa.weight", "r d -> d r"),
        *norm(f"{ours}.kv_norm", f"{BLOCK}.attn_kv_a_norm", 0.0),
        *((together, *apart) if fused else (*apart, together)),
        Rule(f"{ours}.o", f"{BLOCK}.attn_output.weight", "d (n v) -> n v d"),
        Rule(f"{ours}.index.q", f"{BLOCK}.indexer.attn_q_b.weight", "(n h) d -> d n h"),
        Rule(f"{ours}.index.k", f"{BLOCK}.indexer.attn_k.weight", "h d -> d h"),
        *norm(f"{ours}.index.k_norm", f"{BLOCK}.indexer.k_norm", 0.0),
        Rule(f"{ours}.index.weight", f"{BLOCK}.indexer.proj.weight", "n d -> d n"),
    )


def rows(heads: str, features: str) -> str:
    """Heads and their features folded into one axis: "(n j two)"."""
    return f"({heads} {features.strip('()')})"


def mlp_rules(facts: Arch) -> tuple[Rule, ...]:
    """gate, up and down; or gate and up as one tensor (all of gate, then all of up); what an activation has learned."""
    ours = f"{LAYER}.mlp"
    apart = tuple(
        rule for name in ("gate", "up") for rule in linear(f"{ours}.{name}", f"{BLOCK}.ffn_{name}", "f d -> d f")
    )
    fused = (
        Rule((f"{ours}.gate", f"{ours}.up"), f"{BLOCK}.ffn_up.weight", "(q f) d -> q d f"),
        Rule((f"{ours}.gate_bias", f"{ours}.up_bias"), f"{BLOCK}.ffn_up.bias", "(q f) -> q f"),
    )
    down = linear(f"{ours}.down", f"{BLOCK}.ffn_down", "d f -> f d")
    act = tuple(Rule(f"{ours}.act.{key.partition('.')[2]}", f"{BLOCK}.{key}") for key in facts.numbers)
    return (*fused, *apart, *down) if facts.fused_gate else (*apart, *down, *act)


def moe_rules(fused: bool) -> tuple[Rule, ...]:
    """The router, experts in one tensor (in old files one by one; gate and up may be fused), and the shared expert."""
    names = {"gate": "e f d -> e d f", "up": "e f d -> e d f", "down": "e d f -> e f d"}
    both = (
        Rule((f"{MOE}.gate", f"{MOE}.up"), f"{exps('gate_up')}.weight", "e (q f) d -> q e d f"),
        Rule((f"{MOE}.gate_bias", f"{MOE}.up_bias"), f"{exps('gate_up')}.bias", "e (q f) -> q e f"),
    )
    return (
        *(both if fused else ()),
        *linear(f"{MOE}.router", f"{BLOCK}.ffn_gate_inp", "e d -> d e"),
        Rule(f"{MOE}.choice_bias", f"{BLOCK}.exp_probs_b.bias", "e -> e"),
        *(rule for name, layout in names.items() for rule in linear(f"{MOE}.{name}", exps(name), layout)),
        *(Rule(f"{MOE}.{name}", f"{BLOCK}.ffn_{name}.{{e}}.weight", "a b -> e b a") for name in names),
        *both,
        *(rule for name in names for rule in linear(f"{MOE}.shared.{name}", f"{BLOCK}.ffn_{name}_shexp", "a b -> b a")),
        Rule(f"{MOE}.latent_in", f"{BLOCK}.ffn_latent_down.weight", "z d -> d z"),
        Rule(f"{MOE}.latent_out", f"{BLOCK}.ffn_latent_up.weight", "d z -> z d"),
        Rule(f"{MOE}.shared_gate", f"{BLOCK}.ffn_gate_inp_shexp.weight", "u d -> d u"),
    )


def exps(name: str) -> str:
    """All experts' tensor of a name."""
    return f"{BLOCK}.ffn_{name}_exps"
