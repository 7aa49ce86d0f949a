"""Qwen 4 (experimental), text: Qwen 3.5 on several gated streams; attention to the blocks that it picks."""

from collections.abc import Iterator, Sequence
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
from converters.ngrams import multipliers, table_sizes
from converters.rope import read_rope
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Block, Blocks, Branch, Gate, GatedStreams, Mlp, ModelSpec, NgramInput, Norm

DEFAULTS = PARENT | {
    "vocab_size": 248320,
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "norm_topk_prob": True,
    "hc_count": 4,
    "hc_lowrank": 320,
    "ple_conv_kernel_size": 4,
    "ngram_size": 3,
    "heads_per_ngram": 8,
    "ngram_vocab_size_base": 20_000_000,
    "make_ngram_vocab_size_divisible_by": 128,
    "seed": 1234,
    "split_ngram_parts": 512,
}


def ngrams(take: Take, streams: GatedStreams, kinds: Sequence[str]) -> dict[int, NgramInput]:
    """The embeddings of n-grams, by layer, which are listed from 1.

    Raises:
        ValueError: no end of a text, a layer that does not exist or is attention, or sizes that cannot be shared out.
    """
    listed, tokens = sorted(set(take("ple_layer_ids", None) or ())), take("ngram_size")
    heads, dim = (tokens - 1) * take("heads_per_ngram"), take("ple_embed_dim", None) or take("hidden_size")
    base, step, seed = take("ngram_vocab_size_base"), take("make_ngram_vocab_size_divisible_by"), take("seed")
    parts, taps, out = take("split_ngram_parts"), take("ple_conv_kernel_size"), {}
    for i, layer in enumerate(listed):
        if not 1 <= layer <= len(kinds) or kinds[layer - 1] != "linear_attention":
            raise ValueError(f"{take.where}: ple_layer_ids has {layer}; expected layers of linear attention, from 1")
        end, sizes = take("eos_token_id"), table_sizes(base, heads, i)
        rows = -(-sum(sizes) // step) * step
        if dim % heads or rows % parts:
            found = f"{dim} features for {heads} heads, {rows} rows in {parts} parts"
            raise ValueError(f"{take.where}: {found}; expected both to be shared out evenly")
        numbers = multipliers(take("vocab_size"), tokens, i, seed)
        end = end[0] if isinstance(end, list) else end
        out[layer - 1] = NgramInput(streams.count, numbers, sizes, rows, parts, dim, end, taps, streams.norm)
    return out


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


def layer_kinds(take: Take) -> tuple[str, ...]:
    """The kind of each layer: attention in every fourth, unless the config lists them."""
    count, every = take("num_hidden_layers"), 4
    if not take.has("layer_types"):
        every = take("full_attention_interval", every)
    default = ["linear_attention" if (i + 1) % every else "full_attention" for i in range(count)]
    return layer_types(take, count, default, "linear_attention", "indexed_attention")


def mixers(take: Take, kinds: Sequence[str], offset: Norm) -> Iterator[Mixer]:
    """What mixes the tokens of each layer."""
    bias = take("attention_bias", False)
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
    take.ignore("full_attention_interval", "intermediate_size", "number_of_conv_states", *TRAINING)
    norm, kinds = Norm(take("rms_norm_eps"), offset=1.0), layer_kinds(take)
    streams = GatedStreams(take("hc_count"), take("hc_lowrank"), norm)
    moe, extra = mixture(take), ngrams(take, streams, kinds)
    moe = replace(moe, shared=Mlp(take("shared_expert_intermediate_size"), moe.act), shared_gate=True)

    def layer(i: int, mixer: Mixer) -> Block:
        branches = tuple(replace(branch, pre=None) for branch in pre_norm(mixer, moe, norm).branches)
        first = (Branch("ngrams", extra[i], whole=True),) if i in extra else ()
        return Block((*first, *branches), streams=streams)

    spec = decoder(take, (layer(i, mixer) for i, mixer in enumerate(mixers(take, kinds, norm))), norm)
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

NGRAMS, PLE = "layers.{l}.ngrams", f"{LAYER}.ple"

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
        Rule(f"{NGRAMS}.table", f"{PLE}.ple_embedding.ngram_embedding.shard_{{p}}.weight", "r h -> p r h"),
        Rule(f"{NGRAMS}.table", f"{PLE}.ple_embedding.ngram_embedding.weight", "(p r) h -> p r h"),
        Rule(f"{NGRAMS}.key", f"{PLE}.key_proj.weight", "(s d) e -> e s d"),
        Rule(f"{NGRAMS}.value", f"{PLE}.value_proj.weight", "d e -> e d"),
        Rule(f"{NGRAMS}.conv", f"{PLE}.conv1d.weight", "(s d) one k -> s d one k"),
        *(
            Rule(f"{NGRAMS}.{name}_norm.scale", f"{PLE}.norm_{name}.weight", "(s d) -> s d")
            for name in ("key", "query", "conv")
        ),
        *HYBRID_RULES,
        *APART,
        *SHARED_RULES,
    ),
    # they follow from the config
    buffers=tuple(
        f"{PLE}.ple_embedding.{name}"
        for name in ("layer_multipliers", "ngram_heads_vocab_sizes", "ngram_heads_offsets")
    ),
    drafts=("mtp.",),
)
