"""A.X K2: DeepSeek-V3.2 with gated norms, and a gate on the heads that comes, as queries do, out of their latent."""

from dataclasses import replace

from converters.architectures.common import LAYER, decoder, gated_mlp, norm_rules, rename
from converters.architectures.deepseek_v3 import DEFAULTS as PARENT
from converters.architectures.deepseek_v3 import IDLE, RULES
from converters.architectures.experts import grouped_moe, pre_norm, sparse_layers
from converters.architectures.family import Family
from converters.architectures.latent import indexer_rules, latent_attention, read_indexer
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Block, Gate, Latent, Mlp, ModelSpec, Moe, Norm

DEFAULTS = {key: value for key, value in PARENT.items() if key != "rope_interleave"} | {
    "vocab_size": 163840,
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "moe_intermediate_size": 512,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "n_routed_experts": 128,
    "kv_lora_rank": 128,
    "q_lora_rank": 384,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "qk_nope_head_dim": 64,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 131072,
    "index_topk": 2048,
    "index_head_dim": 128,
    "index_n_heads": 16,
    "gated_norm_rank": 16,
    "n_group": None,
    "topk_group": None,
}


def mixture(take: Take) -> Moe:
    """Experts chosen within the best groups, if there are groups; those of others choose with 0, and may be chosen.

    Raises:
        ValueError: one of n_group and topk_group without the other.
    """
    if take.has("n_group") != take.has("topk_group"):
        raise ValueError(f"{take.where}: one of n_group and topk_group is given; expected both or neither")
    moe = grouped_moe(take)
    return replace(moe, router=replace(moe.router, closed=0.0))


def layer(attention: Latent, feed_forward: Mlp | Moe, norm: Norm, gated: Norm) -> Block:
    """Pre-norm, gated but before a dense feed-forward layer."""
    first, second = pre_norm(attention, feed_forward, norm).branches
    return Block((replace(first, pre=gated), replace(second, pre=gated) if second.name == "moe" else second))


def config(take: Take) -> ModelSpec:
    """Pre-norm, latent attention, gated; the first layer dense."""
    rename(take, {"n_routed_experts": "num_local_experts"})
    take.assume(DEFAULTS)
    take.ignore(*IDLE)
    norm, attention = Norm(take("rms_norm_eps")), latent_attention(take)
    take.require("layer_types", ["indexed_attention"] * take("num_hidden_layers"))
    if attention.rope is None or attention.q_rank is None:
        raise ValueError(f"{take.where}: q_lora_rank is None; expected a latent, which the indexer reads")
    indexer = read_indexer(take, replace(attention.rope, interleaved=False))
    attention = replace(attention, indexer=indexer, gate=Gate(), q_raw=True)
    gated, mlp, moe = replace(norm, gate=take("gated_norm_rank")), gated_mlp(take), mixture(take)
    layers = (layer(attention, moe if sparse else mlp, norm, gated) for sparse in sparse_layers(take))
    return decoder(take, layers, norm)


OURS = "layers.{l}.attention"
QUERY, QUERY_LAYOUT = (f"{OURS}.q", f"{OURS}.gate"), ("n h d -> d n h", "n v d -> d n v")


def gated_norm_rules(ours: str, theirs: str) -> tuple[Rule, ...]:
    """A norm and its gate, as files and as the reference name it."""
    return (
        *norm_rules(ours, f"{theirs}.norm"),
        *(
            Rule(f"{ours}.{mine}", f"{theirs}.{name}.weight", "a b -> b a")
            for mine, names in (("down", ("W_down", "mlp.fc1")), ("up", ("W_up", "mlp.fc2")))
            for name in names
        ),
    )


FAMILY = Family(
    ("axk2",),
    config,
    (
        *(Rule(QUERY, f"{LAYER}.self_attn.{q}.weight", QUERY_LAYOUT, "(n c) d") for q in ("q_b_proj", "q_gate_proj")),
        *gated_norm_rules(f"{OURS}.pre", f"{LAYER}.input_layernorm"),
        *gated_norm_rules("layers.{l}.moe.pre", f"{LAYER}.post_attention_layernorm"),
        *RULES,
        *indexer_rules(f"{LAYER}.self_attn.indexer"),
    ),
    drafts=("model.layers.{l}.",),
)
