"""GPT-BigCode (SantaCoder, StarCoder 1): GPT-2 with one key-value head for all queries."""

from dataclasses import replace

from converters.architectures.common import (
    GPT_NAMES,
    HEADS_IN,
    SUMMARY,
    activation,
    decoder,
    end_rules,
    grouped_attention,
    grouped_qkv_rules,
    mlp_rules,
    pre_norm,
    pre_norm_rules,
    rename,
    weight_and_bias,
)
from converters.architectures.family import Family
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Norm, Positions

DEFAULTS = {
    "activation_function": "gelu_pytorch_tanh",
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 1024,
    "multi_query": True,
    "scale_attn_weights": True,
    "tie_word_embeddings": True,
}
# settings of one serving program and of the precision of the softmax, which is always float32 here
RUNNER = (
    "attention_softmax_in_fp32 inference_runner max_batch_size max_sequence_length pad_key_length "
    "pre_allocate_kv_cache scale_attention_softmax_in_fp32 validate_runner_input"
).split()


def config(take: Take) -> ModelSpec:
    """Read a GPT-BigCode config."""
    rename(take, GPT_NAMES)
    take.assume(DEFAULTS)
    take.require("add_cross_attention", False)
    take.ignore(*SUMMARY, *RUNNER)
    norm = Norm(take("layer_norm_epsilon"), "layer", bias=True)
    inner = take("n_inner", 4 * take("hidden_size"))
    mlp = Mlp(inner, activation(take, "activation_function"), gated=False, bias=True)
    op = grouped_attention(take)
    op = replace(
        op,
        kv_heads=1 if take("multi_query") else op.heads,  # whatever num_key_value_heads says
        scale=op.scale if take("scale_attn_weights") else 1.0,
        qkv_bias=True,
        o_bias=True,
    )
    spec = decoder(take, (pre_norm(op, mlp, norm),) * take("num_hidden_layers"), norm)
    return replace(spec, positions=Positions(spec.max_seq_len))


LAYER = "transformer.h.{l}"
FAMILY = Family(
    ("gpt_bigcode",),
    config,
    (
        *end_rules("transformer.wte", "transformer.ln_f"),
        Rule("positions", "transformer.wpe.weight"),
        *grouped_qkv_rules(f"{LAYER}.attn.c_attn"),
        *weight_and_bias("layers.{l}.attention.o", f"{LAYER}.attn.c_proj", HEADS_IN),
        *mlp_rules(f"{LAYER}.mlp", up="c_fc", down="c_proj"),
        *pre_norm_rules(LAYER, "ln_1", "ln_2"),
    ),
    prefix="transformer.",
)
