"""Inkling 2: as Inkling, and layers that attend to the sums of earlier blocks of layers instead of one stream."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from converters.architectures.common import (
    HEADS_OUT,
    activation,
    decoder,
    layer_types,
    norm_rules,
    rename,
)
from converters.architectures.family import Family
from converters.architectures.inkling import NAMES as OLDER
from converters.architectures.inkling import OWN, STORED, STORED_RULES, shape
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import (
    Attention,
    Block,
    Branch,
    Gate,
    LogScaling,
    ModelSpec,
    Moe,
    Norm,
    Recall,
    Relative,
    Router,
    Smoothing,
    SoftClamp,
    Sum,
)

DEFAULTS = {
    "vocab_size": 201024,
    "unpadded_vocab_size": 200058,
    "hidden_size": 4608,
    "num_hidden_layers": 48,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "swa_num_attention_heads": 48,
    "swa_num_key_value_heads": 8,
    "swa_head_dim": 128,
    "sliding_window_size": 1024,
    "d_rel": 16,
    "rel_extent": 1024,
    "log_scaling_n_floor": 128000,
    "log_scaling_alpha": 0.1,
    "max_position_embeddings": 1048576,
    "rms_norm_eps": 1e-6,
    "conv_kernel_size": 4,
    "hidden_act": "silu",
    "moe_intermediate_size": 2304,
    "n_routed_experts": 384,
    "num_experts_per_tok": 8,
    "route_scale": 8.0,
    "qk_l2_clip_threshold": 22.627416997969522,
    "rel_l2_clip_threshold": 8.0,
    "n_layers_per_attn_res_block": 6,
    "mlp_gate_softcap": 4.0,
    "mlp_up_softcap": 25.0,
    "final_logit_softcapping": 30.0,
    "scoring_func": "sigmoid",
}
NAMES = {key: OLDER[key] for key in OLDER if key != "logits_mup_width_multiplier"} | {
    "moe_intermediate_size": "intermediate_size",
    "route_scale": "routed_scaling_factor",
}


def attention(take: Take, local: bool, norm: Norm) -> Attention:
    """Full layers have queries, keys and values of their own inputs, and filters that tokens change."""
    heads, kvs, size = shape(take, local)
    taps, window = take("conv_kernel_size"), take("sliding_window_size")
    extent, growth = take("rel_extent"), LogScaling(take("log_scaling_alpha"), take("log_scaling_n_floor"))
    return Attention(
        heads,
        kvs,
        size,
        size**-0.5,
        window=window if local else None,
        query_scaling=None if local else growth,
        longest=take("qk_l2_clip_threshold"),
        v_norm=replace(norm, scale=False),
        smooth=Smoothing(taps, (taps + 1) ** -0.5) if local else Smoothing(taps, (2 * taps + 1) ** -0.5, dynamic=True),
        relative=Relative(take("d_rel"), window if local else extent, take("rel_l2_clip_threshold")),
        sinks="token",
        gate=Gate(),
        apart=None if local else norm,
    )


def mixture(take: Take) -> Moe:
    """Experts whose gate and up are bounded."""
    take.require("hidden_act", "silu")
    take.require("scoring_func", "sigmoid")
    count, chosen, scale = take("n_routed_experts"), take("num_experts_per_tok"), take("route_scale")
    router = Router(count, chosen, "sigmoid", choice_bias=True, renorm=1.0, renorm_eps=1e-20, scale=scale)
    clamp = SoftClamp(take("mlp_gate_softcap"), take("mlp_up_softcap"))
    return Moe(router, take("moe_intermediate_size"), activation(take, "hidden_act"), clamp=clamp)


def config(take: Take, defaults: Mapping[str, Any] = DEFAULTS) -> ModelSpec:
    """Every few layers a block begins: what came before is kept, and the stream starts anew.

    Raises:
        ValueError: more logits than there are ids.
    """
    rename(take, NAMES)
    take.assume(defaults)
    take.ignore("tie_word_embeddings")  # the head is never the embedding
    total, norm, moe = take("num_hidden_layers"), Norm(take("rms_norm_eps")), mixture(take)
    size, taps = take("n_layers_per_attn_res_block"), take("conv_kernel_size")
    blocks, smooth = -(-total // size), Smoothing(taps, (taps + 1) ** -0.5)
    default = ["hybrid_sliding" if (i + 1) % 6 else "hybrid" for i in range(total)]
    kinds = layer_types(take, total, default, "hybrid", "hybrid_sliding")
    ops = {kind: attention(take, kind == "hybrid_sliding", norm) for kind in set(kinds)}

    def layer(i: int) -> Block:
        op, first = ops[kinds[i]], i % size == 0
        seen = Recall(blocks, 0 if i == 0 else 1 if op.apart is None else 3, keep=first)
        pre, keep = norm if op.apart is None else None, 0.0 if first else 1.0
        branches = [Branch("attention", op, pre, keep=keep, smooth=smooth, recall=seen)]
        branches.append(Branch("moe", moe, norm, smooth=smooth, recall=Recall(blocks)))
        if i == total - 1:
            branches.append(Branch("final", Sum((), keep=1.0), keep=0.0, recall=Recall(blocks)))
        return Block(tuple(branches))

    spec = decoder(take, map(layer, range(total)), norm)
    outputs = take("unpadded_vocab_size")
    if outputs > spec.vocab_size:
        raise ValueError(
            f"{take.where}: unpadded_vocab_size = {outputs}; expected at most vocab_size {spec.vocab_size}"
        )
    outputs = outputs if outputs < spec.vocab_size else None
    cap, padded = take("final_logit_softcapping"), outputs is not None
    return replace(spec, tied=False, embed_norm=norm, logit_softcap=cap, outputs=outputs, head_padded=padded)


FILTERS = "s (k h) -> k h s"
FINAL = Rule("layers.{l}.final.recall", "model.llm.attn_res.output_query")


def query_rules(spec: ModelSpec) -> tuple[Rule, ...]:
    """The queries over depth, of which the first layer's attention has none, and filters that tokens change."""
    full = [i for i, block in enumerate(spec.layers) if block.branches[0].pre is None]
    return (
        *(
            Rule(f"layers.{i}.attention.{n}_smooth", f"model.llm.layers.{i}.attn.{n}_sconv.static_w", FILTERS)
            for i in full
            for n in "kv"
        ),
        *(
            Rule(f"layers.{i}.attention.recall", f"model.llm.attn_res.attn_queries.{i - 1}")
            for i in range(1, len(spec.layers))
        ),
        Rule("layers.{l}.moe.recall", "model.llm.attn_res.mlp_queries.{l}"),
        FINAL,
    )


FAMILY = Family(
    ("inkling2_text",),
    config,
    (
        Rule(f"{OWN}.q_scale", f"{STORED}.attn.q_l2_clip.scale"),
        Rule(f"{OWN}.relative_scale", f"{STORED}.attn.rel_l2_clip.scale"),
        Rule(f"{OWN}.gate", f"{STORED}.attn.gate_attn.weight", HEADS_OUT),
        Rule(f"{OWN}.sinks", f"{STORED}.attn.attn_sink_proj.weight", "n d -> d n"),
        *(Rule(f"{OWN}.{n}_taps", f"{STORED}.attn.{n}_sconv.weight_proj", "(k s) d -> d k s") for n in "kv"),
        *(rule for n in "qkv" for rule in norm_rules(f"{OWN}.{n}_in", f"{STORED}.{n}_input_norm")),
        *STORED_RULES,
    ),
    first=query_rules,
)
