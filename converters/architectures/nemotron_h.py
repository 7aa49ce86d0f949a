"""Nemotron-H: layers of one branch, each Mamba 2, attention without positions, a feed-forward layer or a mixture."""

from converters.architectures.common import (
    activation,
    attention_rules,
    decoder,
    end_rules,
    grouped_attention,
    mlp_rules,
    norm_rules,
    rename,
    weight_and_bias,
)
from converters.architectures.experts import OURS, TRAINING, expert_rules, router_rules, shared_rules
from converters.architectures.family import Family
from converters.architectures.ssm import NAMES, QUIET, layer, mamba2_rules
from converters.rope import DIALECT
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Mamba2, Mlp, ModelSpec, Moe, Norm, Op, Router

DEFAULTS = {
    "vocab_size": 131072,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "intermediate_size": 21504,
    "mlp_hidden_act": "relu2",
    "mlp_bias": False,
    "ssm_state_size": 128,
    "mamba_num_heads": 128,
    "mamba_head_dim": 64,
    "mamba_hidden_act": "silu",
    "n_groups": 8,
    "conv_kernel": 4,
    "time_step_min": 0.001,
    "use_conv_bias": True,
    "n_routed_experts": 8,
    "moe_intermediate_size": 7688,
    "moe_shared_expert_intermediate_size": 7688,
    "num_experts_per_tok": 2,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "use_bias": False,
    "layer_norm_epsilon": 1e-5,
}
OLDER = {
    "n_groups": "mamba_n_groups",
    "conv_kernel": "mamba_d_conv",
    "time_step_min": "mamba_dt_min",
    "use_conv_bias": "mamba_conv_bias",
    "n_routed_experts": "num_local_experts",
}
IDLE = """
    attention_bias sliding_window mamba_proj_bias mamba_ssm_cache_dtype moe_shared_expert_overlap n_shared_experts
    num_nextn_predict_layers mtp_layers_block_type mtp_hybrid_override_pattern num_hidden_layers attention_head_dim
    expand mamba_expand mamba_dt_max mamba_dt_limit mamba_dt_init_floor time_step_limit time_step_rank
    rms_norm_eps norm_eps
""".split()
KINDS = {"M": "mamba", "E": "moe", "*": "attention", "-": "mlp"}
KINDS |= {"linear_attention": "mamba", "full_attention": "attention"} | {kind: kind for kind in NAMES.values()}


def ops(take: Take) -> dict[str, Op]:
    """The four kinds of layers."""
    act, bias = activation(take, "mlp_hidden_act"), take("mlp_bias")
    mamba = Mamba2(
        take("mamba_num_heads"),
        take("mamba_head_dim"),
        take("ssm_state_size"),
        take("n_groups"),
        take("conv_kernel"),
        act=activation(take, "mamba_hidden_act"),
        in_bias=take("use_bias"),
        out_bias=take("use_bias"),
        conv_bias=take("use_conv_bias"),
        norm=Norm(take("layer_norm_epsilon")),
        dt_limit=(take("time_step_min"), float("inf")),  # whatever time_step_limit says
    )
    router = Router(
        take("n_routed_experts"),
        take("num_experts_per_tok"),
        "sigmoid",
        choice_bias=True,
        groups=(take("n_group"), take("topk_group")),
        group_top=2,
        renorm=1.0 if take("norm_topk_prob") else None,
        renorm_eps=1e-20,
        scale=take("routed_scaling_factor"),
    )
    shared = Mlp(take("moe_shared_expert_intermediate_size"), act, gated=False, bias=bias)
    latent = take("moe_latent_size", None)
    moe = Moe(
        router,
        take("moe_intermediate_size"),
        act,
        gated=False,
        shared=shared,
        latent=latent,
        latent_bias=bool(latent and bias),
    )
    mlp = Mlp(take("intermediate_size"), act, gated=False, bias=bias)
    return {"mamba": mamba, "attention": grouped_attention(take), "mlp": mlp, "moe": moe}


def config(take: Take) -> ModelSpec:
    """A list says what each layer is, or a pattern of letters; how many there are follows from it."""
    rename(take, OLDER)
    take.assume(DEFAULTS)
    take.ignore(*QUIET, *TRAINING, *DIALECT, *IDLE, "hybrid_override_pattern")
    given = take.either("layers_block_type", "layer_types", default=None)
    given = given or take("hybrid_override_pattern", None) or ("mamba", "moe", "attention", "mlp")
    norm, made = Norm(take("layer_norm_epsilon")), ops(take)
    if odd := sorted(set(given) - set(KINDS)):
        raise ValueError(f"{take.where}: layer types {odd} are unknown; known are {', '.join(KINDS)}")
    return decoder(take, [layer(norm, made[KINDS[kind]]) for kind in given], norm)


LAYER = "backbone.layers.{l}"
MIXER = f"{LAYER}.mixer"

RULES = (
    *end_rules("backbone.embeddings", "backbone.norm_f"),
    *attention_rules(MIXER),
    *mamba2_rules(MIXER),
    *mlp_rules(MIXER),
    *expert_rules(f"{MIXER}.experts"),
    *router_rules(f"{MIXER}.gate"),
    Rule(f"{OURS}.choice_bias", f"{MIXER}.gate.e_score_correction_bias"),
    *shared_rules(f"{MIXER}.shared_experts"),
    *weight_and_bias(f"{OURS}.latent_in", f"{MIXER}.fc1_latent_proj", "z d -> d z"),
    *weight_and_bias(f"{OURS}.latent_out", f"{MIXER}.fc2_latent_proj", "d z -> z d"),
    *(rule for name in sorted(set(NAMES.values())) for rule in norm_rules(f"layers.{{l}}.{name}.pre", f"{LAYER}.norm")),
)

FAMILY = Family(("nemotron_h",), config, RULES, prefix="backbone.", trained=(("backbone.", "model."),))
