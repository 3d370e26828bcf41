from __future__ import annotations

from dataclasses import replace

import pytest
from handmade import Tiles, dense_program, make_header

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.target.isa.base import End, Loop, Wait
from sparqle_tvm.target.isa.compute import Drain, MmaLsb, StOut
from sparqle_tvm.target.isa.header import Queue
from sparqle_tvm.target.isa.load import LdAct, LdChn, LdGrp, LdLsb, LdRow, LdSum
from sparqle_tvm.target.isa.operands import (
    Address,
    Affine,
    Buffer,
    Condition,
    Extent,
    M,
)
from sparqle_tvm.target.program import Program

PROGRAM = dense_program(make_header(20, 10, 40, 16), Tiles(8, 4))
ACT, WGT, ACC = (Address(buffer, 0) for buffer in Buffer)
TILE = (Affine(), Extent(8), Affine(), Extent(16))
SIZES = (Extent(8), Extent(4), Extent(16))
LOAD = LdLsb(ACT, *TILE)


def test_a_sound_program_is_accepted():
    Program(PROGRAM.header, (Loop(0, M, 8), LOAD, End()))
    Program(PROGRAM.header, ())


@pytest.mark.parametrize(
    ("code", "match"),
    [
        ((Loop(0, M, 8),), "loop i0 has no END"),
        ((End(),), "instruction 0 `END`: no loop is open"),
        ((Loop(1, M, 8), End()), "loops are numbered in order, this is i0"),
        ((Loop(0, M, 0), End()), "at least 1"),
        ((Loop(0, 0, 8), End()), "at least 1"),
        ((Wait(len(Queue)),), f"queue {len(Queue)} does not exist"),
        ((replace(LOAD, row=Affine.loop(0)),), "row: loop i0 is not open here"),
        ((Loop(0, M, 8), End(), replace(LOAD, row=Affine.loop(0))), "loop i0 is not open here"),
        ((replace(LOAD, dst=Address(Buffer.ACT, 0, (0,), 2, 8)),), "dst: loop i0 is not open"),
        ((replace(LOAD, dst=WGT),), "dst: must lie in ACT"),
        ((replace(LOAD, dst=Address(Buffer.ACT, 0, (), 0)),), "0 slots"),
        (
            (Loop(0, M, 8), replace(LOAD, dst=Address(Buffer.ACT, 0, (0, 0), 2, 8)), End()),
            "a loop rotates twice",
        ),
        ((replace(LOAD, dst=Address(Buffer.ACT, 2**36)),), "a number is too large"),
        ((replace(LOAD, row=Affine(-(2**36))),), "a number is too large"),
        ((replace(LOAD, rows=Extent(8, 2**36)),), "a number is too large"),
        ((replace(LOAD, rows=Extent(0)),), "rows: an extent must be at least 1"),
        ((LdAct(ACT, ACT, *TILE),), "is of scheme dense, the program of sparqle"),
        ((LdGrp(WGT, *TILE),), "the weights have no groups"),
        ((LdSum(ACT, *TILE),), "the weights have no minima"),
        ((MmaLsb(ACC, ACT, WGT, WGT, *SIZES),), "grp: must be none"),
        ((MmaLsb(ACC, ACT, WGT, None, *SIZES, row_split=0),), "row_split: must be at least 1"),
        (
            (MmaLsb(ACC, ACT, WGT, None, *SIZES, zero=Condition.first(3)),),
            "zero: loop i3 is not open",
        ),
        ((Drain(ACC, None, WGT, *SIZES[:2]),), "row: must not be none"),
        ((Drain(ACC, ACT, None, *SIZES[:2]),), "chn: must not be none"),
        ((LOAD,) * (2**16 + 1), "65537 instructions"),
        (tuple(i for n in range(33) for i in (Loop(n, M, 8), End())), "of at most 32"),
    ],
)
def test_a_broken_program_cannot_be_made(code, match):
    with pytest.raises(ProgramError, match=match):
        Program(PROGRAM.header, code)


def test_formats_that_an_op_does_not_have():
    header = make_header(20, 10, 40, 16, output="int32", window="unsigned")
    with pytest.raises(ProgramError, match="need no parameters per row"):
        Program(header, (LdRow(ACT, Affine(), Extent(8)),))
    store = (ACC, Affine(), Extent(8), Affine(), Extent(4))
    with pytest.raises(ProgramError, match="order: must be none with this header"):
        Program(header, (StOut(*store, order=ACT),))
    ordered = make_header(20, 10, 40, 16, block_rows=8)
    with pytest.raises(ProgramError, match="order: must not be none with this header"):
        Program(ordered, (StOut(*store),))
    with pytest.raises(ProgramError, match="need no parameters per channel"):
        Program(header, (LdChn(WGT, Affine(), Extent(8)),))
    dense = make_header(20, 10, 40, 16, scheme="dense", window="unsigned")
    with pytest.raises(ProgramError, match="is of scheme sparqle, the program of dense"):
        Program(dense, (LOAD,))
