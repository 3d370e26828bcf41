"""The listing of a program: assembly text that a person can read."""

from __future__ import annotations

from collections.abc import Iterator

from sparqle_tvm.target.isa import End, Instruction, Loop
from sparqle_tvm.target.isa.header import Header, Queue
from sparqle_tvm.target.isa.operands import Buffer

_INDENT = "  "


def disassemble(header: Header, instructions: tuple[Instruction, ...]) -> str:
    """Write the header as comments, then one instruction per line with its index.

    ``i0`` is the variable of loop 0, ``n0`` its trip count, ``M`` the number of rows. A tile is
    written ``TENSOR[row : +rows, column : +columns]``.
    """
    lines = [*_header_lines(header), *_code_lines(instructions)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _header_lines(header: Header) -> Iterator[str]:
    machine = header.accelerator
    weights = f"{'' if header.weight_signed else 'u'}int{header.weight_bits} weights"
    if header.group_size:
        weights += f", a scale{' and a minimum' * header.has_min} per {header.group_size} along K"
    yield f"; {header.label or 'unnamed'}"
    yield (
        f"; M <= {header.m_max}, N = {header.out_features}, K = {header.in_features} "
        f"in chunks of {header.k_chunk}, out {header.output}"
    )
    offset = "with offset" if header.has_offset else "no offset"
    yield f"; {header.scheme}, window {header.window}, {weights}, {offset}"
    if header.output == "encoded":
        yield (
            f"; outputs in chunks of {header.out_chunk}, window {header.out_window}, "
            f"zero {header.out_zero}, in [{header.out_low}, {header.out_high}]"
        )
    yield (
        f"; {machine.name}: {machine.rows} x {machine.cols} PEs, "
        f"{machine.lanes} lanes of {machine.digit_bits} bits"
    )
    for buffer in Buffer:
        yield f"; {buffer.name} {header.buffer_bytes(buffer)} bytes"
        for a in header.allocations:
            if a.buffer == buffer:
                slots = f"{a.slots} x {a.slot_bytes}"
                yield f";   {a.name:<8} {slots:<12} at {a.base}"
    tokens = ", ".join(f"{q.name} {n}" for q, n in zip(Queue, header.tokens, strict=True) if n)
    yield f"; tokens {tokens or 'none'}"


def _code_lines(instructions: tuple[Instruction, ...]) -> Iterator[str]:
    open_loops: list[int] = []
    width = len(str(len(instructions)))
    for index, instruction in enumerate(instructions):
        comment = f" ; i{open_loops.pop()}" if isinstance(instruction, End) else ""
        yield f"{index:>{width}}: {_INDENT * len(open_loops)}{instruction}{comment}"
        if isinstance(instruction, Loop):
            open_loops.append(instruction.loop)
