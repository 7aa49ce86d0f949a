"""The architectures of GGUF as data: how each says a HuggingFace config, and how it lays out its tensors.

Facts of llama.cpp (its loaders and its converter); with `extras`, the only place in this package with architectures'
names. Knows no files: `config` reads the metadata by these tables, `names` the tensors, `export` writes both.
"""

from collections.abc import Mapping

from converters.gguf.arch import Arch
from converters.gguf.archs_dense import ALIASES, DENSE
from converters.gguf.archs_experts import MIXTURES
from converters.gguf.archs_hub import HUB
from converters.gguf.archs_state import STATES

ARCHS: Mapping[str, Arch] = {**DENSE, **ALIASES, **MIXTURES, **STATES, **HUB}
"""The value of general.architecture, or "that:kind" where several kinds of models go by it -> its entry."""
