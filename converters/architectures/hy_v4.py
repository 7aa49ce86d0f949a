"""Hunyuan 4: several streams, latent attention with sinks and a gate to the tokens that an indexer picks, experts."""

from dataclasses import replace

from converters.architectures.common import HEADS_OUT, LAYER, TRANSPOSED, decoder, gated_mlp, rename
from converters.architectures.deepseek_v3 import IDLE, RULES
from converters.architectures.deepseek_v32 import sharing
from converters.architectures.experts import grouped_moe, mlp_layer_types, pre_norm
from converters.architectures.family import Family
from converters.architectures.latent import indexer_rules, latent_attention, read_indexer
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Block, Clamp, Gate, Hyper, Latent, Mlp, ModelSpec, Moe, Norm

DEFAULTS = {
    "vocab_size": 120832,
    "hidden_size": 2816,
    "intermediate_size": 6912,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 34,
    "num_attention_heads": 32,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "routed_scaling_factor": 2.827,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "v_head_dim": 256,
    "hidden_act": "silu",
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-5,
    "index_topk": 2048,
    "index_head_dim": 128,
    "index_n_heads": 16,
    "hc_mult": 4,
    "hc_magnitude": 2.0,
    "hc_eps": 1e-6,
    "swiglu_limit": 10.0,
}


def mixture(take: Take) -> Moe:
    """Experts whose gated units are cut; the shared ones are not.

    Raises:
        ValueError: a limit that would cut everything.
    """
    limit = take("swiglu_limit")
    if limit <= 0:
        raise ValueError(f"{take.where}: swiglu_limit = {limit}; expected a positive number")
    return replace(grouped_moe(take), clamp=Clamp(limit, alpha=1.0, offset=0.0))


def attentions(take: Take, eps: float, count: int) -> list[Latent]:
    """Attention of every layer: the first and every fourth after the second pick anew."""
    attention = replace(latent_attention(take, interleaved=False), sinks=True, gate=Gate())
    if attention.rope is None or attention.q_rank is None:
        raise ValueError(f"{take.where}: q_lora_rank is None; expected a latent, which the indexer reads")
    every_fourth = [i > 0 and (i - 1) % 4 != 0 for i in range(count)]
    shares = sharing(take, count) if take.has("indexer_types") else every_fourth
    indexer = read_indexer(take, attention.rope)
    indexer = replace(indexer, norm=replace(indexer.norm, eps=eps), last=True)
    return [replace(attention, indexer="shared" if again else indexer) for again in shares]


def config(take: Take) -> ModelSpec:
    """Pre-norm on a mixture of the streams; the first layer dense."""
    rename(take, {"n_routed_experts": "num_local_experts"})
    take.assume(DEFAULTS)
    take.ignore(*IDLE, "learnable_sink_init")
    count, norm = take("num_hidden_layers"), Norm(take("rms_norm_eps"))
    take.require("layer_types", ["indexed_attention"] * count)
    eps = take("hc_eps")
    streams = Hyper(take("hc_mult"), replace(norm, scale=False), eps, take("hc_magnitude"), eps)
    by_kind: dict[str, Mlp | Moe] = {"dense": gated_mlp(take), "sparse": mixture(take)}
    pairs = zip(attentions(take, norm.eps, count), mlp_layer_types(take, count, 1), strict=True)
    layers = [Block(pre_norm(attention, by_kind[kind], norm).branches, streams=streams) for attention, kind in pairs]
    return replace(decoder(take, layers, norm), streams=streams)


def stream_rules(ours: str, *theirs: str) -> tuple[Rule, ...]:
    """What a branch mixes its streams by, under any of the names that it has in files."""
    layouts = {"z": ("fn", "w (s d) -> s d w"), "base": ("base", ""), "scale": ("scale", "")}
    return tuple(
        Rule(f"{ours}.{mine}", f"{name}{part}", layout) for mine, (part, layout) in layouts.items() for name in theirs
    )


def layer_streams(branch: str, name: str, published: str) -> tuple[Rule, ...]:
    """The same for one branch of every layer."""
    places = (
        f"{LAYER}.{name}.",
        *(f"{LAYER}.{part}" for part in (f"{published}.hc_pre.hc_", f"hc_pre.{published}.hc_")),
    )
    return stream_rules(f"layers.{{l}}.{branch}.streams", *places)


# where the mixture before the head stands in files
HEADS = ("hc_head", "hc_head.hc_pre", "hc_pre.hc_head")
OURS, THEIRS, MLP = "layers.{l}.attention", f"{LAYER}.self_attn", f"{LAYER}.mlp"

FAMILY = Family(
    ("hy_v4",),
    config,
    (
        *layer_streams("attention", "attn_hc", "hc_attn_layer"),
        *layer_streams("mlp", "ffn_hc", "hc_mlp_layer"),
        *layer_streams("moe", "ffn_hc", "hc_mlp_layer"),
        *stream_rules("streams", "model.hc_head.hc_", *(f"model.{place}.hc_head_" for place in HEADS)),
        *(Rule(f"{OURS}.gate", f"{THEIRS}.{name}.weight", HEADS_OUT) for name in ("gate_proj", "linear_gate")),
        *(Rule(f"{OURS}.sinks", f"{THEIRS}.{name}") for name in ("sinks", "learnable_sink_param")),
        *RULES,
        # the reference writes all gates under the name of attention's
        Rule("layers.{l}.mlp.gate", f"{MLP}.linear_gate.weight", TRANSPOSED),
        Rule("layers.{l}.moe.shared.gate", f"{MLP}.shared_experts.linear_gate.weight", TRANSPOSED),
        *indexer_rules(f"{THEIRS}.indexer"),
    ),
    drafts=("model.mtp_layers.", "model.layers.{l}."),
)
