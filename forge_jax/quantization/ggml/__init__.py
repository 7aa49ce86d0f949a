"""Packed ggml blocks to numbers and back, on NumPy arrays in memory. Knows no files and no tensor names."""

from .codec import decode as decode
from .codec import encode as encode
from .importance import WEIGHED as WEIGHED
from .types import GGML_TYPES as GGML_TYPES
from .types import REMOVED_TYPES as REMOVED_TYPES
from .types import TYPES_BY_ID as TYPES_BY_ID
from .types import GGMLType as GGMLType
from .types import lookup as lookup
