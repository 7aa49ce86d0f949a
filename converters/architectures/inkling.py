"""Inkling: short convolutions of keys, values and branches, a learned bias for distance, shared experts that weigh."""

from dataclasses import replace

from converters.architectures.common import (
    HEADS_OUT,
    LAYER,
    TRANSPOSED,
    activation,
    attention_rules,
    decoder,
    end_rules,
    layer_types,
    mlp_rules,
    norm_rules,
    rename,
)
from converters.architectures.experts import (
    OURS,
    expert_rules,
    fused_expert_rules,
    mixed_layers,
    pre_norm_rules,
    router_rules,
)
from converters.architectures.family import Family
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Attention, Block, Branch, LogScaling, Mlp, ModelSpec, Moe, Norm, Relative, Router, Smoothing

DEFAULTS = {
    "vocab_size": 201024,
    "hidden_size": 6144,
    "num_hidden_layers": 66,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "swa_num_attention_heads": 64,
    "swa_num_key_value_heads": 16,
    "swa_head_dim": 128,
    "sliding_window_size": 512,
    "d_rel": 16,
    "rel_extent": 1024,
    "log_scaling_alpha": 0.1,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "conv_kernel_size": 4,
    "intermediate_size": 24576,
    "hidden_act": "silu",
    "moe_intermediate_size": 3072,
    "n_routed_experts": 256,
    "num_experts_per_tok": 6,
    "n_shared_experts": 2,
    "route_scale": 8.0,
    "logits_mup_width_multiplier": 24.0,
}
NAMES = {
    "logits_mup_width_multiplier": "embedding_multiplier",
    "sliding_window_size": "sliding_window",
    "n_routed_experts": "num_local_experts",
    "conv_kernel_size": "sconv_kernel_size",
    "max_position_embeddings": "model_max_length",
}
# of modules that guess further tokens; what the reference does not read; and a head that is never the embedding
IDLE = (
    "num_mtp_layers",
    "chain_hidden_post_norm",
    "mtp_hidden_states_first",
    "mtp_local_layer_ids",
    "rms_norm_eps_moe_gate",
    "tie_word_embeddings",
)


def local_layers(take: Take) -> tuple[bool, ...]:
    """Which layers have a window: as listed by kind or by number, or else all but every sixth."""
    count, local = take("num_hidden_layers"), take("local_layer_ids", None)
    local = [i for i in range(count) if (i + 1) % 6] if local is None else local
    default = ["hybrid_sliding" if i in local else "hybrid" for i in range(count)]
    return tuple(kind == "hybrid_sliding" for kind in layer_types(take, count, default, "hybrid", "hybrid_sliding"))


def shape(take: Take, local: bool) -> tuple[int, int, int]:
    """Heads, key-value heads and their size, of layers with a window or without.

    Raises:
        ValueError: the heads cannot be grouped.
    """
    start = "swa_" if local else ""
    heads, kvs = take(f"{start}num_attention_heads"), take(f"{start}num_key_value_heads")
    if heads % kvs:
        raise ValueError(f"{take.where}: {heads} {start}attention heads cannot share {kvs} key-value heads")
    return heads, kvs, take(f"{start}head_dim")


def attention(take: Take, local: bool, norm: Norm) -> Attention:
    """Queries and keys are normed, so scores are divided by the head's size and not by its root."""
    heads, kvs, size = shape(take, local)
    window, start, alpha = take("sliding_window_size"), take("log_scaling_n_floor", None), take("log_scaling_alpha")
    growth = None if local or start is None else LogScaling(alpha, start)
    return Attention(
        heads,
        kvs,
        size,
        1 / size,
        window=window if local else None,
        query_scaling=growth,
        qk_norm=norm,
        smooth=Smoothing(take("conv_kernel_size")),
        relative=Relative(take("d_rel"), window if local else take("rel_extent")),
    )


def mixture(take: Take) -> Moe:
    """The experts, and the shared ones as one."""
    shared, width, act = take("n_shared_experts"), take("moe_intermediate_size"), activation(take, "hidden_act")
    if shared < 1:
        raise ValueError(f"{take.where}: n_shared_experts = {shared}; expected at least 1")
    router = Router(
        take("n_routed_experts"),
        take("num_experts_per_tok"),
        "sigmoid",
        choice_bias=True,
        renorm=1.0,
        scale=take("route_scale"),
        sinks=shared,
        scalar=True,
    )
    return Moe(router, width, act, shared=Mlp(shared * width, act))


def config(take: Take) -> ModelSpec:
    """A norm of the embedding; no positions but those of the bias."""
    rename(take, NAMES)
    if take.has("dense_intermediate_size"):  # then the other width is that of the experts
        take.config["moe_intermediate_size"] = take("intermediate_size", DEFAULTS["intermediate_size"])
        take.config["intermediate_size"] = take("dense_intermediate_size")
    take.assume(DEFAULTS)
    take.ignore(*IDLE)
    take.require("shared_expert_sink", True)
    take.require("number_of_conv_states", 4)
    count, norm, smooth = take("num_hidden_layers"), Norm(take("rms_norm_eps")), Smoothing(take("conv_kernel_size"))
    dense = take("dense_mlp_idx", 0)
    sparse = mixed_layers(take, [i >= dense for i in range(count)])
    mlp, moe = Mlp(take("intermediate_size"), activation(take, "hidden_act"), scalar=True), mixture(take)

    def layer(i: int, local: bool) -> Block:
        second = Branch("moe", moe, norm, smooth=smooth) if sparse[i] else Branch("mlp", mlp, norm, smooth=smooth)
        return Block((Branch("attention", attention(take, local, norm), norm, smooth=smooth), second))

    spec = decoder(take, (layer(i, local) for i, local in enumerate(local_layers(take))), norm)
    outputs, scale = take("unpadded_vocab_size", None), 1 / take("logits_mup_width_multiplier")
    outputs = outputs if outputs and outputs < spec.vocab_size else None
    padded = outputs is not None
    return replace(spec, tied=False, embed_norm=norm, logit_scale=scale, outputs=outputs, head_padded=padded)


