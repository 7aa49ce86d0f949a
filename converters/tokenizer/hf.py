"""Tokenizers described by a tokenizer.json, with the settings that a Hugging Face directory keeps beside it.

The segmentation is the tokenizers package's; which ids go around a text, which end a turn and which template a chat
uses is read here. The class named in tokenizer_config.json is not looked at: the JSON says all.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from os import PathLike
from typing import Any

import tokenizers
from tokenizers import AddedToken, models

from converters.tokenizer.base import Lexicon, Roles, Tokenizer, check_text
from converters.tokenizer.bpe import BYTE_TO_CHAR, CHAR_TO_BYTE, UTF8_BYTES
from converters.tokenizer.export_gguf import json_metadata
from converters.tokenizer.export_hf import save_json_tokenizer
from converters.tokenizer.settings import ROLES, Settings
from converters.tokenizer.spelling import Spelling
from converters.tokenizer.turns import end_ids

_MOST_HOLES = 1 << 20


@contextmanager
def rust_errors(message: str) -> Iterator[None]:
    """Turn what the tokenizers package raises (bare Exceptions, and panics that are none) into a ValueError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise ValueError(f"{message}: {error}") from error


class HFTokenizer(Tokenizer):
    """A tokenizers object with its settings."""

    def __init__(self, backend: tokenizers.Tokenizer, settings: Settings) -> None:
        backend.no_truncation()
        backend.no_padding()
        _add_tokens(backend, settings)
        lexicon = _lexicon(backend)
        roles = _roles(backend, settings, lexicon.ids)
        super().__init__(lexicon, roles, settings.templates)
        self._backend = backend
        self._settings = settings
        # A template in tokenizer.json says what goes around a text; without one, tokenizer_config.json may say it.
        config = {} if _has_template(backend) else settings.tokenizer
        self._before = _framing(lexicon.ids, roles, config, "bos_token")
        self._after = _framing(lexicon.ids, roles, config, "eos_token")
        self._gaps = _uncovered_bytes(backend, lexicon.ids)

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        check_text(text)
        if self._gaps:
            self._check(text)
        backend = self._backend if parse_special else self._literal
        with rust_errors("the vocabulary cannot express the text"):
            ids = backend.encode(text, add_special_tokens=add_special).ids
        return [*self._before, *ids, *self._after] if add_special else ids

    @cached_property
    def _literal(self) -> tokenizers.Tokenizer:
        """A copy that reads special tokens as ordinary text."""
        copy = tokenizers.Tokenizer.from_str(self._backend.to_str())
        copy.encode_special_tokens = True
        return copy

    def _check(self, text: str) -> None:
        """ValueError for text that the backend would drop in silence."""
        normalizer, pre_tokenizer = self._backend.normalizer, self._backend.pre_tokenizer
        plain = normalizer.normalize_str(text) if normalizer else text
        parts = [part for part, _ in pre_tokenizer.pre_tokenize_str(plain)] if pre_tokenizer else [plain]
        for char in sorted(set("".join(parts)) - self._lexicon.ids.keys()):
            lost = self._gaps.intersection(char.encode("utf-8")) if char not in CHAR_TO_BYTE else {CHAR_TO_BYTE[char]}
            if lost:
                raise ValueError(
                    f"the vocabulary cannot express {char!r}: it has no token for it, nor for byte 0x{min(lost):02X}, "
                    "and no unknown token"
                )

    def describe(self) -> dict[str, Any]:
        """The tokenizer.json as parsed JSON, with all added tokens."""
        return json.loads(self._backend.to_str())

    def save(self, directory: str | PathLike[str]) -> list[str]:
        config = {**self._settings.special, **self._settings.tokenizer}
        return save_json_tokenizer(directory, self.describe(), config, self.chat_templates)

    def to_gguf_metadata(self) -> dict[str, Any]:
        return json_metadata(self, self.describe(), self.encode(""))


