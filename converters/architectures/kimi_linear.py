"""Kimi Linear: the delta rule with a decay for every feature, latent attention without positions here and there."""

from converters.architectures.common import (
    LAYER,
    activation,
    decoder,
    end_rules,
    gated_mlp,
    layer_types,
    mlp_rules,
    norm_rules,
    rename,
)
from converters.architectures.experts import (
    OURS as MOE,
)
from converters.architectures.experts import (
    TRAINING,
    expert_rules,
    grouped_moe,
    pre_norm,
    pre_norm_rules,
    router_rules,
    shared_rules,
)
from converters.architectures.family import Family
from converters.architectures.latent import INNER_NORM, direct_queries, latent_rules
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Decay, DeltaNet, Latent, Mlp, ModelSpec, Moe, Norm

ALIASES = {
    "max_position_embeddings": "model_max_length",
    "norm_topk_prob": "moe_renormalize",
    "n_group": "num_expert_group",
    "num_local_experts": "num_experts",
    "num_experts_per_tok": "num_experts_per_token",
    "n_shared_experts": "num_shared_experts",
}
DEFAULTS = {
    "vocab_size": 163840,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "moe_intermediate_size": 1024,
    "num_hidden_layers": 27,
    "num_attention_heads": 32,
    "num_local_experts": 256,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.446,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 1048576,
    "rms_norm_eps": 1e-5,
    "linear_head_dim": 128,
    "linear_num_heads": 32,
    "linear_conv_kernel_dim": 4,
}
# of training, of modules that guess further tokens, or of a rope that no layer has
IDLE = ("pretraining_tp", "num_nextn_predict_layers", "use_grouped_topk", "rope_theta", "rope_scaling", "head_dim")


def latent(take: Take) -> Latent:
    """Latent attention whose shared key does not rotate."""
    heads, still, shared = take("num_attention_heads"), take("qk_nope_head_dim"), take("qk_rope_head_dim")
    take.require("num_key_value_heads", heads)
    return Latent(
        heads,
        take("kv_lora_rank"),
        still,
        shared,
        take("v_head_dim"),
        (still + shared) ** -0.5,
        INNER_NORM,
        q_rank=take("q_lora_rank", None),
        bias=take("attention_bias", False),
    )


def delta(take: Take, heads: int, width: int, taps: int, decay: Decay, gate_rank: int | None) -> DeltaNet:
    """The delta rule with a decay for every feature, keys as wide as values."""
    norm, act = Norm(take("rms_norm_eps")), activation(take, "hidden_act")
    return DeltaNet(heads, heads, width, width, taps, norm, decay, act, gate="sigmoid", gate_rank=gate_rank)


def listed(inner: Take, count: int) -> list[str]:
    """The kinds of layers by their numbers from 1, or every fourth but the first.

    Raises:
        ValueError: a layer is in neither list, or in both.
    """
    whole, rest = inner("full_attn_layers", None), inner("kda_layers", None)
    if whole is None or rest is None:
        return ["full_attention" if i and i % 4 == 0 else "linear_attention" for i in range(count)]
    if sorted([*whole, *rest]) != list(range(1, count + 1)):
        raise ValueError(f"{inner.where}: full_attn_layers {whole} and kda_layers {rest}; expected each layer once")
    return ["full_attention" if i + 1 in whole else "linear_attention" for i in range(count)]


def feed_forwards(take: Take, dense: int) -> list[Mlp | Moe]:
    """What follows each layer's mixer: the first `dense` are no mixtures, unless the config says otherwise.

    Raises:
        ValueError: a kind that is neither dense nor sparse, or a list of the wrong length.
    """
    count = take("num_hidden_layers")
    kinds = take("mlp_layer_types", None)
    if kinds is None:
        first = take("first_k_dense_replace", dense)
        kinds = ["dense" if i < first else "sparse" for i in range(count)]
    take.ignore("first_k_dense_replace")  # the list goes first
    known: dict[str, Mlp | Moe] = {"dense": gated_mlp(take), "sparse": grouped_moe(take, "num_local_experts")}
    if len(kinds) != count or set(kinds) - set(known):
        raise ValueError(f"{take.where}: mlp_layer_types {kinds}; expected dense or sparse for each of {count} layers")
    return [known[kind] for kind in kinds]


