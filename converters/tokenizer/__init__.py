"""Tokenizers: text to ids and back, from every file that language models are shipped with. Knows no model."""

from converters.tokenizer.base import Tokenizer as Tokenizer
from converters.tokenizer.directory import from_directory as from_directory
from converters.tokenizer.gguf_tokenizer import from_gguf as from_gguf
from converters.tokenizer.streaming import StopStrings as StopStrings
from converters.tokenizer.streaming import StreamDecoder as StreamDecoder
