"""nanochat: norms without weights, queries and keys normalised after a rope that turns the other way."""

from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    activation,
    attention_rules,
    decoder,
    end_rules,
    mlp_rules,
    pre_norm,
    rotary_attention,
)
from converters.architectures.family import Family
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Norm

DEFAULTS = {
    "hidden_act": "relu2",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "final_logit_softcapping": 15.0,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, also on the embedding; rotary, not gated."""
    take.assume(DEFAULTS)
    norm, bias = Norm(take("rms_norm_eps"), scale=False), take("attention_bias", False)
    attention = rotary_attention(take)
    rope = replace(attention.rope, backwards=True) if attention.rope else None
    attention = replace(attention, rope=rope, qk_norm=norm, qk_norm_late=True, qkv_bias=bias, o_bias=bias)
    mlp = Mlp(take("intermediate_size"), activation(take, "hidden_act"), gated=False)
    spec = decoder(take, (pre_norm(attention, mlp, norm),) * take("num_hidden_layers"), norm)
    return replace(spec, embed_norm=norm, logit_softcap=take("final_logit_softcapping", None))


FAMILY = Family(
    ("nanochat",),
    config,
    (*end_rules(), *attention_rules(f"{LAYER}.self_attn"), *mlp_rules(f"{LAYER}.mlp", up="fc1", down="fc2")),
)
