"""A reader of pickles that can only build plain data: dicts, lists, tuples, numbers, text, and what a list allows.

Python's unpickler imports and calls what a file names, and even with that forbidden its memo, its recursion and the
hashing of keys are the file's to abuse. Here the opcodes are interpreted one by one: a name is looked up in an exact
list and nowhere else, a key is text or a number, every length is held against what is left of the file, and long
byte strings stay in the file (`Blob`) until somebody wants them, so that a network in a pickle is never there twice.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

MAX_OPCODES = 500_000  # a training's 1024 pickle, three networks, needs about 40,000
MAX_TEXT = 64 * 2**20  # bytes of text in a file; NVIDIA's embedded source is about 100 KiB
MAX_LINE, MAX_INT = 1024, 64  # bytes of a name or number that is written as a line, of an integer
KEYS = (str, int, float, bool, type(None))


class PickleError(ValueError):
    """A pickle that is damaged, or asks for more than plain data."""


@dataclass(frozen=True)
class Blob:
    """Bytes of the file: where they are, and themselves if they are few."""

    offset: int
    size: int
    data: bytes | None = None


@dataclass(frozen=True)
class Constructor:
    """An allowed name: what a call of it gives."""

    name: str
    make: Callable[..., Any]


class _Mark:
    """The stack's marker."""


