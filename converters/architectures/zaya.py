"""ZAYA: attention whose queries and keys are convolved, one expert a token or none, routers that hear the last one."""

from dataclasses import replace

from converters.architectures.common import (
    HEADS_IN,
    LAYER,
    TRANSPOSED,
    activation,
    decoder,
    end_rules,
    grouped_attention,
    layer_types,
    norm_rules,
    weight_and_bias,
)
from converters.architectures.experts import OURS, TRAINING, expert_rules
from converters.architectures.family import Family
from converters.rope import read_rope
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Block, Branch, ConvAttention, ModelSpec, Moe, Norm, Router, RouterMlp

KINDS = ("hybrid", "hybrid_sliding")
ROPES = {
    kind: {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 0.5}
    for kind, theta in zip(KINDS, (5000000.0, 10000.0), strict=True)
}
DEFAULTS = {
    "vocab_size": 262272,
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "moe_intermediate_size": 2048,
    "num_experts": 16,
    "router_hidden_size": 256,
    "cca_time0": 2,
    "cca_time1": 2,
}
AFFINE = Norm(kind="affine", bias=True)  # of what a branch adds, and of what it is added to


def attention(take: Take, kind: str) -> ConvAttention:
    """The attention of a layer of this kind.

    Raises:
        ValueError: a window that is not given, values that cannot be halved, or a rope that turns otherwise as the
            sequence grows.
    """
    window, bias = take("sliding_window", None), take("attention_bias", False)
    if kind == "hybrid_sliding" and window is None:
        raise ValueError(f"{take.where}: a layer is hybrid_sliding, but there is no sliding_window")
    op = grouped_attention(take, read_rope(take, take("head_dim"), layer_type=kind))
    if op.kv_heads * op.head_dim % 2 or (op.rope is not None and op.rope.varies):
        raise ValueError(f"{take.where}: expected an even number of value features, and a rope of fixed frequencies")
    op = replace(op, qkv_bias=bias, o_bias=bias, window=window if kind == "hybrid_sliding" else None)
    return ConvAttention(op, (take("cca_time0"), take("cca_time1")), op.kv_heads * op.head_dim // 2)


def config(take: Take) -> ModelSpec:
    """The stream and what is added to it are both shifted and scaled, feature by feature."""
    take.assume(DEFAULTS)
    take.ignore(*TRAINING)
    take.require("num_experts_per_tok", 1)
    ropes = take.config.get("rope_parameters") or ROPES
    take.config["rope_parameters"] = {k: v for k, v in ropes.items() if k != "rope_type"}  # published beside the kinds
    count, norm = take("num_hidden_layers"), Norm(take("rms_norm_eps"))
    kinds = [kind for kind in layer_types(take, count, ("hybrid",) * count, *KINDS)]
    mixers = {kind: attention(take, kind) for kind in set(kinds)}

    def layer(i: int) -> Block:
        seen = RouterMlp(take("router_hidden_size"), norm, "gelu", "router", "router" if i else None)
        router = Router(take("num_experts"), 1, "softmax", choice_bias=True, mlp=seen)
        moe = Moe(router, take("moe_intermediate_size"), activation(take, "hidden_act"), skip=1)
        ops = (("attention", mixers[kinds[i]]), ("moe", moe))
        return Block(tuple(Branch(name, op, pre=norm, post=AFFINE, keep=AFFINE) for name, op in ops))

    spec = decoder(take, map(layer, range(count)), norm)
    return replace(spec, embed_norm=AFFINE, head_bias=take("lm_head_bias", False))


def shift_rules(ours: str, theirs: str) -> tuple[Rule, ...]:
    """A scale and a shift."""
    return (Rule(f"{ours}.scale", f"{theirs}_scale"), Rule(f"{ours}.bias", f"{theirs}_bias"))


def pair(end: str, theirs: str, layout: str, cat: str) -> Rule:
    """What the checkpoint has of queries and keys in one; `*` is the axis of heads in the layout."""
    ours = (f"layers.{{l}}.attention.q_{end}", f"layers.{{l}}.attention.k_{end}")
    return Rule(ours, f"{LAYER}.self_attn.qkv_proj.{theirs}", tuple(layout.replace("*", n) for n in "nk"), cat)


MIXER, CCA, GATE = "layers.{l}.attention", f"{LAYER}.self_attn.qkv_proj", f"{LAYER}.mlp.gate"

FAMILY = Family(
    ("zaya",),
    config,
    (
        *end_rules(),
        *shift_rules("embed_norm", "model.input_hidden_states"),
        *(
            rule
            for name in "qk"
            for rule in weight_and_bias(f"{MIXER}.{name}", f"{CCA}.{name}_proj", "(n h) d -> d n h", "(n h) -> n h")
        ),
        *weight_and_bias(f"{MIXER}.v", f"{CCA}.v_proj_current", TRANSPOSED),
        *weight_and_bias(f"{MIXER}.v_before", f"{CCA}.v_proj_delayed", TRANSPOSED),
        pair("conv", "conv_qk_depthwise.weight", "(* h) one t -> * h one t", "c one t"),
        pair("conv_bias", "conv_qk_depthwise.bias", "(* h) -> * h", "c"),
        pair("mix", "conv_qk_grouped.weight", "(* h) i t -> * h i t", "c i t"),
        pair("mix_bias", "conv_qk_grouped.bias", "(* h) -> * h", "c"),
        Rule(f"{MIXER}.length", f"{LAYER}.self_attn.qk_norm.temp"),
        *weight_and_bias(f"{MIXER}.o", f"{LAYER}.self_attn.o_proj", HEADS_IN),
        *weight_and_bias(f"{OURS}.router_mlp.into", f"{GATE}.down_proj", TRANSPOSED),
        Rule(f"{OURS}.router_mlp.carry", f"{GATE}.router_states_scale"),
        *norm_rules(f"{OURS}.router_mlp.norm", f"{GATE}.router_mlp.norm"),
        *weight_and_bias(f"{OURS}.router_mlp.l1", f"{GATE}.router_mlp.fc1", TRANSPOSED),
        *weight_and_bias(f"{OURS}.router_mlp.l2", f"{GATE}.router_mlp.fc2", TRANSPOSED),
        Rule(f"{OURS}.router", f"{GATE}.router_mlp.out_proj.weight", TRANSPOSED),
        Rule(f"{OURS}.choice_bias", f"{GATE}.balancing_biases"),
        *expert_rules(f"{LAYER}.mlp.experts"),
        *norm_rules(f"{MIXER}.pre", f"{LAYER}.input_layernorm"),
        *norm_rules(f"{OURS}.pre", f"{LAYER}.post_attention_layernorm"),
        *shift_rules(f"{MIXER}.post", f"{LAYER}.post_attention_residual_scale.hidden_states"),
        *shift_rules(f"{MIXER}.keep", f"{LAYER}.post_attention_residual_scale.residual"),
        *shift_rules(f"{OURS}.post", f"{LAYER}.post_mlp_residual_scale.hidden_states"),
        *shift_rules(f"{OURS}.keep", f"{LAYER}.post_mlp_residual_scale.residual"),
    ),
)
