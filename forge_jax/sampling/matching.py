"""Which tokens may come next in a text that is constrained. Host objects around the llguidance package.

A `Matcher` answers for the whole text of a row so far, whatever it was asked before: it goes back and forth to the
text that it is given. So rewinding, speculation and resuming cannot put it out of step, and asking is a pure function.
Knows tokens as bytes; neither arrays of a model nor the tokenizer that the bytes came from.
"""

import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from forge_jax.sampling.constraint import Constraint

COMPILE_SECONDS = 10.0
"""How long it may take to understand a constraint: the intersection of regexes has no bound of its own."""

_UNDERSTAND = """
import sys
sys.path.insert(0, sys.argv[1])
from llguidance import LLMatcher, LLTokenizer, grammar_from
rules = grammar_from(sys.argv[2], sys.stdin.buffer.read().decode())
LLMatcher(LLTokenizer("byte"), rules, log_level=0)
sys.stdout.buffer.write(rules.encode())
"""

# Programs know a row's matcher by its number alone, so that they are compiled once for all grammars. The table holds
# nothing alive: a matcher is in it as long as the session that made it.
_MATCHERS: "WeakValueDictionary[int, Matcher]" = WeakValueDictionary()
_NUMBERS = itertools.count(1)


def library() -> Any:
    """The llguidance package.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import llguidance
    except ImportError as error:
        raise ImportError('a constraint needs llguidance: pip install "forge-jax[constrained]"') from error
    return llguidance


class Vocabulary:
    """The tokens of a model as bytes.

    Args:
        pieces: what each id adds to a text, None where an id is not in use.
        special: ids that stand for no text; a grammar may name them as <|name|>, nothing else allows them.
    """

    def __init__(self, pieces: Sequence[bytes | None], special: Iterable[int] = ()) -> None:
        self.pieces, self.special = pieces, frozenset(special)
        self.compiled = lru_cache(maxsize=32)(self.understand)

    @property
    def end(self) -> int:
        """An id that is no token's: the bit that says whether a text may end here."""
        return len(self.pieces)

    @cached_property
    def tokenizer(self) -> Any:
        """The vocabulary as llguidance takes it. No text is ever encoded."""
        return library().LLTokenizer(_Tokens(self))

    def understand(self, constraint: Constraint) -> Any:
        """A matcher of llguidance at the beginning of a text; `compiled` remembers it.

        Raises:
            ValueError: it is not valid, or takes too long; quotes llguidance.
        """
        llguidance = library()
        # every token that goes on with the text is allowed, not just the one that the tokenizer would take
        rules = rules_of(constraint) + '\n%llguidance {"no_forcing": true}\n'
        limits = llguidance.LLParserLimits(verbose_errors=False)
        start = llguidance.LLMatcher(self.tokenizer, rules, log_level=0, limits=limits)
        if start.is_error():
            raise ValueError(f"{constraint}: {start.get_error()}")
        return start


