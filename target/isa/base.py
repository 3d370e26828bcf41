"""What all instructions share, and those that control: loops and tokens."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, ClassVar

from sparqle_tvm.target.isa.header import Engine, Header, Queue
from sparqle_tvm.target.isa.operands import CODECS, Limit, Reader

TRACE_COLUMNS = 16
TRACE_OPCODE, TRACE_INSTRUCTION, TRACE_ENGINE, TRACE_OPERANDS = 0, 1, 2, 3


class Tensor(IntEnum):
    """Tensors in DRAM.

    LSB (M, ceil(K*k/8)) uint8; PBM (M, ceil(K/8)) uint8, both as in the transport form.
    MSB: digit stream, K chunk by K chunk, within a chunk row by row, each (row, chunk) padded to
    a byte. MSB_PTR: int32 byte offsets into it, one per (chunk, group of `accelerator.rows`
    rows), chunk-major, and one for the end. ACT (M, K) of 2k bits. ACT_SCALE (M,) float32.
    GROUP_SUMS (M, K/g) int16, or int32 if g >= 256. WGT (N, K) packed at `weight_bits`, low
    element first. W_SCALE (N, K/g) float16 or (N,) float32. W_MIN (N, K/g) float16. OFFSET (N,)
    float64 with groups, else int32. OUT (M, N) int32 or float32. ROW_ORDER (M,) uint16, or int32
    if `DenseOp.m` > 2^16: with `block_rows`, all tensors of activations lie in this order, that is
    their row i is row ROW_ORDER[i] of OUT.

    Encoded outputs (`DenseOp.output`): OUT_LSB, OUT_PBM, OUT_MSB and OUT_MSB_PTR have the formats
    of LSB, PBM, MSB and MSB_PTR with K = N and chunks of `DenseOp.out_chunk`, so that they are the
    inputs of a next program as they are. OUT_SCALE (1,) float32 is no tensor in DRAM but an
    argument of the launch, as M is: STORE has it in a register.
    """

    LSB = 0
    PBM = 1
    MSB = 2
    MSB_PTR = 3
    ACT = 4
    ACT_SCALE = 5
    GROUP_SUMS = 6
    WGT = 7
    W_SCALE = 8
    W_MIN = 9
    OFFSET = 10
    OUT = 11
    ROW_ORDER = 12
    OUT_LSB = 13
    OUT_PBM = 14
    OUT_MSB = 15
    OUT_MSB_PTR = 16
    OUT_SCALE = 17


def ceil_div(a: Any, b: Any) -> Any:
    """``ceil(a / b)`` of whole numbers or arrays of them."""
    return -(-a // b)


def transfer_cycles(header: Header, nbytes: int) -> int:
    """Cycles of one DMA transfer of `nbytes` > 0 bytes: a descriptor, then the bytes."""
    accelerator = header.accelerator
    fixed = accelerator.dma_descriptor_cycles
    return fixed + int(-(-nbytes // accelerator.dram_bytes_per_cycle))


@dataclass(frozen=True)
class Instruction:
    """Base of all instructions.

    Attributes
    ----------
    OPCODE : int
        Number in the binary form and in the trace.
    MNEMONIC : str
        Name in the listing.
    ENGINE : Engine
        Who executes it (`WAIT` and `SIGNAL`: see `engine`).
    TRACE : tuple of str
        Operands in the order of the trace.
    """

    OPCODE: ClassVar[int] = -1
    MNEMONIC: ClassVar[str] = ""
    ENGINE: ClassVar[Engine] = Engine.LOAD
    TRACE: ClassVar[tuple[str, ...]] = ()

    @property
    def engine(self) -> Engine:
        """The engine that executes it."""
        return self.ENGINE

    @classmethod
    def column(cls, operand: str) -> int:
        """Column of an operand in the trace."""
        return TRACE_OPERANDS + cls.TRACE.index(operand)

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
    limit : int or "M"
        Extent of what is tiled.
    step : int
        Extent of a tile.
    """

    OPCODE: ClassVar[int] = 0
    MNEMONIC: ClassVar[str] = "LOOP"

    loop: int
    limit: Limit
    step: int

    def operands(self) -> str:
        """``i0 < ceil(M / 64)``."""
        return f"i{self.loop} < n{self.loop} = ceil({self.limit} / {self.step})"


@dataclass(frozen=True)
class End(Instruction):
    """End of the innermost open LOOP. Costs nothing, is not in the trace."""

    OPCODE: ClassVar[int] = 1
    MNEMONIC: ClassVar[str] = "END"


@dataclass(frozen=True)
class Wait(Instruction):
    """The consumer of `queue` waits until it holds a token, and takes it. 0 cycles."""

    OPCODE: ClassVar[int] = 2
    MNEMONIC: ClassVar[str] = "WAIT"
    TRACE: ClassVar[tuple[str, ...]] = ("queue",)

    queue: int

    @property
    def engine(self) -> Engine:
        """The queue's consumer."""
        return Queue(self.queue).consumer

    def operands(self) -> str:
        """``LOAD, ACT_FREE``."""
        return _queue_text(self)


@dataclass(frozen=True)
class Signal(Instruction):
    """The producer of `queue` puts a token into it, its earlier work being done. 0 cycles."""

    OPCODE: ClassVar[int] = 3
    MNEMONIC: ClassVar[str] = "SIGNAL"
    TRACE: ClassVar[tuple[str, ...]] = ("queue",)

    queue: int

    @property
    def engine(self) -> Engine:
        """The queue's producer."""
        return Queue(self.queue).producer

    def operands(self) -> str:
        """``LOAD, ACT_READY``."""
        return _queue_text(self)


def _queue_text(instruction: Wait | Signal) -> str:
    if instruction.queue not in tuple(Queue):
        return str(instruction.queue)
    return f"{instruction.engine.name}, {Queue(instruction.queue).name}"
