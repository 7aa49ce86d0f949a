"""Regular expressions of a stranger, matched in bounded time: sets of places instead of tries, so that none can hang.

An expression is a function from the places where it may begin to the places where it may end. It matches if there is
one; which of several is of no interest here. What needs tries (references back, possessive repeats) is refused.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from re import _constants as codes  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
from re import _parser as parser  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
from typing import Any

from converters.files import quote

Places = frozenset[int]


class Unmatched(Exception):
    """A part of an expression that is not matched here; the message names it."""


LONGEST, STEPS = 400, 100_000  # characters of an expression and of a name; places that are looked at
CATEGORIES: dict[Any, Callable[[str], bool]] = {
    codes.CATEGORY_DIGIT: str.isdecimal,
    codes.CATEGORY_NOT_DIGIT: lambda c: not c.isdecimal(),
    codes.CATEGORY_SPACE: str.isspace,
    codes.CATEGORY_NOT_SPACE: lambda c: not c.isspace(),
    codes.CATEGORY_WORD: lambda c: c.isalnum() or c == "_",
    codes.CATEGORY_NOT_WORD: lambda c: not (c.isalnum() or c == "_"),
}


def matches(pattern: str, name: str, where: str) -> bool:
    """Whether an expression of a config fits the beginning of a name, as `re.match` has it.

    Raises:
        ValueError: it is no expression, one that is not implemented, or too long.
    """
    if len(pattern) > LONGEST or len(name) > LONGEST:
        raise ValueError(f"{where}: {quote(pattern)} or {quote(name)} has over {LONGEST} characters")
    try:
        return bool(Match(name).ends(parsed(pattern), frozenset((0,))))
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{where}: {quote(pattern)} is no regular expression: {error}") from None
    except Unmatched as error:
        raise ValueError(f"{where}: {quote(pattern)} has {error}, which is not implemented in a pattern") from None


@lru_cache(maxsize=256)
def parsed(pattern: str) -> tuple[Any, ...]:
    """The parts of an expression; re.error where it is none, Unmatched for flags."""
    found = parser.parse(pattern)
    if found.state.flags & ~re.UNICODE.value:
        raise Unmatched("flags")
    return tuple(found)


class Match:
    """An expression on its way through a text, in so many steps at most."""

    def __init__(self, text: str) -> None:
        self.text, self.left = text, STEPS

    def ends(self, parts: Sequence[Any], places: Places) -> Places:
        """Where parts one after another may end that begin at one of the places.

        Raises:
            Unmatched: a part that is matched by tries only, or more steps than a config may cost.
        """
        for op, value in parts:
            places = self.step(op, value, places)
            if not places:
                break
        return places

    def step(self, op: Any, value: Any, places: Places) -> Places:
        """Where one part may end; errors as in `ends`."""
        self.left -= 1 + len(places)
        if self.left < 0:
            raise Unmatched("repeats that take too long")
        match op:
            case codes.LITERAL | codes.NOT_LITERAL | codes.ANY | codes.IN:
                return frozenset(i + 1 for i in places if i < len(self.text) and fits(op, value, self.text[i]))
            case codes.BRANCH:
                return frozenset().union(*(self.ends(branch, places) for branch in value[1]))
            case codes.SUBPATTERN if not value[1] and not value[2]:
                return self.ends(value[3], places)
            case codes.MAX_REPEAT | codes.MIN_REPEAT:
                return self.repeated(value, places)
            case codes.ASSERT | codes.ASSERT_NOT if value[0] == 1:
                wanted = op is codes.ASSERT
                return frozenset(i for i in places if bool(self.ends(value[1], frozenset((i,)))) == wanted)
            case codes.AT if value in (codes.AT_BEGINNING, codes.AT_BEGINNING_STRING):
                return places & {0}
            case codes.AT if value is codes.AT_END_STRING or (value is codes.AT_END and not self.text.endswith("\n")):
                return places & {len(self.text)}
            case codes.AT if value in (codes.AT_BOUNDARY, codes.AT_NON_BOUNDARY):
                wanted = value is codes.AT_BOUNDARY
                return frozenset(i for i in places if self.boundary(i) == wanted)
            case _:
                raise Unmatched(str(op).lower().replace("_", " "))

    def boundary(self, place: int) -> bool:
        """Whether a word begins or ends at a place."""
        before, after = self.text[max(place - 1, 0) : place], self.text[place : place + 1]
        word = CATEGORIES[codes.CATEGORY_WORD]
        return bool(before and word(before)) != bool(after and word(after))

    def repeated(self, value: Any, places: Places) -> Places:
        """Where a part that is repeated `least` to `most` times may end; no place is looked at twice."""
        least, most, part = value
        for _ in range(min(least, len(self.text) + 1)):  # more than that are all empty
            places = self.ends(part, places)
        found = new = places
        for _ in range(min(most - min(least, most), len(self.text) + 1)):
            new = self.ends(part, new) - found
            if not new:
                break
            found |= new
        return found


def fits(op: Any, value: Any, char: str) -> bool:
    """Whether one character is what a part stands for."""
    match op:
        case codes.LITERAL:
            return ord(char) == value
        case codes.NOT_LITERAL:
            return ord(char) != value
        case codes.ANY:
            return char != "\n"
        case codes.RANGE:
            return value[0] <= ord(char) <= value[1]
        case codes.CATEGORY:
            return CATEGORIES[value](char)
        case _:
            negated = value[0][0] is codes.NEGATE
            return any(fits(kind, one, char) for kind, one in value[negated:]) != negated