def config(take: Take) -> ModelSpec:
    """Pre-norm; the kinds of layers are listed here or in linear_attn_config, where they are counted from 1."""
    rename(take, ALIASES)
    take.assume(DEFAULTS)
    take.ignore(*IDLE, *TRAINING, "linear_head_dim", "linear_num_heads", "linear_conv_kernel_dim")
    take.require("mla_use_nope", True)
    take.require("moe_layer_freq", 1)
    take.require("qk_head_dim", take("qk_nope_head_dim") + take("qk_rope_head_dim"))
    take.require("moe_router_activation_func", "sigmoid")
    inner, norm, count = take.sub("linear_attn_config"), Norm(take("rms_norm_eps")), take("num_hidden_layers")
    width = inner("head_dim", None) or take("linear_head_dim")
    heads = inner("num_heads", None) or take("linear_num_heads")
    taps = inner("short_conv_kernel_size", None) or take("linear_conv_kernel_dim")
    kinds = layer_types(take, count, listed(inner, count), "linear_attention")
    inner.done()
    decay = Decay("feature", width)
    mixers = {"full_attention": latent(take), "linear_attention": delta(take, heads, width, taps, decay, width)}
    feeds = feed_forwards(take, 1)
    return decoder(take, (pre_norm(mixers[kind], feed, norm) for kind, feed in zip(kinds, feeds, strict=True)), norm)


OURS, THEIRS = "layers.{l}.delta", f"{LAYER}.self_attn"
EXPERTS, NAMES = f"{LAYER}.block_sparse_moe", {"gate": "w1", "up": "w3", "down": "w2"}


def delta_rules(theirs: str, o: str = "o_proj") -> tuple[Rule, ...]:
    """What all layers of this kind have in common, `o` the name of the way out."""
    return (
        *(
            rule
            for part in "qkv"
            for rule in (
                Rule(f"{OURS}.{part}", f"{theirs}.{part}_proj.weight", "(n h) d -> d n h"),
                Rule(f"{OURS}.{part}_conv", f"{theirs}.{part}_conv1d.weight", "(n h) one t -> n h one t"),
            )
        ),
        Rule(f"{OURS}.beta", f"{theirs}.b_proj.weight", "n d -> d n"),
        Rule(f"{OURS}.dt_bias", f"{theirs}.dt_bias", "(n h) -> n h"),
        *norm_rules(f"{OURS}.norm", f"{theirs}.o_norm"),
        Rule(f"{OURS}.o", f"{theirs}.{o}.weight", "d (n v) -> n v d"),
        *norm_rules(f"{OURS}.pre", f"{LAYER}.input_layernorm"),
    )


LOW_RANK = (
    Rule(f"{OURS}.a_log", f"{THEIRS}.A_log", "1 01 n one -> (1 01 n one)"),
    Rule(f"{OURS}.decay_in", f"{THEIRS}.f_a_proj.weight", "r d -> d r"),
    Rule(f"{OURS}.decay", f"{THEIRS}.f_b_proj.weight", "(n h) r -> r n h"),
    Rule(f"{OURS}.gate_in", f"{THEIRS}.g_a_proj.weight", "r d -> d r"),
    Rule(f"{OURS}.gate", f"{THEIRS}.g_b_proj.weight", "(n h) r -> r n h"),
)

FAMILY = Family(
    ("kimi_linear",),
    config,
    (
        *end_rules(),
        *delta_rules(THEIRS),
        *LOW_RANK,
        *latent_rules(THEIRS),
        *mlp_rules(f"{LAYER}.mlp"),
        *mlp_rules(EXPERTS),  # transformers saves the dense layers under the name of the others
        *router_rules(f"{EXPERTS}.gate"),
        Rule(f"{MOE}.choice_bias", f"{EXPERTS}.gate.e_score_correction_bias"),
        *expert_rules(f"{EXPERTS}.experts", **NAMES),
        *shared_rules(f"{EXPERTS}.shared_experts"),
        *pre_norm_rules(LAYER),
    ),
    first=direct_queries(THEIRS),
    drafts=("model.layers.{l}.",),
)
