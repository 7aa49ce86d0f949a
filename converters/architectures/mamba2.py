"""Mamba 2: state spaces with one decay a head, and nothing else."""

from converters.architectures.common import activation, end_rules, norm_rules
from converters.architectures.family import Family
from converters.architectures.ssm import QUIET, limits, mamba2_rules, pure
from converters.take import Take
from forge_jax.spec import Mamba2, ModelSpec, Norm

DEFAULTS = {
    "num_heads": 128,
    "head_dim": 64,
    "vocab_size": 32768,
    "hidden_size": 4096,
    "state_size": 128,
    "num_hidden_layers": 64,
    "layer_norm_epsilon": 1e-5,
    "conv_kernel": 4,
    "n_groups": 8,
    "use_bias": False,
    "use_conv_bias": True,
    "hidden_act": "silu",
}


def config(take: Take) -> ModelSpec:
    """One branch a layer, after a norm."""
    take.assume(DEFAULTS)
    # heads times their width say what expand says, and the step size has no projection whose rank would matter
    take.ignore(*QUIET, "expand", "time_step_rank")
    norm, bias = Norm(take("layer_norm_epsilon")), take("use_bias")
    op = Mamba2(
        take("num_heads"),
        take("head_dim"),
        take("state_size"),
        take("n_groups"),
        take("conv_kernel"),
        act=activation(take, "hidden_act"),
        in_bias=bias,
        out_bias=bias,
        conv_bias=take("use_conv_bias"),
        norm=norm,
        dt_limit=limits(take),
    )
    return pure(take, op, norm)


LAYER = "backbone.layers.{l}"
RULES = (
    *end_rules("backbone.embeddings", "backbone.norm_f"),
    *mamba2_rules(f"{LAYER}.mixer"),
    *norm_rules("layers.{l}.mamba.pre", f"{LAYER}.norm"),
)

FAMILY = Family(("mamba2",), config, RULES, prefix="backbone.")
