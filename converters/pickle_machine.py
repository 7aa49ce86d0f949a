"""An interpreter for the part of pickle that describes a state dict. It imports nothing and calls nothing from a file.

A pickle is a program. Here every global it names is looked up in a table of inert stand-ins that the caller gives, and
anything else is an error before anything happened. What the program builds is counted byte by byte against a budget,
because one byte of pickle can ask for hundreds of bytes of objects.
Opcodes: CPython's Lib/pickletools.py, protocols 2 to 5.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from converters.files import SLACK_BYTES, BoundedFile, quote

_CHUNK = 2**16
_MAX_NAME = 1000  # bytes of a global's module or name
_MAX_INT = 1024  # bytes of one integer
_PLACE = 16  # bytes of a place in a list that grows


@dataclass(frozen=True)
class Function:
    """A stand-in for a callable: `apply` gets the unpickled argument tuple and must check it."""

    name: str
    apply: Callable[[tuple[Any, ...]], Any]


class Cursor:
    """Reads a range of a file forwards, never past its end, and keeps the account of what may be built from it."""

    def __init__(self, file: BoundedFile, start: int, end: int):
        self.file = file
        self.end = end
        self.budget = 2 * file.size + SLACK_BYTES
        self._next = start  # where the buffer ends in the file
        self._buffer = b""
        self._at = 0

    @property
    def position(self) -> int:
        """Offset in the file of the byte that comes next."""
        return self._next - len(self._buffer) + self._at

    def take(self, count: int) -> bytes:
        """Read exactly `count` bytes."""
        if self._at + count > len(self._buffer):
            if count > self.end - self.position:
                raise ValueError(
                    f"{count} bytes are asked for where {self.end - self.position} are left: cut off or forged"
                )
            start = self.position
            want = max(count, min(_CHUNK, self.end - start))
            self._buffer, self._at, self._next = self.file.read_bytes(start, want), 0, start + want
        out = self._buffer[self._at : self._at + count]
        self._at += count
        return out

    def spend(self, cost: int) -> None:
        """Account for `cost` bytes of objects; ValueError when the file cannot stand for them."""
        self.budget -= cost
        if self.budget < 0:
            raise ValueError("it builds far more objects than its file has bytes")

    def afford(self, cost: int) -> None:
        """Check that `cost` bytes may be used for a moment; errors as in `spend`."""
        self.spend(cost)
        self.budget += cost

    def line(self) -> str:
        """Read up to the next newline, which is dropped."""
        out = bytearray()
        while (byte := self.take(1)) != b"\n":
            out += byte
            if len(out) > _MAX_NAME:
                raise ValueError(f"a name of more than {_MAX_NAME} bytes")
        return out.decode("utf-8")


def load(
    cursor: Cursor,
    allowed: Mapping[str, Any],
    persistent: Callable[[Any], Any],
    where: str,
) -> Any:
    """Build what one pickle describes, up to its STOP.

    Args:
        cursor: stands at the first opcode, and after its last one on return.
        allowed: full name of a global → its stand-in: a `Function` can be called, anything else only passed on.
        persistent: turns a persistent id into an object.
        where: file and part, for error messages.

    Raises:
        ValueError: an unknown global, a malformed program, or one that builds more than the cursor may spend.
    """
    machine = _Machine(cursor, allowed, persistent)
    try:
        return machine.run()
    except _RefusedGlobal as error:
        raise ValueError(
            f"{where}: the pickle asks for {error}, which is no part of a state dict; it was not looked up and nothing "
            "was executed. If you trust the file, load it with torch and save model.state_dict() as safetensors"
        ) from None
    except ValueError as error:
        raise ValueError(f"{where}: damaged or forged pickle near byte {cursor.position}: {error}") from None


class _RefusedGlobal(ValueError):
    """The pickle names a global that is not in the table; the text is the quoted name."""


class _Machine:
    """Stack, marks and memo of one run. Methods named `op_…` are opcodes."""

    def __init__(self, cursor: Cursor, allowed: Mapping[str, Any], persistent: Callable[[Any], Any]):
        self.cursor = cursor
        self.allowed = allowed
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: list[Any] = []

    def run(self) -> Any:
        take = self.cursor.take
        while (opcode := take(1)) != b".":
            operation = _OPERATIONS.get(opcode)
            if operation is None:
                raise ValueError(f"opcode {opcode!r} is not used in state dicts")
            operation(self)
        return self.pop()

    def push(self, value: Any, cost: int) -> None:
        """Push a new object that takes `cost` bytes beside its place on the stack."""
        self.cursor.spend(cost + _PLACE)
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            raise ValueError("the stack is empty")
        self.cursor.budget += _PLACE
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            found = type(self.stack[-1]).__name__ if self.stack else "nothing"
            raise ValueError(f"a {kind.__name__} must be on the stack, found {found}")
        return self.stack[-1]

    def pop_mark(self) -> list[Any]:
        """Everything above the last mark."""
        if not self.marks:
            raise ValueError("no mark is set")
        items, self.stack = self.stack, self.marks.pop()
        self.cursor.budget += _PLACE * len(items)
        return items

    def uint(self, size: int) -> int:
        return int.from_bytes(self.cursor.take(size), "little")

    # structure

    def op_proto(self) -> None:
        if (version := self.uint(1)) > 5:
            raise ValueError(f"pickle protocol {version} is unknown")

    def op_frame(self) -> None:
        size = self.uint(8)
        if size > self.cursor.end - self.cursor.position:
            raise ValueError(f"a frame of {size} bytes does not fit")

    def op_mark(self) -> None:
        self.cursor.spend(80)
        self.marks.append(self.stack)
        self.stack = []

    def op_dup(self) -> None:
        value = self.pop()
        self.push(value, 0)
        self.push(value, 0)

    def op_put(self, size: int) -> None:
        self.remember(self.uint(size))

    def op_memoize(self) -> None:
        self.remember(len(self.memo))

    def remember(self, index: int) -> None:
        """Picklers number what they remember from 0 on; a gap would be an allocation that nothing pays for."""
        if index > len(self.memo) or not self.stack:
            raise ValueError(f"memo {index} is set where {len(self.memo)} is next")
        if index == len(self.memo):
            self.cursor.spend(_PLACE)
            self.memo.append(None)
        self.memo[index] = self.stack[-1]

    def op_get(self, size: int) -> None:
        index = self.uint(size)
        if index >= len(self.memo):
            raise ValueError(f"memo {index} was never set")
        self.push(self.memo[index], 0)

    # values

    def op_int(self, size: int, signed: bool) -> None:
        self.push(int.from_bytes(self.cursor.take(size), "little", signed=signed), 32)

    def op_long(self, size_size: int) -> None:
        size = self.uint(size_size)
        if size > _MAX_INT:
            raise ValueError(f"an integer of {size} bytes")
        self.push(int.from_bytes(self.cursor.take(size), "little", signed=True), 40 + 2 * size)

    def op_float(self) -> None:
        self.push(struct.unpack(">d", self.cursor.take(8))[0], 24)

    def op_text(self, size_size: int) -> None:
        raw = self.sized(size_size)
        self.push(raw.decode("utf-8"), 64 + len(raw) * (1 if raw.isascii() else 4))

    def op_bytes(self, size_size: int) -> None:
        raw = self.sized(size_size)
        self.push(raw, 40 + len(raw))

    def sized(self, size_size: int) -> bytes:
        """Bytes with their length before them."""
        size = self.uint(size_size)
        self.cursor.afford(
            5 * min(size, self.cursor.end - self.cursor.position)
        )  # buffers, and text of wide characters
        return self.cursor.take(size)

    # containers

    def op_tuple(self) -> None:
        items = tuple(self.pop_mark())
        self.push(items, 56 + 8 * len(items))

    def op_tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise ValueError("the stack is empty")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.push(items, 56 + 8 * count - _PLACE * count)

    def op_append(self) -> None:
        item = self.pop()
        self.cursor.spend(_PLACE)
        self.top(list).append(item)

    def op_appends(self) -> None:
        items = self.pop_mark()
        self.cursor.spend(_PLACE * len(items))
        self.top(list).extend(items)

    def op_add_items(self) -> None:
        items = self.pop_mark()
        self.cursor.spend(100 * len(items))
        self.top(set).update(map(check_key, items))

    def op_set_item(self) -> None:
        value = self.pop()
        self.set_items([self.pop(), value])

    def op_set_items(self) -> None:
        self.set_items(self.pop_mark())

    def set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise ValueError("a key without a value")
        self.cursor.spend(60 * len(items))
        self.top(dict).update(zip(map(check_key, items[0::2]), items[1::2], strict=True))

    # globals and calls

    def op_global(self) -> None:
        module = self.cursor.line()
        self.look_up(module, self.cursor.line())

    def op_stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if type(module) is not str or type(name) is not str:
            raise ValueError("the name of a global must be text")
        self.look_up(module, name)

    def look_up(self, module: str, name: str) -> None:
        full = f"{module[:_MAX_NAME]}.{name[:_MAX_NAME]}"
        if full not in self.allowed:
            raise _RefusedGlobal(quote(full))
        self.push(self.allowed[full], 0)

    def op_reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if type(function) is not Function:
            raise ValueError(f"a {type(function).__name__} is called, which is no function of a state dict")
        if type(arguments) is not tuple:
            raise ValueError(f"{function.name} is called with {type(arguments).__name__}, expected a tuple")
        # a stand-in is small, but it copies a collection, and may be given the same one again and again
        self.cursor.spend(200 + sum(120 * len(item) for item in arguments if type(item) in (str, bytes, list)))
        self.push(function.apply(arguments), 0)

    def op_build(self) -> None:
        """Attributes of an OrderedDict (a state dict's _metadata) are of no use here."""
        self.pop()
        self.top(dict)

    def op_persistent(self) -> None:
        self.push(self.persistent(self.pop()), 200)


def check_key(value: Any) -> Any:
    """Check a dict key or set element: hashing it must be cheap and its hash hard to collide with."""
    if type(value) is str or value is None or type(value) is bool or (type(value) is int and abs(value) < 2**60):
        return value
    raise ValueError(f"a {type(value).__name__} as a key; text and small integers are expected")


_OPERATIONS: dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": _Machine.op_proto,
    b"\x95": _Machine.op_frame,
    b"(": _Machine.op_mark,
    b"0": _Machine.pop,
    b"1": _Machine.pop_mark,
    b"2": _Machine.op_dup,
    b"q": lambda m: m.op_put(1),
    b"r": lambda m: m.op_put(4),
    b"\x94": _Machine.op_memoize,
    b"h": lambda m: m.op_get(1),
    b"j": lambda m: m.op_get(4),
    b"N": lambda m: m.push(None, 0),
    b"\x88": lambda m: m.push(True, 0),
    b"\x89": lambda m: m.push(False, 0),
    b"J": lambda m: m.op_int(4, True),
    b"K": lambda m: m.op_int(1, False),
    b"M": lambda m: m.op_int(2, False),
    b"\x8a": lambda m: m.op_long(1),
    b"\x8b": lambda m: m.op_long(4),
    b"G": _Machine.op_float,
    b"\x8c": lambda m: m.op_text(1),
    b"X": lambda m: m.op_text(4),
    b"\x8d": lambda m: m.op_text(8),
    b"U": lambda m: m.op_text(1),  # Python 2's str
    b"T": lambda m: m.op_text(4),
    b"C": lambda m: m.op_bytes(1),
    b"B": lambda m: m.op_bytes(4),
    b"\x8e": lambda m: m.op_bytes(8),
    b")": lambda m: m.push((), 0),
    b"t": _Machine.op_tuple,
    b"\x85": lambda m: m.op_tuple_of(1),
    b"\x86": lambda m: m.op_tuple_of(2),
    b"\x87": lambda m: m.op_tuple_of(3),
    b"]": lambda m: m.push([], 64),
    b"a": _Machine.op_append,
    b"e": _Machine.op_appends,
    b"}": lambda m: m.push({}, 72),
    b"s": _Machine.op_set_item,
    b"u": _Machine.op_set_items,
    b"\x8f": lambda m: m.push(set(), 224),
    b"\x90": _Machine.op_add_items,
    b"c": _Machine.op_global,
    b"\x93": _Machine.op_stack_global,
    b"R": _Machine.op_reduce,
    b"b": _Machine.op_build,
    b"Q": _Machine.op_persistent,
}
