"""Tokenizers written out: the files of a Hugging Face directory, and the tokenizer.* metadata of a GGUF file.

Knows both descriptions and when one can say what the other says; where it cannot, it refuses and names the part.
"""

import json
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from converters.files import atomic_write
from converters.tokenizer.base import Tokenizer
from converters.tokenizer.pretokenizers import PRE_TOKENIZERS, PreTokenizer
from converters.tokenizer.sentencepiece_model import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePieceModel,
)
from converters.tokenizer.settings import Settings
