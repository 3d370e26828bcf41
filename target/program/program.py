"""Accelerator programs: built, printed, saved, bound to a number of rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.target.isa.base import End, Instruction, Loop, Signal, Wait
from sparqle_tvm.target.isa.header import Allocation, Header, Queue
from sparqle_tvm.target.isa.operands import Buffer, Limit
from sparqle_tvm.target.program.binary import pack, unpack
from sparqle_tvm.target.program.expand import expand
from sparqle_tvm.target.program.listing import disassemble
from sparqle_tvm.target.program.structure import check_structure


@dataclass(frozen=True)
class Program:
    """A program: what it assumes, and its instructions.

    One program serves every number of rows M from 1 to `header.op.m`.

    Attributes
    ----------
    header : Header
        Accelerator, op, buffers and tokens.
    instructions : tuple of Instruction
        With LOOP and END; the engines share the list, each executes its own.

    Raises
    ------
    ProgramError
        If the structure is broken, see `sparqle_tvm.target.program.structure`.
    """

    header: Header
    instructions: tuple[Instruction, ...]

    def __post_init__(self) -> None:
        """Check the structure."""
        check_structure(self.header, self.instructions)

    def disassemble(self) -> str:
        """Listing: what is assumed, then one instruction per line, loops indented."""
        return disassemble(self.header, self.instructions)

    def to_bytes(self) -> bytes:
        """Binary form, see `target.program.binary`: versioned, with length and checksum."""
        return pack(self.header, self.instructions)

    @classmethod
    def from_bytes(cls, data: bytes) -> Program:
        """Read the binary form.

        Raises
        ------
        ProgramError
            If it is damaged, truncated, of an unknown version, or not a program.
        """
        return cls(*unpack(data))

    def bind(self, rows: int) -> NDArray[np.int64]:
        """Expand to the steps for M = `rows`.

        Returns
        -------
        ndarray of int64, shape (steps, 16)
            One row per step: opcode, index in `instructions`, engine, operands in the order of
            the class's `TRACE`, then zeros. In program order, loops unrolled.

        Raises
        ------
        ProgramError
            If `rows` is not in 1 ... `header.op.m`, or there are too many steps.
        """
        return expand(self.header, self.instructions, rows)


class ProgramBuilder:
    """Builds a program: allocate buffers, set tokens, emit instructions within loops.

    Parameters
    ----------
    header : Header
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

    def __init__(self, header: Header) -> None:
        """Begin with no instruction."""
        self._header = header
        self._instructions: list[Instruction] = []
        self._allocations: list[Allocation] = []
        self._tokens = [0] * len(Queue)
        self._loops = 0

    @property
    def header(self) -> Header:
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

    def emit(self, *instructions: Instruction) -> None:
        """Append instructions."""
        self._instructions.extend(instructions)

    def wait(self, *queues: Queue) -> None:
        """Append a WAIT for each queue."""
        self.emit(*(Wait(queue) for queue in queues))

    def signal(self, *queues: Queue) -> None:
        """Append a SIGNAL for each queue."""
        self.emit(*(Signal(queue) for queue in queues))

    def build(self) -> Program:
        """The program so far; verify it before running it."""
        return Program(self.header, tuple(self._instructions))
