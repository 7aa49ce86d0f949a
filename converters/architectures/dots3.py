"""dots3: latent attention with a gate, to the tokens that an indexer picks, or within a window in smaller heads."""

from dataclasses import replace
from typing import Any

from converters.architectures.common import (
    LAYER,
    TRANSPOSED,
    by_layer,
    decoder,
    gated_mlp,
    layer_types,
    norm_rules,
    windows,
)
from converters.architectures.deepseek_v3 import RULES
from converters.architectures.experts import TRAINING, grouped_moe, pre_norm, sparse_layers
from converters.architectures.family import Family
from converters.architectures.latent import indexer_rules, latent_attention, read_indexer
from converters.rope import DIALECT, rope_dict
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Gate, Latent, Mlp, ModelSpec, Norm

DEFAULTS = {
    "vocab_size": 152064,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "moe_intermediate_size": 1536,
    "num_hidden_layers": 46,
    "num_attention_heads": 128,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "routed_scaling_factor": 1.0,
    "kv_lora_rank": 512,
    "q_lora_rank": 1024,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "max_position_embeddings": 524288,
    "rms_norm_eps": 1e-5,
    "index_topk": 2048,
    "index_head_dim": 128,
    "index_n_heads": 64,
    "head_dim": 256,
    "first_k_dense_replace": 1,
}
# what a layer with a window may say otherwise than the others, here under names of its own
SMALLER = {
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "q_lora_rank": 1024,
    "kv_lora_rank": 1024,
    "head_dim": 256,
    "qk_nope_head_dim": 192,
    "v_head_dim": 128,
}
HEAD = ("head_dim", "qk_nope_head_dim", "qk_rope_head_dim")
THETAS = {"full_attention": 8e7, "indexed_attention": 8e7, "sliding_attention": 5e4}


def layer_kinds(take: Take, count: int) -> list[str]:
    """The kind of each layer. A released config calls "full_attention" what is indexed unless use_dsa is false.

    Raises:
        ValueError: as `layer_types`.
    """
    indexed = take("use_dsa", None if take.has("per_layer_config") else True)
    wide = "full_attention" if indexed is False else "indexed_attention"
    slides = take("use_sliding_window", True)
    default = [wide if not slides or i < 2 or i % 4 == 1 else "sliding_attention" for i in range(count)]
    kinds = list(layer_types(take, count, default, "indexed_attention", "sliding_attention"))
    return kinds if indexed is None else [wide if kind != "sliding_attention" else kind for kind in kinds]


def sizes(take: Take, kinds: list[str]) -> list[dict[str, Any]]:
    """What each layer says otherwise than the model: listed by layer, or in names of their own for those that slide.

    Raises:
        ValueError: as `by_layer`, or a head is not its parts.
    """
    smaller = {key: take(f"swa_{key}", size) for key, size in SMALLER.items()}
    smaller["qk_rope_head_dim"] = take("swa_qk_rope_head_dim", smaller["head_dim"] - smaller["qk_nope_head_dim"])
    listed = take("per_layer_config", None)
    if listed is None:
        layers = [smaller if kind == "sliding_attention" else {} for kind in kinds]
    else:
        layers = by_layer(take, listed, len(kinds), smaller)
    for kind, layer in zip(kinds, layers, strict=True):
        whole, *parts = (layer.get(key, take.config.get(key)) or 0 for key in HEAD)
        if kind == "sliding_attention" and whole != sum(parts):
            raise ValueError(f"{take.where}: head_dim is {whole} where layers slide; expected {sum(parts)}, its parts")
    return layers


def turning(take: Take, kind: str) -> dict[str, Any]:
    """The rotary settings of one kind of layer, in the older dialect or the newer; all of its shared key turns."""
    nested = rope_dict(take)
    if nested and not {*nested} & {*THETAS}:  # one for all, with one base
        given, theta = nested, take("rope_theta", THETAS["full_attention"])
    else:
        named = "swa_rope_theta" if kind == "sliding_attention" else "rope_theta"
        given, theta = nested.get(kind, {}), take(named, THETAS[kind])
    return {"rope_theta": theta} | {key: value for key, value in given.items() if key != "partial_rotary_factor"}


def attentions(take: Take, kinds: list[str], norm: Norm) -> list[Latent]:
    """The attention of each layer. Latents are multiplied by the root of how much narrower than the stream they are.

    Raises:
        ValueError: queries have no latent.
    """
    take.ignore(*DIALECT, "swa_rope_theta", "attention_bias", *SMALLER, "qk_rope_head_dim")
    local = windows(take, kinds, take.either("sliding_window", "sliding_window_size", default=512))
    dim = take("hidden_size")

    def layer(kind: str, window: int | None, own: dict[str, Any]) -> Latent:
        one = Take(take.config | own | {"rope_parameters": turning(take, kind), "rope_scaling": None}, take.where)
        base = latent_attention(one)
        if base.q_rank is None or base.rope is None:
            raise ValueError(f"{take.where}: q_lora_rank is None in a layer of {kind}; expected the width of a latent")
        return replace(
            base,
            # also what queries are multiplied by
            scale=((base.nope_dim + base.rope_dim) * base.q_rank / dim) ** -0.5,
            latent_scale=(dim / base.rank) ** 0.5,
            norm=norm,
            shared_norm=norm,
            gate=Gate("head"),
            window=window,
            indexer=read_indexer(take, base.rope) if kind == "indexed_attention" else None,
        )

    take.ignore("index_topk", "index_head_dim", "index_n_heads")  # no layer may be indexed
    return [layer(*one) for one in zip(kinds, local, sizes(take, kinds), strict=True)]


def config(take: Take) -> ModelSpec:
    """Pre-norm, latent attention, gated; the first layers dense, the shared experts with a width of their own."""
    take.assume(DEFAULTS)
    take.ignore(*TRAINING)
    take.require("mlp_bias", False)
    norm = Norm(take("rms_norm_eps"))
    ops = attentions(take, layer_kinds(take, take("num_hidden_layers")), norm)
    mlp, moe = gated_mlp(take), grouped_moe(take)
    width = take.either("moe_shared_expert_intermediate_size", "shared_experts_intermediate_size", default=1536)
    moe = replace(moe, shared=Mlp(width * take("n_shared_experts"), mlp.act))
    pairs = zip(ops, sparse_layers(take), strict=True)
    return decoder(take, (pre_norm(op, moe if sparse else mlp, norm) for op, sparse in pairs), norm)


ATTENTION = f"{LAYER}.self_attn"
FAMILY = Family(
    ("dots3_note_text",),
    config,
    (
        *RULES,
        *norm_rules("layers.{l}.attention.shared_norm", f"{ATTENTION}.k_rope_only_layernorm"),
        Rule("layers.{l}.attention.gate", f"{ATTENTION}.g_proj.weight", TRANSPOSED),
        *indexer_rules(f"{ATTENTION}.indexer"),
    ),
    drafts=("model.layers.{l}.", "model.mtp."),
)
