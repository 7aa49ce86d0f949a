"""The GGUF container and ggml's storage types. Knows bytes and blocks; names and configs of models live beside it."""

from forge_jax.quantization.ggml import GGML_TYPES as GGML_TYPES
from forge_jax.quantization.ggml import GGMLType as GGMLType
from forge_jax.quantization.ggml import decode as decode
from forge_jax.quantization.ggml import encode as encode

from .reader import GGUFSource as GGUFSource
from .reader import open_gguf as open_gguf
from .values import Typed as Typed
from .writer import write_gguf as write_gguf
