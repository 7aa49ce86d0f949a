"""A spec as GGUF metadata: the way back of `config`, and the proof that it is one.

Values come from the spec, never from a config, so that nothing depends on anyone's defaults. What GGUF cannot say is
found by reading the result back and comparing specs, and by what llama.cpp's loader insists on.
"""

import dataclasses
import math
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from converters import architectures
from converters.gguf.arch import Arch
from converters.gguf.archs import ARCHS
from converters.gguf.config import ACTIVATIONS, UNUSED, prefix, read_config
from converters.gguf.extras import SIGMOID, slides
from converters.gguf.names import attention_of, latents
from converters.gguf.rope import llama3_factors, write_rope
from converters.rope import magnitude
from converters.source import TensorInfo
from converters.take import Take
from forge_jax.spec import (
    Activation,
    Attention,
    Branch,
    Llama3,
    LongRope,
    Mamba,
    Mamba2,
    Mlp,
    ModelSpec,
    Moe,
    Rope,
    Yarn,
)

Metadata = dict[str, Any]


def branches(spec: ModelSpec) -> list[Branch]:
    """The branches of every layer, in order."""
    return [branch for block in spec.layers for branch in block.branches]


def attentions(spec: ModelSpec) -> list[Attention]:
    """The attention of every layer, in order."""
    return [branch.op for branch in branches(spec) if isinstance(branch.op, Attention)]


def feed_forward(spec: ModelSpec) -> list[Mlp | Moe]:
    """The feed-forward layers, dense ones before mixtures."""
    found = [branch.op for branch in branches(spec) if isinstance(branch.op, Mlp | Moe)]
    return sorted(found, key=lambda op: isinstance(op, Moe))


def mixture(spec: ModelSpec) -> Moe:
    """The first mixture of experts.

    Raises:
        ValueError: the model has none.
    """
    for branch in branches(spec):
        if isinstance(branch.op, Moe):
            return branch.op
    raise ValueError("GGUF: this architecture is a mixture of experts, the model is not")


def shared(spec: ModelSpec) -> int | None:
    """The width of the expert that every token goes through."""
    return op.shared.dim if (op := mixture(spec)).shared else None


def mixtures(spec: ModelSpec) -> list[int]:
    """Which layers are mixtures of experts."""
    return [i for i, block in enumerate(spec.layers) if any(isinstance(b.op, Moe) for b in block.branches)]


def window(spec: ModelSpec) -> int | None:
    """The window of the layers that have one."""
    return next((op.window for op in attentions(spec) if op.window is not None), None)


def state_space(spec: ModelSpec) -> Mamba | Mamba2:
    """The first state space model.

    Raises:
        ValueError: there is none.
    """
    for branch in branches(spec):
        if isinstance(branch.op, Mamba | Mamba2):
            return branch.op
    raise ValueError("GGUF: this architecture has state space models, the model has none")


def inner_size(spec: ModelSpec) -> int:
    """The width of a state space model."""
    op = state_space(spec)
    return op.dim if isinstance(op, Mamba) else op.heads * op.head_dim


def eps(spec: ModelSpec) -> float | None:
    """The epsilon of the norms."""
    return spec.final_norm.eps if spec.final_norm else None


VALUES: Mapping[str, Callable[[ModelSpec], Any]] = {
    "vocab_size": lambda spec: spec.vocab_size,
    "context_length": lambda spec: spec.max_seq_len,
    "embedding_length": lambda spec: spec.dim,
    "block_count": lambda spec: len(spec.layers),
    "feed_forward_length": lambda spec: feed_forward(spec)[0].dim,
    "use_parallel_residual": lambda spec: spec.layers[0].parallel,
    "attention.head_count": lambda spec: latents(spec)[0].heads if latents(spec) else attention_of(spec).heads,
    "attention.head_count_kv": lambda spec: 1 if latents(spec) else attention_of(spec).kv_heads,
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
    "expert_count": lambda spec: mixture(spec).router.experts,
    "expert_used_count": lambda spec: mixture(spec).router.top_k,
    "expert_shared_count": lambda spec: (shared(spec) or 0) // mixture(spec).dim,
    "expert_feed_forward_length": lambda spec: mixture(spec).dim,
    "expert_shared_feed_forward_length": shared,
    "expert_weights_scale": lambda spec: mixture(spec).router.scale,
    "expert_weights_norm": lambda spec: mixture(spec).router.renorm is not None,
    "expert_group_count": lambda spec: mixture(spec).router.groups[0],
    "expert_group_used_count": lambda spec: mixture(spec).router.groups[1],
    "leading_dense_block_count": lambda spec: mixtures(spec)[0],
    "interleave_moe_layer_step": lambda spec: m[1] - m[0] if len(m := mixtures(spec)) > 1 else m[0] + 1,
    "attention.kv_lora_rank": lambda spec: latents(spec)[0].rank,
    "attention.q_lora_rank": lambda spec: latents(spec)[0].q_rank,
    "rope.dimension_count": lambda spec: latents(spec)[0].rope_dim,
    "ssm.conv_kernel": lambda spec: state_space(spec).conv,
    "ssm.state_size": lambda spec: state_space(spec).state,
    "ssm.inner_size": inner_size,
    "ssm.time_step_rank": lambda spec: op.rank if isinstance(op := state_space(spec), Mamba) else op.heads,
    "ssm.group_count": lambda spec: op.groups if isinstance(op := state_space(spec), Mamba2) else None,
}
"""Metadata key -> where a spec says it; None is left out."""

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


