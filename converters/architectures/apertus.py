"""Apertus: llama with norms over a head and a plain feed-forward layer whose activation is learned."""

from dataclasses import replace

from converters.architectures.common import (
    COMMON,
    LAYER,
    activation,
    decoder,
    pre_norm,
    pre_norm_rules,
    rotary_attention,
)
from converters.architectures.family import Family
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Norm

DEFAULTS = {
    "hidden_act": "xielu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 65536,
    "rope_theta": 12000000.0,
}
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 12000000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary.

    Raises:
        ValueError: a head that lacks the ids of images and sounds, and is to be the embedding, which has them.
    """
    if not take.has("rope_parameters") and "rope_scaling" not in take.config:  # a null there says that there is none
        take.config["rope_parameters"] = ROPE
    take.assume(DEFAULTS)
    take.require("qk_norm", True)
    take.require("post_norm", False)
    take.require("mlp_bias", False)
    norm, bias = Norm(take("rms_norm_eps")), take("attention_bias", False)
    attention = replace(rotary_attention(take), qk_norm=norm, qkv_bias=bias, o_bias=bias)
    act = "xielu" if take("hidden_act") == "xielu" else activation(take, "hidden_act")
    mlp = Mlp(take("intermediate_size"), act, gated=False)
    spec = decoder(take, (pre_norm(attention, mlp, norm),) * take("num_hidden_layers"), norm)
    outputs = take("output_vocab_size", spec.vocab_size)
    if not 1 <= outputs <= spec.vocab_size or (spec.tied and outputs < spec.vocab_size):
        raise ValueError(f"{take.where}: output_vocab_size = {outputs} of {spec.vocab_size} ids, tied: {spec.tied}")
    return replace(spec, outputs=outputs if outputs < spec.vocab_size else None)


RULES = (
    *(
        Rule(f"layers.{{l}}.mlp.act.{name}", f"{LAYER}.mlp.act_fn.{name}")
        for name in ("alpha_p", "alpha_n", "beta", "eps")
    ),
    *pre_norm_rules(LAYER, "attention_layernorm", "feedforward_layernorm"),
    *COMMON,
)

FAMILY = Family(("apertus", "apertus1p5_text"), config, RULES)
