"""ONE table between our parameter paths and GGUF's tensor names, for every architecture.

GGUF names a tensor by its role ("blk.3.attn_q.weight"), whatever the model, so architectures differ only in the few
layouts that `archs.Arch` lists and in what can be read off the spec. A model that stores q, k and v as one tensor, or
gate and up, is read either way; the one that llama.cpp's converter writes comes first. Knows no metadata.
"""

from collections.abc import Iterator

from converters.gguf.archs import ARCHS, Arch
from converters.rules import Rule
from forge_jax.spec import Attention, ModelSpec, Norm

LAYER, BLOCK = "layers.{l}", "blk.{l}"

NORMS = (
    ("embed_norm", "token_embd_norm"),
    ("final_norm", "output_norm"),
    (f"{LAYER}.pre", f"{BLOCK}.attn_norm"),
    (f"{LAYER}.attention.pre", f"{BLOCK}.attn_norm"),
    (f"{LAYER}.attention.post", f"{BLOCK}.post_attention_norm"),
    (f"{LAYER}.mlp.pre", f"{BLOCK}.ffn_norm"),
    (f"{LAYER}.mlp.post", f"{BLOCK}.post_ffw_norm"),
)
"""Our norm -> theirs."""

# where parallel branches have a norm each and the first is the feed-forward layer's
SWAPPED = ((f"{LAYER}.attention.pre", f"{BLOCK}.attn_norm_2"), (f"{LAYER}.mlp.pre", f"{BLOCK}.attn_norm"))

HEAD, HALVES = ("h", "h"), ("(j two)", "(two j)")
"""A head's features (theirs, ours): as they are, or with the two halves interleaved."""

BUFFERS = (f"{BLOCK}.attn_rot_embd.weight",)
"""Tensors of old files that repeat what the metadata says."""


def norms(spec: ModelSpec) -> Iterator[Norm]:
    """Every norm of a spec that works on the stream or on heads."""
    found = [spec.embed_norm, spec.final_norm]
    for block in spec.layers:
        found.append(block.pre)
        for branch in block.branches:
            found += [branch.pre, branch.post, branch.after]
            if isinstance(branch.op, Attention):
                found.append(branch.op.qk_norm)
    return (norm for norm in found if norm is not None)


def attention_of(spec: ModelSpec) -> Attention:
    """The attention of the first layer.

    Raises:
        ValueError: the first layer has none.
    """
    for branch in spec.layers[0].branches if spec.layers else ():
        if isinstance(branch.op, Attention):
            return branch.op
    raise ValueError("GGUF: the model's first layer has no attention")


def rules(arch: str, spec: ModelSpec) -> tuple[Rule, ...]:
    """The table for one architecture.

    Raises:
        ValueError: norms that store different offsets, of which GGUF, which stores the factors themselves, knows none.
    """
    facts, attention = ARCHS[arch], attention_of(spec)
    offsets = {norm.offset for norm in norms(spec)}
    if len(offsets) > 1:
        raise ValueError(f"GGUF: norms with different offsets {sorted(offsets)} are not implemented")
    offset = offsets.pop() if offsets else 0.0
    per_head = "(n h) -> n h" if attention.qk_norm_over == "all" else ""
    named = (*SWAPPED, *NORMS) if facts.swapped_norms else NORMS
    return (
        Rule("embed", "token_embd.weight"),
        Rule("positions", "position_embd.weight"),
        *linear("head", "output", "v d -> d v"),
        *(rule for ours, theirs in named for rule in norm(ours, theirs, offset)),
        *norm(f"{LAYER}.attention.q_norm", f"{BLOCK}.attn_q_norm", offset, per_head),
        *norm(f"{LAYER}.attention.k_norm", f"{BLOCK}.attn_k_norm", offset, per_head),
        *attention_rules(facts),
        *mlp_rules(facts),
    )


def linear(ours: str, theirs: str, layout: str, bias_layout: str = "") -> tuple[Rule, ...]:
    """A linear layer, stored [out, in], with its bias."""
    return (Rule(ours, f"{theirs}.weight", layout), Rule(f"{ours}_bias", f"{theirs}.bias", bias_layout))


def norm(ours: str, theirs: str, offset: float, layout: str = "") -> tuple[Rule, ...]:
    """A norm; theirs is the whole factor, ours what is stored of it beside the offset."""
    return (
        Rule(f"{ours}.scale", f"{theirs}.weight", layout, add=-offset),
        Rule(f"{ours}.bias", f"{theirs}.bias", layout),
    )


def attention_rules(facts: Arch) -> tuple[Rule, ...]:
    """q, k, v apart and as one tensor (all of q, then all of k, then all of v), and o."""
    turned = HALVES if facts.permuted else HEAD
    parts = (("q", "n", *turned), ("k", "k", *turned), ("v", "m", *HEAD))
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
    out = linear(f"{ours}.o", f"{BLOCK}.attn_output", "d (n h) -> n h d")
    return (*fused, *apart, *out) if facts.fused_qkv else (*apart, *fused, *out)


def rows(heads: str, features: str) -> str:
    """Heads and their features folded into one axis: "(n j two)"."""
    return f"({heads} {features.strip('()')})"


def mlp_rules(facts: Arch) -> tuple[Rule, ...]:
    """gate, up and down; or gate and up as one tensor (all of gate, then all of up)."""
    ours = f"{LAYER}.mlp"
    apart = tuple(
        rule for name in ("gate", "up") for rule in linear(f"{ours}.{name}", f"{BLOCK}.ffn_{name}", "f d -> d f")
    )
    fused = (
        Rule((f"{ours}.gate", f"{ours}.up"), f"{BLOCK}.ffn_up.weight", "(q f) d -> q d f"),
        Rule((f"{ours}.gate_bias", f"{ours}.up_bias"), f"{BLOCK}.ffn_up.bias", "(q f) -> q f"),
    )
    down = linear(f"{ours}.down", f"{BLOCK}.ffn_down", "d f -> f d")
    return (*fused, *apart, *down) if facts.fused_gate else (*apart, *down)
