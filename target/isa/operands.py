"""Operands of accelerator instructions: what they mean, their bytes and their text.

An operand is evaluated for every iteration of the loops around its instruction. `M` stands for the
number of rows (tokens), which is bound at run time; everything else is known to the program.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal

from sparqle_tvm.errors import ProgramError

M: Literal["M"] = "M"
"""The number of rows, bound at run time."""

BLOCKS: Literal["B"] = "B"
"""Of attention: blocks of query rows, all key heads together."""

KEYS: Literal["T"] = "T"
"""Of attention: keys, that is tokens before the rows and theirs."""

Limit = int | Literal["M", "B", "T"]
"""A whole number, or the name of a size that is bound at run time: `M`, `BLOCKS`, `KEYS`."""

RUN_TIME: tuple[Literal["M", "B", "T"], ...] = (M, BLOCKS, KEYS)
"""The names."""

MAX_NUMBER = 2**36
"""Magnitude that every number in a program stays below: no evaluated operand overflows int64."""

MAX_LOOPS = 32
"""Loops in a program."""

# Numbers of limits that are none: no limit, then the names.
_NO_LIMIT = -2
_LIMIT_CODES: Mapping[str, int] = {M: -1, BLOCKS: -3, KEYS: -4}
_NO_ADDRESS = b"\xff"
_NUMBER = struct.Struct("<q")


class Buffer(IntEnum):
    """On-chip buffers, byte addressed.

    Attributes
    ----------
    word : str
        What it holds, in names such as ``Accelerator.activation_buffer_bytes``.
    """

    word: str

    def __new__(cls, number: int, word: str = "") -> Buffer:
        """A buffer and its word; found by its number."""
        buffer = int.__new__(cls, number)
        buffer._value_, buffer.word = number, word
        return buffer

    ACT = 0, "activation"
    WGT = 1, "weight"
    ACC = 2, "accumulator"


@dataclass(frozen=True)
class Affine:
    """``const + sum of coefficient * loop variable``.

    Attributes
    ----------
    const : int
        The value in the first iteration of every loop.
    terms : tuple of (loop, coefficient)
        Sorted by loop, no coefficient is zero (made so on construction).
    """

    const: int = 0
    terms: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        """Merge equal loops, drop zeros, sort."""
        merged: dict[int, int] = {}
        for loop, coefficient in self.terms:
            merged[loop] = merged.get(loop, 0) + coefficient
        terms = tuple(sorted((loop, c) for loop, c in merged.items() if c))
        object.__setattr__(self, "terms", terms)

    @classmethod
    def loop(cls, loop: int, coefficient: int = 1) -> Affine:
        """``coefficient * i<loop>``."""
        return cls(0, ((loop, coefficient),))

    @classmethod
    def of(cls, value: int | Affine) -> Affine:
        """Take a number as a constant."""
        return value if isinstance(value, Affine) else cls(value)

    def __add__(self, other: int | Affine) -> Affine:
        """Sum."""
        other = Affine.of(other)
        return Affine(self.const + other.const, self.terms + other.terms)

    __radd__ = __add__

    def __mul__(self, factor: int) -> Affine:
        """Product with a number."""
        return Affine(self.const * factor, tuple((loop, c * factor) for loop, c in self.terms))

    __rmul__ = __mul__

    @property
    def loops(self) -> tuple[int, ...]:
        """Loops that it depends on."""
        return tuple(loop for loop, _ in self.terms)

    def evaluate(self, variables: Mapping[int, Any]) -> Any:
        """Value for loop variables given as numbers or arrays that broadcast."""
        return sum((c * variables[loop] for loop, c in self.terms), start=self.const)

    def __str__(self) -> str:
        """``64*i0 + 8``."""
        parts = [f"i{loop}" if c == 1 else f"{c}*i{loop}" for loop, c in self.terms]
        if self.const or not parts:
            parts.append(str(self.const))
        return " + ".join(parts)


@dataclass(frozen=True)
class Extent:
    """``min(size, limit - start)``: a tile's extent, clamped at the edge.

    Attributes
    ----------
    size : int
        Extent of a whole tile.
    limit : int, name of a run-time size, or None
        Extent of the tensor; None: never clamped.
    start : Affine
        Where the tile begins.
    """

    size: int
    limit: Limit | None = None
    start: Affine = field(default_factory=Affine)

    @property
    def loops(self) -> tuple[int, ...]:
        """Loops that it depends on."""
        return () if self.limit is None else self.start.loops

    def __str__(self) -> str:
        """``min(64, M - 64*i0)``."""
        if self.limit is None:
            return str(self.size)
        if not self.start.terms and not self.start.const:
            return f"min({self.size}, {self.limit})"
        start = str(self.start)
        return f"min({self.size}, {self.limit} - {f'({start})' if '+' in start else start})"


@dataclass(frozen=True)
class Address:
    """``base + slot_bytes * (visit mod slots) + offset``: a byte address in an on-chip buffer.

    `visit` counts the iterations of the loops in `rotate`, as if they were one loop, the first
    the outermost: for loops (a, b) with trip count t of b it is ``(a + ahead) * t + b``.

    Attributes
    ----------
    buffer : Buffer
        The buffer.
    base : int
        Byte address of slot 0.
    rotate : tuple of int
        Loops that walk through the slots, outermost first; () stays in slot 0.
    slots, slot_bytes : int
        Number of slots and their distance in bytes.
    offset : Affine
        Byte offset within the slot.
    ahead : int
        Iterations of the outermost of these loops that the instruction works ahead of it.
    """

    buffer: Buffer
    base: int
    rotate: tuple[int, ...] = ()
    slots: int = 1
    slot_bytes: int = 0
    offset: Affine = field(default_factory=Affine)
    ahead: int = 0

    @property
    def loops(self) -> tuple[int, ...]:
        """Loops that it depends on."""
        return (*self.rotate, *self.offset.loops)

    def __str__(self) -> str:
        """``ACT[0 + 4096*(i0 mod 2) + 128*i1]``."""
        parts = [str(self.base)]
        if self.rotate:
            visit = f"i{self.rotate[0]}" + (f" + {self.ahead}" if self.ahead else "")
            for loop in self.rotate[1:]:
                visit = f"({visit})" if " " in visit else visit
                visit = f"{visit}*n{loop} + i{loop}"
            visit = f"({visit})" if " " in visit else visit
            parts.append(f"{self.slot_bytes}*({visit} mod {self.slots})")
        if self.offset.terms or self.offset.const:
            parts.append(str(self.offset))
        return f"{self.buffer.name}[{' + '.join(parts)}]"


class When(IntEnum):
    """Kinds of `Condition`."""

    NEVER = 0
    ALWAYS = 1
    FIRST = 2
    LAST = 3


@dataclass(frozen=True)
class Condition:
    """In which iterations a flag is set.

    Attributes
    ----------
    when : When
        NEVER, ALWAYS, in the FIRST iteration of `loop` (``i == 0``) or in its LAST.
    loop : int
        The loop of FIRST and LAST, else 0.
    """

    when: When = When.NEVER
    loop: int = 0

    @classmethod
    def first(cls, loop: int) -> Condition:
        """Set in the first iteration of `loop`."""
        return cls(When.FIRST, loop)

    @classmethod
    def last(cls, loop: int) -> Condition:
        """Set in the last iteration of `loop`."""
        return cls(When.LAST, loop)

    @property
    def loops(self) -> tuple[int, ...]:
        """Loops that it depends on."""
        return (self.loop,) if self.when in (When.FIRST, When.LAST) else ()

    def __str__(self) -> str:
        """``i2 == 0``."""
        if self.when == When.FIRST:
            return f"i{self.loop} == 0"
        if self.when == When.LAST:
            return f"i{self.loop} == n{self.loop} - 1"
        return self.when.name.lower()


NEVER = Condition(When.NEVER)
ALWAYS = Condition(When.ALWAYS)


class Reader:
    """Reads operands from bytes; every step is bounded by what is left."""

    def __init__(self, data: bytes) -> None:
        """Begin at the first byte."""
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        """Read `count` bytes.

        Raises
        ------
        ProgramError
            If fewer are left.
        """
        if count > self.left:
            raise ProgramError(f"program ends at byte {len(self._data)}, within an operand")
        self._at += count
        return self._data[self._at - count : self._at]

    def skip(self, data: bytes) -> bool:
        """Whether these bytes are next; if they are, they are read."""
        found = self._data.startswith(data, self._at)
        self._at += len(data) * found
        return found

    def number(self) -> int:
        """Read a signed number of 8 bytes.

        Raises
        ------
        ProgramError
            If its magnitude is `MAX_NUMBER` or more.
        """
        value = int(_NUMBER.unpack(self.take(_NUMBER.size))[0])
        if abs(value) >= MAX_NUMBER:
            raise ProgramError(f"number {value} in the program is too large (at most 2^36 - 1)")
        return value

    def small(self, limit: int, what: str) -> int:
        """Read a number of one byte below `limit`.

        Raises
        ------
        ProgramError
            If it is not below.
        """
        value = self.take(1)[0]
        if value >= limit:
            raise ProgramError(f"{what} {value} does not exist (below {limit})")
        return value


def _number_bytes(value: int) -> bytes:
    if abs(value) >= MAX_NUMBER:
        raise ProgramError(f"number {value} in the program is too large (at most 2^36 - 1)")
    return _NUMBER.pack(value)


def _loop_byte(loop: int) -> bytes:
    if not 0 <= loop < MAX_LOOPS:
        raise ProgramError(f"loop {loop} does not exist (a program has at most {MAX_LOOPS})")
    return bytes((loop,))


def _limit_number(limit: Limit | None) -> int:
    if limit is None:
        return _NO_LIMIT
    if isinstance(limit, str):
        return _LIMIT_CODES[limit]
    if int(limit) < 0:
        raise ProgramError(f"a limit is {limit}; it must not be negative")
    return int(limit)


def _affine_bytes(value: Affine) -> bytes:
    terms = b"".join(_loop_byte(loop) + _number_bytes(c) for loop, c in value.terms)
    return _number_bytes(value.const) + bytes((len(value.terms),)) + terms


def _read_affine(reader: Reader) -> Affine:
    const = reader.number()
    count = reader.small(MAX_LOOPS + 1, "number of loops")
    terms = tuple((reader.small(MAX_LOOPS, "loop"), reader.number()) for _ in range(count))
    value = Affine(const, terms)
    if value.terms != terms:
        raise ProgramError(f"operand {value} is not in normal form")
    return value


def _address_bytes(value: Address | None) -> bytes:
    if value is None:
        return _NO_ADDRESS
    rotate = bytes((len(value.rotate),)) + b"".join(_loop_byte(loop) for loop in value.rotate)
    numbers = (value.base, value.slots, value.slot_bytes, value.ahead)
    return (
        bytes((value.buffer,))
        + b"".join(_number_bytes(number) for number in numbers)
        + rotate
        + _affine_bytes(value.offset)
    )


def _read_address(reader: Reader) -> Address:
    buffer = Buffer(reader.small(len(Buffer), "buffer"))
    base, slots, slot_bytes, ahead = (reader.number() for _ in range(4))
    count = reader.small(MAX_LOOPS + 1, "number of loops")
    rotate = tuple(reader.small(MAX_LOOPS, "loop") for _ in range(count))
    return Address(buffer, base, rotate, slots, slot_bytes, _read_affine(reader), ahead)


def _read_optional_address(reader: Reader) -> Address | None:
    return None if reader.skip(_NO_ADDRESS) else _read_address(reader)


def _extent_bytes(value: Extent) -> bytes:
    limit = _NUMBER.pack(_limit_number(value.limit))
    return _number_bytes(value.size) + limit + _affine_bytes(value.start)


def _read_limit(reader: Reader) -> Limit | None:
    number = reader.number()
    if number < min(_LIMIT_CODES.values()):
        raise ProgramError(f"a limit is {number}; it must not be negative")
    names: dict[int, Limit | None] = {_LIMIT_CODES[name]: name for name in RUN_TIME}
    return {**names, _NO_LIMIT: None}.get(number, number)


def _read_extent(reader: Reader) -> Extent:
    size, limit = reader.number(), _read_limit(reader)
    return Extent(size, limit, _read_affine(reader))


def _read_bound(reader: Reader) -> Limit:
    limit = _read_limit(reader)
    if limit is None:
        raise ProgramError("a loop has no limit")
    return limit


def _read_condition(reader: Reader) -> Condition:
    when = When(reader.small(len(When), "condition"))
    return Condition(when, reader.small(MAX_LOOPS, "loop"))


CODECS: Mapping[str, tuple[Callable[[Any], bytes], Callable[[Reader], Any]]] = {
    "int": (_number_bytes, Reader.number),
    "Affine": (_affine_bytes, _read_affine),
    "Extent": (_extent_bytes, _read_extent),
    "Address": (_address_bytes, _read_address),
    "Address | None": (_address_bytes, _read_optional_address),
    "Condition": (lambda c: bytes((c.when,)) + _loop_byte(c.loop), _read_condition),
    "Limit": (lambda limit: _NUMBER.pack(_limit_number(limit)), _read_bound),
}
"""Writer and reader of each operand type, by its annotation."""