def activation_of(spec: ModelSpec) -> str:
    """The activation of feed-forward layers, or else of state space models."""
    found = feed_forward(spec)
    return found[0].act if found else state_space(spec).act


def rope_of(spec: ModelSpec) -> Rope:
    """The rope of the layers without a window, or else of any.

    Raises:
        ValueError: no layer has one.
    """
    ordered = sorted(attentions(spec), key=lambda op: op.window is not None)
    rope = next((op.rope for op in ordered if op.rope is not None), None)
    if rope is None:
        raise ValueError("GGUF: this architecture has rotary positions, and no layer of the model has")
    return rope


def pattern(spec: ModelSpec, usual: int) -> int | None:
    """Every how many layers one has no window; None where that is the usual number, or no number fits."""
    found = [op.window is not None for op in attentions(spec)]
    if found == slides(usual, len(found)):
        return None
    return next((n for n in range(len(found) + 1) if slides(n, len(found)) == found), None)


def local_theta(spec: ModelSpec) -> float | None:
    """The base of the rope of layers with a window."""
    local = next((op.rope for op in attentions(spec) if op.window is not None and op.rope), None)
    return local.theta if local else None


def deepseek2(spec: ModelSpec) -> Metadata:
    """Latent attention as heads that read the latent itself, and what YaRN does to the scores."""
    op = latents(spec)[0]
    size = op.nope_dim + op.rope_dim
    out: Metadata = {
        "attention.key_length": op.rank + op.rope_dim,
        "attention.value_length": op.rank,
        "attention.key_length_mla": size,
        "attention.value_length_mla": op.value_dim,
        "expert_gating_func": SIGMOID,
    }
    if op.rope is None:
        raise ValueError("GGUF: this architecture has rotary positions, the model has none")
    if isinstance(op.rope.scaling, Yarn) and (stretched := op.scale * size**0.5) != 1:
        mscale = round((stretched**0.5 - 1) / (0.1 * math.log(op.rope.scaling.factor)), 6)
        plain = replace(op.rope, scaling=replace(op.rope.scaling, attention_factor=magnitude(op.rope.scaling.factor)))
        return out | write_rope(plain, ARCHS["deepseek2"], "deepseek2")[0] | {LOG_MULTIPLIER: 0.1 * mscale}
    return out | write_rope(op.rope, ARCHS["deepseek2"], "deepseek2")[0]


def mistral3(spec: ModelSpec) -> Metadata:
    """How queries grow."""
    scaling = attention_of(spec).query_scaling
    return {"attention.temperature_scale": scaling.beta if scaling else None}


EXTRAS: Mapping[str, Callable[[ModelSpec], Metadata]] = {
    "gemma3": lambda spec: {"rope.freq_base_swa": local_theta(spec)},
    "afmoe": lambda spec: SIGMOIDS | {"expert_weights_norm": True},
    "deepseek2": deepseek2,
    "dots1": lambda spec: SIGMOIDS,
    "exaone-moe": lambda spec: SIGMOIDS | {"expert_shared_feed_forward_length": shared(spec)},
    "glm4moe": lambda spec: SIGMOIDS,
    "granitemoe": lambda spec: {"logit_scale": 1 / spec.logit_scale},
    "granitemoe:shared": lambda spec: {"logit_scale": 1 / spec.logit_scale},
    "hunyuan-moe": lambda spec: {"expert_shared_count": 1},
    "minimax-m2": lambda spec: SIGMOIDS,
    "olmo": lambda spec: {"attention.layer_norm_epsilon": eps(spec)},
    "ernie4_5-moe": lambda spec: {"expert_shared_feed_forward_length": shared(spec)},
    "mistral3": mistral3,
    "granite": lambda spec: {"logit_scale": 1 / spec.logit_scale},
    "phi3": lambda spec: {"attention.sliding_window": window(spec) or 0},
    "falcon": lambda spec: {"tensor_data_layout": "jploski"},
    "mamba": lambda spec: dict.fromkeys(UNUSED[1:], 0) | {"ssm.dt_b_c_rms": False},
    "mamba:falcon": lambda spec: dict.fromkeys(UNUSED[1:], 0) | {"ssm.dt_b_c_rms": True},
    "mamba2": lambda spec: dict.fromkeys(UNUSED[1:], 0) | {"ssm.inner_size": inner_size(spec)},
    "olmo2:olmo3": lambda spec: {"rope.freq_base_swa": local_theta(spec)},
    "stablelm": lambda spec: {"use_parallel_residual": spec.layers[0].parallel},
}
"""Architecture -> what its tables leave open, or say otherwise."""


