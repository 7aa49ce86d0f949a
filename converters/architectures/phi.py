"""Phi 1, 1.5 and 2: parallel branches behind one norm, partly rotated heads, biases everywhere, also on the head."""

from dataclasses import replace

from converters.architectures.common import (
    activation,
    attention_rules,
    decoder,
    end_rules,
    grouped_attention,
    head_dim,
    mlp_rules,
    norm_rules,
    parallel,
)
from converters.architectures.family import Family
from converters.rope import read_rope
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Norm

DEFAULTS = {
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}


def config(take: Take) -> ModelSpec:
    """Read a phi config; queries and keys may have norms of their own."""
    take.assume(DEFAULTS)
    norm = Norm(take("layer_norm_eps"), "layer", bias=True)
    attention = grouped_attention(take, read_rope(take, head_dim(take), partial=0.5))
    qk_norm = norm if take("qk_layernorm", False) else None
    attention = replace(attention, qkv_bias=True, o_bias=True, qk_norm=qk_norm)
    mlp = Mlp(take("intermediate_size"), activation(take, "hidden_act"), gated=False, bias=True)
    layers = (parallel(attention, mlp, norm),) * take("num_hidden_layers")
    return replace(decoder(take, layers, norm), head_bias=True)


LAYER = "model.layers.{l}"
FAMILY = Family(
    ("phi",),
    config,
    (
        *end_rules(norm="model.final_layernorm"),
        *norm_rules("layers.{l}.attention.q_norm", f"{LAYER}.self_attn.q_layernorm"),
        *norm_rules("layers.{l}.attention.k_norm", f"{LAYER}.self_attn.k_layernorm"),
        *attention_rules(f"{LAYER}.self_attn", o="dense"),
        *mlp_rules(f"{LAYER}.mlp", up="fc1", down="fc2"),
        *norm_rules("layers.{l}.pre", f"{LAYER}.input_layernorm"),
    ),
    buffers=(f"{LAYER}.self_attn.rotary_emb.inv_freq",),
)
