"""Accelerator programs: built, printed, saved, bound to the sizes of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypeVar

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.showing import html_table
from sparqle_tvm.target.isa.base import End, If, Instruction, Loop, Presence, Signal, Wait
from sparqle_tvm.target.isa.header import Allocation, Header, ProgramHeader, Queue
from sparqle_tvm.target.isa.operands import Affine, Buffer, Limit
from sparqle_tvm.target.program.binary import pack, unpack
from sparqle_tvm.target.program.expand import expand
from sparqle_tvm.target.program.listing import disassemble
from sparqle_tvm.target.program.structure import check_structure

HeaderKind = TypeVar("HeaderKind", bound=ProgramHeader, default=Header)
"""The kind of a program: that of its header, of a dense op unless something else is said."""


@dataclass(frozen=True)
class Program(Generic[HeaderKind]):
    """A program: what it assumes, and its instructions.

    One program of a dense op serves every number of rows M from 1 to `header.op.m`; one of
    attention every number of rows and of tokens before them that its op has.

    Attributes
    ----------
    header : Header or another ProgramHeader
        Accelerator, op, buffers and tokens.
    instructions : tuple of Instruction
        With LOOP and END; the engines share the list, each executes its own.

    Raises
    ------
    ProgramError
        If the structure is broken, see `sparqle_tvm.target.program.structure`.
    """

    header: HeaderKind
    instructions: tuple[Instruction, ...]

    def __post_init__(self) -> None:
        """Check the structure."""
        check_structure(self.header, self.instructions)

    def __repr__(self) -> str:
        """Its op and its size."""
        op = getattr(getattr(self.header, "op", None), "label", "") or "an op"
        machine = self.header.accelerator.name
        return f"<Program: {op} for {machine}, {len(self.instructions)} instructions>"

    def _repr_html_(self) -> str:
        lines = [[line] for line in self.disassemble().splitlines()]
        return html_table(repr(self)[1:-1], ["listing"], lines)

    def disassemble(self) -> str:
        """Listing: what is assumed, then one instruction per line, loops indented."""
        return disassemble(self.header, self.instructions)

    def to_bytes(self) -> bytes:
        """Binary form, see `target.program.binary`: versioned, with length and checksum."""
        return pack(self.header, self.instructions)

    @classmethod
    def from_bytes(cls, data: bytes) -> Program[Any]:
        """Read the binary form.

        Raises
        ------
        ProgramError
            If it is damaged, truncated, of an unknown version, or not a program.
        """
        header, instructions = unpack(data)
        return Program(header, instructions)

    def bind(self, rows: int, past: int = 0) -> NDArray[np.int64]:
        """Expand to the steps for M = `rows` and, of attention, `past` tokens before them.

        Returns
        -------
        ndarray of int64, shape (steps, 16)
            One row per step: opcode, index in `instructions`, engine, operands in the order of
            the class's `TRACE`, then zeros. In program order, loops unrolled, and without what
            an IF leaves out.

        Raises
        ------
        ProgramError
            If there is no program for these sizes, or there are too many steps.
        """
        return expand(self.header, self.instructions, self.header.limits(rows, past))[0]


class ProgramBuilder(Generic[HeaderKind]):
    """Builds a program: allocate buffers, set tokens, emit instructions within loops.

    Parameters
    ----------
    header : Header or another ProgramHeader
        The op; `allocations` and `tokens` are filled in by the builder.

    Examples
    --------
    >>> b = ProgramBuilder(header)                              # doctest: +SKIP
    >>> act = b.allocate("lsb", Buffer.ACT, 4096, slots=2)      # doctest: +SKIP
    >>> b.tokens(Queue.ACT_FREE, 2)                             # doctest: +SKIP
    >>> with b.loop("M", 64) as i:                              # doctest: +SKIP
    ...     b.wait(Queue.ACT_FREE)
    ...     b.emit(LdLsb(act.at((i,)), Affine.loop(i, 64), Extent(64, "M", Affine.loop(i, 64)),
    ...                  Affine(), Extent(header.op.k)))
    ...     b.signal(Queue.ACT_READY)
    """

    def __init__(self, header: HeaderKind) -> None:
        """Begin with no instruction."""
        self._header = header
        self._instructions: list[Instruction] = []
        self._allocations: list[Allocation] = []
        self._tokens = [0] * len(Queue)
        self._loops = 0

    @property
    def header(self) -> HeaderKind:
        """The header so far."""
        allocations, tokens = tuple(self._allocations), tuple(self._tokens)
        return replace(self._header, allocations=allocations, tokens=tokens)

    def allocate(
        self, name: str, buffer: Buffer, slot_bytes: int, slots: int = 1, align: int = 8
    ) -> Allocation:
        """Reserve `slots` slots of `slot_bytes` (rounded up to `align`) behind what is reserved.

        Raises
        ------
        ProgramError
            If the buffer has not that much left.
        """
        ends = [a.end for a in self._allocations if a.buffer == buffer]
        slot_bytes = -(-slot_bytes // align) * align
        allocation = Allocation(name, buffer, max(ends, default=0), slots, slot_bytes)
        capacity = self._header.buffer_bytes(buffer)
        if allocation.end > capacity:
            raise ProgramError(
                f"{self._header.label!r}: {name} needs {slots} x {slot_bytes} bytes of "
                f"{buffer.name} from byte {allocation.base} on, the buffer has {capacity}"
            )
        self._allocations.append(allocation)
        return allocation

    def tokens(self, queue: Queue, count: int) -> None:
        """Say how many tokens a queue holds at the beginning."""
        self._tokens[queue] = count

    @contextmanager
    def loop(self, limit: Limit, step: int = 1) -> Iterator[int]:
        """Emit a loop of ``ceil(limit / step)`` iterations around a ``with`` block.

        Yields
        ------
        int
            The loop's variable, for `Affine.loop`, `Condition.first` and `Allocation.at`.
        """
        loop = self._loops
        self._loops += 1
        self.emit(Loop(loop, limit, step))
        yield loop
        self.emit(End())

    @contextmanager
    def when(self, what: Presence, block: int | Affine, chunk: int | Affine = 0) -> Iterator[None]:
        """Emit a condition around a ``with`` block."""
        self.emit(If(what, Affine.of(block), Affine.of(chunk)))
        yield
        self.emit(End())

    def emit(self, *instructions: Instruction) -> None:
        """Append instructions."""
        self._instructions.extend(instructions)

    def wait(self, *queues: Queue) -> None:
        """Append a WAIT for each queue."""
        self.emit(*(Wait(queue) for queue in queues))

    def signal(self, *queues: Queue) -> None:
        """Append a SIGNAL for each queue."""
        self.emit(*(Signal(queue) for queue in queues))

    def build(self) -> Program[HeaderKind]:
        """The program so far; verify it before running it."""
        return Program(self.header, tuple(self._instructions))