# ------------------------------------------------------------------------------------------------ the way back
def check(
    arch: str,
    spec: ModelSpec,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    vectors: Mapping[str, np.ndarray],
    allow: Container[str] = (),
) -> None:
    """Whether llama.cpp's loader takes a file of these metadata and tensors, and an import of it gives this spec.

    Args:
        arch, spec: the architecture and the model.
        metadata, tensors: all that will be written.
        vectors: the values of the tensors that belong to the metadata.
        allow: fields that may differ.

    Raises:
        ValueError: it does not; what the loader insists on, or the first five fields that differ and are not allowed.
    """
    this = f"this model cannot be said in a GGUF of architecture {prefix(arch)!r}"
    if problems := list(insists(ARCHS[arch], spec)):
        raise ValueError(f"{this}: {'; '.join(problems)}")
    _, config, _ = read_config(metadata, tensors, vectors.__getitem__, f"GGUF of {arch}")
    take = Take(config, f"GGUF of {arch}")
    again = architectures.find(config["model_type"], take.where).config(take)
    lost = [item for item in compare(spec, again) if item[0].rpartition(".")[2] not in allow]
    if lost:
        more = f"; and {len(lost) - 5} more" if len(lost) > 5 else ""
        shown = "; ".join(f"{where} is {ours!r}, and would be read as {theirs!r}" for where, ours, theirs in lost[:5])
        fields = ", ".join(repr(field) for field in sorted({where.rpartition(".")[2] for where, *_ in lost}))
        raise ValueError(f"{this}: {shown}{more}. If that does not matter, export with allow={{{fields}}}")


def insists(facts: Arch, spec: ModelSpec) -> Iterator[str]:
    """What llama.cpp's loader of the architecture would refuse."""
    if facts.attention != "grouped":
        return
    op, mlp = attention_of(spec), feed_forward(spec)[0]
    if facts.square and op.heads * op.head_dim != spec.dim:
        yield f"llama.cpp takes only heads * head_dim = dim, found {op.heads} * {op.head_dim} and {spec.dim}"
    if op.rope is not None and op.rope.dim != op.head_dim and not facts.partial:
        yield f"llama.cpp rotates whole heads here, found {op.rope.dim} of {op.head_dim} features"
    if facts.head != "optional" and spec.tied == (facts.head == "always"):
        yield f"spec.tied is {spec.tied}, and llama.cpp {'needs' if spec.tied else 'takes no'} tensor output.weight"
    for what, found in (("attention.o_bias", op.o_bias), ("mlp.bias", mlp.bias)):
        if facts.biases != "optional" and found != (facts.biases == "always"):
            yield f"{what} is {found}, and llama.cpp loads that {facts.biases}"


def compare(ours: Any, theirs: Any, where: str = "spec") -> Iterator[tuple[str, Any, Any]]:
    """The places where two specs differ by more than float32 can say, as (path, ours, theirs)."""
    if isinstance(ours, Rope) and isinstance(theirs, Rope):
        ours, theirs = as_factors(ours, theirs), as_factors(theirs, ours)
    if isinstance(ours, float) and isinstance(theirs, float):
        if np.float32(ours) != np.float32(theirs):
            yield where, ours, theirs
    elif isinstance(ours, tuple) and isinstance(theirs, tuple) and len(ours) == len(theirs):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            yield from compare(a, b, f"{where}.{i}")
    elif dataclasses.is_dataclass(ours) and type(ours) is type(theirs):
        for field in dataclasses.fields(ours):
            yield from compare(getattr(ours, field.name), getattr(theirs, field.name), f"{where}.{field.name}")
    elif ours != theirs:
        yield where, ours, theirs


def as_factors(rope: Rope, other: Rope) -> Rope:
    """Llama 3's scaling as the divisors that GGUF keeps of it, where the other one is known by those only."""
    if isinstance(rope.scaling, Llama3) and isinstance(other.scaling, LongRope):
        values = tuple(float(x) for x in llama3_factors(rope.theta, rope.dim, rope.scaling))
        return replace(rope, scaling=LongRope(values, values, other.scaling.original_len, 1.0))
    return rope
