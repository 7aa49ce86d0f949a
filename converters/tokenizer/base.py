"""What every tokenizer can do, whatever it was loaded from: text to ids, ids to text, the exact bytes of one token.

Knows no file format and no segmentation algorithm: a subclass brings `encode`, `save` and `to_gguf_metadata`.
Decoding is the same for all: every token has bytes of its own, a text is their concatenation, and at most a few
leading spaces (the dummy prefix of sentencepiece) are taken off its front. So text can be streamed, byte for byte.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converters.tokenizer.chat import ChatTemplate, Message


@dataclass(frozen=True)
class Lexicon:
    """The tokens of a vocabulary in id order, and how they are written out.

    `tokens[i]` is the token's name in its file ("Ġthe", "▁the", "<0x0A>"), None where an id is not in use.
    `pieces[i]` are the bytes the token adds to a text that has begun; None where `tokens[i]` is None.
    `lead` is the number of spaces taken off the front of a decoded text.
    """

    tokens: tuple[str | None, ...]
    pieces: tuple[bytes | None, ...]
    lead: int = 0
    ids: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ids = {token: i for i, token in enumerate(self.tokens) if token is not None}
        object.__setattr__(self, "ids", MappingProxyType(ids))

    def piece(self, token: int) -> bytes:
        """The bytes of one token; ValueError for an id that the vocabulary does not have."""
        piece = self.pieces[token] if 0 <= token < len(self.pieces) else None
        if piece is None:
            raise ValueError(f"token id {token} is not in the vocabulary of {len(self.tokens)} tokens")
        return piece


@dataclass(frozen=True)
class Roles:
    """The ids that mean something to a generation loop. `hidden` are left out of decoded text by default."""

    bos: int | None = None
    eos: tuple[int, ...] = ()
    pad: int | None = None
    unk: int | None = None
    hidden: frozenset[int] = frozenset()
    names: Mapping[str, str] = field(default_factory=dict)
    """Texts that chat templates refer to: {"bos_token": "<s>", ...}."""


class Tokenizer(ABC):
    """Text to token ids and back.

    Ids and texts agree with the reference implementation of the format (tokenizers, sentencepiece, llama.cpp).
    Instances are immutable and may be shared between threads.
    """

    def __init__(self, lexicon: Lexicon, roles: Roles, templates: Mapping[str, str]) -> None:
        self._lexicon = lexicon
        self._roles = roles
        self._templates = dict(templates)
        self._compiled: dict[str, ChatTemplate] = {}

    # -- vocabulary ------------------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """One more than the largest id. A model's embedding may have more rows (padding), never fewer."""
        return len(self._lexicon.tokens)

    def agrees(self, other: "Tokenizer") -> bool:
        """Whether every id that both vocabularies have stands for the same bytes."""
        return all(a == b for a, b in zip(self._lexicon.pieces, other._lexicon.pieces, strict=False))

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text, None if the vocabulary has none. `encode` may or may not add it."""
        return self._roles.bos

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends a turn: end of text, end of turn, and those of generation_config.json, main one first."""
        return self._roles.eos

    @property
    def pad_id(self) -> int | None:
        """The id to fill batches with, None if the vocabulary names none."""
        return self._roles.pad

    @property
    def unk_id(self) -> int | None:
        """The id of text that the vocabulary cannot express, None if there is none."""
        return self._roles.unk

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that stand for no text of the user's: `decode` leaves them out unless asked not to."""
        return self._roles.hidden

    @property
    def pieces(self) -> Sequence[bytes | None]:
        """`token_bytes` of every id, None where an id is not in use."""
        return self._lexicon.pieces

    def token_bytes(self, token: int) -> bytes:
        """The exact bytes that one token adds to a text, which need not be whole characters.

        Raises:
            ValueError: no such id.
        """
        return self._lexicon.piece(token)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token by its name in the vocabulary ("<|im_end|>", "Ġthe"), None if there is none."""
        return self._lexicon.ids.get(token)

    def id_to_token(self, token: int) -> str:
        """The name of a token in its vocabulary. ValueError for an unknown id."""
        self._lexicon.piece(token)
        return str(self._lexicon.tokens[token])

    @property
    def lead_spaces(self) -> int:
        """How many leading spaces `decode` takes off a text: the dummy prefix that `encode` has put there."""
        return self._lexicon.lead

    # -- text ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """The ids of a text.

        Args:
            text: any Unicode text.
            add_special: add what the vocabulary asks for around a text (beginning- and end-of-text ids).
            parse_special: read "<|im_end|>" and the like as the control token; False for text of untrusted users.

        Raises:
            ValueError: the vocabulary has no way to express a part of the text, or the text holds a lone surrogate.
        """

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of some ids. Bytes that are not UTF-8 become U+FFFD; ValueError for an unknown id."""
        hidden = self._roles.hidden if skip_special else frozenset()
        data = b"".join(self._lexicon.piece(int(i)) for i in ids if int(i) not in hidden)
        return data[count_lead(data, self._lexicon.lead) :].decode("utf-8", "replace")

    # -- chat ------------------------------------------------------------------------------------------------------

    @property
    def chat_template(self) -> str | None:
        """The default chat template (Jinja source), None if the tokenizer came without one."""
        return self._templates.get("default")

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """Every named chat template: "default", "tool_use", "rag", ..."""
        return MappingProxyType(self._templates)

    def apply_chat_template(
        self,
        messages: "Sequence[Message]",
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        template: str | None = None,
    ) -> str:
        """The prompt text of a conversation; encode it with `add_special=False`, the template writes its own BOS.

        Args:
            messages: {"role": ..., "content": ...} mappings, oldest first.
            add_generation_prompt: end with the header of the assistant's turn.
            tools: JSON schemas of the functions the model may call.
            documents: what a retrieval template may cite.
            variables: further names for the template ("enable_thinking", ...).
            template: the name of one of `chat_templates`; default: "tool_use" if there is one and tools are given.

        Raises:
            ValueError: no such template, or it failed: it called raise_exception, is not valid, or ran out of bounds.
        """
        name = template or ("tool_use" if tools is not None and "tool_use" in self._templates else "default")
        if name not in self._templates:
            known = ", ".join(sorted(self._templates)) or "none"
            raise ValueError(f"this tokenizer has no chat template {name!r} (it has: {known})")
        if name not in self._compiled:
            from converters.tokenizer.chat import ChatTemplate  # brings jinja2, which is slow to import

            self._compiled[name] = ChatTemplate(self._templates[name])
        given = {"tools": tools, "documents": documents, **self._roles.names, **(variables or {})}
        return self._compiled[name].render(messages, add_generation_prompt=add_generation_prompt, variables=given)

    # -- files -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def save(self, directory: str | PathLike[str]) -> list[str]:
        """Write the files of a Hugging Face tokenizer into an existing directory; returns their names."""

    @abstractmethod
    def to_gguf_metadata(self) -> dict[str, Any]:
        """The tokenizer.* keys of a GGUF file for this tokenizer.

        Raises:
            ValueError: GGUF has no way to express it; the message says which part.
        """


def count_lead(data: bytes, limit: int) -> int:
    """How many spaces, at most `limit`, a text starts with."""
    count = 0
    while count < min(limit, len(data)) and data[count] == 0x20:
        count += 1
    return count


def check_text(text: str) -> None:
    """ValueError for a lone surrogate: it is not Unicode text and no tokenizer has an id for it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text cannot be encoded: character {error.start} is a lone surrogate "
            f"(U+{ord(text[error.start]):04X}); decode its source with errors='replace'"
        ) from None
