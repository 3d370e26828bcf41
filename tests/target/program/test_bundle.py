"""Bundles: programs for several row counts in one string of bytes."""

from __future__ import annotations

from functools import cache

import pytest
from dense_cases import TINY

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.target.compile.codegen import generate
from sparqle_tvm.target.compile.schedule import default_schedule
from sparqle_tvm.target.op import DenseOp
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.program.bundle import pack_bundle, select, unpack_bundle


@cache
def programs() -> tuple[Program, ...]:
    """An op for at most 1, 4 and 64 rows."""
    specs = [DenseOp(m=m, n=5, k=16, label="up") for m in (1, 4, 64)]
    return tuple(generate(default_schedule(spec, TINY), spec, TINY) for spec in specs)


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_packed_comes_back(count: int) -> None:
    data = pack_bundle(programs()[:count])
    assert unpack_bundle(data) == programs()[:count]
    assert data == b"".join(program.to_bytes() for program in programs()[:count])


@pytest.mark.parametrize(("rows", "bucket"), [(1, 1), (2, 4), (4, 4), (5, 64), (63, 64), (64, 64)])
def test_the_smallest_bucket_that_fits(rows: int, bucket: int) -> None:
    assert select(programs(), rows).header.op.m == bucket
    # The order in the bundle does not matter.
    assert select(programs()[::-1], rows).header.op.m == bucket


def test_more_rows_than_any_bucket() -> None:
    with pytest.raises(ProgramError, match=r"'up' was compiled for at most 64 rows, 65 came"):
        select(programs(), 65)
    with pytest.raises(ProgramError, match="at most 4 rows"):
        select(programs()[:2], 5)


def test_damage() -> None:
    data = pack_bundle(programs()[:2])
    first = len(programs()[0].to_bytes())
    with pytest.raises(ProgramError, match="empty"):
        unpack_bundle(b"")
    # In the payload of the first and of the second program.
    for place in (first // 2, first + (len(data) - first) // 2):
        flipped = bytearray(data)
        flipped[place] ^= 1
        with pytest.raises(ProgramError, match="damaged"):
            unpack_bundle(bytes(flipped))


def test_every_cut_and_every_tail_is_noticed() -> None:
    data = pack_bundle(programs()[:2])
    first = len(programs()[0].to_bytes())
    # A cut between two programs leaves a bundle of one.
    for length in {*range(1, 64), first - 1, first + 1, first + 13, len(data) - 1} - {first}:
        with pytest.raises(ProgramError):
            unpack_bundle(data[:length])
    for tail in (b"\0", b"SPQP", b"SPQP" + bytes(60)):
        with pytest.raises(ProgramError):
            unpack_bundle(data + tail)


def test_a_length_beyond_the_data() -> None:
    # Bytes 6 to 13 of a program are the length of its payload.
    data = bytearray(pack_bundle(programs()[:1]))
    data[6:14] = b"\xff" * 8
    with pytest.raises(ProgramError, match="expected"):
        unpack_bundle(bytes(data))
