"""Mamba and Falcon Mamba: selective state spaces and nothing else; Falcon's normalise the step size, B and C."""

from converters.architectures.common import activation, end_rules, norm_rules
from converters.architectures.family import Family
from converters.architectures.ssm import QUIET, mamba_rules, pure, rank
from converters.take import Take
from forge_jax.spec import Mamba, ModelSpec, Norm

DEFAULTS = {
    "vocab_size": 50280,
    "hidden_size": 768,
    "state_size": 16,
    "num_hidden_layers": 32,
    "layer_norm_epsilon": 1e-5,
    "expand": 2,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "hidden_act": "silu",
    "time_step_rank": "auto",
    "tie_word_embeddings": True,
}
FALCON = {"mixer_rms_eps": 1e-6}


def config(take: Take) -> ModelSpec:
    """One branch a layer, after a norm."""
    falcon = take("model_type") == "falcon_mamba"
    take.assume(DEFAULTS | (FALCON if falcon else {}))
    take.ignore(*QUIET, "use_falcon_mambapy", "expand")
    op = Mamba(
        take("intermediate_size", None) or int(take("expand") * take("hidden_size")),
        take("state_size"),
        rank(take, "time_step_rank"),
        take("conv_kernel"),
        act=activation(take, "hidden_act"),
        bias=take("use_bias"),
        conv_bias=take("use_conv_bias"),
        norm=Norm(take("mixer_rms_eps"), scale=False) if falcon else None,
    )
    return pure(take, op, Norm(take("layer_norm_epsilon")))


LAYER = "backbone.layers.{l}"
RULES = (
    *end_rules("backbone.embeddings", "backbone.norm_f"),
    *mamba_rules(f"{LAYER}.mixer"),
    *norm_rules("layers.{l}.mamba.pre", f"{LAYER}.norm"),
)

FAMILY = Family(("mamba", "falcon_mamba"), config, RULES, prefix="backbone.")
