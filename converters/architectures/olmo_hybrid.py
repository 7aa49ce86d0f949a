"""OLMo Hybrid: layers of the gated delta rule, normed before, among those of OLMo 3's attention, normed after."""

from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    activation,
    decoder,
    gated_mlp,
    grouped_attention,
    head_dim,
    layer_types,
    norm_rules,
)
from converters.architectures.family import Family
from converters.architectures.kimi_linear import OURS, delta_rules
from converters.architectures.olmo2 import RULES
from converters.rope import DIALECT, read_rope, rope_dict
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Attention, Block, Branch, DeltaNet, ModelSpec, Norm, Rope

DEFAULTS = {
    "vocab_size": 100352,
    "hidden_size": 3840,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 30,
    "hidden_act": "silu",
    "max_position_embeddings": 65536,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "linear_conv_kernel_dim": 4,
    "linear_allow_neg_eigval": True,
}
# how a decay and a step are drawn at the beginning
IDLE = ("linear_a_log_min", "linear_a_log_max", "linear_dt_min", "linear_dt_max", "linear_dt_init_floor")


def rope(take: Take) -> Rope | None:
    """The rotary embedding; a base that is given as null says that there is none."""
    given = rope_dict(take)
    if (given if "rope_theta" in given else take.config).get("rope_theta", 0.0) is not None:
        return read_rope(take, head_dim(take))
    take.ignore(*DIALECT)
    inner = Take(given, f"{take.where}: rope_parameters")
    inner.ignore("rope_theta")
    inner.require("rope_type", "default")
    inner.done()
    return None


def attention(take: Take, norm: Norm) -> Attention:
    """Queries and keys are normalised over all heads together."""
    bias = take("attention_bias")
    op = grouped_attention(take, rope(take))
    return replace(op, qk_norm=norm, qk_norm_over="all", qkv_bias=bias, o_bias=bias)


def delta(take: Take) -> DeltaNet:
    """A layer of the delta rule; the norm of its heads has an epsilon of its own."""
    heads = take("num_attention_heads")
    keys, values = take("linear_num_key_heads", heads), take("linear_num_value_heads", heads)
    width = take("linear_key_head_dim", None) or int(0.75 * take("hidden_size") / keys)
    return DeltaNet(
        keys,
        values,
        width,
        take("linear_value_head_dim", None) or 2 * width,
        take("linear_conv_kernel_dim"),
        Norm(1e-5),
        act=activation(take, "hidden_act"),
        beta_scale=2.0 if take("linear_allow_neg_eigval") else 1.0,
    )


def config(take: Take) -> ModelSpec:
    """Attention in every fourth layer unless the config lists them, in the last of fewer than four."""
    take.assume(DEFAULTS)
    take.ignore(*IDLE)
    norm, mlp, count = Norm(take("rms_norm_eps")), gated_mlp(take), take("num_hidden_layers")
    default = ["full_attention" if i % 4 == 3 or i + 1 == count < 4 else "linear_attention" for i in range(count)]
    layers = {
        "full_attention": Block((Branch("attention", attention(take, norm), post=norm), Branch("mlp", mlp, post=norm))),
        "linear_attention": Block((Branch("delta", delta(take), pre=norm), Branch("mlp", mlp, pre=norm))),
    }
    return decoder(take, (layers[kind] for kind in layer_types(take, count, default, "linear_attention")), norm)


THEIRS = f"{LAYER}.linear_attn"
TAPS = tuple(f"({part}) one t -> {part} one t" for part in ("k h", "k h", "n v"))

FAMILY = Family(
    ("olmo_hybrid",),
    config,
    (
        *norm_rules(f"{OURS}.pre", f"{LAYER}.attention_layer_norm"),
        *norm_rules("layers.{l}.mlp.pre", f"{LAYER}.feedforward_layer_norm"),
        *norm_rules("layers.{l}.mlp.pre", f"{LAYER}.post_attention_layernorm"),
        *norm_rules("layers.{l}.attention.post", f"{LAYER}.post_attention_layernorm"),
        # transformers saves this norm too under the name that it has in the other layers
        *norm_rules("layers.{l}.attention.post", f"{LAYER}.feedforward_layer_norm"),
        Rule(f"{OURS}.dt_bias", f"{THEIRS}.dt_bias"),
        Rule(f"{OURS}.a_log", f"{THEIRS}.A_log"),
        Rule(f"{OURS}.decay", f"{THEIRS}.a_proj.weight", "n d -> d n"),
        Rule(f"{OURS}.gate", f"{THEIRS}.g_proj.weight", "(n v) d -> d n v"),
        Rule(tuple(f"{OURS}.{part}_conv" for part in "qkv"), f"{THEIRS}.conv1d.weight", TAPS, "c one t"),
        *delta_rules(THEIRS),
        *RULES,
    ),
    drafts=("mtp.",),
)
