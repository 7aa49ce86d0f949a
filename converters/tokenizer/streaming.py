"""Text as it comes into being: ids to text without half characters, and stop strings that never leak.

Knows tokenizers only through `token_bytes`; whatever the ids, the text so far is a prefix of the text at the end.
"""

import codecs
from collections import deque
from collections.abc import Iterable, Sequence

from converters.tokenizer.base import Tokenizer, count_lead


class StreamDecoder:
    """Turns ids into text one at a time: the joined results of `push` and `flush` are `tokenizer.decode(ids)`.

    A character comes out with the token that completes it; U+FFFD only where no further byte could make it valid.

    Args:
        skip_special: leave special tokens out, as in `Tokenizer.decode`.
        context: ids that precede the stream (a prompt). Their text is not emitted, but what follows continues it, so a
            word's leading space is not taken for the dummy prefix at the front of a text.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._hidden = tokenizer.special_ids if skip_special else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._lead = tokenizer.lead_spaces
        for token in context:
            self.push(token)

    def push(self, token: int) -> str:
        """The text that is certain with one more id. ValueError for an unknown id."""
        if token in self._hidden:
            return ""
        data = self._tokenizer.token_bytes(token)
        if self._lead and data:
            spaces = count_lead(data, self._lead)
            data = data[spaces:]
            self._lead = 0 if data else self._lead - spaces
        return self._utf8.decode(data)

    def flush(self) -> str:
        """What is left when no more ids come: U+FFFD for the bytes of an unfinished character, usually nothing."""
        return self._utf8.decode(b"", final=True)


class StopStrings:
    """Passes text on until one of some strings appears, however that string is cut across pieces.

    The stop that is complete first wins; of those complete at the same character, the longest. The result does not
    depend on how the text is cut. Only text that may still become a stop is held back. Time is linear in the text
    (Aho-Corasick automaton).

    Args:
        stops: the strings, none of them empty. No strings: everything passes.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        stops = tuple(stops)
        if "" in stops:
            raise ValueError("an empty stop string would stop before the first character; leave it out")
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._match = [""]
        for stop in stops:
            self._insert(stop)
        self._fail = self._link()
        self._node = 0
        self._held = ""
        self.matched: str | None = None
        """The stop string that was found, None so far."""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string has been found.

        The stop string and what follows it are never shown. After a stop, everything is dropped.
        """
        if self.matched is not None:
            return "", True
        held = self._held + text
        for end in range(len(self._held), len(held)):
            self._step(held[end])
            if match := self._match[self._node]:
                self.matched, self._held = match, ""
                return held[: end + 1 - len(match)], True
        safe = len(held) - self._depth[self._node]
        self._held = held[safe:]
        return held[:safe], False

    def flush(self) -> str:
        """The text held back, when no more comes. Empty after a stop."""
        held, self._held, self._node = self._held, "", 0
        return held

    def _insert(self, stop: str) -> None:
        node = 0
        for depth, char in enumerate(stop, 1):
            if char not in self._next[node]:
                self._next[node][char] = len(self._next)
                self._next.append({})
                self._depth.append(depth)
                self._match.append("")
            node = self._next[node][char]
        self._match[node] = stop

    def _link(self) -> list[int]:
        """For each node, the node of its longest proper suffix; a node also matches what its suffix matches."""
        fail = [0] * len(self._next)
        queue = deque(self._next[0].values())
        while queue:
            node = queue.popleft()
            self._match[node] = self._match[node] or self._match[fail[node]]
            for char, child in self._next[node].items():
                suffix = fail[node]
                while suffix and char not in self._next[suffix]:
                    suffix = fail[suffix]
                fail[child] = self._next[suffix].get(char, 0)
                queue.append(child)
        return fail

    def _step(self, char: str) -> None:
        while self._node and char not in self._next[self._node]:
            self._node = self._fail[self._node]
        self._node = self._next[self._node].get(char, 0)
