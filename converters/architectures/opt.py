"""OPT: learned positions, norms before or after each branch, an embedding that may be narrower than the model."""

from dataclasses import replace

from converters.architectures.common import (
    TRANSPOSED,
    activation,
    attention_rules,
    decoder,
    end_rules,
    grouped_attention,
    norm_rules,
    pre_norm,
    weight_and_bias,
)
from converters.architectures.family import Family
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Block, Branch, Mlp, ModelSpec, Norm, Positions

DEFAULTS = {
    "activation_function": "relu",
    "do_layer_norm_before": True,
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


def config(take: Take) -> ModelSpec:
    """Read an OPT config. The eps of its norms is not in it."""
    take.assume(DEFAULTS)
    take.ignore("activation_dropout")
    affine, bias, before = take("layer_norm_elementwise_affine"), take("enable_bias"), take("do_layer_norm_before")
    norm = Norm(1e-5, "layer", scale=affine, bias=affine)
    op = replace(grouped_attention(take), qkv_bias=bias, o_bias=bias)
    mlp = Mlp(take("ffn_dim"), activation(take, "activation_function"), gated=False, bias=bias)
    after = Block((Branch("attention", op, after=norm), Branch("mlp", mlp, after=norm)))
    layer = pre_norm(op, mlp, norm) if before else after
    spec = decoder(take, (layer,) * take("num_hidden_layers"), norm)
    width = take("word_embed_proj_dim", spec.dim)
    return replace(
        spec,
        embed_dim=None if width == spec.dim else width,
        positions=Positions(spec.max_seq_len, offset=2),
        # checkpoints that were fine-tuned with an early release have none
        final_norm=norm if before and not take("_remove_final_layer_norm", False) else None,
    )


DECODER = "model.decoder"
LAYER = f"{DECODER}.layers.{{l}}"
FAMILY = Family(
    ("opt",),
    config,
    (
        *end_rules(f"{DECODER}.embed_tokens", f"{DECODER}.final_layer_norm"),
        Rule("positions", f"{DECODER}.embed_positions.weight"),
        Rule("embed_in", f"{DECODER}.project_in.weight", TRANSPOSED),
        Rule("embed_out", f"{DECODER}.project_out.weight", TRANSPOSED),
        *attention_rules(f"{LAYER}.self_attn", o="out_proj"),
        *weight_and_bias("layers.{l}.mlp.up", f"{LAYER}.fc1", TRANSPOSED),
        *weight_and_bias("layers.{l}.mlp.down", f"{LAYER}.fc2", TRANSPOSED),
        *(
            rule
            for place in ("pre", "after")
            for rule in (
                *norm_rules(f"layers.{{l}}.attention.{place}", f"{LAYER}.self_attn_layer_norm"),
                *norm_rules(f"layers.{{l}}.mlp.{place}", f"{LAYER}.final_layer_norm"),
            )
        ),
    ),
)
