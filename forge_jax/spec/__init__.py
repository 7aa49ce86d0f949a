"""The vocabulary of decoders: frozen, hashable, array-free.

A `ModelSpec` says everything that the mathematics of a model needs and nothing about where it came from: no
architecture's name, no file format. It is a static argument of every jitted function. Nothing here imports jax.

A variation between models is a different value here, never a flag in the decoder. A new field of an op needs two
architectures that want it and touches one place; a boolean that would touch two places is a new op.
"""

from forge_jax.spec.differential import Differential
from forge_jax.spec.exchange import Constant, Exchange
from forge_jax.spec.joined import Joined, Project
from forge_jax.spec.latent import Indexer, Latent
from forge_jax.spec.linear import Decay, DeltaNet, ShortConv
from forge_jax.spec.mlstm import Mlstm
from forge_jax.spec.model import (
    Adapter,
    AltUp,
    Block,
    Branch,
    Chain,
    HeadTransform,
    ModelSpec,
    Op,
    Segment,
    Sum,
    attention_of,
    segments,
)
from forge_jax.spec.moe import Clamp, Moe, Router
from forge_jax.spec.ops import Activation, Attention, Gate, Mlp, Norm
from forge_jax.spec.own import OwnInput, OwnInputs
from forge_jax.spec.positions import (
    Alibi,
    DynamicNtk,
    Linear,
    Llama3,
    LongRope,
    Positions,
    PowerScaling,
    Proportional,
    QueryScaling,
    Rope,
    Scaling,
    Sinusoids,
    Yarn,
)
from forge_jax.spec.selective import Selective
from forge_jax.spec.ssm import ChannelMix, Mamba, Mamba2, Wkv

__all__ = [
    "Activation",
    "Adapter",
    "Alibi",
    "AltUp",
    "Attention",
    "Block",
    "Branch",
    "Chain",
    "ChannelMix",
    "Clamp",
    "Constant",
    "Differential",
    "Decay",
    "DeltaNet",
    "DynamicNtk",
    "Exchange",
    "Gate",
    "Indexer",
    "Joined",
    "Latent",
    "HeadTransform",
    "Linear",
    "Llama3",
    "LongRope",
    "Mamba",
    "Mamba2",
    "Mlp",
    "Mlstm",
    "ModelSpec",
    "Moe",
    "Norm",
    "Op",
    "OwnInput",
    "OwnInputs",
    "Positions",
    "PowerScaling",
    "Project",
    "Proportional",
    "QueryScaling",
    "Rope",
    "Router",
    "Scaling",
    "Segment",
    "Selective",
    "Sinusoids",
    "Wkv",
    "ShortConv",
    "Sum",
    "Yarn",
    "attention_of",
    "segments",
]
