"""Gemma 4, text: wider heads in full layers, late layers that read the keys of earlier ones, inputs of a layer's own.

The unified model has no inputs of its own.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from converters.architectures.common import (
    SANDWICH,
    activation,
    by_layer,
    decoder,
    grouped_attention,
    layer_types,
    norm_rules,
    windows,
)
from converters.architectures.experts import fused_expert_rules, router_rules
from converters.architectures.family import Family
from converters.rope import DIALECT, read_rope
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import (
    Activation,
    Attention,
    Block,
    Branch,
    Mlp,
    ModelSpec,
    Moe,
    Norm,
    OwnInput,
    OwnInputs,
    Router,
    Sum,
)

DEFAULTS: dict[str, Any] = {
    "vocab_size": 262144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "global_head_dim": 512,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
BY_TYPE: dict[str, dict[str, Any]] = {
    "gemma4_text": {
        "max_position_embeddings": 131072,
        "sliding_window": 512,
        "vocab_size_per_layer_input": 262144,
        "hidden_size_per_layer_input": 256,
    },
    "gemma4_unified_text": {"max_position_embeddings": 262144, "sliding_window": 1024},
}


def sharing(take: Take, kinds: Sequence[str], shared: int) -> list[dict[str, str]]:
    """Who publishes and who reads: the last layers read the keys of the last layer of their kind before them.

    Raises:
        ValueError: no layer of that kind is before them.
    """
    first = len(kinds) - shared
    if lost := sorted(set(kinds[first:]) - set(kinds[:first])):
        raise ValueError(f"{take.where}: num_kv_shared_layers = {shared}: no layer before them has the keys of {lost}")
    last = {kind: i for i, kind in enumerate(kinds[:first])}
    roles = ["reads" if i >= first else "publish" if i == last[kind] else "" for i, kind in enumerate(kinds)]
    return [{role: kind} if role and kind in kinds[first:] else {} for role, kind in zip(roles, kinds, strict=True)]


def sizes(take: Take, kinds: Sequence[str]) -> list[dict[str, int]]:
    """What each layer says otherwise than the model of its heads.

    Raises:
        ValueError: as `by_layer`.
    """
    wide = {"head_dim": take("global_head_dim", None)}
    wide["num_key_value_heads"] = take("num_global_key_value_heads", None) if take("attention_k_eq_v", False) else None
    given = take("per_layer_config", None)
    if given is None:
        layers = [wide if kind == "full_attention" else {} for kind in kinds]
    else:
        layers = by_layer(take, given, len(kinds), wide)
    return [{key: value for key, value in layer.items() if value is not None} for layer in layers]


def attentions(take: Take, kinds: Sequence[str], norm: Norm) -> list[Attention]:
    """The attention of each layer."""
    take.ignore(*DIALECT)
    bias, size = take("attention_bias", False), take("sliding_window")
    same, plain = take("attention_k_eq_v", False), replace(norm, scale=False)
    roles = sharing(take, kinds, take("num_kv_shared_layers", 0))

    def layer(kind: str, window: int | None, heads: dict[str, int], role: dict[str, str]) -> Attention:
        one = Take(take.config | heads, take.where)
        return replace(
            grouped_attention(one, read_rope(one, one("head_dim"), layer_type=kind)),
            scale=1.0,
            window=window,
            qk_norm=norm,
            v_norm=plain,
            values="keys" if same and kind == "full_attention" else "own",
            qkv_bias=bias,
            o_bias=bias,
            **role,
        )

    take.ignore("num_attention_heads", "num_key_value_heads", "head_dim")
    return [layer(*one) for one in zip(kinds, windows(take, kinds, size), sizes(take, kinds), roles, strict=True)]


def own(take: Take, norm: Norm) -> OwnInputs | None:
    """The inputs of each layer's own."""
    size = take("hidden_size_per_layer_input", 0)
    rows = take("vocab_size_per_layer_input", 0)
    return OwnInputs(rows, size, norm, float(size) ** 0.5, take("hidden_size") ** -0.5) if size else None


