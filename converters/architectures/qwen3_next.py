"""Qwen 3 Next: three layers of the gated delta rule, then one of attention behind a gate; mixtures of experts."""

from dataclasses import replace

from converters.architectures.common import LAYER, activation, grouped_attention, head_dim, layer_types, norm_rules
from converters.architectures.experts import Mixer
from converters.architectures.family import Family
from converters.architectures.qwen2_moe import SHARED_RULES, assemble, mixture
from converters.rope import read_rope
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import DeltaNet, Gate, Mlp, ModelSpec, Norm

DEFAULTS = {
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "decoder_sparse_step": 1,
    "norm_topk_prob": True,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts_per_tok": 10,
    "num_experts": 512,
}


def delta(take: Take, norm: Norm) -> DeltaNet:
    """A layer of the delta rule, `norm` on its heads."""
    return DeltaNet(
        take("linear_num_key_heads"),
        take("linear_num_value_heads"),
        take("linear_key_head_dim"),
        take("linear_value_head_dim"),
        take("linear_conv_kernel_dim"),
        norm,
        act=activation(take, "hidden_act"),
    )


def mixers(take: Take) -> list[Mixer]:
    """What mixes the tokens of each layer: attention in every fourth, unless the config lists them."""
    norm, bias, count = Norm(take("rms_norm_eps")), take("attention_bias", False), take("num_hidden_layers")
    rope = read_rope(take, head_dim(take), partial=0.25, beside=("mrope_section", "mrope_interleaved"))
    whole = replace(
        grouped_attention(take, rope),
        qk_norm=replace(norm, offset=1.0),
        gate=Gate(bias="feature" if bias else None),
        qkv_bias=bias,
        o_bias=bias,
    )
    every = 4 if take.has("layer_types") else take("full_attention_interval", 4)
    default = ["linear_attention" if (i + 1) % every else "full_attention" for i in range(count)]
    linear = delta(take, norm)
    kinds = layer_types(take, count, default, "linear_attention")
    return [whole if kind == "full_attention" else linear for kind in kinds]


def config(take: Take) -> ModelSpec:
    """Pre-norm, the norms of the stream stored as w - 1."""
    take.assume(DEFAULTS)
    shared = Mlp(take("shared_expert_intermediate_size"), activation(take, "hidden_act"))
    moe = replace(mixture(take), shared=shared, shared_gate=True)
    take.ignore("full_attention_interval")
    return assemble(take, mixers(take), moe, offset=1.0)


ATTENTION, OURS, THEIRS = "layers.{l}.attention", "layers.{l}.delta", f"{LAYER}.linear_attn"
QUERY = (f"{ATTENTION}.q", f"{ATTENTION}.gate")
KEYS, VALUES = "(k h) one t -> k h one t", "(n v) one t -> n v one t"

# what layers of the delta rule have in common
DELTA_RULES = (
    Rule(tuple(f"{OURS}.{part}_conv" for part in "qkv"), f"{THEIRS}.conv1d.weight", (KEYS, KEYS, VALUES), "c one t"),
    Rule(f"{OURS}.a_log", f"{THEIRS}.A_log"),
    Rule(f"{OURS}.dt_bias", f"{THEIRS}.dt_bias"),
    Rule(f"{OURS}.o", f"{THEIRS}.out_proj.weight", "d (n v) -> n v d"),
    *norm_rules(f"{OURS}.norm", f"{THEIRS}.norm"),
    *norm_rules(f"{OURS}.pre", f"{LAYER}.input_layernorm"),
)

# the same beside attention whose queries and gate are stored head by head
HYBRID_RULES = (
    Rule(QUERY, f"{LAYER}.self_attn.q_proj.weight", "(n q h) d -> q d n h"),
    Rule(tuple(f"{path}_bias" for path in QUERY), f"{LAYER}.self_attn.q_proj.bias", "(n q h) -> q n h"),
    *DELTA_RULES,
)


def grouped_rules(spec: ModelSpec) -> tuple[Rule, ...]:
    """Projections that lie together: for each key head its query, its key, and what its value heads have."""
    ops = {branch.op for block in spec.layers for branch in block.branches if isinstance(branch.op, DeltaNet)}
    key, value = "k h d -> d k h", "k (g v) d -> d (k g) v"
    return tuple(
        rule
        for op in ops
        for rule in (
            Rule(
                tuple(f"{OURS}.{part}" for part in ("q", "k", "v", "gate")),
                f"{THEIRS}.in_proj_qkvz.weight",
                (key, key, value, value),
                "(k c) d",
            ),
            Rule(
                (f"{OURS}.beta", f"{OURS}.decay"),
                f"{THEIRS}.in_proj_ba.weight",
                f"({op.key_heads} q g) d -> q d ({op.key_heads} g)",
            ),
        )
    )


FAMILY = Family(("qwen3_next",), config, (*HYBRID_RULES, *SHARED_RULES), first=grouped_rules, drafts=("mtp.",))
