"""BPE and WordPiece over a vocabulary that was read from a GGUF file, on the objects of the tokenizers package.

Knows GPT-2's byte alphabet and how to build the objects; the names and regexes come from pretokenizers.py.
"""

import re
from collections.abc import Mapping, Sequence

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from converters.tokenizer.pretokenizers import PreTokenizer

_MISSING_SHOWN = 5
_LINES = re.compile(r"\n+|[^\n]+")


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: Latin-1's visible characters for themselves, the rest from U+0100."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(0x100 + i) for i, byte in enumerate(hidden)}


BYTE_TO_CHAR = _byte_alphabet()
CHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_CHAR.items()}
_AS_LATIN = dict.fromkeys(range(0x100), "\u0100") | {ord(char): byte for char, byte in CHAR_TO_BYTE.items()}
"""For str.translate: characters of the alphabet become those of Latin-1, all others are none of them."""
UTF8_BYTES = frozenset([*range(0xC0), *range(0xC2, 0xF5)])
"""The bytes that occur in UTF-8: a vocabulary needs no token for the others."""


def byte_level_piece(token: str) -> bytes:
    """The bytes of a token that is written in GPT-2's alphabet; any other text stands for itself."""
    try:
        return token.translate(_AS_LATIN).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode("utf-8")


def parse_merges(merges: Sequence[str]) -> list[tuple[str, str]]:
    """Split "left right" lines. The left part may itself be a space, so the first character is never the border."""
    pairs = []
    for i, merge in enumerate(merges):
        border = merge.find(" ", 1)
        if border < 0 or border == len(merge) - 1:
            raise ValueError(f"merge {i} is {merge!r}: expected two tokens with one space between")
        pairs.append((merge[:border], merge[border + 1 :]))
    return pairs


def check_merges(pairs: Sequence[tuple[str, str]], ids: Mapping[str, int]) -> None:
    """ValueError for merges that speak of tokens which the vocabulary does not have."""
    lost = [
        f"{left!r} + {right!r}"
        for left, right in pairs
        if left not in ids or right not in ids or left + right not in ids
    ]
    if lost:
        shown = ", ".join(lost[:_MISSING_SHOWN])
        raise ValueError(f"{len(lost)} of {len(pairs)} merges use tokens that are not in the vocabulary: {shown}")


def build_bpe(ids: Mapping[str, int], pairs: Sequence[tuple[str, str]], rules: PreTokenizer) -> tokenizers.Tokenizer:
    """A tokenizers object for a GGUF "gpt2" vocabulary, without any special tokens.

    Raises:
        ValueError: a merge whose tokens are not in the vocabulary.
    """
    check_merges(pairs, ids)
    model = models.BPE(
        vocab=dict(ids), merges=list(pairs), ignore_merges=rules.ignore_merges, byte_fallback=rules.raw, fuse_unk=False
    )
    tokenizer = tokenizers.Tokenizer(model)
    steps: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in rules.patterns
    ]
    if rules.raw:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    else:
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return tokenizer


class BpeSegmenter:
    """A tokenizers BPE object as a segmenter that refuses what the object would drop in silence."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, ids: Mapping[str, int], rules: PreTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids = ids
        spelled = (lambda byte: f"<0x{byte:02X}>") if rules.raw else BYTE_TO_CHAR.__getitem__
        self._missing = frozenset(byte for byte in UTF8_BYTES if spelled(byte) not in ids)
        self._raw = rules.raw
        self._whole_newlines = rules.whole_newlines

    def __call__(self, text: str, first: bool) -> list[int]:
        if self._missing:
            self._check(text)
        if not self._whole_newlines:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        ids: list[int] = []
        for part in _LINES.findall(text):
            whole = self._ids.get(part) if part[0] == "\n" else None
            ids += self._tokenizer.encode(part, add_special_tokens=False).ids if whole is None else [whole]
        return ids

    def _check(self, text: str) -> None:
        """ValueError for a character that the object would leave out: no token for it, nor for all of its bytes."""
        for char in set(text):
            lost = self._missing.intersection(char.encode("utf-8"))
            if lost and not (self._raw and char.replace(" ", "▁") in self._ids):
                raise ValueError(
                    f"the vocabulary cannot express {char!r} (U+{ord(char):04X}): it has no token for "
                    f"byte 0x{min(lost):02X}"
                )