def shared_rules(spec: ModelSpec) -> tuple[Rule, ...]:
    """The shared experts lie in an axis of their own."""
    mixtures = (b.op for block in spec.layers for b in block.branches if isinstance(b.op, Moe))
    n = next((moe.router.sinks for moe in mixtures), 1)
    into, out, both = f"{n} f d -> d ({n} f)", f"{n} d f -> ({n} f) d", f"{n} (f q) d -> q d ({n} f)"
    layouts = {"gate": into, "up": into, "down": out}
    shared = f"{STORED}.mlp.shared_experts"
    return (
        *(
            Rule(f"{OURS}.shared.{name}", f"{LAYER}.mlp.shared_experts.{name}_proj", layout)
            for name, layout in layouts.items()
        ),
        Rule((f"{OURS}.shared.gate", f"{OURS}.shared.up"), f"{shared}.shared_w13_weight", both),
        Rule(f"{OURS}.shared.down", f"{shared}.shared_w2_weight", out),
    )


MIXER, MLP, OWN = f"{LAYER}.self_attn", f"{LAYER}.mlp", "layers.{l}.attention"
CONV, HEADS_CONV = "d one k -> d one k", "(n h) one k -> n h one k"

# the names of published files, in which gates and ups alternate
STORED = "model.llm.layers.{l}"
STORED_ENDS = (
    *end_rules("model.llm.embed", "model.llm.norm", "model.llm.unembed"),
    *norm_rules("embed_norm", "model.llm.embed_norm"),
)
STORED_RULES = (
    *STORED_ENDS,
    *attention_rules(f"{STORED}.attn", "wq_du", "wk_dv", "wv_dv", "wo_ud"),
    *(Rule(f"{OWN}.{n}_smooth", f"{STORED}.attn.{n}_sconv.weight", HEADS_CONV) for n in "kv"),
    Rule(f"{OWN}.relative", f"{STORED}.attn.wr_du.weight", HEADS_OUT),
    Rule(f"{OWN}.profiles", f"{STORED}.attn.rel_logits_proj.proj"),
    Rule(f"{OWN}.smooth", f"{STORED}.attn_sconv.weight", CONV),
    *(Rule(f"layers.{{l}}.{name}.smooth", f"{STORED}.mlp_sconv.weight", CONV) for name in ("mlp", "moe")),
    *router_rules(f"{STORED}.mlp.gate"),
    Rule(f"{OURS}.choice_bias", f"{STORED}.mlp.gate.bias"),
    *fused_expert_rules(f"{STORED}.mlp.experts.w13_weight", f"{STORED}.mlp.experts.w2_weight", "e (f q) d -> q e d f"),
    *pre_norm_rules(STORED, "attn_norm", "mlp_norm"),
)

FAMILY = Family(
    ("inkling_text",),
    config,
    (
        *end_rules(),
        *norm_rules("embed_norm", "model.embed_tokens.embed_norm"),
        *attention_rules(MIXER),
        *(Rule(f"{OWN}.{n}_smooth", f"{MIXER}.{n}_sconv.conv1d.weight", HEADS_CONV) for n in "kv"),
        Rule(f"{OWN}.relative", f"{MIXER}.r_proj.weight", HEADS_OUT),
        Rule(f"{OWN}.profiles", f"{MIXER}.rel_logits_proj.proj"),
        Rule(f"{OWN}.smooth", f"{LAYER}.attn_sconv.conv1d.weight", CONV),
        *(Rule(f"layers.{{l}}.{name}.smooth", f"{LAYER}.mlp_sconv.conv1d.weight", CONV) for name in ("mlp", "moe")),
        *mlp_rules(MLP),
        Rule("layers.{l}.mlp.scalar", f"{MLP}.global_scale"),
        *router_rules(f"{MLP}.gate"),
        Rule(f"{OURS}.router_scalar", f"{MLP}.gate.global_scale"),
        Rule(f"{OURS}.choice_bias", f"{MLP}.gate.e_score_correction_bias"),
        *expert_rules(f"{MLP}.experts"),
        *pre_norm_rules(LAYER),
        *STORED_RULES,
        Rule(("layers.{l}.mlp.gate", "layers.{l}.mlp.up"), f"{STORED}.mlp.w13_dn.weight", "(f q) d -> q d f"),
        Rule("layers.{l}.mlp.down", f"{STORED}.mlp.w2_md.weight", TRANSPOSED),
        Rule("layers.{l}.mlp.scalar", f"{STORED}.mlp.global_scale"),
        Rule(f"{OURS}.router_scalar", f"{STORED}.mlp.gate.global_scale"),
    ),
    drafts=("model.mtp.",),
    first=shared_rules,
)
