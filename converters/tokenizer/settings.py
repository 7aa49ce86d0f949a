"""What lies beside a vocabulary in a Hugging Face directory: parsed JSON files and chat templates. Knows their keys."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converters.files import read_json

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


_FLAGS = ("special", "lstrip", "rstrip", "normalized", "single_word")


@dataclass(frozen=True)
class AddedToken:
    """A token that the settings add to a vocabulary, or give another role.

    `special` tokens are control tokens. The other flags are those of the tokenizers package.
    """

    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    single_word: bool = False


@dataclass(frozen=True)
class Settings:
    """The files by their content: `tokenizer` is tokenizer_config.json, `special` special_tokens_map.json, `added`
    added_tokens.json, `generation` generation_config.json, `model` config.json; empty where a file is absent.
    `templates` are the chat templates by name.
    """

    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    special: Mapping[str, Any] = field(default_factory=dict)
    added: Mapping[str, int] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)

    def token(self, role: str) -> str | None:
        """The text of a role's token ("bos_token"), which files give as a string or as an object with its content."""
        value = self.tokenizer.get(role, self.special.get(role))
        value = value.get("content") if isinstance(value, Mapping) else value
        if value is not None and not isinstance(value, str):
            raise ValueError(f"tokenizer_config.json: {role} is {value!r}, expected a string or null")
        return value

    def added_tokens(self) -> dict[int, AddedToken]:
        """id → token of added_tokens.json and of tokenizer_config.json, in the order of the ids."""
        named = {text for role in ROLES if (text := self.token(role)) is not None}
        found = {}
        for text, i in self.added.items():
            if type(i) is not int or i < 0:
                raise ValueError(f"added_tokens.json: {text!r} has the id {i!r}, expected a number")
            found[i] = AddedToken(text, special=text in named)
        declared = self.tokenizer.get("added_tokens_decoder", {})
        if not isinstance(declared, Mapping):
            raise ValueError("tokenizer_config.json: added_tokens_decoder is no object of id → token")
        for key, entry in declared.items():
            if not key.isdecimal() or not isinstance(entry, Mapping) or not isinstance(entry.get("content"), str):
                raise ValueError(f"tokenizer_config.json: added_tokens_decoder has {key!r}: {entry!r}")
            found[int(key)] = AddedToken(entry["content"], **{flag: bool(entry.get(flag, False)) for flag in _FLAGS})
        return dict(sorted(found.items()))

    def ids(self, key: str) -> list[int]:
        """Ids of generation_config.json, else of config.json: one, a list, or none."""
        value = self.generation.get(key, self.model.get(key))
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in values):
            raise ValueError(f"generation_config.json: {key} is {value!r}, expected an id or a list of ids")
        return values


def read_settings(directory: Path) -> Settings:
    """Read every file that changes how a vocabulary is used. ValueError for one that is damaged."""
    config = _optional(directory / "tokenizer_config.json")
    return Settings(
        tokenizer=config,
        special=_optional(directory / "special_tokens_map.json"),
        added=_optional(directory / "added_tokens.json"),
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
    if stored is None:
        templates = {}
    elif isinstance(stored, str):
        templates = {"default": stored}
    elif isinstance(stored, list) and all(isinstance(entry, dict) for entry in stored):
        templates = {str(entry.get("name")): str(entry.get("template")) for entry in stored}
    elif isinstance(stored, dict):
        templates = {str(name): str(template) for name, template in stored.items()}
    else:
        raise ValueError(f"{directory}: chat_template of tokenizer_config.json is no text and no list of named texts")
    for file in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        templates[file.stem] = file.read_text(encoding="utf-8")
    if (file := directory / "chat_template.jinja").is_file():
        templates["default"] = file.read_text(encoding="utf-8")
    elif "default" not in templates:
        legacy = _optional(directory / "chat_template.json").get("chat_template")
        templates |= {"default": legacy} if isinstance(legacy, str) else {}
    return templates
