"""BioGPT: learned positions, scaled embedding, layer norms, a plain feed-forward layer."""

from dataclasses import replace

from converters.architectures.common import (
    activation,
    attention_rules,
    decoder,
    end_rules,
    grouped_attention,
    mlp_rules,
    pre_norm,
    pre_norm_rules,
)
from converters.architectures.family import Family
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Norm, Positions

DEFAULTS = {
    "hidden_act": "gelu",
    "max_position_embeddings": 1024,
    "scale_embedding": True,
    "tie_word_embeddings": True,
}


def config(take: Take) -> ModelSpec:
    """Read a BioGPT config. It has an eps, but the norms were made without it."""
    take.assume(DEFAULTS)
    take.ignore("layer_norm_eps", "activation_dropout")
    norm = Norm(1e-5, "layer", bias=True)
    op = replace(grouped_attention(take), qkv_bias=True, o_bias=True)
    mlp = Mlp(take("intermediate_size"), activation(take, "hidden_act"), gated=False, bias=True)
    spec = decoder(take, (pre_norm(op, mlp, norm),) * take("num_hidden_layers"), norm)
    return replace(
        spec,
        embed_scale=spec.dim**0.5 if take("scale_embedding") else 1.0,
        positions=Positions(spec.max_seq_len, offset=2),
    )


LAYER = "biogpt.layers.{l}"
FAMILY = Family(
    ("biogpt",),
    config,
    (
        *end_rules("biogpt.embed_tokens", "biogpt.layer_norm", "output_projection"),
        Rule("positions", "biogpt.embed_positions.weight"),
        *attention_rules(f"{LAYER}.self_attn", o="out_proj"),
        *mlp_rules(LAYER, up="fc1", down="fc2"),
        *pre_norm_rules(LAYER, "self_attn_layer_norm", "final_layer_norm"),
    ),
    prefix="biogpt.",
)
