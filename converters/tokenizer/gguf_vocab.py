"""The vocabulary inside a GGUF file: reads and checks the tokenizer.* keys, and names what is missing or impossible.

Knows the keys and their defaults (those of llama.cpp), not how text is segmented: gguf_tokenizer.py builds that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.tokenizer.base import Roles
from converters.tokenizer.sentencepiece_model import CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from converters.tokenizer.turns import SHOWN_TEXTS, end_ids

_NO_ID = (2**32 - 1, -1)
_ROLE_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # spelled so in the format
    "pad": "padding_token_id",
    "cls": "cls_token_id",
    "mask": "mask_token_id",
}


@dataclass(frozen=True)
class Defaults:
    """What a vocabulary of one model kind means where its file does not say."""

    bos: int | None = None
    eos: int | None = None
    unk: int | None = None
    sep: int | None = None
    pad: int | None = None
    mask: int | None = None
    add_bos: bool = False
    add_eos: bool = False


class Keys:
    """Typed access to the tokenizer.* metadata; a value of the wrong type is a ValueError that names its key."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.all = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
        self.model_name = str(metadata.get("general.name", "")).lower()

    def text(self, key: str, default: str | None = None) -> str:
        """A string; ValueError if it is absent and has no default."""
        value = self.all.get(key, default)
        if not isinstance(value, str):
            found = "missing" if value is None else f"of type {type(value).__name__}"
            raise ValueError(f"GGUF metadata: {key} is {found}, expected a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A bool."""
        value = self.all.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"GGUF metadata: tokenizer.ggml.{key} is {value!r}, expected true or false")
        return bool(value)

    def strings(self, key: str) -> list[str]:
        """An array of strings; ValueError if it is absent."""
        value = self.all.get(f"tokenizer.ggml.{key}")
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            found = "missing" if value is None else f"a {type(value).__name__}"
            raise ValueError(f"GGUF metadata: tokenizer.ggml.{key} is {found}, expected an array of strings")
        return list(value)

    def numbers(self, key: str, dtype: type, size: int | None = None) -> np.ndarray | None:
        """An array of numbers, None if absent; ValueError if it has another type or fewer than `size` entries."""
        value = self.all.get(f"tokenizer.ggml.{key}")
        if value is None:
            return None
        array = np.asarray(value)
        if array.ndim != 1 or array.dtype.kind not in "iuf":
            raise ValueError(f"GGUF metadata: tokenizer.ggml.{key} is no array of numbers")
        if size is not None and array.size < size:
            raise ValueError(f"GGUF metadata: tokenizer.ggml.{key} has {array.size} entries for {size} tokens")
        return array.astype(dtype)

    def id(self, key: str, default: int | None, size: int) -> int | None:
        """A token id; ValueError if it is outside the vocabulary."""
        value = self.all.get(f"tokenizer.ggml.{key}")
        if value is None:
            return default if default is not None and default < size else None
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ValueError(f"GGUF metadata: tokenizer.ggml.{key} is {value!r}, expected a token id")
        if int(value) in _NO_ID:
            return None
        if not 0 <= int(value) < size:
            raise ValueError(f"GGUF metadata: tokenizer.ggml.{key} is {value}, but there are {size} tokens")
        return int(value)


@dataclass(frozen=True)
class GgufVocab:
    """The tokens of a GGUF file with their scores and types, and the ids that have a role."""

    keys: Keys
    tokens: tuple[str, ...]
    ids: Mapping[str, int]
    scores: np.ndarray
    types: np.ndarray
    special: Mapping[str, int | None]
    defaults: Defaults

    def of_type(self, *types: int) -> dict[str, int]:
        """token → id of the tokens of some types."""
        return {self.tokens[i]: int(i) for i in np.flatnonzero(np.isin(self.types, types))}

    def add(self, role: str) -> int | None:
        """The id to add for "bos" or "eos", None where the vocabulary does not ask for it."""
        default = self.defaults.add_bos if role == "bos" else self.defaults.add_eos
        if not self.keys.flag(f"add_{role}_token", default):
            return None
        if self.special[role] is None:
            raise ValueError(
                f"GGUF metadata: tokenizer.ggml.add_{role}_token is true, "
                f"but tokenizer.ggml.{_ROLE_KEYS[role]} is not set"
            )
        return self.special[role]


def read_vocab(keys: Keys, defaults: Defaults) -> GgufVocab:
    """Read and check the token list.

    Raises:
        ValueError: a key is missing or of the wrong type, arrays differ in length, two ids have the same token.
    """
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(keys.strings("tokens"))]
    ids: dict[str, int] = {}
    for i, token in enumerate(tokens):
        if ids.setdefault(token, i) != i:
            raise ValueError(f"GGUF metadata: tokenizer.ggml.tokens has {token!r} twice, as ids {ids[token]} and {i}")
    size = len(tokens)
    types = keys.numbers("token_type", np.int32, size)
    scores = keys.numbers("scores", np.float32, size)
    if scores is not None and not np.isfinite(scores[:size]).all():
        raise ValueError("GGUF metadata: tokenizer.ggml.scores holds NaN or infinity")
    fixed = np.full(size, NORMAL, np.int32) if types is None else types[:size].copy()
    fixed[end_ids(ids, _control(fixed))] = CONTROL
    fixed[[ids[text] for text in SHOWN_TEXTS if text in ids]] = USER_DEFINED
    given = {"bos": defaults.bos, "eos": defaults.eos, "unk": defaults.unk, "sep": defaults.sep, "pad": defaults.pad}
    given["mask"] = defaults.mask
    special = {role: keys.id(key, given.get(role), size) for role, key in _ROLE_KEYS.items()}
    return GgufVocab(
        keys=keys,
        tokens=tuple(tokens),
        ids=ids,
        scores=np.zeros(size, np.float32) if scores is None else scores[:size],
        types=fixed,
        special=special,
        defaults=defaults,
    )


def _control(types: np.ndarray) -> frozenset[int]:
    """The ids of control tokens."""
    return frozenset(np.flatnonzero(types == CONTROL).tolist())


def roles_of(vocab: GgufVocab) -> Roles:
    """The ids that a generation loop and a chat template ask for."""
    size = len(vocab.tokens)
    named = [vocab.special["eos"], vocab.keys.id("eot_token_id", None, size), vocab.keys.id("eom_token_id", None, size)]
    ends = [i for i in named if i is not None] + end_ids(vocab.ids, _control(vocab.types))
    names = {f"{role}_token": vocab.tokens[i] for role, i in vocab.special.items() if i is not None}
    return Roles(
        bos=vocab.special["bos"],
        eos=tuple(dict.fromkeys(ends)),
        pad=vocab.special["pad"],
        unk=vocab.special["unk"],
        hidden=frozenset(np.flatnonzero(np.isin(vocab.types, (CONTROL, UNKNOWN))).tolist()),
        names=names,
    )


def read_templates(keys: Keys) -> dict[str, str]:
    """Name → chat template."""
    prefix = "tokenizer.chat_template"
    templates = {"default": keys.text(prefix)} if prefix in keys.all else {}
    for key in keys.all:
        if key.startswith(prefix + "."):
            templates[key.removeprefix(prefix + ".")] = keys.text(key)
    return templates
