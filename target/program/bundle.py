"""Several programs of one op in one string of bytes: one for each bucket of row counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.target.isa.attention_header import AttentionHeader
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.program.binary import program_bytes

PROGRAMS_FUNCTION = "sparqle_programs"
"""The function of a compiled module that returns its bundles: a tuple of uint8 (bytes,)."""


def pack_bundle(programs: Sequence[Program[Any]]) -> bytes:
    """Put programs one after the other; each says how long it is."""
    return b"".join(program.to_bytes() for program in programs)


def unpack_bundle(data: bytes) -> tuple[Program[Any], ...]:
    """Read what :func:`pack_bundle` wrote.

    Raises
    ------
    ProgramError
        If a program is damaged, or there is none.
    """
    programs = []
    while data:
        length = program_bytes(data)
        programs.append(Program.from_bytes(data[:length]))
        data = data[length:]
    if not programs:
        raise ProgramError("a bundle of programs is empty")
    return tuple(programs)


def select(programs: Sequence[Program], rows: int) -> Program:
    """The program with the smallest bucket that holds ``rows``.

    Raises
    ------
    ProgramError
        If no bucket is large enough.
    """
    fitting = [program for program in programs if program.header.op.m >= rows]
    if not fitting:
        largest = max(program.header.op.m for program in programs)
        raise ProgramError(
            f"{programs[0].header.label!r} was compiled for at most {largest} rows, {rows} came; "
            "run the tokens in parts"
        )
    return min(fitting, key=lambda program: program.header.op.m)


def select_attention(
    programs: Sequence[Program[AttentionHeader]], rows: int, keys: int
) -> Program[AttentionHeader]:
    """The program with the smallest buckets that hold ``rows`` and ``keys``.

    Raises
    ------
    ProgramError
        If there is none.
    """
    sizes = [(program.header.op, program) for program in programs]
    fitting = [(op.keys, op.rows, at) for at, (op, _) in enumerate(sizes)]
    fitting = [found for found in fitting if found[0] >= keys and found[1] >= rows]
    if not fitting:
        most = max(op.keys for op, _ in sizes), max(op.rows for op, _ in sizes)
        raise ProgramError(
            f"{programs[0].header.label!r} was compiled for at most {most[1]} rows and {most[0]} "
            f"keys, {rows} rows and {keys} keys came; run the tokens in parts, or shorter ones"
        )
    return programs[min(fitting)[2]]
