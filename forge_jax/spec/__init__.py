"""The vocabulary of decoders: frozen, hashable, array-free.

A `ModelSpec` says everything that the mathematics of a model needs and nothing about where it came from: no
architecture's name, no file format. It is a static argument of every jitted function. Nothing here imports jax.

A variation between models is a different value here, never a flag in the decoder. A new field of an op needs two
architectures that want it and touches one place; a boolean that would touch two places is a new op.
"""

from forge_jax.spec.compressed import Compressed, Compression
from forge_jax.spec.conv_attention import ConvAttention
from forge_jax.spec.differential import Differential
from forge_jax.spec.exchange import Constant, Exchange
from forge_jax.spec.head_mixture import HeadMixture
from forge_jax.spec.joined import Joined, Project
from forge_jax.spec.latent import Indexer, Latent
from forge_jax.spec.linear import Decay, DeltaNet, LinearAttention, ShortConv
from forge_jax.spec.message import Again, Message
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
    Recall,
    Segment,
    Streams,
    Sum,
    Toward,
    attention_of,
    segments,
)
from forge_jax.spec.moe import Moe, Router, RouterMlp, SoftClamp
from forge_jax.spec.ngrams import NgramInput
from forge_jax.spec.ops import Activation, Attention, Blocks, Clamp, Gate, Mlp, Norm, Relative, Smoothing
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
from forge_jax.spec.recurrent import RgLru
from forge_jax.spec.selective import Selective
from forge_jax.spec.ssm import ChannelMix, Mamba, Mamba2, Wkv
from forge_jax.spec.streams import GatedStreams, Hyper
from forge_jax.spec.windows import windowed

__all__ = [
    "Activation",
    "Adapter",
    "Again",
    "Alibi",
    "AltUp",
    "Attention",
    "Block",
    "Blocks",
    "Branch",
    "Chain",
    "ChannelMix",
    "Clamp",
    "Compressed",
    "Compression",
    "ConvAttention",
    "Constant",
    "Differential",
    "Decay",
    "DeltaNet",
    "DynamicNtk",
    "Exchange",
    "Gate",
    "HeadMixture",
    "GatedStreams",
    "Indexer",
    "Joined",
    "Latent",
    "HeadTransform",
    "Hyper",
    "Linear",
    "LinearAttention",
    "Llama3",
    "LogScaling",
    "LongRope",
    "Mamba",
    "Mamba2",
    "Message",
    "Mlp",
    "Mlstm",
    "ModelSpec",
    "Moe",
    "NgramInput",
    "Norm",
    "Op",
    "OwnInput",
    "OwnInputs",
    "Positions",
    "PowerScaling",
    "Project",
    "Proportional",
    "QueryScaling",
    "RgLru",
    "Recall",
    "Relative",
    "Rope",
    "Router",
    "RouterMlp",
    "Scaling",
    "Segment",
    "Selective",
    "Sinusoids",
    "Streams",
    "Smoothing",
    "SoftClamp",
    "Wkv",
    "ShortConv",
    "Sum",
    "Toward",
    "Yarn",
    "attention_of",
    "segments",
    "windowed",
]
