"""Beam: sandwich norms, branches that weigh less the deeper they are, queries that grow where there is no rope."""

from collections.abc import Sequence
from dataclasses import replace

from converters.architectures.common import (
    HEADS_OUT,
    SANDWICH,
    activation,
    decoder,
    gated_mlp,
    grouped_attention,
    layer_types,
    norm_rules,
    windows,
)
from converters.architectures.experts import OURS, TRAINING, expert_rules, mlp_layer_types, router_rules
from converters.architectures.family import Family
from converters.rope import DIALECT, read_rope
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Attention, Block, Branch, Gate, ModelSpec, Moe, Norm, PowerScaling, Router

DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 5120,
    "intermediate_size": 20480,
    "num_hidden_layers": 52,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "sliding_window": 512,
    "moe_intermediate_size": 2560,
    "num_experts_per_tok": 8,
    "num_experts": 256,
    "norm_topk_prob": True,
    "n_group": 8,
    "topk_group": 4,
    "routed_scaling_factor": 2.5,
    "final_logit_softcapping": 30.0,
}


def attentions(take: Take, kinds: Sequence[str], norm: Norm) -> list[Attention]:
    """The attention of each layer: a kind without a rope scales its queries."""
    take.ignore(*DIALECT)
    bias = take("attention_bias", False)
    base = replace(grouped_attention(take), qk_norm=norm, qkv_bias=bias, o_bias=bias, gate=Gate(bias="head"))
    given = take("rope_parameters", None) or {"sliding_attention": {"rope_type": "default"}}

    def rotated(kind: str) -> Attention:
        if given.get(kind) is None:
            return replace(base, query_scaling=PowerScaling(0.1, 2048))
        return replace(
            base, rope=read_rope(Take(take.config | {"rope_parameters": given[kind]}, take.where), base.head_dim)
        )

    by_kind = {kind: rotated(kind) for kind in set(kinds)}
    sizes = windows(take, kinds, take("sliding_window", None))
    return [replace(by_kind[kind], window=size) for kind, size in zip(kinds, sizes, strict=True)]


def mixture(take: Take) -> Moe:
    """A biased sigmoid chooses within the best groups of experts."""
    router = Router(
        take("num_experts"),
        take("num_experts_per_tok"),
        "sigmoid",
        choice_bias=True,
        groups=(take("n_group"), take("topk_group")),
        group_top=2,
        renorm=1.0 if take("norm_topk_prob", False) else None,
        renorm_eps=1e-20,
        scale=take("routed_scaling_factor"),
    )
    return Moe(router, take("moe_intermediate_size"), activation(take, "hidden_act"))


def config(take: Take) -> ModelSpec:
    """The k-th branch, counted from 2, adds 1 / sqrt(k) of what it makes to sqrt((k - 1) / k) of the stream."""
    take.assume(DEFAULTS)
    take.ignore(*TRAINING)
    count, norm, dense = take("num_hidden_layers"), Norm(take("rms_norm_eps")), gated_mlp(take)
    kinds = ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(count - 1)]
    kinds = layer_types(take, count, [*kinds, "full_attention"])
    sparse = mlp_layer_types(take, count, 3)
    seconds = {"dense": Branch("mlp", dense), "sparse": Branch("moe", mixture(take))}

    def layer(i: int, attention: Attention) -> Block:
        pair = (Branch("attention", attention), seconds[sparse[i]])
        return Block(
            tuple(
                replace(branch, pre=norm, post=norm, scale=k**-0.5, keep=((k - 1) / k) ** 0.5)
                for k, branch in enumerate(pair, 2 * (i + 1))
            )
        )

    spec = decoder(take, [layer(i, one) for i, one in enumerate(attentions(take, kinds, norm))], norm)
    return replace(spec, logit_softcap=take("final_logit_softcapping", None))


LAYER = "model.layers.{l}"

FAMILY = Family(
    ("beam",),
    config,
    (
        *SANDWICH,
        Rule("layers.{l}.attention.gate", f"{LAYER}.self_attn.gate_proj.weight", HEADS_OUT),
        Rule("layers.{l}.attention.gate_bias", f"{LAYER}.self_attn.gate_bias"),
        *router_rules(f"{LAYER}.mlp.gate"),
        Rule(f"{OURS}.choice_bias", f"{LAYER}.mlp.gate.e_score_correction_bias"),
        *expert_rules(f"{LAYER}.mlp.experts"),
        *norm_rules(f"{OURS}.pre", f"{LAYER}.pre_feedforward_layernorm"),
        *norm_rules(f"{OURS}.post", f"{LAYER}.post_feedforward_layernorm"),
    ),
)
