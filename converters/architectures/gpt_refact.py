"""Refact (1.6B): llama with ALiBi in place of the rope, and one key-value head or one for each query."""

from dataclasses import replace

from converters.architectures.common import (
    GPT_NAMES,
    HEADS_IN,
    HEADS_OUT,
    TRANSPOSED,
    alibi_slopes,
    decoder,
    end_rules,
    fused_gate_up,
    grouped_attention,
    pre_norm,
    pre_norm_rules,
    rename,
)
from converters.architectures.family import Family
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Alibi, Mlp, ModelSpec, Norm

DEFAULTS = {"layer_norm_epsilon": 1e-5, "max_position_embeddings": 1024}
# how precisely the same operations are done; the activation is silu, whatever the inherited key says
IDLE = (
    "activation_function",
    "attention_softmax_in_fp32",
    "scale_attention_softmax_in_fp32",
    "attention_bias_in_fp32",
)
STEP = 256


def config(take: Take) -> ModelSpec:
    """Pre-norm, gated by silu; the feed-forward layers have 8/3 of the width, rounded up to a multiple of 256."""
    rename(take, GPT_NAMES)
    take.assume(DEFAULTS)
    take.require("scale_attn_weights", True)
    take.ignore(*IDLE)
    norm, width = Norm(take("layer_norm_epsilon")), int(8 * take("hidden_size") / 3)
    take.config["num_key_value_heads"] = 1 if take("multi_query", True) else take("num_attention_heads")
    op = grouped_attention(take)
    op = replace(op, alibi=Alibi(alibi_slopes(op.heads)))
    block = pre_norm(op, Mlp(take("n_inner", -(-width // STEP) * STEP)), norm)
    return decoder(take, (block,) * take("num_hidden_layers"), norm)


LAYER, OURS = "transformer.h.{l}", "layers.{l}.attention"

FAMILY = Family(
    ("gpt_refact",),
    config,
    (
        *end_rules("transformer.wte", "ln_f"),
        Rule(f"{OURS}.q", f"{LAYER}.attn.q.weight", HEADS_OUT),
        Rule((f"{OURS}.k", f"{OURS}.v"), f"{LAYER}.attn.kv.weight", "(q n h) d -> q d n h"),
        Rule(f"{OURS}.o", f"{LAYER}.attn.c_proj.weight", HEADS_IN),
        fused_gate_up(f"{LAYER}.mlp.gate_up_proj"),
        Rule("layers.{l}.mlp.down", f"{LAYER}.mlp.c_proj.weight", TRANSPOSED),
        *pre_norm_rules(LAYER, "ln_1", "ln_2"),
    ),
    prefix="transformer.",
)
