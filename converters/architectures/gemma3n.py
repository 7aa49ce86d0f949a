"""Gemma 3n, text: four streams of which a layer computes one, low-rank shortcuts, keys shared between layers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from converters.architectures.common import (
    SANDWICH,
    TRANSPOSED,
    activation,
    decoder,
    grouped_attention,
    head_dim,
    layer_types,
    norm_rules,
    windows,
)
from converters.architectures.family import Family
from converters.architectures.gemma4 import OWN, UNUSED, own, sharing
from converters.rope import read_ropes
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import AltUp, Attention, Block, Branch, Mlp, ModelSpec, Norm, OwnInput, Sum

DEFAULTS: dict[str, Any] = {
    "vocab_size": 262400,
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_hidden_layers": 35,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "sliding_window": 512,
    "final_logit_softcapping": 30.0,
    "vocab_size_per_layer_input": 262144,
    "hidden_size_per_layer_input": 256,
    "altup_active_idx": 0,
    "altup_num_inputs": 4,
    "num_kv_shared_layers": 15,
    "laurel_rank": 64,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
}


def attentions(take: Take, kinds: Sequence[str], norm: Norm) -> list[Attention]:
    """The attention of each layer."""
    thetas = {"full_attention": take("rope_theta"), "sliding_attention": take("rope_local_base_freq")}
    ropes, bias = read_ropes(take, head_dim(take), thetas), take("attention_bias", False)
    one = replace(grouped_attention(take), scale=1.0, qk_norm=norm, v_norm=replace(norm, scale=False))
    one = replace(one, qkv_bias=bias, o_bias=bias)
    sizes, roles = windows(take, kinds, take("sliding_window")), sharing(take, kinds, take("num_kv_shared_layers"))
    return [
        replace(one, rope=ropes[kind], window=size, **role)
        for kind, size, role in zip(kinds, sizes, roles, strict=True)
    ]


def each(take: Take, key: str, default: Any, count: int) -> Sequence[Any]:
    """A setting that may differ by layer: a value for all of them, or a list.

    Raises:
        ValueError: the list is of another length.
    """
    value = take(key, default)
    values = value if isinstance(value, Sequence) else [value] * count
    if len(values) != count:
        raise ValueError(f"{take.where}: {key} has {len(values)} entries for {count} layers")
    return values


def config(take: Take) -> ModelSpec:
    """Sandwich norms, rotary, gated; attention and shortcut on the same norm, and that itself, added up."""
    take.assume(DEFAULTS)
    take.ignore("altup_coef_clip")  # of training
    take.require("altup_correct_scale", True)
    count, norm, act = take("num_hidden_layers"), Norm(take("rms_norm_eps")), activation(take, "hidden_activation")
    kinds = layer_types(take, count, ["sliding_attention" if (i + 1) % 5 else "full_attention" for i in range(count)])
    side = Branch("own", OwnInput(take("hidden_size_per_layer_input"), act), post=norm)
    streams = AltUp(take("altup_num_inputs"), take("altup_active_idx"), norm, side)
    shortcut = Branch("laurel", Mlp(take("laurel_rank"), "identity", gated=False), post=norm)

    def layer(attention: Attention, mlp: Mlp) -> Block:
        mixing = Sum((Branch("attention", attention, post=norm), shortcut), keep=1.0)
        first = Branch("mixing", mixing, pre=norm, scale=0.5**0.5, keep=0.5**0.5)
        return Block((first, Branch("mlp", mlp, pre=norm, post=norm)), streams=streams)

    sparse = [0.95] * (10 if count > 10 else 0)
    sparsity = each(take, "activation_sparsity_pattern", sparse + [0.0] * (count - len(sparse)), count)
    widths = each(take, "intermediate_size", None, count)
    mlps = [Mlp(width, act, sparsity=share) for width, share in zip(widths, sparsity, strict=True)]
    spec = decoder(take, map(layer, attentions(take, kinds, norm), mlps), norm)
    cap = take("final_logit_softcapping", None)
    return replace(spec, embed_scale=spec.dim**0.5, logit_softcap=cap, own=own(take, norm), streams=streams)


LAYER = "model.layers.{l}"

FAMILY = Family(
    ("gemma3n_text",),
    config,
    (
        Rule("layers.{l}.mixing.pre.scale", f"{LAYER}.input_layernorm.weight"),
        *SANDWICH,
        *OWN,
        Rule("layers.{l}.laurel.up", f"{LAYER}.laurel.linear_left.weight", TRANSPOSED),
        Rule("layers.{l}.laurel.down", f"{LAYER}.laurel.linear_right.weight", TRANSPOSED),
        *norm_rules("layers.{l}.laurel.post", f"{LAYER}.laurel.post_laurel_norm"),
        Rule("streams.enter", "model.altup_projections.{e}.weight", "b a -> a e b"),
        Rule("streams.leave", "model.altup_unembed_projections.{e}.weight", "b a -> e a b"),
        Rule("layers.{l}.streams.router", f"{LAYER}.altup.modality_router.weight", TRANSPOSED),
        *norm_rules("layers.{l}.streams.norm", f"{LAYER}.altup.router_norm"),
        Rule("layers.{l}.streams.predict", f"{LAYER}.altup.prediction_coefs.weight", "(p q) m -> m p q"),
        Rule("layers.{l}.streams.correct", f"{LAYER}.altup.correction_coefs.weight", TRANSPOSED),
        Rule("layers.{l}.streams.scale", f"{LAYER}.altup.correct_output_scale"),
    ),
    buffers=UNUSED,
)
