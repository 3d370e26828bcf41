"""What all instructions share, and those that control: loops, conditions and tokens."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple

import numpy as np

from sparqle_tvm.target.isa.access import Access, Axis, Mode, Part, Values
from sparqle_tvm.target.isa.header import Engine, ProgramHeader, Queue
from sparqle_tvm.target.isa.operands import CODECS, Affine, Limit, Reader

TRACE_COLUMNS = 16
TRACE_OPCODE, TRACE_INSTRUCTION, TRACE_ENGINE, TRACE_OPERANDS = 0, 1, 2, 3


class Kind(IntEnum):
    """What a step does to tokens, accumulators and outputs.

    PLAIN: nothing of that: it loads, reads or makes tiles.
    """

    WAIT = 0
    SIGNAL = 1
    PLAIN = 2
    MMA = 3
    DRAIN = 4
    STORE = 5


class Pass(IntEnum):
    """Passes over the K chunks of an accumulator; each is over all of them, if the op has it."""

    LSB = 0
    MSB = 1
    MINIMA = 2


class Requirement(NamedTuple):
    """A condition on all steps of a class, what is wrong where it fails, and what was wanted."""

    holds: Any
    problem: str
    first: Any = None
    last: Any = None


def transfer_cycles(header: ProgramHeader, nbytes: Any, goes_on: Any = False) -> Any:
    """Cycles of a DMA transfer: its descriptor, unless it goes on with one, then the bytes."""
    accelerator = header.accelerator
    moved = np.asarray(-(-nbytes // accelerator.dram_bytes_per_cycle)).astype(np.int64)
    return (1 - np.asarray(goes_on)) * accelerator.dma_descriptor_cycles + moved


@dataclass(frozen=True)
class Instruction:
    """Base of all instructions: a class says everything about itself but its values.

    Operands are its fields. Methods that take `values` get the evaluated operands by name: numbers
    or arrays, one for each step. The header is that of the kind of programs that it `SERVES`.

    Attributes
    ----------
    OPCODE : int
        Number in the binary form and in the trace.
    MNEMONIC : str
        Name in the listing.
    ENGINE : Engine
        Who executes it (`WAIT` and `SIGNAL`: see `engine`).
    KIND : Kind
        What it does to tokens, accumulators and outputs.
    PASS : Pass
        Of an instruction of kind MMA.
    ROLE : str
        What it is for, in pictures.
    EXTENTS : mapping of str to {"m", "n", "k"}
        Operands that are extents, and of what. Those of `row` and `col` are `rows` and `cols`.
    ACCESSES : tuple of Access
        Tiles on chip; accumulators last: their rows and channels follow from the others.
    PARTS : tuple of Part
        What it moves between DRAM and chip.
    DRAM : Mode
        READ moves it from DRAM, WRITE to DRAM.
    PIECE : str
        Loads of one tile that follow each other and have the same one, not "", move one piece of
        memory: the first has the DMA transfer, the others go on with it.
    BITMAP : str
        Operand whose stored digits decide how long it takes, see `passes`; "" for none. It has an
        operand `row_split`: PE rows that share a row.
    MEASURED : bool
        Whether cycles or bytes depend on the operands of the run, by what
        `simulator.attention_work.Work` has beside the operands of a step.
    SERVES : str
        Kind of the headers of programs that may have it (`ProgramHeader.KIND`); "" for any.
    DERIVED : tuple of str
        Numbers behind the operands in the trace that follow from those, see `derive`.
    TRACE : tuple of str
        Operands in the order of the trace, then what is derived.
    """

    OPCODE: ClassVar[int] = -1
    MNEMONIC: ClassVar[str] = ""
    ENGINE: ClassVar[Engine] = Engine.LOAD
    KIND: ClassVar[Kind] = Kind.PLAIN
    PASS: ClassVar[Pass] = Pass.LSB
    ROLE: ClassVar[str] = ""
    EXTENTS: ClassVar[Mapping[str, Axis]] = {}
    ACCESSES: ClassVar[tuple[Access, ...]] = ()
    PARTS: ClassVar[tuple[Part, ...]] = ()
    DRAM: ClassVar[Mode] = Mode.READ
    PIECE: ClassVar[str] = ""
    BITMAP: ClassVar[str] = ""
    MEASURED: ClassVar[bool] = False
    SERVES: ClassVar[str] = "dense"
    DERIVED: ClassVar[tuple[str, ...]] = ()
    TRACE: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        """Operands are what is annotated, but for class variables."""
        own = inspect.get_annotations(cls).items()
        operands = (name for name, kind in own if not kind.startswith("ClassVar"))
        before = (name for name in cls.TRACE if name not in cls.DERIVED)
        cls.TRACE = (*before, *operands, *cls.DERIVED)

    @property
    def engine(self) -> Engine:
        """The engine that executes it."""
        return self.ENGINE

    @classmethod
    def column(cls, operand: str) -> int:
        """Column of an operand in the trace."""
        return TRACE_OPERANDS + cls.TRACE.index(operand)

    @classmethod
    def derive(
        cls, header: Any, limits: Mapping[str, int], values: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """The numbers `DERIVED` of every step, from its operands and the sizes of the run."""
        return {}

    @classmethod
    def accesses(cls, header: Any) -> tuple[Access, ...]:
        """What it touches in programs with this header."""
        return tuple(access for access in cls.ACCESSES if access.exists(header))

    @classmethod
    def problem(cls, header: Any) -> str | None:
        """Why programs with this header cannot have it, beyond the tiles that it touches."""
        return None

    @classmethod
    def requirements(cls, header: Any, rows: int, values: Values) -> Iterator[Requirement]:
        """What must hold before its steps, in a program bound to `rows` rows.

        Here: extents are not empty and tiles lie within their tensors. Each is looked at only if
        those before it hold.
        """
        if not cls.EXTENTS:
            return
        limits = {"m": rows, "n": header.op.n, "k": header.op.k}
        for name, axis in cls.EXTENTS.items():
            yield Requirement(values[name] >= 1, f"{name} is empty")
            fits = values[name] <= limits[axis]
            yield Requirement(fits, f"{name} is larger than its tensor")
        for name, extent, what in (("row", "rows", "rows"), ("col", "cols", "columns")):
            if extent in cls.EXTENTS and name in cls.TRACE:
                first, limit = values[name], limits[cls.EXTENTS[extent]]
                last = first + values[extent]
                inside = (first >= 0) & (last <= limit)
                yield Requirement(inside, f"{what} leave the tensor's {limit}", first, last)

    @classmethod
    def cycles(cls, header: Any, values: Values) -> Any:
        """Cycles of every step, DMA transfers (see `transfer_cycles`) aside."""
        return 0

    @classmethod
    def passes(cls, header: Any, values: Values) -> Any:
        """How often the array goes over the digits of `BITMAP`: each time takes their cycles."""
        raise AssertionError(f"{cls.__name__} does not say how often it goes over its digits")

    @classmethod
    def dram_bytes(cls, header: Any, values: Values) -> Any:
        """Bytes that every step moves, with all digits stored."""
        return sum(part.nbytes(header, values) for part in cls.PARTS)

    @classmethod
    def carried(cls, header: Any, values: Values, nbytes: Any) -> Any:
        """Bytes that a load writes on chip, of `nbytes` that it moved there: all, or expanded."""
        return nbytes

    @classmethod
    def events(cls, header: Any, values: Values) -> Mapping[str, Any]:
        """Work of every step by its name in `simulator.Counts`, bytes and products aside."""
        return {}

    def to_bytes(self) -> bytes:
        """Binary form: the opcode in one byte, then the operands in order of declaration."""
        body = (CODECS[str(f.type)][0](getattr(self, f.name)) for f in fields(self))
        return bytes((self.OPCODE,)) + b"".join(body)

    @classmethod
    def read(cls, reader: Reader) -> Instruction:
        """Read the operands of this class."""
        return cls(*(CODECS[str(f.type)][1](reader) for f in fields(cls)))

    def operands(self) -> str:
        """Text of the operands."""
        return ", ".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))

    def __str__(self) -> str:
        """Assembly text in one line."""
        return f"{self.MNEMONIC:<8} {self.operands()}".rstrip()


@dataclass(frozen=True)
class Loop(Instruction):
    """Repeat the instructions up to the matching END, ``ceil(limit / step)`` times.

    Every engine runs the loop on its own instructions. Costs nothing, is not in the trace.

    Attributes
    ----------
    loop : int
        Its variable, unique in the program: 0, 1, 2, ...
    limit : int or name of a run-time size
        Extent of what is tiled.
    step : int
        Extent of a tile.
    """

    OPCODE: ClassVar[int] = 0
    MNEMONIC: ClassVar[str] = "LOOP"
    SERVES: ClassVar[str] = ""

    loop: int
    limit: Limit
    step: int

    def operands(self) -> str:
        """``i0 < ceil(M / 64)``."""
        return f"i{self.loop} < n{self.loop} = ceil({self.limit} / {self.step})"


@dataclass(frozen=True)
class End(Instruction):
    """End of the innermost open LOOP or IF. Costs nothing, is not in the trace."""

    OPCODE: ClassVar[int] = 1
    MNEMONIC: ClassVar[str] = "END"
    SERVES: ClassVar[str] = ""


class Presence(IntEnum):
    """What IF asks for: that a block exists; that it is the first or the last of its key head;
    that it exists and sees a key of the chunk.
    """

    BLOCK = 1
    FIRST = 2
    LAST = 3
    CHUNK = 4


@dataclass(frozen=True)
class If(Instruction):
    """Skip the instructions up to the matching END unless the header's op has what is asked for.

    Costs nothing, is not in the trace. Every engine decides alone, from the sizes of the run.

    Attributes
    ----------
    what : int
        A `Presence`.
    block : Affine
        Number of a block of rows.
    chunk : Affine
        Number of a chunk of keys.
    """

    OPCODE: ClassVar[int] = 32
    MNEMONIC: ClassVar[str] = "IF"
    SERVES: ClassVar[str] = "attention"

    what: int
    block: Affine
    chunk: Affine = field(default_factory=Affine)

    def operands(self) -> str:
        """``chunk i1 of block i0``."""
        if self.what == Presence.CHUNK:
            return f"block {self.block} sees chunk {self.chunk}"
        ends = {int(Presence.FIRST): "first", int(Presence.LAST): "last"}
        what = f"is the {ends[self.what]} of its head" if self.what in ends else "exists"
        return f"block {self.block} {what}"


@dataclass(frozen=True)
class _Token(Instruction):
    """Base of the instructions on a queue. 0 cycles."""

    SERVES: ClassVar[str] = ""

    queue: int

    def operands(self) -> str:
        """``LOAD, ACT_FREE``."""
        if self.queue not in tuple(Queue):
            return str(self.queue)
        return f"{self.engine.name}, {Queue(self.queue).name}"


@dataclass(frozen=True)
class Wait(_Token):
    """The consumer of `queue` waits until it holds a token, and takes it."""

    OPCODE: ClassVar[int] = 2
    MNEMONIC: ClassVar[str] = "WAIT"
    KIND: ClassVar[Kind] = Kind.WAIT

    @property
    def engine(self) -> Engine:
        """The queue's consumer."""
        return Queue(self.queue).consumer


@dataclass(frozen=True)
class Signal(_Token):
    """The producer of `queue` puts a token into it, its earlier work being done."""

    OPCODE: ClassVar[int] = 3
    MNEMONIC: ClassVar[str] = "SIGNAL"
    KIND: ClassVar[Kind] = Kind.SIGNAL

    @property
    def engine(self) -> Engine:
        """The queue's producer."""
        return Queue(self.queue).producer
