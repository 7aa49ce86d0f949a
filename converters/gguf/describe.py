"""A spec as GGUF metadata: the way back of `config`, and the proof that it is one.

Values come from the spec, never from a config, so that nothing depends on anyone's defaults. What GGUF cannot say is
found by reading the result back and comparing specs, and by what llama.cpp's loader insists on.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from converters.gguf.archs import ARCHS
from converters.gguf.config import ACTIVATIONS, UNUSED, prefix
from converters.gguf.describe_gemma import gemma3n, gemma4
from converters.gguf.extras_common import SIGMOID, SOFTMAX
from converters.gguf.facts import (
    activation_of,
    attentions,
    branches,
    eps,
    feed_forward,
    has,
    inner_size,
    local_theta,
    mixture,
    mixtures,
    pattern,
    rope_of,
    shared,
    shared_width,
    state_space,
    step_rank,
    window,
)
from converters.gguf.names import attention_of, latents
from converters.gguf.names_state import named
from converters.gguf.rope import write_rope
from converters.rope import magnitude
from forge_jax.spec import (
    AltUp,
    Attention,
    Indexer,
    Latent,
    Mlp,
    ModelSpec,
    Moe,
    QueryScaling,
    Yarn,
)

Metadata = dict[str, Any]


VALUES: Mapping[str, Callable[[ModelSpec], Any]] = {
    "vocab_size": lambda spec: spec.vocab_size,
    "context_length": lambda spec: spec.max_seq_len,
    "embedding_length": lambda spec: spec.dim,
    "block_count": lambda spec: len(spec.layers),
    "feed_forward_length": lambda spec: feed_forward(spec)[0].dim,
    "use_parallel_residual": lambda spec: spec.layers[0].parallel,
    "attention.head_count": lambda spec: latents(spec)[0].heads if latents(spec) else attention_of(spec).heads,
    "attention.head_count_kv": lambda spec: 1 if latents(spec) else attention_of(spec).kv_heads,
    "full_attention_interval": lambda spec: [has(block, Attention) for block in spec.layers].index(True) + 1,
    "kda.head_dim": lambda spec: named(spec, "delta").key_dim,
    "shortconv.l_cache": lambda spec: named(spec, "conv").taps,
    "attention.key_length": lambda spec: attention_of(spec).head_dim,
    "attention.value_length": lambda spec: attention_of(spec).head_dim,
    "attention.layer_norm_epsilon": eps,
    "attention.layer_norm_rms_epsilon": eps,
    "attention.scale": lambda spec: attention_of(spec).scale,
    "attention.sliding_window": window,
    "attention.clamp_kqv": lambda spec: attention_of(spec).clip,
    "attn_logit_softcapping": lambda spec: attention_of(spec).softcap,
    "final_logit_softcapping": lambda spec: spec.logit_softcap,
    "embedding_scale": lambda spec: spec.embed_scale,
    "residual_scale": lambda spec: branches(spec)[0].scale,
    "logit_scale": lambda spec: spec.logit_scale,
    "leading_dense_block_count": lambda spec: m[0] if (m := mixtures(spec)) else len(spec.layers),
    "interleave_moe_layer_step": lambda spec: m[1] - m[0] if len(m := mixtures(spec)) > 1 else m[0] + 1,
    "altup.num_inputs": lambda spec: spec.streams.count if isinstance(spec.streams, AltUp) else None,
    "altup.active_idx": lambda spec: spec.streams.active if isinstance(spec.streams, AltUp) else None,
    "embedding_length_per_layer_input": lambda spec: spec.own.dim if spec.own else None,
    "attention.kv_lora_rank": lambda spec: latents(spec)[0].rank,
    "attention.q_lora_rank": lambda spec: latents(spec)[0].q_rank,
    "rope.dimension_count": lambda spec: latents(spec)[0].rope_dim,
    "ssm.conv_kernel": lambda spec: d.taps if (d := named(spec, "delta")) else state_space(spec).conv,
    "ssm.state_size": lambda spec: d.key_dim if (d := named(spec, "delta")) else state_space(spec).state,
    "ssm.inner_size": inner_size,
    "ssm.time_step_rank": step_rank,
    "ssm.group_count": lambda spec: d.key_heads if (d := named(spec, "delta")) else state_space(spec).groups,
}
"""Metadata key -> where a spec says it; None is left out."""

EXPERT_VALUES: Mapping[str, Callable[[Any], Any]] = {
    "expert_count": lambda op: op.router.experts,
    "expert_used_count": lambda op: op.router.top_k,
    "expert_shared_count": lambda op: shared(op) // op.dim,
    "expert_feed_forward_length": lambda op: op.dim,
    "expert_shared_feed_forward_length": lambda op: shared(op) or None,
    "expert_weights_scale": lambda op: op.router.scale,
    "expert_weights_norm": lambda op: op.router.renorm is not None,
    "expert_group_count": lambda op: op.router.groups[0],
    "expert_group_used_count": lambda op: op.router.groups[1],
    "moe_latent_size": lambda op: op.latent,
}
"""The same for a mixture of experts."""

SIGMOIDS: Metadata = {"expert_gating_func": SIGMOID}
LOG_MULTIPLIER = "rope.scaling.yarn_log_multiplier"
ALWAYS = frozenset({"vocab_size", "feed_forward_length", "attention.head_count_kv"})
NO_ATTENTION = frozenset({"context_length", "vocab_size"})


def describe(arch: str, spec: ModelSpec) -> tuple[Metadata, Mapping[str, np.ndarray]]:
    """The metadata of the architecture, with its prefix, and the tensors that belong to it (rope factors).

    Raises:
        ValueError: a rope that GGUF cannot say.
    """
    facts = ARCHS[arch]
    keys = {*facts.keys, *facts.optional, *facts.repeats, *(NO_ATTENTION if facts.attention == "never" else ALWAYS)}
    keys |= {"attention.value_length"} if facts.attention == "grouped" and not facts.square else set()
    keys -= {"attention.key_length"} if facts.square else set()
    out: Metadata = {key: VALUES[key](spec) for key in VALUES if key in keys}
    if moe := mixture(spec):
        out |= {key: value(moe) for key, value in EXPERT_VALUES.items() if key in keys}
    out |= EXTRAS[arch](spec) if arch in EXTRAS else {}
    act, named = activation_of(spec), facts.act[1]
    if act != facts.act[0] and named is not None and {act, facts.act[0]} == {"gelu", "gelu_tanh"}:
        out["hidden_activation"] = ACTIVATIONS[act]  # llama.cpp has one gelu for both
    if facts.period is not None:
        out["attention.sliding_window_pattern"] = pattern(spec, facts.period)
    tensors: Mapping[str, np.ndarray] = {}
    if facts.rope:
        rope, tensors = write_rope(rope_of(spec), facts, arch)
        out |= rope
    return {f"{prefix(arch)}.{key}": value for key, value in out.items() if value is not None}, tensors


def minicpm3(spec: ModelSpec) -> Metadata:
    """Latent attention unfolded."""
    op = latents(spec)[0]
    sizes = {"attention.key_length": op.nope_dim + op.rope_dim, "attention.head_count_kv": op.heads}
    return sizes | {"attention.value_length": op.value_dim}


def deepseek2(spec: ModelSpec) -> Metadata:
    """Latent attention as heads that read the latent itself, and what YaRN does to the scores."""
    op, moe = latents(spec)[0], mixture(spec)
    size = op.nope_dim + op.rope_dim
    out: Metadata = {
        "attention.key_length": op.rank + op.rope_dim,
        "attention.value_length": op.rank,
        "attention.key_length_mla": size,
        "attention.value_length_mla": op.value_dim,
        "expert_gating_func": (SIGMOID if moe.router.score == "sigmoid" else SOFTMAX) if moe else None,
    }
    if op.rope is None:
        raise ValueError("GGUF: this architecture has rotary positions, the model has none")
    if isinstance(op.rope.scaling, Yarn) and (stretched := op.scale * size**0.5) != 1:
        mscale = round((stretched**0.5 - 1) / (0.1 * math.log(op.rope.scaling.factor)), 6)
        plain = replace(op.rope, scaling=replace(op.rope.scaling, attention_factor=magnitude(op.rope.scaling.factor)))
        return out | write_rope(plain, ARCHS["deepseek2"], "deepseek2")[0] | {LOG_MULTIPLIER: 0.1 * mscale}
    return out | write_rope(op.rope, ARCHS["deepseek2"], "deepseek2")[0]


def deepseek_dense(spec: ModelSpec) -> Metadata:
    """The same without experts, of which llama.cpp wants to hear all the same."""
    return deepseek2(spec) | {"expert_feed_forward_length": feed_forward(spec)[0].dim, "expert_shared_count": 0}


def kimi_linear(spec: ModelSpec) -> Metadata:
    """Where attention is, with the latent as its one key, and its heads."""
    op = latents(spec)[0]
    return SIGMOIDS | {
        "attention.head_count_kv": [int(has(block, Latent)) for block in spec.layers],
        "attention.key_length": op.rank + op.rope_dim,
        "attention.key_length_mla": op.nope_dim + op.rope_dim,
        "attention.value_length_mla": op.value_dim,
    }


def glm_dsa(spec: ModelSpec) -> Metadata:
    """The same, and what picks the tokens to look at."""
    index = latents(spec)[0].indexer
    if not isinstance(index, Indexer):
        raise ValueError(f"GGUF: this architecture has an indexer in each layer, the model's first has {index}")
    sizes = {"head_count": index.heads, "key_length": index.dim, "top_k": index.top_k}
    return deepseek2(spec) | {f"attention.indexer.{key}": value for key, value in sizes.items()}


def mimo2(spec: ModelSpec) -> Metadata:
    """Heads and windows layer by layer."""
    ops = attentions(spec)
    return SIGMOIDS | {
        "attention.head_count_kv": [op.kv_heads for op in ops],
        "attention.key_length": ops[0].head_dim,
        "attention.value_length": ops[0].value_size,
        "attention.sliding_window_pattern": [op.window is not None for op in ops],
        "attention.value_scale": branches(spec)[0].scale,
        "rope.freq_base_swa": local_theta(spec),
    }


def kv_heads(spec: ModelSpec) -> Metadata:
    """The key-value heads of each layer, none where it has no attention."""
    ops = [next((b.op for b in block.branches if isinstance(b.op, Attention)), None) for block in spec.layers]
    return {"attention.head_count_kv": [op.kv_heads if op else 0 for op in ops]}


def nemotron_h(spec: ModelSpec) -> Metadata:
    """Widths layer by layer."""
    ops = [block.branches[0].op for block in spec.layers]
    widths = [op.dim if isinstance(op, Mlp | Moe) else 0 for op in ops]
    extra = {"expert_shared_count": 1, "rope.scaling.finetuned": False} if mixtures(spec) else {}
    return (
        kv_heads(spec)
        | extra
        | {"block_count": len(ops), "ssm.inner_size": inner_size(spec), "feed_forward_length": widths}
    )


def granite_hybrid(spec: ModelSpec) -> Metadata:
    """Rope only if there is one, experts only if there are."""
    rope = attention_of(spec).rope
    out = kv_heads(spec) | {"ssm.inner_size": inner_size(spec), "logit_scale": 1 / spec.logit_scale}
    out |= {"rope.scaling.finetuned": rope is not None}
    return out | (write_rope(rope, ARCHS["granitehybrid"], "granitehybrid")[0] if rope else {})


def delta(spec: ModelSpec) -> Metadata:
    """The width of the values, and where attention is."""
    return {"ssm.inner_size": inner_size(spec), "full_attention_interval": VALUES["full_attention_interval"](spec)}


def openelm(spec: ModelSpec) -> Metadata:
    """Heads and widths layer by layer."""
    ops = attentions(spec)
    return {
        "attention.head_count": [op.heads for op in ops],
        "attention.head_count_kv": [op.kv_heads for op in ops],
        "attention.layer_norm_rms_epsilon": eps(spec),
        "attention.value_length": ops[0].head_dim,
        "feed_forward_length": [op.dim for op in feed_forward(spec)],
    }


def bailing2(spec: ModelSpec) -> Metadata:
    """The width of one shared expert, which is that of any."""
    moe = mixture(spec)
    return SIGMOIDS | {"expert_shared_feed_forward_length": moe.dim if moe else None}


def mistral3(spec: ModelSpec) -> Metadata:
    """How queries grow."""
    scaling = attention_of(spec).query_scaling
    return {"attention.temperature_scale": scaling.beta if isinstance(scaling, QueryScaling) else None}


EXTRAS: Mapping[str, Callable[[ModelSpec], Metadata]] = {
    "gemma3n": gemma3n,
    "gemma4": gemma4,
    "gemma3": lambda spec: {"rope.freq_base_swa": local_theta(spec)},
    "jamba": lambda spec: kv_heads(spec) | {"ssm.inner_size": inner_size(spec)},
    "granitehybrid": granite_hybrid,
    "falcon-h1": lambda spec: {"ssm.inner_size": inner_size(spec)},
    "lfm2": kv_heads,
    "kimi-linear": kimi_linear,
    "lfm2moe": lambda spec: kv_heads(spec) | SIGMOIDS,
    "nemotron_h": nemotron_h,
    "nemotron_h_moe": nemotron_h,
    "qwen3next": delta,
    "qwen35": lambda spec: delta(spec) | {"rope.dimension_sections": [11, 11, 10, 0]},
    "qwen35moe": lambda spec: delta(spec) | {"rope.dimension_sections": [11, 11, 10, 0]},
    "afmoe": lambda spec: SIGMOIDS | {"expert_weights_norm": True},
    "dbrx": lambda spec: {"attention.layer_norm_epsilon": eps(spec)},
    "deepseek2": deepseek2,
    "deepseek2:v2": deepseek2,
    "deepseek2:dense": deepseek_dense,
    "glm-dsa": glm_dsa,
    "mimo2": mimo2,
    "minicpm3": minicpm3,
    "plm": minicpm3,
    "plamo3": lambda spec: {"attention.sliding_window": window(spec), "rope.freq_base_swa": local_theta(spec)},
    "deepseek": lambda spec: {"expert_weights_scale": 1.0},
    "bailingmoe": lambda spec: {"expert_weights_scale": 1.0},
    "bailingmoe2": bailing2,
    "arctic": lambda spec: {"feed_forward_length": moe.dim if (moe := mixture(spec)) else None},
    "openelm": openelm,
    "jais": lambda spec: {"attention.max_alibi_bias": 8.0},
    "dots1": lambda spec: SIGMOIDS,
    "exaone-moe": lambda spec: SIGMOIDS | {"expert_shared_feed_forward_length": shared_width(spec)},
    "glm4moe": lambda spec: SIGMOIDS,
    "granitemoe": lambda spec: {"logit_scale": 1 / spec.logit_scale},
    "granitemoe:shared": lambda spec: {"logit_scale": 1 / spec.logit_scale},
    "hunyuan-moe": lambda spec: {"expert_shared_count": 1},
    "minimax-m2": lambda spec: SIGMOIDS,
    "mpt": lambda spec: {"attention.max_alibi_bias": 8.0},
    "olmo": lambda spec: {"attention.layer_norm_epsilon": eps(spec)},
    "ernie4_5-moe": lambda spec: {"expert_shared_feed_forward_length": shared_width(spec)},
    "mistral3": mistral3,
    "granite": lambda spec: {"logit_scale": 1 / spec.logit_scale},
    "phi3": lambda spec: {"attention.sliding_window": window(spec) or 0},
    "phimoe": lambda spec: {"attention.sliding_window": window(spec) or 0},
    "falcon": lambda spec: {"tensor_data_layout": "jploski"},
    "mamba": lambda spec: dict.fromkeys(UNUSED[1:], 0) | {"ssm.dt_b_c_rms": False},
    "mamba:falcon": lambda spec: dict.fromkeys(UNUSED[1:], 0) | {"ssm.dt_b_c_rms": True},
    "mamba2": lambda spec: dict.fromkeys(UNUSED[1:], 0) | {"ssm.inner_size": inner_size(spec)},
    "olmo2:olmo3": lambda spec: {"rope.freq_base_swa": local_theta(spec)},
    "stablelm": lambda spec: {"use_parallel_residual": spec.layers[0].parallel},
}
"""Architecture -> what its tables leave open, or say otherwise."""
