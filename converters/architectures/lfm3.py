"""LFM3: LFM2 with windows on some layers, a norm after each branch too and a gate on the heads."""

from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    decoder,
    end_rules,
    grouped_attention,
    layer_types,
    mlp_rules,
    norm_rules,
    rename,
)
from converters.architectures.experts import MIXERS, Mixer
from converters.architectures.family import Family
from converters.architectures.lfm2 import CONV_RULES
from converters.rope import read_ropes
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Attention, Block, Branch, Gate, Mlp, ModelSpec, Norm, ShortConv

DEFAULTS = {
    "vocab_size": 128000,
    "hidden_size": 2048,
    "intermediate_size": 7680,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 128000,
    "norm_eps": 1e-5,
    "conv_L_cache": 7,
    "sliding_window": 256,
    "use_sandwich_norm": True,
    "use_attention_gate": True,
    "tie_word_embeddings": True,
}
ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.5},
}


def attentions(take: Take, norm: Norm) -> dict[str, Attention]:
    """The attention of each kind of layer: a rope of its own, and a window if it slides."""
    if not take.has("rope_parameters"):
        take.config["rope_parameters"] = ROPES
    bias, gate = take("attention_bias", False), Gate("head") if take("use_attention_gate", False) else None
    base = replace(grouped_attention(take), qk_norm=norm, qkv_bias=bias, o_bias=bias, gate=gate)
    ropes = read_ropes(take, base.head_dim, dict.fromkeys(ROPES, 1000000.0))
    sizes = {"sliding_attention": take("sliding_window", None)}
    return {kind: replace(base, rope=rope, window=sizes.get(kind)) for kind, rope in ropes.items()}


def config(take: Take) -> ModelSpec:
    """Sandwich norms or norms before alone, gated."""
    rename(take, {"norm_eps": "rms_norm_eps"})
    take.assume(DEFAULTS)
    norm, count = Norm(take("norm_eps")), take("num_hidden_layers")
    post = norm if take("use_sandwich_norm", False) else None
    default = [
        "full_attention" if i % 4 == 2 else "sliding_attention" if i % 4 == 0 < i else "conv" for i in range(count)
    ]
    kinds = layer_types(take, count, default, "sliding_attention", "conv")
    known: dict[str, Mixer] = {**attentions(take, norm)}
    known["conv"] = ShortConv(take("hidden_size"), take("conv_L_cache"), take("conv_bias", False))
    mlp = Branch("mlp", Mlp(take("intermediate_size")), pre=norm, post=post)
    first = (Branch(MIXERS.get(type(known[kind]), "attention"), known[kind], pre=norm, post=post) for kind in kinds)
    return decoder(take, (Block((branch, mlp)) for branch in first), norm)


FAMILY = Family(
    ("lfm3",),
    config,
    (
        Rule("layers.{l}.attention.gate", f"{LAYER}.self_attn.gate_proj.weight", "n d -> d n"),
        *(
            Rule(f"layers.{{l}}.attention.{ours}", f"{LAYER}.self_attn.{theirs}", layout)
            for ours, theirs, layout in (
                ("q_norm.scale", "q_norm.weight", ""),
                ("k_norm.scale", "k_norm.weight", ""),
                ("o", "o_proj.weight", "d (n h) -> n h d"),
                ("o_bias", "o_proj.bias", ""),
            )
        ),
        *end_rules(norm="model.embedding_norm"),
        *CONV_RULES,
        *(
            norm_rule
            for part in ("attention", "conv")
            for norm_rule in norm_rules(f"layers.{{l}}.{part}.post", f"{LAYER}.post_operator_norm")
        ),
        *mlp_rules(f"{LAYER}.feed_forward", gate="w1", up="w3", down="w2"),
        *norm_rules("layers.{l}.mlp.pre", f"{LAYER}.ffn_norm"),
        *norm_rules("layers.{l}.mlp.post", f"{LAYER}.post_ffn_norm"),
    ),
)
