"""MiniMax M3, text: clamped experts beside a shared one, behind dense layers; attention to the blocks that it picks."""

from dataclasses import replace

from converters.architectures.common import (
    HEADS_OUT,
    LAYER,
    TRANSPOSED,
    attention_rules,
    decoder,
    end_rules,
    fused_gate_up,
    grouped_attention,
    head_dim,
    layer_types,
    mlp_rules,
    norm_rules,
    rename,
)
from converters.architectures.experts import (
    OURS,
    TRAINING,
    expert_rules,
    mixed_layers,
    pre_norm,
    pre_norm_rules,
    router_rules,
    shared_rules,
)
from converters.architectures.family import Family
from converters.rope import read_rope, rope_dict
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Attention, Blocks, Clamp, Mlp, ModelSpec, Moe, Norm, Router

DEFAULTS = {
    "vocab_size": 200064,
    "hidden_size": 6144,
    "intermediate_size": 3072,
    "dense_intermediate_size": 12288,
    "shared_intermediate_size": 3072,
    "num_hidden_layers": 60,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 524288,
    "rms_norm_eps": 1e-6,
    "num_experts_per_tok": 4,
    "num_local_experts": 128,
    "routed_scaling_factor": 2.0,
    "rope_theta": 5000000.0,
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
    "index_n_heads": 4,
    "index_head_dim": 128,
    "index_block_size": 128,
    "index_topk_blocks": 16,
    "index_local_blocks": 1,
}
# in the older dialect's sparse_attention_config
OLD = {
    "index_n_heads": "sparse_num_index_heads",
    "index_head_dim": "sparse_index_dim",
    "index_block_size": "sparse_block_size",
    "index_topk_blocks": "sparse_topk_blocks",
    "index_local_blocks": "sparse_local_block",
}
SPARSE = "minimax_m3_sparse"


def older(take: Take) -> None:
    """Read the older dialect, which goes first, under the newer names."""
    nested = take.sub("sparse_attention_config")
    take.config |= {new: nested(old) for new, old in OLD.items() if nested.has(old)}
    marks = nested("sparse_attention_freq", None)
    if marks is not None and not take.has("layer_types"):
        take.config["layer_types"] = [SPARSE if mark else "full_attention" for mark in marks]
    nested.done()


def attentions(take: Take, norm: Norm) -> list[Attention]:
    """Attention of every layer: to everything, or to the blocks that are picked.

    Raises:
        ValueError: only rotary_dim says how much is rotated, or the index heads cannot be shared out.
    """
    size, count = head_dim(take), take("num_hidden_layers")
    rope = read_rope(take, size)
    said = take("partial_rotary_factor", None) or rope_dict(take).get("partial_rotary_factor")
    if said is None and take("rotary_dim", rope.dim) != rope.dim:
        raise ValueError(f"{take.where}: rotary_dim = {take('rotary_dim')}; say it as partial_rotary_factor")
    take.ignore("rotary_dim")
    whole = replace(grouped_attention(take, rope), qk_norm=norm)
    heads, dim = take("index_n_heads"), take("index_head_dim")
    sizes = take("index_block_size"), take("index_topk_blocks")
    blocks = Blocks(heads, dim, *sizes, norm, rope, "best", local=take("index_local_blocks"))
    kinds = layer_types(take, count, ["full_attention"] * count, SPARSE)
    if SPARSE in kinds and (whole.kv_heads % heads or rope.dim > dim):
        where = f"{take.where}: {heads} index heads of {dim} features for {whole.kv_heads} key-value heads"
        raise ValueError(f"{where}, {rope.dim} features rotated; expected heads that divide, and no fewer features")
    return [replace(whole, blocks=blocks) if kind == SPARSE else whole for kind in kinds]


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, every norm stored as w - 1; the weights of the chosen sum to one before they are scaled."""
    rename(take, {"num_local_experts": "num_experts"})
    older(take)
    take.assume(DEFAULTS)
    take.ignore("hidden_act", *TRAINING)  # the gated unit is always the same
    clamp, norm = Clamp(take("swiglu_limit"), take("swiglu_alpha")), Norm(take("rms_norm_eps"), offset=1.0)
    dense, shared = (Mlp(take(f"{kind}_intermediate_size"), clamp=clamp) for kind in ("dense", "shared"))
    router = Router(
        take("num_local_experts"),
        take("num_experts_per_tok"),
        "sigmoid",
        choice_bias=True,
        renorm=1.0,
        scale=take("routed_scaling_factor"),
    )
    moe = Moe(router, take("intermediate_size"), clamp=clamp, shared=shared)
    sparse = mixed_layers(take, take("moe_layer_freq", None) or [True] * take("num_hidden_layers"))
    pairs = zip(attentions(take, norm), sparse, strict=True)
    return decoder(take, [pre_norm(attention, moe if mark else dense, norm) for attention, mark in pairs], norm)


INDEX = "layers.{l}.attention.index"

FAMILY = Family(
    ("minimax_m3_vl_text",),
    config,
    (
        *end_rules(),
        *attention_rules(f"{LAYER}.self_attn"),
        *(
            rule
            for index in ("index_", "indexer.")
            for name, layout in (("q", HEADS_OUT), ("k", TRANSPOSED))
            for rule in (
                Rule(f"{INDEX}.{name}", f"{LAYER}.self_attn.{index}{name}_proj.weight", layout),
                *norm_rules(f"{INDEX}.{name}_norm", f"{LAYER}.self_attn.{index}{name}_norm"),
            )
        ),
        fused_gate_up(f"{LAYER}.mlp.gate_up_proj"),
        *mlp_rules(f"{LAYER}.mlp"),
        Rule(f"{OURS}.choice_bias", f"{LAYER}.block_sparse_moe.e_score_correction_bias"),
        Rule(f"{OURS}.choice_bias", f"{LAYER}.mlp.gate.e_score_correction_bias"),
        *(
            rule
            for moe in (f"{LAYER}.block_sparse_moe", f"{LAYER}.mlp")
            for rule in (
                *router_rules(f"{moe}.gate"),
                *expert_rules(f"{moe}.experts", gate="w1", down="w2", up="w3"),
                fused_gate_up(f"{moe}.shared_experts.gate_up_proj", f"{OURS}.shared"),
                *shared_rules(f"{moe}.shared_experts"),
            )
        ),
        *pre_norm_rules(LAYER),
    ),
    drafts=("mtp.", "model.mtp."),
)