class _Tokens:
    """What llguidance asks of a tokenizer; the names are its."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = vocabulary.end
        self.tokens = [piece or b"" for piece in vocabulary.pieces] + [b"<|end of the text|>"]
        self.special_token_ids = [*sorted(vocabulary.special), vocabulary.end]


def rules_of(constraint: Constraint) -> str:
    """The constraint as a Lark grammar of llguidance.

    It is understood in another process first, which can be ended: llguidance's own limits do not cover everything.

    Raises:
        ValueError: that took too long, or the process broke down.
    """
    kind = "gbnf" if constraint.kind == "grammar" and constraint.gbnf else "lark"
    command = [sys.executable, "-I", "-c", _UNDERSTAND, str(Path(library().__file__).parents[1]), kind]
    given = written(constraint).encode()
    try:
        ended = subprocess.run(command, input=given, capture_output=True, timeout=COMPILE_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f"{constraint}: not understood within {COMPILE_SECONDS:g} s; make it simpler (intersections of regexes, "
            "by & or by allOf, grow fastest)"
        ) from error
    if ended.returncode:
        said = ended.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ValueError(f"{constraint}: {said or f'llguidance broke down, exit status {ended.returncode}'}")
    return ended.stdout.decode()


def written(constraint: Constraint) -> str:
    """The constraint in the language that its rules are written in."""
    match constraint.kind:
        case "json":
            return f"start: %json {constraint.text}"
        case "regex":
            return f"start: /{library().regex_to_lark(constraint.text, 'd') or '(?:)'}/"
        case "choice":
            literals = (json.dumps(text, ensure_ascii=False) for text in constraint.choices)
            return "start: CHOICE\nCHOICE: " + " | ".join(literals)
        case "grammar":
            return constraint.text


class Matcher:
    """One row's constraint. `number` is what programs know it by.

    Args:
        stop_ids: ids that end a row: allowed exactly where the text may end.
    """

    def __init__(self, constraint: Constraint, vocabulary: Vocabulary, stop_ids: Iterable[int] = ()) -> None:
        self.constraint, self.vocabulary, self.stop_ids = constraint, vocabulary, tuple(stop_ids)
        self.start = vocabulary.compiled(constraint)
        self.state = self.start.deep_copy()
        self.taken = np.zeros(0, np.int32)  # the tokens that `state` has been through
        self.asked: np.ndarray | None = None  # the text that `bits` are for: done rows and meshes ask again and again
        self.bits = np.zeros(0, np.uint32)
        self.lock = threading.Lock()  # each device of a mesh may ask at the same time
        self.number = next(_NUMBERS)
        _MATCHERS[self.number] = self

    def allowed(self, ids: np.ndarray, words: int) -> np.ndarray:
        """Which ids may follow the text `ids`: uint32 [words], bit i % 32 of word i // 32. None after a wrong text."""
        with self.lock:
            bits = self.look(ids)
        out = np.zeros(max(words, bits.size), np.uint32)
        out[: bits.size] = bits
        end = (out[self.vocabulary.end // 32] >> np.uint32(self.vocabulary.end % 32)) & np.uint32(1)
        for token in (self.vocabulary.end, *self.stop_ids):
            out[token // 32] &= ~np.uint32(1 << token % 32)
        for token in self.stop_ids:
            out[token // 32] |= end << np.uint32(token % 32)
        return out[:words]

    def complete(self, ids: np.ndarray) -> bool:
        """Whether the text `ids` is one that the constraint allows and nothing can follow."""
        with self.lock:
            bits = self.look(ids)
        end = np.zeros_like(bits)
        end[self.vocabulary.end // 32] = 1 << self.vocabulary.end % 32
        return bool((bits == end).all())

    def fault(self, ids: np.ndarray) -> str | None:
        """Why nothing may follow the text `ids`, in words; None if something may."""
        with self.lock:
            if self.look(ids).any():
                return None
            found = self.state.get_error()
        known = found if found and not found.startswith("NoExtension") else "no token of the vocabulary goes on"
        return f"{self.constraint}: {known}, after {len(ids)} tokens"

    def look(self, ids: np.ndarray) -> np.ndarray:
        """llguidance's bits after `ids`; none after a text that is wrong, or in an error."""
        if self.asked is not None and np.array_equal(ids, self.asked):
            return self.bits
        self.bits = np.zeros((self.vocabulary.end + 32) // 32, np.uint32)
        self.asked = np.array(ids)  # a copy: what a program hands over is its own again after the call
        if self.go_to(self.asked):
            bits = np.frombuffer(self.state.compute_bitmask(), "<u4")
            self.bits = self.bits if self.state.is_error() else bits
        return self.bits

    def go_to(self, ids: np.ndarray) -> bool:
        """Take back and take tokens until `state` has been through `ids`. False if it cannot."""
        both = min(len(self.taken), len(ids))
        same = leading(self.taken[:both] == ids[:both])
        known = leading((ids >= 0) & (ids < self.vocabulary.end))  # drafts may be anything
        if self.state.is_error() or not self.state.rollback(len(self.taken) - same):
            self.state, same = self.start.deep_copy(), 0
        same += self.state.try_consume_tokens(ids[same:known].tolist())
        self.taken = ids[:same]
        return same == len(ids)


def leading(flags: np.ndarray) -> int:
    """How many flags are true before the first that is not."""
    return int(np.argmin(np.append(flags, False)))


def matcher(number: int) -> Matcher:
    """The matcher that programs know by a number.

    Raises:
        ValueError: it is gone with the session that made it.
    """
    found = _MATCHERS.get(number)
    if found is None:
        raise ValueError(f"constraint {number}: its matcher is gone; keep the session (or the matcher) while it runs")
    return found
