"""The listing of a program: assembly text that a person can read."""

from __future__ import annotations

from collections.abc import Iterator

from sparqle_tvm.target.isa.base import End, Instruction, Loop
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
    machine, op = header.accelerator, header.op
    weights = f"{'' if op.weight_signed else 'u'}int{op.weight_bits} weights"
    if op.group_size:
        weights += f", a scale{' and a minimum' * op.has_min} per {op.group_size} along K"
    yield f"; {header.label or 'unnamed'}"
    yield (f"; M <= {op.m}, N = {op.n}, K = {op.k} in chunks of {header.k_chunk}, out {op.output}")
    offset = "with offset" if op.has_offset else "no offset"
    bits = 2 * op.digit_bits
    window = _window(op.act_signed, bits, op.window, op.centre)
    window += ", a zero point per row" if op.row_zeros else ""
    yield f"; {op.scheme}, {window}, {weights}, {offset}"
    if op.output == "encoded":
        window = _window(op.out_signed, bits, op.out_window, op.out_centre)
        yield (
            f"; outputs in chunks of {op.out_chunk}, {window}, "
            f"zero {op.out_zero}, in [{op.out_low}, {op.out_high}]"
        )
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


def _window(signed: bool, bits: int, window: str, centre: int) -> str:
    """``int8 in window signed``, with the centre if that is not 0."""
    around = f" around {centre}" if centre else ""
    return f"{'' if signed else 'u'}int{bits} in window {window}{around}"


def _code_lines(instructions: tuple[Instruction, ...]) -> Iterator[str]:
    open_loops: list[int] = []
    width = len(str(len(instructions)))
    for index, instruction in enumerate(instructions):
        comment = f" ; i{open_loops.pop()}" if isinstance(instruction, End) else ""
        yield f"{index:>{width}}: {_INDENT * len(open_loops)}{instruction}{comment}"
        if isinstance(instruction, Loop):
            open_loops.append(instruction.loop)
