"""A Jinja environment for templates that strangers wrote: no way to Python's internals, no endless loop, no flood.

Knows Jinja, not chats. On top of Jinja's immutable sandbox it holds three bounds, by counting and so the same on every
machine, in any thread, without signals:

* work: every statement, call and filter takes a step, and building a value takes steps in proportion to its size;
* size: no value is built that written out would exceed a limit, since each place where a value can grow
  (operators, literals, str methods, filters) is checked before or as it grows;
* output: all text ever written, captured blocks included.

A deadline backs them up. An environment serves one rendering: it carries the counters.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import wraps
from types import MappingProxyType
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import loopcontrols
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace, pass_environment
from markupsafe import Markup

from converters.tokenizer.instrument import Generation, Instrument

MAX_TEXT = 10_000_000
"""Characters of the rendered text."""
MAX_STEPS = 300_000
_MAX_WRITTEN = 4 * MAX_TEXT  # captured blocks and macros write the same text again
_MAX_NODES = 100_000
_MAX_DEPTH = 64
_MAX_SECONDS = 10.0
_MAX_INTEGER_BITS = 4096
_MAX_WIDTH = 1000
_CHARS_PER_STEP = 256
_STEPS_BETWEEN_LOOKS = 64

_TEXT_METHODS = frozenset(
    "startswith endswith strip lstrip rstrip split rsplit splitlines partition rpartition upper lower title "
    "capitalize casefold swapcase find rfind index rindex count replace join format ljust rjust center zfill "
    "removeprefix removesuffix isalpha isalnum isdigit isdecimal isnumeric isspace isupper islower istitle "
    "isascii isidentifier".split()
)
_METHODS: Mapping[type, frozenset[str]] = MappingProxyType(
    {
        str: _TEXT_METHODS,
        Markup: _TEXT_METHODS,
        dict: frozenset(("get", "items", "keys", "values", "copy")),
        list: frozenset(("index", "count", "copy")),
        tuple: frozenset(("index", "count")),
        int: frozenset(("bit_length",)),
        float: frozenset(("is_integer",)),
        bool: frozenset(),
    }
)
_PADDING_METHODS = frozenset(("ljust", "rjust", "center", "zfill"))
_LEFT_OUT_FILTERS = frozenset(("lipsum", "pprint", "random", "urlize", "xmlattr", "wordwrap"))
_STRFTIME = re.compile(r"(?:[^%]|%[-_0^#]?[A-Za-z%])*", re.DOTALL)


class OutOfBounds(TemplateError):
    """A template asked for more work, memory or text than any prompt needs."""


class _Names(Namespace):
    """Jinja's namespace without underscore names."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        values = dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no attribute {name!r}: names with an underscore in front are refused")


