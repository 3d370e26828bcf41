"""The instructions: meaning, operands, binary form, text and cost of each, in one place.

Three engines execute a program beside each other, each its own instructions in order. LOAD moves
tiles from DRAM into the buffers ACT and WGT. MMA multiplies them into accumulators in ACC. STORE
drains accumulators into outputs and moves those to DRAM. Tokens order the engines.

A tile is (rows, columns) of a tensor in DRAM; "rows" are output channels for weights, "columns"
always count along K. `M` rows, `K` = `in_features`, `N` = `out_features`, k = `digit_bits`, g =
`group_size`. On chip a tile lies row by row, each row padded to a byte.

In the trace (`Program.bind`) a step is one row of int64: opcode, index of the instruction in
`Program.instructions`, engine, then the evaluated operands in the order of the class's `TRACE`.
An `Address` is evaluated to a byte address (-1 for None), a `Condition` to 0 or 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.target.isa.base import (
    TRACE_COLUMNS,
    TRACE_ENGINE,
    TRACE_INSTRUCTION,
    TRACE_OPCODE,
    TRACE_OPERANDS,
    End,
    Instruction,
    Loop,
    Signal,
    Tensor,
    Wait,
    ceil_div,
    transfer_cycles,
)
from sparqle_tvm.target.isa.compute import (
    Drain,
    MmaDns,
    MmaLsb,
    MmaMin,
    MmaMsb,
    StEnc,
    StOut,
    burst_bytes,
    dense_span_steps,
    reduction_cycles,
    split_steps,
    stream_order,
)
from sparqle_tvm.target.isa.load import (
    MSB_POINTER_BYTES,
    LdAct,
    LdChn,
    LdGrp,
    LdLsb,
    LdMsb,
    LdPbm,
    LdRow,
    LdSum,
    LdWgt,
    TileLoad,
)
from sparqle_tvm.target.isa.operands import Reader

__all__ = [
    "INSTRUCTIONS",
    "MSB_POINTER_BYTES",
    "TRACE_COLUMNS",
    "TRACE_ENGINE",
    "TRACE_INSTRUCTION",
    "TRACE_OPCODE",
    "TRACE_OPERANDS",
    "Drain",
    "End",
    "Instruction",
    "LdAct",
    "LdChn",
    "LdGrp",
    "LdLsb",
    "LdMsb",
    "LdPbm",
    "LdRow",
    "LdSum",
    "LdWgt",
    "Loop",
    "MmaDns",
    "MmaLsb",
    "MmaMin",
    "MmaMsb",
    "Signal",
    "StEnc",
    "StOut",
    "Tensor",
    "TileLoad",
    "Wait",
    "burst_bytes",
    "ceil_div",
    "dense_span_steps",
    "read_instruction",
    "reduction_cycles",
    "split_steps",
    "stream_order",
    "transfer_cycles",
]

INSTRUCTIONS: Mapping[int, type[Instruction]] = MappingProxyType(
    {
        cls.OPCODE: cls
        for cls in (
            *(Loop, End, Wait, Signal),
            *(LdLsb, LdPbm, LdMsb, LdSum, LdWgt, LdGrp, LdAct, LdRow, LdChn),
            *(MmaLsb, MmaMsb, MmaDns, MmaMin, Drain, StOut, StEnc),
        )
    }
)
"""Every instruction class by its opcode."""


def read_instruction(reader: Reader) -> Instruction:
    """Read one instruction.

    Raises
    ------
    ProgramError
        If the opcode is unknown or an operand malformed.
    """
    opcode = reader.take(1)[0]
    if opcode not in INSTRUCTIONS:
        raise ProgramError(f"unknown opcode {opcode}")
    return INSTRUCTIONS[opcode].read(reader)
