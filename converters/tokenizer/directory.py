"""Find out what tokenizer a directory holds, and load it: tokenizer.json first, then the files it replaced.

Knows file names and which one wins; the formats are read elsewhere. Files are data: nothing they name is executed.
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import tokenizers

from converters.files import read_json
from converters.tokenizer.base import Tokenizer
from converters.tokenizer.hf import HFTokenizer, Settings

_MODEL_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)


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
    raise FileNotFoundError(f"{directory}: no tokenizer; looked for {', '.join(_MODEL_FILES)}")


def read_settings(directory: Path) -> Settings:
    """Everything that lies beside a vocabulary and changes how it is used."""
    config = _optional(directory / "tokenizer_config.json")
    return Settings(
        tokenizer=config,
        special=_optional(directory / "special_tokens_map.json"),
        generation=_optional(directory / "generation_config.json"),
        model=_optional(directory / "config.json"),
        templates=_templates(directory, config),
    )


def _optional(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        return {}
    value = read_json(file)
    if not isinstance(value, dict):
        raise ValueError(f"{file}: expected a JSON object, found {type(value).__name__}")
    return value


def _templates(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Name → template. Files win over tokenizer_config.json, which has one text or a list of named ones."""
    stored = config.get("chat_template")
    if isinstance(stored, str):
        templates = {"default": stored}
    elif isinstance(stored, list):
        templates = {str(entry["name"]): str(entry["template"]) for entry in stored}
    else:
        templates = {}
    for file in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        templates[file.stem] = file.read_text(encoding="utf-8")
    if (file := directory / "chat_template.jinja").is_file():
        templates["default"] = file.read_text(encoding="utf-8")
    elif "default" not in templates and isinstance(
        legacy := _optional(directory / "chat_template.json").get("chat_template"), str
    ):
        templates["default"] = legacy
    return templates


def _read_tokenizer_json(file: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_buffer(file.read_bytes())
    except Exception as error:  # the package raises nothing more special
        raise ValueError(f"{file}: not a tokenizer.json that the tokenizers package can read: {error}") from error
