"""HRM-Text: two stacks of layers, a fast and a slow one, run in turns over two streams that feed each other."""

from collections.abc import Iterator
from dataclasses import replace

from converters.architectures.common import (
    HEADS_IN,
    HEADS_OUT,
    TRANSPOSED,
    decoder,
    end_rules,
    gated_mlp,
    rotary_attention,
    weight_and_bias,
)
from converters.architectures.family import Family
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Block, Branch, Constant, Exchange, Gate, ModelSpec, Norm

DEFAULTS = {
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "head_dim": 128,
    "H_cycles": 2,
    "L_cycles": 3,
}


def layers(take: Take, norm: Norm) -> Iterator[Block]:
    """The recurrence written out: every pass through a stack has its own layers, with the stack's weights.

    A stack works on the sum of both streams. What leaves it, normalised, is the new state of its own stream.
    """
    bias = take("attention_bias", False)
    gate = Gate(bias="feature" if bias else None)
    attention = replace(rotary_attention(take), qkv_bias=bias, o_bias=bias, gate=gate)
    mlp = replace(gated_mlp(take), bias=take("mlp_bias", False))

    def stack(name: str) -> Iterator[Block]:
        for j in range(depth):
            yield Block(
                (
                    Branch("attention", attention, pre=norm, shared=f"{name}_attention_{j}"),
                    Branch("mlp", mlp, pre=norm, shared=f"{name}_mlp_{j}"),
                )
            )

    def join(fetch: str, leave: str) -> Block:
        return Block((Branch("join", Exchange(fetch, leave), pre=norm),), residual="normed")

    # a file that was written by the reference counts every pass in num_hidden_layers
    depth = take("num_layers_per_stack", None) or take("num_hidden_layers")
    take.ignore("num_hidden_layers")
    slow_cycles, fast_cycles = take("H_cycles"), take("L_cycles")
    yield Block((Branch("start", Constant()),))
    for cycle in range(slow_cycles):
        for _ in range(fast_cycles):
            yield from stack("fast")
            yield join("slow" if cycle else "embed", "fast")
        yield from stack("slow")
        if cycle + 1 < slow_cycles:
            yield join("fast", "slow")


def config(take: Take) -> ModelSpec:
    """Pre-norm without weights, rotary, gated; the head sees the slow stream."""
    take.assume(DEFAULTS)
    take.ignore("L_bp_cycles", "prefix_lm")  # of training; whether a prompt may be given as a span
    norm = Norm(take("rms_norm_eps"), scale=False)
    scale = take("embedding_scale", None)
    spec = decoder(take, layers(take, norm), norm)
    return replace(spec, embed_scale=1 / take("initializer_range") if scale is None else scale)


def stack_rules(name: str, theirs: str) -> tuple[Rule, ...]:
    """One stack. Projections are fused in published files, apart in others."""
    attention, mlp = f"shared.{name}_attention_{{l}}", f"shared.{name}_mlp_{{l}}"
    parts = tuple(f"{attention}.{part}" for part in ("gate", "q", "k", "v"))
    return (
        Rule(parts, f"{theirs}.attn.gqkv_proj.weight", "(p n h) d -> p d n h"),
        Rule((f"{mlp}.gate", f"{mlp}.up"), f"{theirs}.mlp.gate_up_proj.weight", "(q f) d -> q d f"),
        *weight_and_bias(f"{attention}.o", f"{theirs}.attn.o_proj", HEADS_IN),
        *weight_and_bias(f"{attention}.o", f"{theirs}.self_attn.o_proj", HEADS_IN),
        *(
            rule
            for part in ("gate", "q", "k", "v")
            for rule in weight_and_bias(
                f"{attention}.{part}", f"{theirs}.self_attn.{part}_proj", HEADS_OUT, "(n h) -> n h"
            )
        ),
        *(
            rule
            for part in ("gate", "up", "down")
            for rule in weight_and_bias(f"{mlp}.{part}", f"{theirs}.mlp.{part}_proj", TRANSPOSED)
        ),
    )


FAMILY = Family(
    ("hrm_text",),
    config,
    (
        *end_rules(),
        Rule("layers.0.start.value", "model.z_L_init"),
        *stack_rules("fast", "model.L_module.layers.{l}"),
        *stack_rules("slow", "model.H_module.layers.{l}"),
    ),
)
