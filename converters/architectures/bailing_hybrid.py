"""Ling 3: Kimi Linear whose decays have a floor, latent attention with a rope and a gate, experts in groups."""

from dataclasses import replace

from converters.architectures.common import LAYER, decoder, end_rules, layer_types, mlp_rules, rename
from converters.architectures.experts import (
    OURS as MOE,
)
from converters.architectures.experts import (
    TRAINING,
    expert_rules,
    pre_norm,
    pre_norm_rules,
    router_rules,
    shared_rules,
)
from converters.architectures.family import Family
from converters.architectures.kimi_linear import ALIASES, OURS, delta, delta_rules, feed_forwards
from converters.architectures.latent import OURS as ATTENTION
from converters.architectures.latent import direct_queries, latent_attention, latent_rules
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Decay, Gate, ModelSpec, Norm

DEFAULTS = {
    "vocab_size": 157184,
    "hidden_size": 2560,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 42,
    "num_attention_heads": 32,
    "num_local_experts": 512,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 2,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-6,
    "rope_theta": 6000000.0,
    "head_dim": 128,
    "short_conv_kernel_size": 4,
    "layer_group_size": 6,
    "kda_safe_gate": True,
    "kda_lower_bound": -5.0,
}
# of training, or of modules that guess further tokens
IDLE = ("pretraining_tp", "num_nextn_predict_layers", "num_mtp_layers", "mtp_loss_scaling_factor")


def config(take: Take) -> ModelSpec:
    """Pre-norm; the last layer of each group is latent attention, the first few layers are dense."""
    rename(take, ALIASES)
    take.assume(DEFAULTS)
    take.ignore(*IDLE, *TRAINING, "kda_lower_bound", "layer_group_size", "first_k_dense_replace")
    norm, count = Norm(take("rms_norm_eps")), take("num_hidden_layers")
    # the reference saves head_dim as that of the rotated features, and the size of the others beside it
    heads, width, taps = (
        take.either(f"linear_{linear}", plain, default=None)
        for linear, plain in (
            ("num_heads", "num_attention_heads"),
            ("head_dim", "head_dim"),
            ("conv_kernel_dim", "short_conv_kernel_size"),
        )
    )
    decay = Decay("feature", floor=take("kda_lower_bound") if take("kda_safe_gate", False) else None)
    mixers = {
        "full_attention": replace(latent_attention(take), gate=Gate("head")),
        "linear_attention": delta(take, heads, width, taps, decay, None),
    }
    group = count if take.has("layer_types") else take("layer_group_size")
    kinds = layer_types(
        take,
        count,
        ["linear_attention" if (i + 1) % group else "full_attention" for i in range(count)],
        "linear_attention",
    )
    feeds = feed_forwards(take, 2)
    return decoder(take, (pre_norm(mixers[kind], feed, norm) for kind, feed in zip(kinds, feeds, strict=True)), norm)


THEIRS, EXPERTS = f"{LAYER}.attention", f"{LAYER}.mlp"

FAMILY = Family(
    ("bailing_hybrid",),
    config,
    (
        *end_rules(embed="model.word_embeddings"),
        *delta_rules(THEIRS, "dense"),
        Rule(f"{OURS}.a_log", f"{THEIRS}.A_log"),
        Rule(f"{OURS}.decay", f"{THEIRS}.f_proj.weight", "(n h) d -> d n h"),
        Rule(f"{OURS}.gate", f"{THEIRS}.g_proj.weight", "(n h) d -> d n h"),
        Rule(f"{ATTENTION}.gate", f"{THEIRS}.g_proj.weight", "n d -> d n"),
        Rule(f"{ATTENTION}.o", f"{THEIRS}.dense.weight", "d (n h) -> n h d"),
        Rule(f"{ATTENTION}.o_bias", f"{THEIRS}.dense.bias"),
        *latent_rules(THEIRS),
        *mlp_rules(EXPERTS),
        *router_rules(f"{EXPERTS}.gate"),
        Rule(f"{MOE}.choice_bias", f"{EXPERTS}.gate.expert_bias"),
        *expert_rules(f"{EXPERTS}.experts"),
        *shared_rules(f"{EXPERTS}.shared_experts"),
        *pre_norm_rules(LAYER),
    ),
    first=direct_queries(THEIRS),
    drafts=("model.layers.{l}.",),
)
