"""StableLM 3B and 2: llama with layer norms, partly rotated heads, and in some a norm for every single head."""

from dataclasses import replace

from converters.architectures.common import (
    COMMON,
    LAYER,
    decoder,
    gated_mlp,
    grouped_attention,
    head_dim,
    norm_rules,
    parallel,
    pre_norm,
)
from converters.architectures.family import Family
from converters.rope import read_rope
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm

DEFAULTS = {
    "hidden_act": "silu",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "num_key_value_heads": 32,
    "tie_word_embeddings": False,
}


def config(take: Take) -> ModelSpec:
    """Read a StableLM config."""
    take.assume(DEFAULTS)
    norm = Norm(take("layer_norm_eps"), "layer", bias=True)
    attention = replace(
        grouped_attention(take, read_rope(take, head_dim(take), partial=0.25)),
        qkv_bias=take("use_qkv_bias", False),
        qk_norm=Norm(norm.eps, "layer") if take("qk_layernorm", False) else None,
        qk_norm_over="heads",
    )
    wire = parallel if take("use_parallel_residual", False) else pre_norm
    return decoder(take, (wire(attention, gated_mlp(take), norm),) * take("num_hidden_layers"), norm)


FAMILY = Family(
    ("stablelm",),
    config,
    (
        *(
            Rule(
                f"layers.{{l}}.attention.{part}_norm.scale",
                f"{LAYER}.self_attn.{part}_layernorm.norms.{{n}}.weight",
                "h -> n h",
            )
            for part in "qk"
        ),
        *COMMON,
        *norm_rules("layers.{l}.pre", f"{LAYER}.input_layernorm"),
    ),
    buffers=(f"{LAYER}.self_attn.rotary_emb.inv_freq",),
)
