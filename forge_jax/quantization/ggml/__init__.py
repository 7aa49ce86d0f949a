"""Packed ggml blocks to numbers and back, on NumPy arrays in memory. Knows no files and no tensor names."""

from forge_jax.quantization.ggml.codec import decode as decode
from forge_jax.quantization.ggml.codec import encode as encode
from forge_jax.quantization.ggml.importance import WEIGHED as WEIGHED
from forge_jax.quantization.ggml.scheme import Ggml as Ggml
from forge_jax.quantization.ggml.scheme import bytes_of as bytes_of
from forge_jax.quantization.ggml.scheme import parts_of as parts_of
from forge_jax.quantization.ggml.types import GGML_TYPES as GGML_TYPES
from forge_jax.quantization.ggml.types import REMOVED_TYPES as REMOVED_TYPES
from forge_jax.quantization.ggml.types import TYPES_BY_ID as TYPES_BY_ID
from forge_jax.quantization.ggml.types import GGMLType as GGMLType
from forge_jax.quantization.ggml.types import lookup as lookup