class PlainUnpickler:
    """Reads one pickle; `allowed` maps (module, name) to a function that makes plain data of the call's arguments."""

    def __init__(
        self,
        file: IO[bytes],
        size: int,
        allowed: Mapping[tuple[str, str], Callable[..., Any]],
        refuse: Callable[[str, str], Exception],
        outside: Callable[[Any], Any] | None = None,
    ) -> None:
        """`size`: where the file ends, bytes. `refuse` makes the error for a name that is not allowed.

        `outside` gives what a reference to something outside the pickle stands for (torch's storages); without it
        such references are refused.
        """
        self.file, self.size, self.allowed, self.refuse, self.outside = file, size, allowed, refuse, outside
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.text = 0

    def load(self) -> Any:
        """The file's one object. PickleError, or what `refuse` makes, for anything that is not plain data."""
        for _ in range(MAX_OPCODES):
            code = self.file.read(1)
            if code == b".":
                return self.pop()
            if code not in OPCODES:
                raise PickleError(f"the opcode {code!r}" if code else "the file ends too early")
            OPCODES[code](self)
        raise PickleError("far more structure than a generator has")

    # --- what the opcodes use -----------------------------------------------------------------------------------

    def take(self, count: int, limit: int | None = None) -> bytes:
        """The next bytes, if the file has as many and they are no more than `limit`."""
        self.check(count, limit)
        data = self.file.read(count)
        if len(data) != count:
            raise PickleError("the file ends too early")
        return data

    def check(self, count: int, limit: int | None = None) -> None:
        """Hold a length field against what is left of the file."""
        left = self.size - self.file.tell()
        if not 0 <= count <= left or (limit is not None and count > limit):
            raise PickleError(f"a length of {count:,} bytes where {left:,} bytes are left of the file")

    def number(self, form: str) -> Any:
        """A number of fixed size."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        """Text up to the line's end."""
        data = self.file.readline(MAX_LINE)
        if not data.endswith(b"\n"):
            raise PickleError("a line without an end")
        return data[:-1].decode()

    def string(self, form: str) -> None:
        """Text with its length before it."""
        data = self.take(self.number(form), MAX_TEXT)
        self.text += len(data)
        if self.text > MAX_TEXT:
            raise PickleError("far more text than a generator has")
        self.stack.append(data.decode("utf-8", "surrogatepass"))

    def blob(self, form: str, keep: bool = False) -> None:
        """Bytes with their length before them; they stay where they are, unless they are to be kept."""
        size = self.number(form)
        self.check(size)
        offset = self.file.tell()
        data = self.take(size) if keep else None
        self.stack.append(Blob(offset, size, data))
        self.file.seek(offset + size)

    def integer(self, form: str) -> None:
        """An integer of any size (within reason), little-endian."""
        self.stack.append(int.from_bytes(self.take(self.number(form), MAX_INT), "little", signed=True))

    def pop(self) -> Any:
        """The top of the stack."""
        if not self.stack:
            raise PickleError("an empty stack")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        """The top of the stack, which stays there and has to be of this kind."""
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise PickleError(f"a {kind.__name__} was expected")
        return self.stack[-1]

    def marked(self) -> list[Any]:
        """All that was put on the stack since the last marker."""
        for at in range(len(self.stack) - 1, -1, -1):
            if isinstance(self.stack[at], _Mark):
                found = self.stack[at + 1 :]
                del self.stack[at:]
                return found
        raise PickleError("no marker")

    def tuple(self, count: int) -> None:
        """Gather the last objects."""
        if len(self.stack) < count:
            raise PickleError("an empty stack")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.stack.append(items)

    def set(self, items: list[Any]) -> None:
        """Put pairs into the dict on the stack."""
        target = self.top(dict)
        if len(items) % 2 or not all(isinstance(key, KEYS) for key in items[::2]):
            raise PickleError("a key that is neither text nor a number")
        target.update(zip(items[::2], items[1::2], strict=True))

    def extend(self, items: list[Any]) -> None:
        """Append to the list on the stack (sets are lists here: nothing is hashed)."""
        self.top(list).extend(items)

    def get(self, index: int) -> None:
        """Take from the memo."""
        if index not in self.memo:
            raise PickleError(f"the memo has no number {index}")
        self.stack.append(self.memo[index])

    def put(self, index: int) -> None:
        """Keep in the memo, which is a dict: a large number costs nothing."""
        self.memo[index] = self.top(object)

    def name(self, module: Any, name: Any) -> None:
        """A name of the file: from the list, or not at all."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("a name that is no text")
        if (module, name) not in self.allowed:
            raise self.refuse(module[:80], name[:80])
        self.stack.append(Constructor(name, self.allowed[module, name]))

    def call(self) -> None:
        """Make plain data of an allowed name and its arguments."""
        arguments, made = self.pop(), self.pop()
        if not isinstance(made, Constructor) or not isinstance(arguments, tuple):
            raise PickleError("a call of something that is no name")
        try:
            self.stack.append(made.make(*arguments))
        except TypeError as error:
            raise PickleError(f"{made.name} with arguments that do not fit") from error

    def refer(self) -> None:
        """Put what a name outside the pickle stands for."""
        if self.outside is None:
            raise PickleError("a reference to something outside the file")
        self.stack.append(self.outside(self.pop()))

    def swap(self, use: Callable[[Any, Any], None]) -> None:
        """Pop two, use them in the order in which they were pushed."""
        second, first = self.pop(), self.pop()
        use(first, second)


def _line_integer(u: PlainUnpickler) -> None:
    text = u.line()
    booleans = {"00": False, "01": True}
    if len(text) > MAX_INT:
        raise PickleError("a number of far too many digits")
    u.stack.append(booleans[text] if text in booleans else int(text.rstrip("L")))


OPCODES: dict[bytes, Callable[[PlainUnpickler], Any]] = {
    b"\x80": lambda u: u.take(1),  # PROTO
    b"\x95": lambda u: u.take(8),  # FRAME: only says how far to read ahead
    b"(": lambda u: u.stack.append(_Mark()),
    b"0": lambda u: u.pop(),
    b"1": lambda u: u.marked(),
    b"N": lambda u: u.stack.append(None),
    b"\x88": lambda u: u.stack.append(True),
    b"\x89": lambda u: u.stack.append(False),
    b"I": _line_integer,
    b"L": _line_integer,
    b"J": lambda u: u.stack.append(u.number("<i")),
    b"K": lambda u: u.stack.append(u.number("<B")),
    b"M": lambda u: u.stack.append(u.number("<H")),
    b"\x8a": lambda u: u.integer("<B"),
    b"\x8b": lambda u: u.integer("<i"),
    b"F": lambda u: u.stack.append(float(u.line())),
    b"G": lambda u: u.stack.append(u.number(">d")),
    b"\x8c": lambda u: u.string("<B"),
    b"X": lambda u: u.string("<I"),
    b"\x8d": lambda u: u.string("<Q"),
    b"C": lambda u: u.blob("<B", keep=True),
    b"B": lambda u: u.blob("<I"),
    b"\x8e": lambda u: u.blob("<Q"),
    b")": lambda u: u.stack.append(()),
    b"t": lambda u: u.stack.append(tuple(u.marked())),
    b"\x85": lambda u: u.tuple(1),
    b"\x86": lambda u: u.tuple(2),
    b"\x87": lambda u: u.tuple(3),
    b"]": lambda u: u.stack.append([]),
    b"l": lambda u: u.stack.append(u.marked()),
    b"a": lambda u: u.extend([u.pop()]),
    b"e": lambda u: u.extend(u.marked()),
    b"}": lambda u: u.stack.append({}),
    b"s": lambda u: u.swap(lambda key, value: u.set([key, value])),
    b"u": lambda u: u.set(u.marked()),
    b"\x8f": lambda u: u.stack.append([]),  # EMPTY_SET
    b"\x90": lambda u: u.extend(u.marked()),  # ADDITEMS
    b"\x91": lambda u: u.stack.append(u.marked()),  # FROZENSET
    b"g": lambda u: u.get(int(u.line())),
    b"h": lambda u: u.get(u.number("<B")),
    b"j": lambda u: u.get(u.number("<I")),
    b"p": lambda u: u.put(int(u.line())),
    b"q": lambda u: u.put(u.number("<B")),
    b"r": lambda u: u.put(u.number("<I")),
    b"\x94": lambda u: u.put(len(u.memo)),  # MEMOIZE
    b"c": lambda u: u.name(u.line(), u.line()),
    b"\x93": lambda u: u.swap(u.name),
    b"R": lambda u: u.call(),
    b"\x81": lambda u: u.call(),  # NEWOBJ: the same for what the list allows
    b"b": lambda u: u.pop(),  # BUILD: no state of an object is ever set
    b"Q": lambda u: u.refer(),  # BINPERSID
}
"""What a pickle may do. Left out: extensions, instances, and all that no such file has."""
