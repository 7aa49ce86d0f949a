"""A tokenizer over an explicit vocabulary: special tokens are split off, a segmenter does the text between them.

Serves GGUF vocabularies and sentencepiece models. Knows neither file format: the loaders say which tokens are special,
what goes around a text, and what to write when it is saved.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

from converters.tokenizer.base import Lexicon, Roles, Tokenizer, check_text
from converters.tokenizer.cuts import Literals
from converters.tokenizer.segmenters import Segmenter


@dataclass(frozen=True)
class Frame:
    """What surrounds and interrupts a text.

    `before` and `after` are added when special ids are asked for. `control` are split off only when special tokens
    are parsed, `always` in any case (user-defined tokens). Tokens in `trim_left` (`trim_right`) swallow the whitespace
    on their left (right). `restart`: text behind a special token is segmented as if it began the text.
    """

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    control: Mapping[str, int] | None = None
    always: Mapping[str, int] | None = None
    trim_left: frozenset[int] = frozenset()
    trim_right: frozenset[int] = frozenset()
    restart: bool = True


@dataclass(frozen=True)
class Origin:
    """How to write the tokenizer to files again: what it came from, unchanged, or an equal description."""

    save: Callable[[str | PathLike[str], Tokenizer], list[str]]
    to_gguf: Callable[[Tokenizer], dict[str, Any]]


class VocabTokenizer(Tokenizer):
    """See the module."""

    def __init__(
        self,
        lexicon: Lexicon,
        roles: Roles,
        templates: Mapping[str, str],
        segment: Segmenter,
        frame: Frame,
        origin: Origin,
    ) -> None:
        super().__init__(lexicon, roles, templates)
        self._segment = segment
        self._frame = frame
        self._origin = origin
        self._always = dict(frame.always or {})
        self._special = {**self._always, **(frame.control or {})}
        self._split_always = Literals(self._always)
        self._split_special = Literals(self._special)

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        check_text(text)
        splitter = self._split_special if parse_special else self._split_always
        ids = list(self._frame.before) if add_special else []
        first = True
        for part in self._parts(text, splitter):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._segment(part, first)
            first = self._frame.restart and isinstance(part, int)
        return ids + list(self._frame.after) if add_special else ids

    def _parts(self, text: str, splitter: Literals) -> list[str | int]:
        """The text as a list of special ids and the texts between them, without empty texts."""
        raw = splitter.split(text)
        special = [self._special[literal] for literal in raw[1::2]]
        parts: list[str | int] = []
        for i, between in enumerate(raw[::2]):
            if i > 0 and special[i - 1] in self._frame.trim_right:
                between = between.lstrip()
            if i < len(special) and special[i] in self._frame.trim_left:
                between = between.rstrip()
            parts += [between] if between else []
            parts += [special[i]] if i < len(special) else []
        return parts

    def save(self, directory: str | PathLike[str]) -> list[str]:
        return self._origin.save(directory, self)

    def to_gguf_metadata(self) -> dict[str, Any]:
        return self._origin.to_gguf(self)
