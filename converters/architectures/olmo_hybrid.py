"""OLMo Hybrid: three pre-norm layers of the gated delta rule, then one of attention as in OLMo 3."""

from dataclasses import replace

from converters.architectures.common import LAYER, activation, decoder, gated_mlp, head_dim, layer_types, norm_rules
from converters.architectures.experts import pre_norm
from converters.architectures.family import Family
from converters.architectures.olmo2 import RULES, attention, post_norm
from converters.architectures.qwen3_next import DELTA_RULES, OURS, THEIRS
from converters.rope import DIALECT, read_rope
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import DeltaNet, ModelSpec, Norm, Rope

DEFAULTS = {
    "hidden_size": 3840,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 30,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 65536,
    "linear_conv_kernel_dim": 4,
    "linear_allow_neg_eigval": True,
}
# of how a new model is drawn
DRAWN = ("linear_a_log_min", "linear_a_log_max", "linear_dt_min", "linear_dt_max", "linear_dt_init_floor")


def rope(take: Take) -> Rope | None:
    """The rope, or None where its theta is there and null."""
    given = take.config.get("rope_parameters")
    if isinstance(given, dict) and given.get("rope_theta", 0) is None:
        take.ignore(*DIALECT)
        return None
    return read_rope(take, head_dim(take))


def linear(take: Take) -> DeltaNet:
    """The delta rule; as many heads as in attention unless the config says otherwise, values twice as wide as keys."""
    heads = take("num_attention_heads")
    keys, values = take("linear_num_key_heads", heads), take("linear_num_value_heads", heads)
    width = take("linear_key_head_dim", int(0.75 * take("hidden_size") / keys))
    return DeltaNet(
        keys,
        values,
        width,
        take("linear_value_head_dim", 2 * width),
        take("linear_conv_kernel_dim"),
        Norm(1e-5),
        act=activation(take, "hidden_act"),
        beta_scale=2.0 if take("linear_allow_neg_eigval", False) else 1.0,
    )


def config(take: Take) -> ModelSpec:
    """Gated; where no list says otherwise, every fourth layer is attention, at least the last."""
    take.assume(DEFAULTS)
    take.ignore(*DRAWN)
    norm, mlp, count = Norm(take("rms_norm_eps")), gated_mlp(take), take("num_hidden_layers")
    default = ["full_attention" if i % 4 == 3 or i == count - 1 < 3 else "linear_attention" for i in range(count)]
    kinds = layer_types(take, count, default, "linear_attention")
    whole = post_norm(replace(attention(take), rope=rope(take)), mlp, norm)
    state = pre_norm(linear(take), mlp, norm)
    return decoder(take, (whole if kind == "full_attention" else state for kind in kinds), norm)


PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "gate": "g_proj"}

FAMILY = Family(
    ("olmo_hybrid",),
    config,
    (
        *(Rule(f"{OURS}.{ours}", f"{THEIRS}.{name}.weight", "(n h) d -> d n h") for ours, name in PROJECTIONS.items()),
        Rule(f"{OURS}.beta", f"{THEIRS}.b_proj.weight", "n d -> d n"),
        Rule(f"{OURS}.decay", f"{THEIRS}.a_proj.weight", "n d -> d n"),
        *(Rule(f"{OURS}.{part}_conv", f"{THEIRS}.{part}_conv1d.weight", "(n h) one t -> n h one t") for part in "qkv"),
        Rule(f"{OURS}.o", f"{THEIRS}.o_proj.weight", "d (n v) -> n v d"),
        *norm_rules(f"{OURS}.norm", f"{THEIRS}.o_norm"),
        *DELTA_RULES,
        *RULES,
        *norm_rules("layers.{l}.mlp.pre", f"{LAYER}.post_attention_layernorm"),
    ),
)
