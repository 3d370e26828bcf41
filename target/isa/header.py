"""What a program assumes: the accelerator, the op, the DRAM layouts, buffers and tokens."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal, get_args

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.numerics.slicing import max_exact
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.isa.operands import Address, Affine, Buffer

Output = Literal["int32", "float32", "encoded"]
Window = Literal["signed", "unsigned"]
Scheme = Literal["sparqle", "dense"]

_SIZE_LIMIT = 2**31
_TOKEN_LIMIT = 2**16


class Engine(IntEnum):
    """Engines. Each executes its instructions in program order, one after the other."""

    LOAD = 0
    MMA = 1
    STORE = 2


class Queue(IntEnum):
    """Token queues. Each has one engine that signals and one that waits.

    A READY token says that data lies in a slot, a FREE token that a slot may be written again.
    ACT: activation planes and group sums. WGT: weights and their group parameters.
    ACC: accumulators. ROW: activation scales. CHN: channel parameters (both read by DRAIN).
    """

    ACT_FREE = 0
    ACT_READY = 1
    WGT_FREE = 2
    WGT_READY = 3
    ACC_FREE = 4
    ACC_READY = 5
    ROW_FREE = 6
    ROW_READY = 7
    CHN_FREE = 8
    CHN_READY = 9

    @property
    def producer(self) -> Engine:
        """The engine that signals."""
        return _QUEUE_ENGINES[self][0]

    @property
    def consumer(self) -> Engine:
        """The engine that waits."""
        return _QUEUE_ENGINES[self][1]


_QUEUE_ENGINES = {
    Queue.ACT_FREE: (Engine.MMA, Engine.LOAD),
    Queue.ACT_READY: (Engine.LOAD, Engine.MMA),
    Queue.WGT_FREE: (Engine.MMA, Engine.LOAD),
    Queue.WGT_READY: (Engine.LOAD, Engine.MMA),
    Queue.ACC_FREE: (Engine.STORE, Engine.MMA),
    Queue.ACC_READY: (Engine.MMA, Engine.STORE),
    Queue.ROW_FREE: (Engine.STORE, Engine.LOAD),
    Queue.ROW_READY: (Engine.LOAD, Engine.STORE),
    Queue.CHN_FREE: (Engine.STORE, Engine.LOAD),
    Queue.CHN_READY: (Engine.LOAD, Engine.STORE),
}


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

    def at(self, rotate: tuple[int, ...] = (), offset: int | Affine = 0) -> Address:
        """Address in the slot of the current visit of the loops `rotate` (see `Address`)."""
        rotate = rotate if self.slots > 1 else ()
        slots, slot_bytes = (self.slots, self.slot_bytes) if rotate else (1, 0)
        return Address(self.buffer, self.base, rotate, slots, slot_bytes, Affine.of(offset))


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a program assumes of its accelerator and its operands.

    Attributes
    ----------
    accelerator : Accelerator
        The machine; its `digit_bits` is the width k of a digit.
    label : str
        The op, for listings and reports.
    scheme : {"sparqle", "dense"}
        Planes and bitmap, or 2k-bit activations. ``dense`` has the window ``unsigned``.
    window : {"signed", "unsigned"}
        What stored LSB digits stand for: those of ``signed`` have their top bit flipped, see
        `isa.MmaLsb`.
    in_features, out_features : int
        K and N.
    m_max : int
        Largest M that the program can be bound to.
    k_chunk : int
        Columns of a K chunk: every load and MMA works on one whole chunk, the last may be
        shorter. A multiple of 8, of `lanes` and of `group_size`, or at least K.
    weight_bits : int
        2, 4 or 8 bits of a stored weight.
    weight_signed : bool
        Whether they are two's complement.
    group_size : int
        Weights along K that share a scale; 0: one scale per channel, int32 accumulators.
    has_min : bool
        The groups have a minimum besides the scale.
    has_offset : bool
        There is a constant per channel (a bias): int32, or float64 with groups.
    output : {"int32", "float32", "encoded"}
        What DRAIN makes. ``int32`` has no scales and needs group_size 0. ``encoded``: the float32
        quantized with a static scale, stored as planes and bitmap.
    block_rows : int
        Rows that the encoding sorted together, a multiple of `accelerator.rows`: activations lie
        in that order, ST.OUT puts rows back in their places. 0: rows are in their own order.
        Only with scheme ``sparqle`` and float32 outputs.
    out_chunk : int
        ``encoded`` only: output channels that the MSB stream keeps together, the K chunk of the
        programs that read it. As `k_chunk`: a multiple of 8 and `lanes`, or at least N.
    out_window : {"signed", "unsigned"}
        ``encoded`` only: window of the outputs.
    out_zero, out_low, out_high : int
        ``encoded`` only: zero point and limits of the quantized outputs.
    allocations : tuple of Allocation
        Parts of the buffers. Every access stays within one slot of one of them.
    tokens : tuple of int
        Tokens in each `Queue` at the beginning, and again at the end.

    Raises
    ------
    ProgramError
        If a field has the wrong type or value, or fields do not agree.
    """

    accelerator: Accelerator
    label: str = ""
    scheme: Scheme = "sparqle"
    window: Window = "signed"
    in_features: int
    out_features: int
    m_max: int
    k_chunk: int
    weight_bits: int = 4
    weight_signed: bool = True
    group_size: int = 0
    has_min: bool = False
    has_offset: bool = False
    output: Output = "float32"
    block_rows: int = 0
    out_chunk: int = 0
    out_window: Window = "unsigned"
    out_zero: int = 0
    out_low: int = 0
    out_high: int = 0
    allocations: tuple[Allocation, ...] = ()
    tokens: tuple[int, ...] = field(default=(0,) * len(Queue))

    def __post_init__(self) -> None:
        """Check every field."""
        problem = _header_problem(self)
        if problem:
            raise ProgramError(f"header of program {self.label!r}: {problem}")

    @property
    def digit_bits(self) -> int:
        """Width k of a digit."""
        return self.accelerator.digit_bits

    @property
    def chunks(self) -> int:
        """K chunks."""
        return -(-self.in_features // self.k_chunk)

    @property
    def weight_slices(self) -> int:
        """Passes of k-bit digits that a weight takes."""
        return -(-self.weight_bits // self.digit_bits)

    @property
    def accumulator_bytes(self) -> int:
        """Bytes of an accumulator: int32, or exact 64 bits with groups."""
        return 8 if self.group_size else 4

    @property
    def sum_bytes(self) -> int:
        """Bytes of a group sum."""
        return 2 if self.group_size < 256 and self.digit_bits < 8 else 4

    @property
    def scaled(self) -> bool:
        """Whether DRAIN makes floats, by scales of rows and channels."""
        return self.output != "int32"

    @property
    def out_chunks(self) -> int:
        """Chunks of the encoded outputs, 0 of others."""
        return -(-self.out_features // self.out_chunk) if self.out_chunk else 0

    @property
    def output_bytes(self) -> int:
        """Bytes of an output in DRAM, if it is not encoded."""
        return 4 if self.output == "int32" else self.accelerator.float_bytes

    @property
    def order_bytes(self) -> int:
        """Bytes of a row number; 0: rows are in their own order."""
        return row_number_bytes(self.m_max) if self.block_rows else 0

    @property
    def row_bytes(self) -> int:
        """Bytes of the parameters that DRAIN and ST.OUT need per row; 0: they need none."""
        return 4 * self.scaled + self.order_bytes

    @property
    def channel_bytes(self) -> int:
        """Bytes of the parameters that DRAIN needs per channel; 0: it needs none."""
        if self.group_size:
            return 8 * self.has_offset
        return 4 * self.scaled + 4 * self.has_offset

    def buffer_bytes(self, buffer: Buffer) -> int:
        """Size of a buffer."""
        return {
            Buffer.ACT: self.accelerator.activation_buffer_bytes,
            Buffer.WGT: self.accelerator.weight_buffer_bytes,
            Buffer.ACC: self.accelerator.accumulator_buffer_bytes,
        }[buffer]


def row_number_bytes(rows: int) -> int:
    """Bytes of the number of one of `rows` rows."""
    return 2 if rows <= 2**16 else 4


def _header_problem(header: Header) -> str | None:
    """What is wrong with a header, if anything."""
    return (
        _type_problem(header)
        or _op_problem(header)
        or _encoding_problem(header)
        or _machine_problem(header.accelerator)
        or _allocation_problem(header)
    )


def _type_problem(header: Header) -> str | None:
    choices = {"scheme": Scheme, "window": Window, "output": Output, "out_window": Window}
    for name, literal in choices.items():
        if getattr(header, name) not in get_args(literal):
            return f"{name} = {getattr(header, name)!r} must be one of {get_args(literal)}"
    for name in ("weight_signed", "has_min", "has_offset"):
        if not isinstance(getattr(header, name), bool):
            return f"{name} must be true or false"
    for name in ("in_features", "out_features", "m_max", "k_chunk", "weight_bits"):
        if not _is_whole(getattr(header, name), 1, _SIZE_LIMIT):
            return f"{name} = {getattr(header, name)!r} must be a positive whole number"
    for name in ("group_size", "block_rows", "out_chunk"):
        if not _is_whole(getattr(header, name), 0, _SIZE_LIMIT):
            return f"{name} = {getattr(header, name)!r} must be a whole number"
    for name in ("out_zero", "out_low", "out_high"):
        if not _is_whole(getattr(header, name), -_SIZE_LIMIT, _SIZE_LIMIT):
            return f"{name} = {getattr(header, name)!r} must be a whole number"
    label: Any = header.label
    if not isinstance(label, str):
        return "label must be a text"
    if len(header.tokens) != len(Queue) or not all(
        _is_whole(count, 0, _TOKEN_LIMIT) for count in header.tokens
    ):
        return f"tokens must be {len(Queue)} whole numbers, one per queue"
    return None


def _op_problem(header: Header) -> str | None:
    unit = math.lcm(8, header.accelerator.lanes, max(header.group_size, 1))
    if header.k_chunk % unit and header.k_chunk < header.in_features:
        return f"k_chunk = {header.k_chunk} must be a multiple of {unit}, or at least K"
    if header.weight_bits not in (2, 4, 8):
        return f"weight_bits = {header.weight_bits} must be 2, 4 or 8"
    if header.has_min and not header.group_size:
        return "minima need a group_size"
    if header.output == "int32" and header.group_size:
        return "int32 outputs cannot have groups"
    if header.window == "signed" and header.scheme == "dense":
        return "window signed needs scheme sparqle"
    if header.block_rows % header.accelerator.rows:
        return f"block_rows = {header.block_rows} is not a multiple of {header.accelerator.rows}"
    if header.block_rows and (header.scheme == "dense" or header.output != "float32"):
        return "sorted rows need scheme sparqle and float32 outputs"
    return None


def _encoding_problem(header: Header) -> str | None:
    """What is wrong with the format of encoded outputs."""
    k, low, high = header.digit_bits, header.out_low, header.out_high
    if header.output != "encoded":
        given = (header.out_chunk, header.out_window, header.out_zero, low, high)
        return None if given == (0, "unsigned", 0, 0, 0) else "only encoded outputs have a format"
    unit = math.lcm(8, header.accelerator.lanes)
    if header.out_chunk < 1 or (header.out_chunk % unit and header.out_chunk < header.out_features):
        return f"out_chunk = {header.out_chunk} must be a multiple of {unit}, or at least N"
    smallest, largest = -(2 ** (2 * k - 1)), max_exact(k, header.out_window)
    if not smallest <= low <= high <= largest:
        return f"limits [{low}, {high}] of the outputs must lie in [{smallest}, {largest}]"
    if not smallest <= header.out_zero < -smallest:
        return f"out_zero = {header.out_zero} must be an integer of {2 * k} bits"
    return None


def _machine_problem(accelerator: Accelerator) -> str | None:
    sizes = {
        name: getattr(accelerator, name)
        for name in (
            *("rows", "cols", "lanes", "drain_elements_per_cycle", "dma_descriptor_cycles"),
            *("activation_buffer_bytes", "weight_buffer_bytes", "accumulator_buffer_bytes"),
        )
    }
    too_large = [name for name, size in sizes.items() if size >= _SIZE_LIMIT]
    return f"accelerator: {too_large[0]} is too large" if too_large else None


def _allocation_problem(header: Header) -> str | None:
    for allocation in header.allocations:
        numbers = (allocation.base, allocation.slots, allocation.slot_bytes)
        if not all(_is_whole(number, 0, _SIZE_LIMIT) for number in numbers):
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


def _is_whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < high
