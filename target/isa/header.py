"""What a program assumes: the accelerator, the op, the DRAM layouts, buffers and tokens.

Every kind of program has a header of its own, all with what `ProgramHeader` says: `Header` is that
of a dense op, `sparqle_tvm.target.isa.attention_header.AttentionHeader` that of attention.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, ClassVar

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.target.accelerator import PIPELINE_CYCLES, Accelerator
from sparqle_tvm.target.isa.operands import Address, Affine, Buffer, M
from sparqle_tvm.target.op import DenseOp, group_sum_bytes, is_whole

SIZE_LIMIT = 2**31
_TOKEN_LIMIT = 2**16


class Engine(IntEnum):
    """Engines. Each executes its instructions in program order, one after the other."""

    LOAD = 0
    MMA = 1
    STORE = 2
    VECTOR = 3


class Queue(IntEnum):
    """Token queues. Each has one engine that signals and one that waits.

    A READY token says that data lies in a slot, a FREE token that a slot may be written again.
    ACT: activation planes and group sums. WGT: weights and their group parameters.
    ACC: accumulators. ROW: activation scales. CHN: channel parameters (both read by DRAIN).

    Of attention: ACT: queries. WGT: keys. VAL: values. SCL: scales of keys and values. SCR: scores.
    PRB: probabilities. LIV: the bitmap of live keys among them, that loads of values read. OSC:
    scales of outputs (read by DRN.OUT). The queries' factors are read with the scores.

    A token for sums of the array is there `delay_cycles` after its SIGNAL: the last products are on
    their way through the PEs while the array goes on with its next step.
    """

    producer: Engine
    consumer: Engine

    def __new__(
        cls, number: int, producer: Engine = Engine.LOAD, consumer: Engine = Engine.LOAD
    ) -> Queue:
        """A queue, the engine that signals, and the engine that waits; found by its number."""
        queue = int.__new__(cls, number)
        queue._value_ = number
        queue.producer, queue.consumer = producer, consumer
        return queue

    ACT_FREE = 0, Engine.MMA, Engine.LOAD
    ACT_READY = 1, Engine.LOAD, Engine.MMA
    WGT_FREE = 2, Engine.MMA, Engine.LOAD
    WGT_READY = 3, Engine.LOAD, Engine.MMA
    ACC_FREE = 4, Engine.STORE, Engine.MMA
    ACC_READY = 5, Engine.MMA, Engine.STORE
    ROW_FREE = 6, Engine.STORE, Engine.LOAD
    ROW_READY = 7, Engine.LOAD, Engine.STORE
    CHN_FREE = 8, Engine.STORE, Engine.LOAD
    CHN_READY = 9, Engine.LOAD, Engine.STORE
    VAL_FREE = 10, Engine.MMA, Engine.LOAD
    VAL_READY = 11, Engine.LOAD, Engine.MMA
    SCL_FREE = 12, Engine.VECTOR, Engine.LOAD
    SCL_READY = 13, Engine.LOAD, Engine.VECTOR
    SCR_FREE = 14, Engine.VECTOR, Engine.MMA
    SCR_READY = 15, Engine.MMA, Engine.VECTOR
    PRB_FREE = 16, Engine.MMA, Engine.VECTOR
    PRB_READY = 17, Engine.VECTOR, Engine.MMA
    LIV_FREE = 18, Engine.LOAD, Engine.VECTOR
    LIV_READY = 19, Engine.VECTOR, Engine.LOAD
    OSC_FREE = 20, Engine.STORE, Engine.VECTOR
    OSC_READY = 21, Engine.VECTOR, Engine.STORE

    @property
    def delay_cycles(self) -> int:
        """Cycles from a SIGNAL to its token."""
        return PIPELINE_CYCLES if self in (Queue.ACC_READY, Queue.SCR_READY) else 0


@dataclass(frozen=True)
class Allocation:
    """A part of a buffer: `slots` slots of `slot_bytes` bytes, from byte `base` on.

    Attributes
    ----------
    name : str
        What lies there, for the listing.
    buffer : Buffer
        The buffer.
    base, slots, slot_bytes : int
        Where.
    """

    name: str
    buffer: Buffer
    base: int
    slots: int
    slot_bytes: int

    @property
    def end(self) -> int:
        """First byte behind it."""
        return self.base + self.slots * self.slot_bytes

    def at(self, rotate: tuple[int, ...] = (), offset: int | Affine = 0, ahead: int = 0) -> Address:
        """Address in the slot of the current visit of the loops `rotate` (see `Address`)."""
        rotate = rotate if self.slots > 1 else ()
        slots, slot_bytes, ahead = (self.slots, self.slot_bytes, ahead) if rotate else (1, 0, 0)
        offset = Affine.of(offset)
        return Address(self.buffer, self.base, rotate, slots, slot_bytes, offset, ahead)


@dataclass(frozen=True, kw_only=True)
class ProgramHeader:
    """What the headers of all kinds of programs have.

    Attributes
    ----------
    accelerator : Accelerator
        The machine.
    allocations : tuple of Allocation
        Parts of the buffers. Every access stays within one slot of one of them.
    tokens : tuple of int
        Tokens in each `Queue` at the beginning, and again at the end.
    """

    KIND: ClassVar[str] = ""
    """Instructions of another kind are refused, see `Instruction.SERVES`."""

    accelerator: Accelerator
    allocations: tuple[Allocation, ...] = ()
    tokens: tuple[int, ...] = field(default=(0,) * len(Queue))

    @property
    def label(self) -> str:
        """Name of the op."""
        raise NotImplementedError

    def limits(self, rows: int, past: int) -> Mapping[str, int]:
        """What the names of run-time sizes in a program stand for, see `operands.Limit`.

        Raises
        ------
        ProgramError
            If the program cannot be bound to so many rows, or to so many tokens before them.
        """
        raise NotImplementedError

    def summary(self) -> Iterator[str]:
        """The op and its formats for the listing, line by line."""
        raise NotImplementedError

    def has(self, what: int, limits: Mapping[str, int], block: Any, chunk: Any) -> Any:
        """Whether what an IF asks for (`base.Presence`) is there, for numbers or arrays."""
        raise NotImplementedError

    def buffer_bytes(self, buffer: Buffer) -> int:
        """Size of a buffer; of a scratchpad, what the allocations of the others leave."""
        size = self.accelerator.memory_bytes(buffer.word)
        if not self.accelerator.scratchpad:
            return size
        ends = dict.fromkeys(Buffer, 0)
        for allocation in self.allocations:
            ends[allocation.buffer] = max(ends[allocation.buffer], allocation.end)
        return max(size - sum(end for other, end in ends.items() if other != buffer), 0)


@dataclass(frozen=True, kw_only=True)
class Header(ProgramHeader):
    """What the program of a dense op assumes of its accelerator and its operands.

    Attributes
    ----------
    accelerator : Accelerator
        The machine; its `digit_bits` is that of the op.
    op : DenseOp
        The op; its `m` is the largest M that the program can be bound to, its `label` the name in
        listings and reports. Rows are sorted in whole row groups of the machine, and encoded
        outputs have chunks as `k_chunk`: a multiple of 8 and `lanes`, or at least N.
    k_chunk : int
        Columns of a K chunk: every load and MMA works on one whole chunk, the last may be
        shorter. A multiple of 8, of `lanes` and of `group_size`, or at least K.
    allocations, tokens
        See `ProgramHeader`.

    Raises
    ------
    ProgramError
        If a field has the wrong type or value, or fields do not agree.
    """

    KIND: ClassVar[str] = "dense"

    op: DenseOp
    k_chunk: int

    def __post_init__(self) -> None:
        """Check every field."""
        problem = _op_problem(self) or common_problem(self)
        if problem:
            raise ProgramError(f"header of program {self.op.label!r}: {problem}")

    @property
    def label(self) -> str:
        """Name of the op."""
        return self.op.label

    @property
    def chunks(self) -> int:
        """K chunks."""
        return -(-self.op.k // self.k_chunk)

    @property
    def accumulator_bytes(self) -> int:
        """Bytes of an accumulator: int32, or exact 64 bits with groups."""
        return self.op.accumulator_bytes

    @property
    def sum_bytes(self) -> int:
        """Bytes of a group sum."""
        return group_sum_bytes(self.op.group_size, self.op.digit_bits)

    @property
    def out_chunks(self) -> int:
        """Chunks of the encoded outputs, 0 of others."""
        return -(-self.op.n // self.op.out_chunk) if self.op.out_chunk else 0

    @property
    def output_bytes(self) -> int:
        """Bytes of an output in DRAM, if it is not encoded."""
        return 4 if self.op.output == "int32" else self.accelerator.float_bytes

    @property
    def order_bytes(self) -> int:
        """Bytes of a row number; 0: rows are in their own order."""
        return row_number_bytes(self.op.m) if self.op.block_rows else 0

    @property
    def row_bytes(self) -> int:
        """Bytes of the parameters that DRAIN and ST.OUT need per row; 0: they need none."""
        return self.zeros_offset + self.op.shift_bytes

    @property
    def zeros_offset(self) -> int:
        """Bytes per row of what lies before the zero points in row parameters."""
        return 4 * self.op.scaled + self.order_bytes

    @property
    def channel_bytes(self) -> int:
        """Bytes of the parameters that DRAIN needs per channel; 0: it needs none."""
        return self.op.channel_parameter_bytes

    def limits(self, rows: int, past: int) -> Mapping[str, int]:
        """``M``: rows; there is nothing before them."""
        if not 1 <= rows <= self.op.m:
            raise ProgramError(
                f"program {self.label!r} takes 1 to {self.op.m} rows, it was bound to {rows}"
            )
        if past:
            raise ProgramError(f"program {self.label!r} is of a dense op: it has no past")
        return {M: rows}

    def summary(self) -> Iterator[str]:
        """Sizes and formats."""
        op = self.op
        weights = f"{'' if op.weight_signed else 'u'}int{op.weight_bits} weights"
        if op.group_size:
            wide = "float32 " * (op.scale_bytes == 4)
            minimum = " and a minimum" * op.has_min
            weights += f", a {wide}scale{minimum} per {op.group_size} along K"
        yield f"M <= {op.m}, N = {op.n}, K = {op.k} in chunks of {self.k_chunk}, out {op.output}"
        offset = "with offset" if op.has_offset else "no offset"
        offset += ", a float bias" * op.has_bias
        bits = 2 * op.digit_bits
        window = _window(op.act_signed, bits, op.window, op.centre)
        window += ", a zero point per row" if op.row_zeros else ""
        yield f"{op.scheme}, {window}, {weights}, {offset}"
        if op.output == "encoded":
            window = _window(op.out_signed, bits, op.out_window, op.out_centre)
            yield (
                f"outputs in chunks of {op.out_chunk}, {window}, "
                f"zero {op.out_zero}, in [{op.out_low}, {op.out_high}]"
            )
        if op.has_mid:
            yield f"sums on a grid first, zero {op.mid_zero}, in [{op.mid_low}, {op.mid_high}]"


def _window(signed: bool, bits: int, window: str, centre: int) -> str:
    """``int8 in window signed``, with the centre if that is not 0."""
    around = f" around {centre}" if centre else ""
    return f"{'' if signed else 'u'}int{bits} in window {window}{around}"


def row_number_bytes(rows: int) -> int:
    """Bytes of the number of one of `rows` rows."""
    return 2 if rows <= 2**16 else 4


def _op_problem(header: Header) -> str | None:
    """What the machine, the chunks or the tokens do not have in common with the op."""
    op, machine = header.op, header.accelerator
    if op.digit_bits != machine.digit_bits:
        return f"the op has digits of {op.digit_bits} bits, the machine of {machine.digit_bits}"
    unit = math.lcm(8, machine.lanes)
    for name, chunk, whole, multiple in (
        ("k_chunk", header.k_chunk, op.k, math.lcm(unit, max(op.group_size, 1))),
        ("out_chunk", op.out_chunk, op.n, unit),
    ):
        if name == "out_chunk" and op.output != "encoded":
            continue
        if not is_whole(chunk, 1, SIZE_LIMIT):
            return f"{name} = {chunk!r} must be a positive whole number"
        if chunk % multiple and chunk < whole:
            return f"{name} = {chunk} must be a multiple of {multiple}, or at least {whole}"
    if op.block_rows % machine.rows:
        return f"block_rows = {op.block_rows} is not a multiple of {machine.rows}"
    return None


def common_problem(header: ProgramHeader) -> str | None:
    """What is wrong with the fields that all kinds of headers have."""
    if len(header.tokens) != len(Queue) or not all(
        is_whole(count, 0, _TOKEN_LIMIT) for count in header.tokens
    ):
        return f"tokens must be {len(Queue)} whole numbers, one per queue"
    return _machine_problem(header.accelerator) or _allocation_problem(header)


def _machine_problem(accelerator: Accelerator) -> str | None:
    sizes = {
        name: getattr(accelerator, name)
        for name in (
            *("rows", "cols", "lanes", "drain_elements_per_cycle", "dma_descriptor_cycles"),
            *("activation_buffer_bytes", "weight_buffer_bytes", "accumulator_buffer_bytes"),
        )
    }
    too_large = [name for name, size in sizes.items() if size >= SIZE_LIMIT]
    return f"accelerator: {too_large[0]} is too large" if too_large else None


def _allocation_problem(header: ProgramHeader) -> str | None:
    for allocation in header.allocations:
        numbers = (allocation.base, allocation.slots, allocation.slot_bytes)
        if not all(is_whole(number, 0, SIZE_LIMIT) for number in numbers):
            return f"allocation {allocation.name!r}: {numbers} must be whole numbers"
        name: Any = allocation.name
        if not isinstance(name, str):
            return f"the name of allocation {name!r} must be a text"
        if allocation.end > header.buffer_bytes(allocation.buffer):
            return (
                f"allocation {allocation.name!r} ends at byte {allocation.end} of "
                f"{allocation.buffer.name}, which has {header.buffer_bytes(allocation.buffer)}"
            )
    ordered = sorted(header.allocations, key=lambda a: (a.buffer, a.base))
    for first, second in itertools.pairwise(ordered):
        if first.buffer == second.buffer and second.base < first.end:
            return f"allocations {first.name!r} and {second.name!r} overlap"
    return None
