"""Qwen 4 (experimental), text: Qwen 3.5 on several gated streams; attention to the blocks that it picks."""

from collections.abc import Iterator
from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    activation,
    decoder,
    grouped_attention,
    head_dim,
    layer_types,
    norm_rules,
)
from converters.architectures.experts import TRAINING, Mixer, pre_norm
from converters.architectures.family import Family
from converters.architectures.qwen2_moe import SHARED_RULES, mixture
from converters.architectures.qwen3_5 import APART
from converters.architectures.qwen3_5_moe import DEFAULTS as PARENT
from converters.architectures.qwen3_next import HYBRID_RULES, delta
from converters.rope import read_rope
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Block, Blocks, Gate, GatedStreams, Mlp, ModelSpec, Norm

DEFAULTS = PARENT | {
    "vocab_size": 248320,
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "norm_topk_prob": True,
    "hc_count": 4,
    "hc_lowrank": 320,
}

# of embeddings of n-grams, which no layer has
NGRAMS = (
    "ple_embed_dim",
    "ple_conv_kernel_size",
    "ngram_size",
    "heads_per_ngram",
    "ngram_vocab_size_base",
    "make_ngram_vocab_size_divisible_by",
    "seed",
    "split_ngram_parts",
)


def read_blocks(take: Take, norm: Norm, size: int) -> Blocks:
    """What picks the blocks.

    Raises:
        ValueError: the budget is not so many whole blocks.
    """
    take.require("indexer_kv_heads", 1)
    rope = read_rope(take, size, beside=("mrope_section", "mrope_interleaved"))
    heads, dim = take("indexer_n_heads"), take("indexer_head_dim")
    each, budget = take("indexer_compress_ratio"), take("indexer_budget")
    if budget % each or rope.dim > dim:
        raise ValueError(
            f"{take.where}: {budget} tokens in blocks of {each}, {rope.dim} of {dim} features rotated; "
            "expected whole blocks, and no more features than there are"
        )
    return Blocks(heads, dim, each, budget // each, norm, rope, "mean")


def mixers(take: Take, offset: Norm) -> Iterator[Mixer]:
    """What mixes the tokens of each layer: attention in every fourth, unless the config lists them."""
    bias, count, every = take("attention_bias", False), take("num_hidden_layers"), 4
    if not take.has("layer_types"):
        every = take("full_attention_interval", every)
    default = ["linear_attention" if (i + 1) % every else "full_attention" for i in range(count)]
    kinds = layer_types(take, count, default, "linear_attention", "indexed_attention")
    linear = delta(take, replace(offset, offset=0.0))
    linear = replace(linear, gate=activation(take, "output_gate_type", "hidden_act"))
    for kind in kinds:
        if kind == "linear_attention":
            yield linear
            continue
        blocks = read_blocks(take, offset, head_dim(take))
        gate = Gate(bias="feature" if bias else None)
        whole = replace(grouped_attention(take, blocks.rope), qk_norm=offset, gate=gate, blocks=blocks)
        yield replace(whole, qkv_bias=bias, o_bias=bias)


def config(take: Take) -> ModelSpec:
    """Streams of which each branch sees a gated mixture; every layer a mixture of experts."""
    take.assume(DEFAULTS)
    take.ignore("full_attention_interval", "intermediate_size", "number_of_conv_states", *TRAINING, *NGRAMS)
    if take("ple_layer_ids", None):
        raise ValueError(
            f"{take.where}: ple_layer_ids = {take('ple_layer_ids')}; embeddings of n-grams are not implemented"
        )
    norm = Norm(take("rms_norm_eps"), offset=1.0)
    streams = GatedStreams(take("hc_count"), take("hc_lowrank"), norm)
    moe = mixture(take)
    moe = replace(moe, shared=Mlp(take("shared_expert_intermediate_size"), moe.act), shared_gate=True)

    def layer(mixer: Mixer) -> Block:
        bare = pre_norm(mixer, moe, norm).branches
        return Block(tuple(replace(branch, pre=None) for branch in bare), streams=streams)

    spec = decoder(take, (layer(mixer) for mixer in mixers(take, norm)), norm)
    return replace(spec, final_norm=None, streams=streams)


def stream_rules(ours: str, theirs: str) -> tuple[Rule, ...]:
    """What a branch mixes its streams by."""
    return (
        Rule(f"{ours}.norm.scale", f"{theirs}.hc_norm.weight", "(s d) -> s d"),
        Rule(f"{ours}.down", f"{theirs}.input_mix_weight_down.weight", "r (s d) -> s d r"),
        Rule(f"{ours}.up", f"{theirs}.input_mix_weight_up.weight", "(s d) r -> r s d"),
        Rule(f"{ours}.inject", f"{theirs}.block_inject_weight.weight", "q (s d) -> s d q"),
    )


INDEX, INDEXER = "layers.{l}.attention.index", f"{LAYER}.self_attn.indexer"

FAMILY = Family(
    ("qwen4_exp_text",),
    config,
    (
        *stream_rules("streams", "model.hyper_connection_mixer"),
        *stream_rules("layers.{l}.attention.streams", f"{LAYER}.attn_hyper_connection"),
        *stream_rules("layers.{l}.delta.streams", f"{LAYER}.attn_hyper_connection"),
        *stream_rules("layers.{l}.moe.streams", f"{LAYER}.mlp_hyper_connection"),
        Rule(
            (f"{INDEX}.q", f"{INDEX}.k"), f"{INDEXER}.index_qk_proj.weight", ("(i h) d -> d i h", "h d -> d h"), "c d"
        ),
        *norm_rules(f"{INDEX}.q_norm", f"{INDEXER}.q_layernorm"),
        *norm_rules(f"{INDEX}.k_norm", f"{INDEXER}.k_layernorm"),
        *HYBRID_RULES,
        *APART,
        *SHARED_RULES,
    ),
    drafts=("mtp.",),
)
