"""StarCoder 2: grouped rotary attention, perhaps in a window, layer norms, biases and a plain feed-forward layer."""

from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    activation,
    attention_rules,
    decoder,
    end_rules,
    mlp_rules,
    pre_norm,
    pre_norm_rules,
    rotary_attention,
)
from converters.architectures.family import Family
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Norm

DEFAULTS = {
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 4096,
    "norm_epsilon": 1e-5,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "use_bias": True,
}
# of the first StarCoder's config, in the files of the second; the reference reads none of them
LEFTOVERS = (
    "activation_function",
    "attention_softmax_in_fp32",
    "layer_norm_epsilon",
    "scale_attention_softmax_in_fp32",
    "scale_attn_weights",
)


def config(take: Take) -> ModelSpec:
    """Read a StarCoder 2 config."""
    take.assume(DEFAULTS)
    take.ignore(*LEFTOVERS)
    take.require("mlp_type", "default")
    take.require("norm_type", "layer_norm")
    norm, bias = Norm(take("norm_epsilon"), "layer", bias=True), take("use_bias")
    attention = replace(rotary_attention(take), window=take("sliding_window", None), qkv_bias=bias, o_bias=bias)
    mlp = Mlp(take("intermediate_size"), activation(take, "hidden_act"), gated=False, bias=bias)
    return decoder(take, (pre_norm(attention, mlp, norm),) * take("num_hidden_layers"), norm)


FAMILY = Family(
    ("starcoder2",),
    config,
    (
        *end_rules(),
        *attention_rules(f"{LAYER}.self_attn"),
        *mlp_rules(f"{LAYER}.mlp", up="c_fc", down="c_proj"),
        *pre_norm_rules(LAYER),
    ),
    buffers=(f"{LAYER}.self_attn.rotary_emb.inv_freq",),
)
