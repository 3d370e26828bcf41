"""The listing of a program: assembly text that a person can read."""

from __future__ import annotations

from collections.abc import Iterator

from sparqle_tvm.target.isa.base import End, If, Instruction, Loop
from sparqle_tvm.target.isa.header import ProgramHeader, Queue
from sparqle_tvm.target.isa.operands import Buffer

_INDENT = "  "


def disassemble(header: ProgramHeader, instructions: tuple[Instruction, ...]) -> str:
    """Write the header as comments, then one instruction per line with its index.

    ``i0`` is the variable of loop 0, ``n0`` its trip count, ``M`` the number of rows, of attention
    ``B`` that of blocks and ``T`` that of keys. A tile is written
    ``TENSOR[row : +rows, column : +columns]``.
    """
    lines = [*_header_lines(header), *_code_lines(instructions)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _header_lines(header: ProgramHeader) -> Iterator[str]:
    machine = header.accelerator
    yield f"; {header.label or 'unnamed'}"
    yield from (f"; {line}" for line in header.summary())
    yield (
        f"; {machine.name}: {machine.rows} x {machine.cols} PEs, "
        f"{machine.lanes} lanes of {machine.digit_bits} bits"
    )
    if machine.scratchpad:
        yield f"; a scratchpad of {machine.onchip_bytes} bytes"
    for buffer in Buffer:
        room = "" if machine.scratchpad else f" {header.buffer_bytes(buffer)} bytes"
        yield f"; {buffer.name}{room}"
        for a in header.allocations:
            if a.buffer == buffer:
                slots = f"{a.slots} x {a.slot_bytes}"
                yield f";   {a.name:<8} {slots:<12} at {a.base}"
    tokens = ", ".join(f"{q.name} {n}" for q, n in zip(Queue, header.tokens, strict=True) if n)
    yield f"; tokens {tokens or 'none'}"


def _code_lines(instructions: tuple[Instruction, ...]) -> Iterator[str]:
    opened: list[str] = []
    width = len(str(len(instructions)))
    for index, instruction in enumerate(instructions):
        comment = f" ; {opened.pop()}" if isinstance(instruction, End) else ""
        yield f"{index:>{width}}: {_INDENT * len(opened)}{instruction}{comment}"
        if isinstance(instruction, Loop):
            opened.append(f"i{instruction.loop}")
        elif isinstance(instruction, If):
            opened.append("IF")