def _lexicon(backend: tokenizers.Tokenizer) -> Lexicon:
    vocab = backend.get_vocab(with_added_tokens=True)
    size = max(vocab.values(), default=-1) + 1
    if size > len(vocab) + _MOST_HOLES:
        raise ValueError(f"tokenizer.json: the largest id is {size - 1}, but there are only {len(vocab)} tokens")
    tokens: list[str | None] = [None] * size
    for token, i in vocab.items():
        tokens[i] = token
    spelling = Spelling(json.loads(backend.decoder.__getstate__()) if backend.decoder else None)
    pieces = tuple(None if token is None else spelling(token) for token in tokens)
    return Lexicon(tuple(tokens), pieces, spelling.lead)


def _add_tokens(backend: tokenizers.Tokenizer, settings: Settings) -> None:
    """Add the tokens that tokenizer_config.json declares and tokenizer.json lacks."""
    known = backend.get_added_tokens_decoder()
    for i, token in settings.added_tokens().items():
        if i in known:
            continue
        backend.add_tokens([AddedToken(**asdict(token))])
        if backend.token_to_id(token.content) != i:
            raise ValueError(
                f"tokenizer_config.json: added token {token.content!r} has the id {i}, but in the vocabulary "
                f"it is {backend.token_to_id(token.content)}"
            )
    _mark_special(backend, settings)


def _mark_special(backend: tokenizers.Tokenizer, settings: Settings) -> None:
    """Make control tokens of those that have a role and are in the vocabulary.

    A role's token that is in no vocabulary stays out: the model's embedding has no row for it.
    """
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    named = {text: None for role in ROLES if (text := settings.token(role)) is not None and text not in added}
    known = [
        AddedToken(text, special=True, normalized=False) for text in named if backend.token_to_id(text) is not None
    ]
    backend.add_special_tokens(known)


def _roles(backend: tokenizers.Tokenizer, settings: Settings, ids: Mapping[str, int]) -> Roles:
    names = {role: text for role in ROLES if (text := settings.token(role)) is not None}
    hidden = frozenset(i for i, token in backend.get_added_tokens_decoder().items() if token.special)

    def first(role: str) -> int | None:
        named = ids.get(names.get(role, ""))
        return named if named is not None else next(iter(settings.ids(f"{role}_id")), None)

    generation_ends = settings.ids("eos_token_id")
    ends = [i for i in (first("eos_token"),) if i is not None] + (
        generation_ends or end_ids(_only(ids, hidden), hidden)
    )
    return Roles(
        bos=first("bos_token"),
        eos=tuple(dict.fromkeys(ends)),
        pad=first("pad_token"),
        unk=first("unk_token"),
        hidden=hidden,
        names=names,
    )


def _only(ids: Mapping[str, int], allowed: frozenset[int]) -> dict[str, int]:
    return {token: i for token, i in ids.items() if i in allowed}


def _has_template(backend: tokenizers.Tokenizer) -> bool:
    """Whether the post-processor of a tokenizer.json puts anything around a text."""
    return backend.encode("", add_special_tokens=True).ids != backend.encode("", add_special_tokens=False).ids


def _framing(ids: Mapping[str, int], roles: Roles, config: Mapping[str, Any], role: str) -> list[int]:
    """The ids that `add_bos_token` or `add_eos_token` puts around a text; none where the token itself is null."""
    i = ids.get(roles.names.get(role, ""))
    return [i] if config.get(f"add_{role}") and i is not None else []


def _uncovered_bytes(backend: tokenizers.Tokenizer, ids: Mapping[str, int]) -> frozenset[int]:
    """Bytes that a BPE model without an unknown token would drop."""
    model = backend.model
    if not isinstance(model, models.BPE) or model.unk_token is not None:
        return frozenset()
    spelled = (lambda byte: f"<0x{byte:02X}>") if model.byte_fallback else BYTE_TO_CHAR.__getitem__
    return frozenset(byte for byte in UTF8_BYTES if spelled(byte) not in ids)