class Sandbox(ImmutableSandboxedEnvironment):
    """See the module. `given` is the size of the variables, for which the limits make room."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, given: int = 0) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, Generation],
            finalize=self._written,
            optimized=False,
            cache_size=0,
        )
        self._steps = 0
        self._next_look = 0
        self._chars = 0
        self._room = MAX_TEXT + given
        self._end = time.monotonic() + _MAX_SECONDS
        self.filters = {name: self._guarded(f) for name, f in FILTERS.items() if name not in _LEFT_OUT_FILTERS}
        self.filters |= {" step": self._step, " grown": self.grown, " tilde": self._tilde, " each": self._each}
        self.filters |= {"tojson": self._tojson, "join": self._join_filter(), "sum": self._sum_filter()}
        self.filters["replace"] = self._replace
        self.globals = {
            "range": self._range,
            "dict": self._dict,
            "namespace": _Names,
            "cycler": Cycler,
            "joiner": Joiner,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return Instrument().visit(super()._parse(source, name, filename))

    # -- counters --------------------------------------------------------------------------------------------------

    def _step(self, chars: int) -> None:
        """Count one statement that writes some constant text."""
        self._chars += chars
        self._spend(1)

    def _each(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._spend(1)
            yield item

    def _spend(self, steps: int) -> None:
        self._steps += steps
        if self._steps < self._next_look:
            return
        self._next_look = self._steps + _STEPS_BETWEEN_LOOKS
        if self._chars > _MAX_WRITTEN:
            raise OutOfBounds(f"it writes more than {_MAX_WRITTEN} characters")
        if self._steps > MAX_STEPS:
            raise OutOfBounds(f"it takes more than {MAX_STEPS} steps; does it loop without end?")
        if time.monotonic() > self._end:
            raise OutOfBounds(f"it takes more than {_MAX_SECONDS:g} seconds")

    def _write(self, chars: int) -> None:
        self._chars += chars
        if self._chars > _MAX_WRITTEN:
            raise OutOfBounds(f"it writes more than {_MAX_WRITTEN} characters")

    def _written(self, value: Any) -> Any:
        """What becomes of a value that is written out: itself, counted."""
        text = value if isinstance(value, str) else self._text(value)
        self._write(len(text))
        return text

    def _text(self, value: Any) -> str:
        self.grown(value)
        return str(value)

    def _fits(self, size: int) -> None:
        """Refuse to build something of a size."""
        if size > self._room:
            raise OutOfBounds(f"it builds a value of {size} characters, the limit is {self._room}")
        self._spend(1 + size // _CHARS_PER_STEP)

    def grown(self, value: Any) -> Any:
        """Check and count a value that has just been built."""
        if isinstance(value, str):
            self._fits(len(value))
        elif isinstance(value, list | tuple | dict):
            found, chars = _weigh(value)
            self._fits(found + chars)
        elif isinstance(value, int) and value.bit_length() > _MAX_INTEGER_BITS:
            raise OutOfBounds(f"it builds an integer of {value.bit_length()} bits")
        elif isinstance(value, Namespace):
            raise SecurityError("a namespace can neither be written out nor be put into a list")
        return value

    # -- what can make a value grow --------------------------------------------------------------------------------

    def _tilde(self, parts: list[Any]) -> str:
        """The ~ operator."""
        texts = [part if isinstance(part, str) else self._text(part) for part in parts]
        self._fits(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            self._check_product(left, right)
        elif operator == "**":
            if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _MAX_INTEGER_BITS:
                raise OutOfBounds(f"it raises an integer to the power of {right}")
        elif operator == "%" and isinstance(left, str):
            self._check_format(left, left.count("%"), [right])
        elif operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            self._fits(len(left) + len(right))
        return self.grown(super().call_binop(context, operator, left, right))

    def _check_product(self, left: Any, right: Any) -> None:
        for sequence, count in ((left, right), (right, left)):
            if isinstance(sequence, str | list | tuple) and isinstance(count, int):
                self._fits(len(sequence) * max(count, 0))
        if isinstance(left, int) and isinstance(right, int):
            if left.bit_length() + right.bit_length() > _MAX_INTEGER_BITS:
                raise OutOfBounds("it multiplies integers beyond any use")

    def _check_format(self, template: str, fields: int, values: list[Any]) -> None:
        """A bound on what a format can give: every field shows every value."""
        if re.search(r"\d{4}|\*|:[^{}]*\{", template):
            raise OutOfBounds("it formats to a width beyond any use")
        found, chars = _weigh(values)
        self._fits(len(template) + fields * (6 * (found + chars) + _MAX_WIDTH))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self._spend(1)
        if isinstance(__obj, type) and __obj not in (_Names, Cycler, Joiner):
            raise SecurityError(f"{__obj!r} is not safely callable")
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            args = __self._checked_method(owner, __obj.__name__, args)
        return __self.grown_call(super().call(__context, __obj, *args, **kwargs))

    def grown_call(self, value: Any) -> Any:
        """Check the result of a call; a namespace may pass here."""
        return value if isinstance(value, Namespace) else self.grown(value)

    def _checked_method(self, text: str, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of a str method, after a look at how much text it would give."""
        if name == "replace" and len(args) > 1 and isinstance(args[0], str) and isinstance(args[1], str):
            self._check_replace(text, args[0], args[1])
        elif name == "join" and args:
            parts = list(args[0])
            self._fits(sum(len(part) for part in parts if isinstance(part, str)) + len(text) * len(parts))
            return (parts, *args[1:])
        elif name in _PADDING_METHODS and args and isinstance(args[0], int):
            self._fits(args[0])
        return args

    def _check_replace(self, text: str, old: str, new: str) -> None:
        self._fits(len(text) + (text.count(old) if old else len(text) + 1) * len(new))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        safe = super().wrap_str_format(value)
        if safe is None:
            return None
        if value.__name__ != "format":
            raise SecurityError("format_map is not available, use format")
        template = value.__self__

        def checked(*args: Any, **kwargs: Any) -> str:
            self._check_format(template, template.count("{"), [list(args), kwargs])
            return safe(*args, **kwargs)

        return checked

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        raise SecurityError(f"the attribute {attribute!r} of a {type(obj).__name__} may not be used")

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        allowed = _METHODS.get(type(obj))
        return super().is_safe_attribute(obj, attr, value) if allowed is None else attr in allowed

    # -- filters and functions -------------------------------------------------------------------------------------

    def _guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A built-in filter with bounded numbers going in and a bounded value coming out."""

        @wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self._spend(1)
            for value in (*args[1:], *kwargs.values()):
                if isinstance(value, int) and abs(value) > _MAX_NODES:
                    raise OutOfBounds(f"it gives a filter the number {value}")
            self._check_filter(function.__name__, args, kwargs)
            return self.grown_call(function(*args, **kwargs))

        return guarded

    def _check_filter(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if any(isinstance(value, Namespace) for value in args) and name != "do_default":
            raise SecurityError("a namespace can not be filtered")
        if name in ("do_indent", "do_center", "do_round"):
            numbers = [abs(value) for value in (*args[1:], *kwargs.values()) if isinstance(value, int)]
            if max(numbers, default=0) > _MAX_WIDTH:
                raise OutOfBounds(f"it gives a filter the number {max(numbers)}")
        if name == "do_indent" and args and isinstance(args[0], str):
            pads = [len(pad) if isinstance(pad, str) else int(pad) for pad in (*args[1:], *kwargs.values())]
            self._fits(len(args[0]) + (args[0].count("\n") + 1) * max(pads, default=4))
        if name == "do_format" and args and isinstance(args[0], str):
            self._check_format(args[0], args[0].count("%"), [list(args[1:]), dict(kwargs)])

    def _replace(self, s: Any, old: Any, new: Any, count: int | None = None) -> str:
        text, old, new = (value if isinstance(value, str) else self._text(value) for value in (s, old, new))
        self._check_replace(text, old, new)
        return text.replace(old, new, -1 if count is None else count)

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON as transformers writes it: no HTML escapes, and the options of json.dumps."""
        width = len(indent) if isinstance(indent, str) else indent or 0
        found, chars = _weigh([value, separators])
        self._fits(6 * chars + found * (8 + 2 * max(width, 0) * 8))
        if width > 16:
            raise OutOfBounds(f"it indents JSON by {width}")
        text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        self._fits(len(text))
        return text

    def _join_filter(self) -> Callable[..., str]:
        @pass_environment
        def join(environment: Sandbox, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
            items = list(value) if attribute is None else list(map(make_attrgetter(environment, attribute), value))
            texts = [item if isinstance(item, str) else self._text(item) for item in items]
            self._fits(sum(map(len, texts)) + len(str(d)) * len(texts))
            return str(d).join(texts)

        return join

    def _sum_filter(self) -> Callable[..., Any]:
        plain = FILTERS["sum"]

        @pass_environment
        def total(environment: Sandbox, iterable: Iterable[Any], attribute: Any = None, start: Any = 0) -> Any:
            if not isinstance(start, int | float):
                raise OutOfBounds("it sums up something else than numbers")
            return self.grown(plain(environment, iterable, attribute, start))

        return total

    def _range(self, *args: int) -> range:
        numbers = range(*args)
        if len(numbers) > _MAX_NODES:
            raise OutOfBounds(f"it asks for a range of {len(numbers)} numbers, the limit is {_MAX_NODES}")
        return numbers

    def _dict(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


def _weigh(value: Any) -> tuple[int, int]:
    """How many values, and how many characters in them, would be written out: shared parts count each time.

    Raises:
        OutOfBounds: nested too deeply, or too many.
    """
    found = chars = 0
    stack = [(value, 0)]
    while stack:
        item, depth = stack.pop()
        found += 1
        if isinstance(item, str):
            chars += len(item)
        elif isinstance(item, list | tuple | dict):
            if depth >= _MAX_DEPTH or found + len(item) > _MAX_NODES:
                raise OutOfBounds(f"it builds a value nested {_MAX_DEPTH} deep or of more than {_MAX_NODES} parts")
            stack += [(part, depth + 1) for part in (item.values() if isinstance(item, dict) else item)]
            chars += sum(len(key) for key in item if isinstance(key, str)) if isinstance(item, dict) else 0
        elif isinstance(item, Namespace):
            raise SecurityError("a namespace can neither be written out nor be put into a list")
    return found, chars


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    if len(format) > _MAX_WIDTH or not _STRFTIME.fullmatch(format):
        raise OutOfBounds(f"it formats the date with {format[:50]!r}")
    return datetime.now().strftime(format)
