"""From the "decoder" of a tokenizer.json to the bytes of each single token.

Every decoder that is known here writes a token the same way wherever it stands in a text, except at its very front,
where a dummy prefix is taken off. One that does not is refused: text could not be streamed token by token.

Two deviations from the tokenizers package, both for the better: bytes that are not UTF-8 become U+FFFD as Python and
Unicode recommend it (the package gives up a whole run of bytes for one bad one), and a text that begins with several
spaces keeps all but the dummy one (the package's Metaspace drops them all).
"""

from collections.abc import Callable, Mapping
from typing import Any

from converters.tokenizer.bpe import byte_level_piece

_KNOWN = "ByteLevel, Metaspace, WordPiece, Replace of a string, ByteFallback, Fuse, Strip of leading spaces, Sequence"
# What WordPiece decoders do to a token with the space in front of it.
_CLEANUP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


class Spelling:
    """Token → bytes, and `lead`, the number of spaces taken off the front of a text.

    Args:
        decoder: the "decoder" entry of a tokenizer.json; None joins tokens with spaces, as the package does.

    Raises:
        ValueError: a decoder that is not known, or used in a way that depends on the neighbours.
    """

    def __init__(self, decoder: Mapping[str, Any] | None) -> None:
        self.lead = 0
        self._rewrites: list[Callable[[str], str]] = []
        self._bytes = False
        self._fused = False
        self._byte_level = False
        if decoder is None:
            self._rewrites.append(lambda token: " " + token)
            self.lead = 1
        else:
            for step in _flatten(decoder):
                self._add(step)

    def __call__(self, token: str) -> bytes:
        """The bytes that a token adds to a text that has begun."""
        if self._byte_level:
            return byte_level_piece(token)
        if self._bytes and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes.fromhex(token[3:5])
            except ValueError:
                pass
        for rewrite in self._rewrites:
            token = rewrite(token)
        return token.encode("utf-8")

    def _add(self, step: Mapping[str, Any]) -> None:
        match step.get("type"):
            case "ByteLevel":
                self._byte_level = True
            case "ByteFallback":
                self._bytes = True
            case "Fuse":
                self._fused = True
            case "Replace" if isinstance(pattern := step.get("pattern", {}).get("String"), str):
                self._rewrites.append(_replacer(pattern, str(step.get("content", ""))))
            case "Strip" if step.get("content") == " " and self._fused and not step.get("stop"):
                self.lead = int(step.get("start", 0))
            case "Metaspace":
                self._rewrites.append(_replacer(str(step.get("replacement", "▁")), " "))
                added = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
                self.lead = int(added != "never")
            case "WordPiece":
                self._rewrites.append(_word_piece(str(step.get("prefix", "##")), bool(step.get("cleanup", True))))
                self.lead = 1
            case other:
                raise ValueError(f"tokenizer.json: cannot decode with {other!r} {dict(step)}; known: {_KNOWN}")


def _flatten(decoder: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if decoder.get("type") != "Sequence":
        return [decoder]
    return [step for part in decoder.get("decoders", []) for step in _flatten(part)]


def _replacer(old: str, new: str) -> Callable[[str], str]:
    return lambda token: token.replace(old, new)


def _word_piece(prefix: str, cleanup: bool) -> Callable[[str], str]:
    def spell(token: str) -> str:
        text = token.removeprefix(prefix) if token.startswith(prefix) else " " + token
        if cleanup:
            for old, new in _CLEANUP:
                text = text.replace(old, new)
        return text

    return spell
