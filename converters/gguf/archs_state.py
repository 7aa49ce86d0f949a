"""Architectures with state space models; see `archs`."""

from collections.abc import Mapping
from dataclasses import replace

from converters.gguf.arch import (
    STATE,
    Arch,
)

_MAMBA = Arch(
    "mamba",
    STATE | {"ssm.inner_size": "intermediate_size", "ssm.time_step_rank": "time_step_rank"},
    present={"use_conv_bias": ("blk.0.ssm_conv1d.bias",)},
    attention="never",
    rope=False,
)

STATES: Mapping[str, Arch] = {
    "mamba": _MAMBA,
    "mamba:falcon": replace(_MAMBA, model_type="falcon_mamba"),
    "mamba2": replace(
        _MAMBA,
        model_type="mamba2",
        keys=STATE | {"ssm.group_count": "n_groups", "ssm.time_step_rank": "num_heads"},
    ),
}
