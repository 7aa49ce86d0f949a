"""DeepSeek-V4: mixed streams, a window of tokens beside compressed ones, experts that at first the tokens choose."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from converters.architectures.common import HEADS_OUT, LAYER, TRANSPOSED, decoder, norm_rules, rename
from converters.architectures.experts import (
    OURS,
    TRAINING,
    expert_rules,
    pre_norm_rules,
    router_rules,
    shared_rules,
)
from converters.architectures.family import Family
from converters.architectures.hy_v4 import stream_rules
from converters.rope import DIALECT, read_rope, rope_dict
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import (
    Block,
    Branch,
    Clamp,
    Compressed,
    Compression,
    Hyper,
    Indexer,
    Mlp,
    ModelSpec,
    Moe,
    Norm,
    Rope,
    Router,
)

DEFAULTS = {
    "vocab_size": 129280,
    "hidden_size": 4096,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 43,
    "num_attention_heads": 64,
    "num_key_value_heads": 1,
    "head_dim": 512,
    "q_lora_rank": 1024,
    "num_experts_per_tok": 6,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "scoring_func": "sqrtsoftplus",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "max_position_embeddings": 1048576,
    "rope_theta": 10000.0,
    "compress_rope_theta": 160000.0,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "swiglu_limit": 10.0,
    "sliding_window": 128,
    "o_groups": 8,
    "o_lora_rank": 1024,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 512,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
}
ROTATED = 64 / 512
RATES = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128}
SPARSE, HEAVY = RATES
WINDOW = "sliding_attention"
SCORES: Mapping[str, Literal["sqrt_softplus", "sigmoid"]] = {"sqrtsoftplus": "sqrt_softplus", "sigmoid": "sigmoid"}
ONLY = {
    "num_key_value_heads": 1,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "attention_bias": False,
}


def ropes(take: Take, size: int) -> tuple[Rope, Rope]:
    """The ropes of layers with a window alone, and of those that compress: nested, or flat for the latter alone.

    Raises:
        ValueError: a flat dict with a base of its own, of which nothing would be read.
    """
    take.ignore(*DIALECT)
    theta, far = take("rope_theta"), take("compress_rope_theta")
    rotated = take("qk_rope_head_dim", None)
    part = take("partial_rotary_factor", None) or (rotated / size if rotated else ROTATED)
    given: Mapping[str, Any] = rope_dict(take)
    if not {"main", "compress"} <= set(given):
        if given.get("rope_theta", theta) != theta:
            raise ValueError(f"{take.where}: rope_theta differs in rope_parameters; expected it beside them")
        # the temperature of YaRN is left out
        yarn = {"attention_factor": 1.0} if "yarn" in (given.get("rope_type"), given.get("type")) else {}
        given = {"main": {"rope_theta": theta}, "compress": yarn | dict(given) | {"rope_theta": far}}

    def read(name: str) -> Rope:
        flat = {"rope_parameters": given[name], "max_position_embeddings": take("max_position_embeddings")}
        return read_rope(Take(flat, f"{take.where}: {name}"), size, interleaved=True, partial=part)

    return read("main"), read("compress")


def kinds(take: Take, key: str, known: list[str], default: list[str]) -> list[str]:
    """The kind of each layer, as listed; lists may be longer than the layers.

    Raises:
        ValueError: another kind, or a list that is too short.
    """
    count, found = len(default), list(take(key, None) or default)
    if len(found) < count or not set(found) <= set(known):
        raise ValueError(f"{take.where}: {key} is {found}; expected {' or '.join(known)} for {count} layers")
    return found[:count]


def attentions(take: Take, norm: Norm, count: int) -> list[Compressed]:
    """Attention of every layer: to a window, and beside it to compressed tokens, all of them or the best."""
    size = take("head_dim")
    main, far = ropes(take, size)
    shared = {"norm": norm, "scale": size**-0.5, "groups": take("o_groups"), "out_rank": take("o_lora_rank")}
    sizes = take("num_attention_heads"), size, take("q_lora_rank"), take("sliding_window")
    rates = {**RATES, **take("compress_rates", {})}
    rates = {
        kind: take(old, rates[kind]) for kind, old in ((SPARSE, "compress_rate_csa"), (HEAVY, "compress_rate_hca"))
    }
    indexer = Indexer(take("index_n_heads"), take("index_head_dim"), take("index_topk"), norm, far, last=True)
    plain, long = Compressed(*sizes, **shared, rope=main), Compressed(*sizes, **shared, rope=far)
    by_kind = {
        WINDOW: plain,
        SPARSE: replace(long, compression=Compression(rates[SPARSE], overlap=True, indexer=indexer)),
        HEAVY: replace(long, compression=Compression(rates[HEAVY])),
    }
    if (ratios := take("compress_ratios", None)) is not None and not take.has("layer_types"):
        names = {0: WINDOW} | {rate: kind for kind, rate in RATES.items()}
        take.config["layer_types"] = [names.get(ratio, str(ratio)) for ratio in ratios]
    default = [SPARSE if i > 2 and i % 2 else HEAVY for i in range(count)]
    return [by_kind[kind] for kind in kinds(take, "layer_types", list(by_kind), default)]


def mixtures(take: Take, count: int) -> list[Moe]:
    """The mixture of every layer; in the first few, a table says which experts a token goes to.

    Raises:
        ValueError: a score that is not implemented, or a limit that would cut everything.
    """
    score, limit, width = take("scoring_func"), take("swiglu_limit"), take("moe_intermediate_size")
    if score not in SCORES or limit <= 0:
        found = f"scoring_func = {score!r}, swiglu_limit = {limit}"
        raise ValueError(f"{take.where}: {found}; expected {' or '.join(SCORES)}, and a positive limit")
    sizes, clamp = (take("n_routed_experts"), take("num_experts_per_tok")), Clamp(limit, alpha=1.0, offset=0.0)
    scale = take("routed_scaling_factor")
    free = Router(*sizes, SCORES[score], choice_bias=True, renorm=1.0, renorm_eps=1e-20, scale=scale)
    fixed = replace(free, choice_bias=False, table=take("vocab_size"))
    shared = Mlp(width, clamp=clamp, bias=take("mlp_bias", False))
    by_kind = {
        kind: Moe(router, width, clamp=clamp, shared=shared) for kind, router in (("moe", free), ("hash_moe", fixed))
    }
    first = take("num_hash_layers", 3)
    default = ["hash_moe" if i < first else "moe" for i in range(count)]
    return [by_kind[kind] for kind in kinds(take, "mlp_layer_types", list(by_kind), default)]


def config(take: Take) -> ModelSpec:
    """Pre-norm on a mixture of the streams, which are mixed among themselves too."""
    rename(take, {"n_routed_experts": "num_local_experts"})
    rename(take, {"moe_intermediate_size": "intermediate_size"})
    take.assume(DEFAULTS)
    take.ignore(*TRAINING, "num_nextn_predict_layers", "expert_dtype")
    for key, value in ONLY.items():
        take.require(key, value)
    count, norm = take("num_hidden_layers"), Norm(take("rms_norm_eps"))
    bare, iterations = replace(norm, scale=False), take("hc_sinkhorn_iters")
    streams = Hyper(take("hc_mult"), bare, take("hc_eps"), sinkhorn=max(iterations, 1))

    def layer(attention: Compressed, moe: Moe) -> Block:
        return Block((Branch("attention", attention, pre=norm), Branch("moe", moe, pre=norm)), streams=streams)

    layers = map(layer, attentions(take, norm, count), mixtures(take, count))
    return replace(decoder(take, layers, norm), streams=streams)


ATTENTION, THEIRS, FILES = "layers.{l}.attention", f"{LAYER}.self_attn", f"{LAYER}.attn"

# of attention: ours, the layout, and the names: in files, and the reference's own
PARTS = (
    ("q_a", TRANSPOSED, "wq_a.weight", "q_a_proj.weight"),
    ("q_norm.scale", "", "q_norm.weight", "q_a_norm.weight"),
    ("q", HEADS_OUT, "wq_b.weight", "q_b_proj.weight"),
    ("kv", TRANSPOSED, "wkv.weight", "kv_proj.weight"),
    ("kv_norm.scale", "", "norm.weight", "kv_norm.weight"),
    ("sinks", "", "attn_sink", "sinks"),
    ("o_b", "d (g r) -> g r d", "wo_b.weight", "o_b_proj.weight"),
    ("index.q", HEADS_OUT, "indexer.wq_b.weight", "compressor.indexer.q_b_proj.weight"),
    ("index.weight", TRANSPOSED, "indexer.weights_proj.weight", "compressor.indexer.scorer.weights_proj.weight"),
    *(
        (f"{ours}.{part}", layout, f"{file}.{short}", f"{own}.{long}")
        for ours, file, own in (
            ("compression", "compressor", "compressor"),
            ("index", "indexer.compressor", "compressor.indexer"),
        )
        for part, layout, short, long in (
            ("kv", TRANSPOSED, "wkv.weight", "kv_proj.weight"),
            ("gate", TRANSPOSED, "wgate.weight", "gate_proj.weight"),
            ("bias", "", "ape", "position_bias"),
            ("norm.scale", "", "norm.weight", "kv_norm.weight"),
        )
    ),
)


def either(ours: str, layout: str, *names: str) -> tuple[Rule, ...]:
    """One leaf under several names."""
    return tuple(Rule(ours, name, layout) for name in names)


def grouped_out(spec: ModelSpec) -> tuple[Rule, ...]:
    """The way out of each group of heads, all in one tensor."""
    groups = {
        branch.op.groups for block in spec.layers for branch in block.branches if isinstance(branch.op, Compressed)
    }
    names = (f"{FILES}.wo_a.weight", f"{THEIRS}.o_a_proj.weight")
    return tuple(rule for g in groups for rule in either(f"{ATTENTION}.o_a", f"({g} r) (m h) -> ({g} m) h r", *names))


FAMILY = Family(
    ("deepseek_v4",),
    config,
    (
        *either("embed", "", "model.embed_tokens.weight", "model.embed.weight"),
        *either("head", TRANSPOSED, "lm_head.weight", "head.weight"),
        *norm_rules("final_norm", "model.norm"),
        *stream_rules("streams", "model.hc_head.hc_", "model.hc_head_"),
        *stream_rules("layers.{l}.attention.streams", f"{LAYER}.hc_attn_", f"{LAYER}.attn_hc."),
        *stream_rules("layers.{l}.moe.streams", f"{LAYER}.hc_ffn_", f"{LAYER}.ffn_hc."),
        *(
            rule
            for ours, layout, file, own in PARTS
            for rule in either(f"{ATTENTION}.{ours}", layout, f"{FILES}.{file}", f"{THEIRS}.{own}")
        ),
        *pre_norm_rules(LAYER, "attn_norm", "ffn_norm"),
        *pre_norm_rules(LAYER),
        *(rule for ffn in ("ffn", "mlp") for rule in router_rules(f"{LAYER}.{ffn}.gate")),
        *either(f"{OURS}.choice_bias", "", f"{LAYER}.ffn.gate.bias", f"{LAYER}.mlp.gate.e_score_correction_bias"),
        *either(f"{OURS}.table", "", f"{LAYER}.ffn.gate.tid2eid", f"{LAYER}.mlp.gate.tid2eid"),
        *expert_rules(f"{LAYER}.ffn.experts", "w1", "w3", "w2"),
        *expert_rules(f"{LAYER}.mlp.experts"),
        *shared_rules(f"{LAYER}.ffn.shared_experts", "w1", "w3", "w2"),
        *shared_rules(f"{LAYER}.mlp.shared_experts"),
    ),
    first=grouped_out,
    drafts=("mtp.", "model.mtp.", "model.layers.{l}."),
)