def mixture(take: Take, norm: Norm, act: Activation) -> Moe | None:
    """The experts beside the feed-forward layer, whose router sees the stream with a norm of its own."""
    keys = ("num_experts", "top_k_experts", "moe_intermediate_size")
    if not take("enable_moe_block", False):
        take.ignore(*keys)
        return None
    experts, chosen, width = map(take, keys)
    scale = take("hidden_size") ** -0.5
    router = Router(experts, chosen, renorm=1.0, norm=norm, logit_scale=scale, expert_scale=True)
    return Moe(router, width, act, norm=norm)


def block(attention: Attention, mlp: Mlp, moe: Moe | None, norm: Norm, own: OwnInput | None) -> Block:
    """A norm before and after each branch; the third takes in what is the layer's own, if there is any."""
    first, second = Branch("attention", attention, pre=norm, post=norm), Branch("mlp", mlp, pre=norm, post=norm)
    if moe is not None:
        second = Branch("feed_forward", Sum((second, Branch("moe", moe, post=norm))), post=norm)
    third = (Branch("own", own, post=norm),) if own else ()
    return Block((first, second, *third), scalar=True)


def config(take: Take) -> ModelSpec:
    """Sandwich norms, rotary, gated."""
    take.assume(DEFAULTS | BY_TYPE[take("model_type")])
    if take("use_bidirectional_attention", None) not in (None, "vision"):  # vision: spans, which a text has none of
        raise ValueError(f"{take.where}: use_bidirectional_attention is not implemented for text")
    count = take("num_hidden_layers")
    kinds = layer_types(take, count, ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(count)])
    kinds = (*kinds[:-1], "full_attention")
    norm, mlp, act = Norm(take("rms_norm_eps")), take("intermediate_size"), activation(take, "hidden_activation")
    double = take("use_double_wide_mlp", False)
    inputs, moe = own(take, norm), mixture(take, norm, act)
    third = OwnInput(inputs.dim, act) if inputs else None
    layers = [
        block(one, Mlp(2 * mlp if double and one.reads else mlp, act), moe, norm, third)
        for one in attentions(take, kinds, norm)
    ]
    spec = replace(decoder(take, layers, norm), own=inputs)
    return replace(spec, embed_scale=spec.dim**0.5, logit_softcap=take("final_logit_softcapping", None))


OWN = (
    Rule("own.table", "model.embed_tokens_per_layer.weight", "v (l p) -> v l p"),
    Rule("own.project", "model.per_layer_model_projection.weight", "(l p) d -> d l p"),
    Rule("own.norm.scale", "model.per_layer_projection_norm.weight"),
    Rule("layers.{l}.own.gate", "model.layers.{l}.per_layer_input_gate.weight", "p d -> d p"),
    Rule("layers.{l}.own.out", "model.layers.{l}.per_layer_projection.weight", "d p -> p d"),
    *norm_rules("layers.{l}.own.post", "model.layers.{l}.post_per_layer_input_norm"),
)
AFTER = "model.layers.{l}.post_feedforward_layernorm"

MIXED = (
    *norm_rules("layers.{l}.feed_forward.post", AFTER),
    *norm_rules("layers.{l}.mlp.post", f"{AFTER}_1"),
    *norm_rules("layers.{l}.moe.post", f"{AFTER}_2"),
    *norm_rules("layers.{l}.moe.norm", "model.layers.{l}.pre_feedforward_layernorm_2"),
    Rule("layers.{l}.moe.router_norm.scale", "model.layers.{l}.router.scale"),
    Rule("layers.{l}.moe.expert_scale", "model.layers.{l}.router.per_expert_scale"),
    *router_rules("model.layers.{l}.router.proj"),
    *fused_expert_rules("model.layers.{l}.experts.gate_up_proj", "model.layers.{l}.experts.down_proj"),
)


def mixed(spec: ModelSpec) -> tuple[Rule, ...]:
    """The rules that go first where there are experts."""
    return MIXED if any(isinstance(branch.op, Moe) for branch in spec.layers[0].every()) else ()


# of layers that read the keys of others: some checkpoints hold them all the same
UNUSED = tuple(f"model.layers.{{l}}.self_attn.{name}.weight" for name in ("k_proj", "v_proj", "k_norm", "v_norm"))

FAMILY = Family(
    ("gemma4_text", "gemma4_unified_text"),
    config,
    (*SANDWICH, *OWN, Rule("layers.{l}.scalar", "model.layers.{l}.layer_scalar")),
    buffers=UNUSED,
    first=mixed,
)
