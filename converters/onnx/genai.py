"""The names that ONNX Runtime GenAI's model builder gives: one table for all architectures, from our paths to its.

It writes one kind of decoder whatever the model's own modules are called, may put q, k and v into one matrix, and adds
a norm's offset to the scale. Names: onnxruntime-genai, src/python/py/models/builders/base.py.
"""

from converters.architectures.common import HEADS_IN, HEADS_OUT, TRANSPOSED, norm_rules, stacked_qkv, weight_and_bias
from converters.rules import Rule
from forge_jax.spec import ModelSpec

LAYER = "model.layers.{l}"
OURS = "layers.{l}.attention"
BESIDE = "genai_config.json"


def rules(spec: ModelSpec) -> tuple[Rule, ...]:
    """Every way in which the builder stores the leaves of a spec; those that are there are taken."""
    return (
        Rule("embed", "model.embed_tokens.weight"),
        *weight_and_bias("head", "lm_head", "v d -> d v"),
        *norm_rules("final_norm", f"model.layers.{len(spec.layers)}.final_norm_layernorm"),
        *qkv_rules(f"{LAYER}.attn"),
        *weight_and_bias(f"{OURS}.o", f"{LAYER}.attn.o_proj", HEADS_IN),
        *norm_rules(f"{OURS}.q_norm", f"{LAYER}.attn.q_norm"),
        *norm_rules(f"{OURS}.k_norm", f"{LAYER}.attn.k_norm"),
        Rule(f"{OURS}.sinks", f"{LAYER}.attn.sinks"),
        *mlp_rules(f"{LAYER}.mlp"),
        *moe_rules(f"{LAYER}.moe"),
        *block_norms(),
    )


def qkv_rules(theirs: str) -> tuple[Rule, ...]:
    """q, k and v each in its own matrix, or one after another in one; biases likewise."""
    parts = tuple(f"{OURS}.{part}_bias" for part in "qkv")
    packed = tuple(f"({heads} h) -> {heads} h" for heads in "nkk")
    apart = (
        rule
        for part in "qkv"
        for rule in weight_and_bias(f"{OURS}.{part}", f"{theirs}.{part}_proj", HEADS_OUT, "(n h) -> n h")
    )
    return (
        stacked_qkv(f"{theirs}.qkv_proj"),
        Rule(parts, f"{theirs}.qkv_proj.bias", packed, cat="c"),
        *apart,
    )


def mlp_rules(theirs: str) -> tuple[Rule, ...]:
    """Gated, or of two matrices that are called fc1 and fc2."""
    ours = "layers.{l}.mlp"
    named = (("gate", "gate_proj"), ("up", "up_proj"), ("up", "fc1"), ("down", "down_proj"), ("down", "fc2"))
    return (
        Rule((f"{ours}.gate", f"{ours}.up"), f"{theirs}.gate_up_proj.weight", "(q f) d -> q d f"),
        *(rule for mine, name in named for rule in weight_and_bias(f"{ours}.{mine}", f"{theirs}.{name}", TRANSPOSED)),
    )


def moe_rules(theirs: str) -> tuple[Rule, ...]:
    """Experts of gated units, whose rows of gate and up take turns; the router, and what is added to choose by."""
    ours, experts = "layers.{l}.moe", f"{theirs}.experts"
    return (
        *weight_and_bias(f"{ours}.router", f"{theirs}.router", TRANSPOSED),
        Rule(f"{ours}.choice_bias", f"{theirs}.router.bias"),  # named by where it is added
        Rule((f"{ours}.gate", f"{ours}.up"), f"{experts}.gate_up_proj.weight", "e (f q) d -> q e d f"),
        Rule((f"{ours}.gate_bias", f"{ours}.up_bias"), f"{experts}.gate_up_proj.bias", "e (f q) -> q e f"),
        Rule(f"{ours}.down", f"{experts}.down_proj.weight", "e d f -> e f d"),
        Rule(f"{ours}.down_bias", f"{experts}.down_proj.bias"),
    )


def block_norms() -> tuple[Rule, ...]:
    """The norms of a layer: before each branch, before and after, or one before both."""
    places = (
        ("attention.pre", "input_layernorm"),
        ("pre", "input_layernorm"),
        ("attention.pre", "operator_layernorm"),
        ("conv.pre", "operator_layernorm"),
        ("attention.post", "post_attention_layernorm"),
        ("mlp.pre", "pre_feedforward_layernorm"),
        ("mlp.pre", "post_attention_layernorm"),
        ("mlp.pre", "ffn_layernorm"),
        ("moe.pre", "post_attention_layernorm"),
        ("moe.pre", "ffn_layernorm"),
        ("mlp.post", "post_feedforward_layernorm"),
    )
    return tuple(rule for ours, name in places for rule in norm_rules(f"layers.{{l}}.{ours}", f"{LAYER}.{name}"))
