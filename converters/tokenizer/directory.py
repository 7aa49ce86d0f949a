"""Find out what tokenizer a directory holds, and load it: tokenizer.json first, then the files it replaced.

Knows file names and which one wins; the formats are read elsewhere. Files are data: nothing they name is executed.
"""

from os import PathLike
from pathlib import Path

import tokenizers

from converters.tokenizer.base import Tokenizer
from converters.tokenizer.hf import HFTokenizer, rust_errors
from converters.tokenizer.legacy import read_gpt2, read_wordpiece
from converters.tokenizer.sentencepiece_tokenizer import from_sentencepiece
from converters.tokenizer.settings import read_settings

_SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_LOOKED_FOR = ("tokenizer.json", *_SENTENCEPIECE_FILES, "vocab.json with merges.txt", "vocab.txt")


def from_directory(path: str | PathLike[str]) -> Tokenizer:
    """The tokenizer of a Hugging Face directory.

    Takes the first of tokenizer.json, a sentencepiece model, vocab.json with merges.txt, vocab.txt. The settings come
    from tokenizer_config.json, special_tokens_map.json, generation_config.json and the chat template files.

    Raises:
        FileNotFoundError: none of these files is there; the message lists what was looked for.
        ValueError: a file is damaged or describes what is not known.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: not a directory")
    settings = read_settings(directory)
    if (file := directory / "tokenizer.json").is_file():
        return HFTokenizer(_read_tokenizer_json(file), settings)
    for name in _SENTENCEPIECE_FILES:
        if (file := directory / name).is_file():
            return from_sentencepiece(file.read_bytes(), settings, str(file), name)
    if (file := directory / "vocab.json").is_file() and (merges := directory / "merges.txt").is_file():
        return HFTokenizer(read_gpt2(file, merges, settings), settings)
    if (file := directory / "vocab.txt").is_file():
        return HFTokenizer(read_wordpiece(file, settings), settings)
    raise FileNotFoundError(f"{directory}: no tokenizer; looked for {', '.join(_LOOKED_FOR)}")


def _read_tokenizer_json(file: Path) -> tokenizers.Tokenizer:
    with rust_errors(f"{file}: not a tokenizer.json that the tokenizers package can read"):
        return tokenizers.Tokenizer.from_buffer(file.read_bytes())
