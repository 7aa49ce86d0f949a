"""Command R: parallel branches behind one norm, heads rotated in pairs, in some a norm for every single head."""

from dataclasses import replace

from converters.architectures.cohere2 import RULES
from converters.architectures.common import decoder, gated_mlp, grouped_attention, head_dim, parallel
from converters.architectures.family import Family
from converters.rope import read_rope
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm

DEFAULTS = {
    "hidden_act": "silu",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "logit_scale": 0.0625,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
}


def config(take: Take) -> ModelSpec:
    """Parallel, rotary, gated, layer norms without bias."""
    take.assume(DEFAULTS)
    take.ignore("model_max_length", "pretraining_tp")  # of the tokenizer; cuts the same products into pieces
    norm, bias = Norm(take("layer_norm_eps"), kind="layer"), take("attention_bias", False)
    attention = replace(
        grouped_attention(take, read_rope(take, head_dim(take), interleaved=True)),
        qk_norm=norm if take("use_qk_norm", False) else None,
        qk_norm_over="heads",
        qkv_bias=bias,
        o_bias=bias,
    )
    spec = decoder(take, (parallel(attention, gated_mlp(take), norm),) * take("num_hidden_layers"), norm)
    return replace(spec, logit_scale=take("logit_scale"))


FAMILY = Family(("cohere",), config, RULES)
