"""DBRX: layer norms without biases, clipped queries, keys and values, weights of the chosen experts of norm one."""

from dataclasses import replace

from converters.architectures.common import (
    ACTIVATIONS,
    HEADS_IN,
    decoder,
    end_rules,
    grouped_attention,
    head_dim,
    norm_rules,
    rename,
    stacked_qkv,
)
from converters.architectures.experts import OURS, TRAINING, pre_norm, router_rules
from converters.architectures.family import Family
from converters.rope import read_rope
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Attention, ModelSpec, Moe, Norm, Router

NAMES = {
    "hidden_size": "d_model",
    "max_position_embeddings": "max_seq_len",
    "num_attention_heads": "n_heads",
    "num_hidden_layers": "n_layers",
}
FFN = {"ffn_hidden_size": 3584, "moe_num_experts": 4, "moe_top_k": 1, "moe_normalize_expert_weights": 1.0}


def attention(take: Take) -> Attention:
    """What attn_config says. The rotary base stands there in released configs, and beside it in later ones."""
    inner = take.sub("attn_config")
    take.config["num_key_value_heads"] = inner("kv_n_heads", 1)
    rope = read_rope(take, head_dim(take), theta=inner("rope_theta", 10000.0))
    clip = inner("clip_qkv", None)
    inner.done()
    return replace(grouped_attention(take, rope), clip=clip)


def mixture(take: Take) -> Moe:
    """What ffn_config says."""
    inner = take.sub("ffn_config")
    inner.assume(FFN)
    inner.ignore("hidden_size", "moe_jitter_eps", "moe_loss_weight", "uniform_expert_assignment")
    router = Router(inner("moe_num_experts"), inner("moe_top_k"), renorm=inner("moe_normalize_expert_weights", None))
    name = inner("ffn_act_fn", {"name": "silu"})["name"]
    width = inner("ffn_hidden_size")
    inner.done()
    if name not in ACTIVATIONS:
        raise ValueError(f"{inner.where}: ffn_act_fn = {name!r} is not one of {', '.join(ACTIVATIONS)}")
    return Moe(router, width, ACTIVATIONS[name])


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary."""
    rename(take, NAMES)
    take.assume({"max_position_embeddings": 2048})
    take.ignore("emb_pdrop", *TRAINING)
    take.require("tie_word_embeddings", False)
    norm = Norm(1e-5, "layer")
    return decoder(take, (pre_norm(attention(take), mixture(take), norm),) * take("num_hidden_layers"), norm)


THEIRS = "transformer.blocks.{l}"
ATTENTION = f"{THEIRS}.norm_attn_norm"
EXPERTS = f"{THEIRS}.ffn.experts.mlp"

FAMILY = Family(
    ("dbrx",),
    config,
    (
        *end_rules("transformer.wte", "transformer.norm_f"),
        stacked_qkv(f"{ATTENTION}.attn.Wqkv"),
        Rule("layers.{l}.attention.o", f"{ATTENTION}.attn.out_proj.weight", HEADS_IN),
        *router_rules(f"{THEIRS}.ffn.router.layer"),
        Rule(f"{OURS}.gate", f"{EXPERTS}.w1", "(e f) d -> e d f"),
        Rule(f"{OURS}.up", f"{EXPERTS}.v1", "(e f) d -> e d f"),
        Rule(f"{OURS}.down", f"{EXPERTS}.w2", "(e f) d -> e f d"),
        *norm_rules("layers.{l}.attention.pre", f"{ATTENTION}.norm_1"),
        *norm_rules(f"{OURS}.pre", f"{ATTENTION}.norm_2"),
    ),
    prefix="transformer.",
)
