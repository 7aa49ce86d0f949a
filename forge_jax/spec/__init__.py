"""The vocabulary of decoders: frozen, hashable, array-free.

A `ModelSpec` says everything that the mathematics of a model needs and nothing about where it came from: no
architecture's name, no file format. It is a static argument of every jitted function. Nothing here imports jax.

A variation between models is a different value here, never a flag in the decoder. A new field of an op needs two
architectures that want it and touches one place; a boolean that would touch two places is a new op.
"""

from forge_jax.spec.conv_attention import ConvAttention
from forge_jax.spec.differential import Differential
from forge_jax.spec.exchange import Constant, Exchange
from forge_jax.spec.latent import Indexer, Latent
from forge_jax.spec.linear import Decay, DeltaNet, ShortConv
from forge_jax.spec.model import AltUp, Block, Branch, HeadTransform, ModelSpec, Op, Recall, Segment, Sum, segments
from forge_jax.spec.moe import Clamp, Moe, Router, RouterMlp, SoftClamp
from forge_jax.spec.ops import Activation, Attention, Gate, Mlp, Norm, Relative, Smoothing
from forge_jax.spec.own import OwnInput, OwnInputs
from forge_jax.spec.positions import (
    Alibi,
    DynamicNtk,
    Linear,
    Llama3,
    LogScaling,
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
    "Alibi",
    "AltUp",
    "Attention",
    "Block",
    "Branch",
    "ChannelMix",
    "Clamp",
    "ConvAttention",
    "Constant",
    "Differential",
    "Decay",
    "DeltaNet",
    "DynamicNtk",
    "Exchange",
    "Gate",
    "Indexer",
    "Latent",
    "HeadTransform",
    "Linear",
    "Llama3",
    "LogScaling",
    "LongRope",
    "Mamba",
    "Mamba2",
    "Mlp",
    "ModelSpec",
    "Moe",
    "Norm",
    "Op",
    "OwnInput",
    "OwnInputs",
    "Positions",
    "PowerScaling",
    "Proportional",
    "QueryScaling",
    "Recall",
    "Relative",
    "Rope",
    "Router",
    "RouterMlp",
    "Scaling",
    "Segment",
    "Selective",
    "Sinusoids",
    "Smoothing",
    "SoftClamp",
    "Wkv",
    "ShortConv",
    "Sum",
    "Yarn",
    "segments",
]
