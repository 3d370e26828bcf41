"""The verifier, held against a machine that executes programs byte by byte in several timings."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from handmade import SMALL, Tiles, dense_program, make_header, with_op
from mutations import Mutator
from reference_machine import run_everywhere

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.target.isa.base import End, Instruction, Loop, Signal, Wait
from sparqle_tvm.target.isa.compute import Drain, MmaLsb, MmaMin, MmaMsb, StOut
from sparqle_tvm.target.isa.header import Allocation, Header, Queue
from sparqle_tvm.target.isa.load import (
    LdAct,
    LdChn,
    LdGrp,
    LdLsb,
    LdMsb,
    LdPbm,
    LdRow,
    LdSum,
    LdWgt,
)
from sparqle_tvm.target.isa.operands import (
    ALWAYS,
    NEVER,
    Address,
    Affine,
    Buffer,
    Condition,
    Extent,
    M,
)
from sparqle_tvm.target.program import Program, ProgramBuilder
from sparqle_tvm.target.verify import verify
from sparqle_tvm.target.verify.tiles import TABLE_ENTRIES
from sparqle_tvm.target.verify.verify import sample_rows

ROWS = 13
SHIFTED = {"row_zeros": True, "adds_shift": True}
FORMATS = {
    "channel": {},
    "int32": {"output": "int32", "has_offset": True},
    "bare": {"output": "int32", "window": "unsigned"},
    "grouped": {"group_size": 8},
    "minima": {"group_size": 8, "has_min": True, "has_offset": True, "weight_signed": False},
    "dense": {"scheme": "dense", "window": "unsigned", "group_size": 8, "has_min": True},
    "slices": {"weight_bits": 8},
    "ternary": {"weight_bits": 2, "window": "unsigned"},
    "sorted": {"block_rows": 8, "group_size": 8},
    "uint8": {"act_signed": False, "centre": 103},
    "uint8, no shared code": {"act_signed": False, "centre": 104, "output": "int32"},
    "uint8, plain": {"act_signed": False, "window": "unsigned", "has_offset": True},
    "int8 around 5": {"centre": 5, "group_size": 8, "has_min": True},
    "rows": {"act_signed": False, **SHIFTED},
    "rows in groups": {**SHIFTED, "group_size": 8, "has_offset": True},
    "rows, plain": {**SHIFTED, "window": "unsigned", "output": "int32"},
    "rows, unshifted": {"act_signed": False, "row_zeros": True, "weight_bits": 2},
    "sorted rows": {"act_signed": False, **SHIFTED, "block_rows": 8},
    "dense uint8": {"scheme": "dense", "window": "unsigned", "act_signed": False},
    "dense rows": {
        "scheme": "dense",
        "window": "unsigned",
        "row_zeros": True,
        "adds_shift": True,
        "weight_bits": 8,
    },
}
TILES = (
    Tiles(8, 4),
    Tiles(8, 4, slots=1),
    Tiles(4, 3, slots=3),
    Tiles(8, 4, rows_outer=False),
    Tiles(8, 4, stay=True),
    Tiles(8, 4, rows_outer=False, stay=True),
    Tiles(20, 10),
)

# What leaves encoded is stored in whole chunks of channels, those in the outer loop.
TO_UINT8 = {"output": "encoded", "out_chunk": 8, "out_signed": False, "out_high": 255}
ENCODED = {
    "encoded": {**TO_UINT8, "out_zero": 100},
    "encoded, bias": {**TO_UINT8, "has_bias": True, "has_offset": True},
    "encoded, groups": {**TO_UINT8, "has_bias": True, "group_size": 8, "has_min": True},
    "encoded, rows": {**TO_UINT8, "act_signed": False, **SHIFTED, "has_bias": True},
    "encoded, grid": {
        **TO_UINT8,
        "out_zero": 20,
        "has_bias": True,
        **{"mid_low": -60, "mid_high": 99, "mid_zero": -2},
    },
}
FORMATS_OF = FORMATS | ENCODED


def op(name: str, k_chunk: int = 16) -> Header:
    return make_header(20, 10, 40, k_chunk, **FORMATS_OF[name])


MINIMA = dense_program(op("minima"), Tiles(8, 4))


@pytest.mark.parametrize("name", FORMATS)
def test_programs_that_compute_their_op_are_accepted(name):
    for tiles, k_chunk in product(TILES, (16, 40, 48)):
        verify(dense_program(op(name, k_chunk), tiles))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("tiles", "k_chunk"), [(TILES[0], 16), (TILES[5], 40)])
def test_they_compute_it_in_every_timing(name, tiles, k_chunk):
    assert run_everywhere(dense_program(op(name, k_chunk), tiles), ROWS)


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("tiles", [Tiles(8, 8, rows_outer=False), Tiles(20, 8, slots=1)])
def test_encoded_outputs_in_every_timing(name, tiles):
    program = dense_program(op(name), tiles)
    verify(program)
    assert run_everywhere(program, ROWS)


@pytest.mark.parametrize("m", range(1, 21))
def test_every_number_of_rows(m):
    verify(MINIMA, m)
    if m % 6 == 1:
        assert run_everywhere(MINIMA, m)


def test_one_row_split_over_the_array():
    header = make_header(1, 10, 40, 16)
    verify(dense_program(header, Tiles(1, 4, row_split=4)))
    with pytest.raises(ProgramError, match="m \\* row_split is larger than the 4 rows of PEs"):
        verify(dense_program(header, Tiles(1, 4, row_split=5)))


def test_rows_that_are_looked_at():
    assert sample_rows(MINIMA) == [1, 7, 8, 9, 17, 20]
    with pytest.raises(ProgramError, match="takes 1 to 20 rows"):
        verify(MINIMA, 21)


def backwards(header: Header) -> Program:
    """Chunks from the last to the first."""
    program = dense_program(header, Tiles(8, 4))
    code = []
    for i in program.instructions:
        for name in ("col", "cols", "k"):
            if isinstance(i, LdLsb | LdPbm | LdMsb | LdWgt | MmaLsb | MmaMsb) and hasattr(i, name):
                operand = getattr(i, name)
                start = Affine(32) + Affine.loop(2, -16)
                value = start if name == "col" else replace(operand, start=start)
                i = replace(i, **{name: value})
        code.append(i)
    return Program(program.header, tuple(code))


def test_chunks_may_come_backwards():
    program = backwards(op("channel"))
    verify(program)
    assert run_everywhere(program, ROWS)


def test_rows_of_a_tile_may_be_read_alone():
    """All scales and weights are loaded once; tiles of them are used."""
    b = ProgramBuilder(make_header(20, 8, 16, 16))
    lsb, pbm = b.allocate("lsb", Buffer.ACT, 20 * 8), b.allocate("pbm", Buffer.ACT, 20 * 2)
    msb, row = b.allocate("msb", Buffer.ACT, 20 * 8), b.allocate("row", Buffer.ACT, 80)
    wgt, chn = b.allocate("wgt", Buffer.WGT, 64), b.allocate("chn", Buffer.WGT, 64, 2)
    acc = b.allocate("acc", Buffer.ACC, 20 * 4 * 4, 2)
    rows, whole = Extent(20, M), (Affine(), Extent(16))
    b.emit(*(load(a.at(), Affine(), rows, *whole) for load, a in ((LdLsb, lsb), (LdPbm, pbm))))
    b.emit(LdMsb(msb.at(), Affine(), rows, *whole), LdRow(row.at(), Affine(), rows))
    b.emit(LdWgt(wgt.at(), Affine(), Extent(8), *whole))
    b.signal(Queue.ACT_READY, Queue.ROW_READY)
    b.wait(Queue.ACT_READY, Queue.ROW_READY)
    b.tokens(Queue.CHN_FREE, 2)
    b.tokens(Queue.ACC_FREE, 2)
    with b.loop(8, 4) as i:
        b.wait(Queue.CHN_FREE)
        b.emit(LdChn(chn.at((i,)), Affine.loop(i, 4), Extent(4)))
        b.signal(Queue.CHN_READY)
        # Four channels of the weights from byte 32 * i on: a row has 8 bytes.
        operands = (wgt.at((), Affine.loop(i, 32)), None, rows, Extent(4), Extent(16))
        b.wait(Queue.ACC_FREE)
        b.emit(MmaLsb(acc.at((i,)), lsb.at(), *operands, zero=ALWAYS))
        b.emit(MmaMsb(acc.at((i,)), pbm.at(), msb.at(), None, *operands))
        b.signal(Queue.ACC_READY)
        b.wait(Queue.ACC_READY, Queue.CHN_READY)
        b.emit(Drain(acc.at((i,)), row.at(), chn.at((i,)), rows, Extent(4)))
        b.emit(StOut(acc.at((i,)), Affine(), rows, Affine.loop(i, 4), Extent(4)))
        b.signal(Queue.CHN_FREE, Queue.ACC_FREE)
    verify(b.build())
    assert run_everywhere(b.build(), ROWS)


Change = Callable[[list[Instruction]], None]


def find(code: list[Instruction], cls: type[Instruction], which: int = 0) -> int:
    return [index for index, i in enumerate(code) if isinstance(i, cls)][which]


def setting(cls: type[Instruction], **operands: object) -> Change:
    def change(code: list[Instruction]) -> None:
        at = find(code, cls)
        code[at] = replace(code[at], **operands)

    return change


def dropping(what: Instruction | type[Instruction]) -> Change:
    def change(code: list[Instruction]) -> None:
        code.pop(code.index(what) if isinstance(what, Instruction) else find(code, what))

    return change


def doubling(cls: type[Instruction]) -> Change:
    def change(code: list[Instruction]) -> None:
        code.insert(find(code, cls), code[find(code, cls)])

    return change


def swapping(first: Instruction | type[Instruction], second: type[Instruction]) -> Change:
    def change(code: list[Instruction]) -> None:
        a = code.index(first) if isinstance(first, Instruction) else find(code, first)
        b = find(code, second)
        code[a], code[b] = code[b], code[a]

    return change


I0, I1, I2 = (Affine.loop(i, step) for i, step in ((0, 8), (1, 4), (2, 16)))
LSB = next(i for i in MINIMA.instructions if isinstance(i, LdLsb))
MMA = next(i for i in MINIMA.instructions if isinstance(i, MmaLsb))
GRP = next(i for i in MINIMA.instructions if isinstance(i, LdGrp))
SUM = next(i for i in MINIMA.instructions if isinstance(i, LdSum))
WRONG: dict[str, tuple[Change, str]] = {
    # Bounds.
    "row out of the tensor": (
        setting(LdLsb, rows=Extent(8)),
        r"instruction 5 `LD.LSB .*`: step 203 \(i0 = 1, i1 = 0, i2 = 0\), M = 13: rows leave the "
        r"tensor's 13: \[8, 16\)",
    ),
    "row before the tensor": (setting(LdLsb, row=I0 + -8), r"rows leave .*: \[-8, 0\)"),
    "channels": (setting(LdWgt, rows=Extent(4)), r"LD.WGT .*rows leave the tensor's 10: \[8, 12\)"),
    "columns": (setting(LdLsb, cols=Extent(16)), r"columns leave the tensor's 40: \[32, 48\)"),
    "part of a chunk": (setting(LdLsb, cols=Extent(8)), "not a whole chunk of 16 columns"),
    "start of a chunk": (
        setting(LdLsb, col=Affine(8), cols=Extent(16)),
        "not a whole chunk of 16 columns",
    ),
    "empty": (setting(LdLsb, rows=Extent(8, M, I0 + 8)), "rows is empty"),
    "too large": (setting(MmaLsb, m=Extent(2**30)), "m is larger than its tensor"),
    "no tile pointer": (
        setting(LdMsb, row=I0 + 2, rows=Extent(8, M, I0 + 2)),
        "LD.MSB.*there are tile pointers every 4 rows only",
    ),
    "outputs out of the tensor": (setting(StOut, cols=Extent(4)), "ST.OUT.*columns leave"),
    "below the buffer": (
        setting(LdLsb, dst=Address(Buffer.ACT, -8)),
        "dst leaves its slot of ACT",
    ),
    "beyond the buffer": (
        setting(LdLsb, dst=Address(Buffer.ACT, 8192)),
        r"dst leaves its slot of ACT: \[8192, 8256\)",
    ),
    "not allocated": (setting(LdLsb, dst=Address(Buffer.ACT, 4096)), "dst leaves its slot of ACT"),
    "over the end of a slot": (
        setting(LdLsb, dst=replace(LSB.dst, offset=Affine(8))),
        r"dst leaves its slot of ACT: \[8, 72\)",
    ),
    "not aligned": (
        setting(LdSum, dst=replace(SUM.dst, offset=Affine(1))),
        "dst is not a multiple of 2 bytes",
    ),
    # Tokens.
    "no signal": (dropping(Signal(Queue.ACT_READY)), "waits for ever"),
    "no wait": (dropping(Wait(Queue.ACT_READY)), "queue ACT_READY ends with 18 tokens, it began"),
    "wait before signal": (
        swapping(Signal(Queue.WGT_READY), LdWgt),
        "wgt, bytes .*no token orders this access with instruction 1. `LD.WGT",
    ),
    # Order.
    "no wait and no signal": (
        lambda code: (
            dropping(Wait(Queue.WGT_READY))(code),
            dropping(Signal(Queue.WGT_READY))(code),
        )[0],
        "wgt, bytes .*no token orders this access with instruction 1. `LD.WGT",
    ),
    "free too early": (
        lambda code: code.insert(find(code, MmaLsb), code.pop(code.index(Signal(Queue.ACT_FREE)))),
        "LD.LSB.*dst, bytes .*no token orders this write with instruction 17 `MMA.LSB",
    ),
    "drained while added to": (
        swapping(Signal(Queue.ACC_READY), End),
        "waits for ever|no token orders|ends with|not all K chunks",
    ),
    # Tiles.
    "never loaded": (dropping(LdLsb), "lsb, bytes .*nothing was written there before"),
    "weights never loaded": (dropping(LdWgt), "wgt, bytes .*nothing was written there before"),
    "other slot": (
        setting(MmaLsb, lsb=replace(LSB.dst, base=LSB.dst.base + 64, slot_bytes=-64)),
        "lsb, bytes .*no token orders this access with instruction 5 `LD.LSB",
    ),
    "other tensor": (setting(MmaLsb, lsb=replace(LSB.dst, base=160)), "not what lies there"),
    "loaded over": (
        lambda code: code.insert(
            find(code, LdPbm), replace(code[find(code, LdPbm)], dst=code[find(code, LdLsb)].dst)
        ),
        "lsb, bytes .*that is not what lies there: see instruction 6 `LD.PBM",
    ),
    "fewer columns": (setting(MmaLsb, k=Extent(8)), "that is not what lies there"),
    "other rows": (
        setting(LdLsb, row=Affine(0), rows=MMA.m),
        "MMA.MSB.*rows|rows than those of its other operands|other rows",
    ),
    "other channels": (
        setting(LdGrp, row=Affine(0), rows=MMA.n),
        "grp, bytes .*other channels than those of its other operands",
    ),
    "another chunk": (
        setting(LdWgt, col=Affine(0), cols=Extent(16)),
        "that is not what lies there|another K chunk than that of its other operands",
    ),
    "part of the parameters": (
        setting(MmaMin, grp=replace(GRP.dst, offset=Affine(4)), n=Extent(3)),
        "grp leaves its slot|that is not what lies there",
    ),
    "scales of other rows": (
        setting(LdRow, row=Affine(0), rows=MMA.m),
        "acc, bytes .*other rows than those of its other operands",
    ),
    "parameters of other channels": (
        setting(LdChn, row=Affine(0), rows=MMA.n),
        "acc, bytes .*other channels than those of its other operands",
    ),
    # Accumulators.
    "never begun": (
        setting(MmaLsb, zero=NEVER),
        "acc, bytes .*nothing was written there before",
    ),
    "begun at every chunk": (
        setting(MmaLsb, zero=ALWAYS),
        "overwrites accumulators that were not stored, of instruction 18 `MMA.MIN",
    ),
    "begun twice": (
        setting(MmaMsb, zero=Condition.first(2)),
        "overwrites accumulators that were not stored, of instruction 16 `MMA.LSB",
    ),
    "begun late": (setting(MmaLsb, zero=Condition.last(2)), "nothing was written there before"),
    "added twice": (doubling(MmaMsb), "MMA.MSB.*its K chunk was added before"),
    "a pass missing": (dropping(MmaMsb), "DRAIN.*not all K chunks were added by each pass"),
    "minima missing": (dropping(MmaMin), "DRAIN.*not all K chunks were added by each pass"),
    "drained twice": (doubling(Drain), "DRAIN.*accumulators are drained once"),
    "not drained": (dropping(Drain), "ST.OUT.*accumulators are drained once"),
    # Outputs.
    "stored twice": (doubling(StOut), "ST.OUT.*these outputs were stored before"),
    "stored elsewhere": (
        setting(StOut, col=I1 + -4, cols=Extent(4)),
        r"columns leave the tensor's 10: \[-4, 0\)",
    ),
    "stored in other rows": (
        setting(StOut, row=Affine(0), rows=MMA.m),
        "ST.OUT.*outputs of other rows or channels lie there",
    ),
    "never stored": (
        setting(Loop, limit=8),
        r"M = 13: output row 8, channel 0 is never stored",
    ),
    "nothing stored": (dropping(StOut), "stores nothing"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_and_named(name):
    change, match = WRONG[name]
    code = list(MINIMA.instructions)
    change(code)
    with pytest.raises(ProgramError, match=match):
        verify(Program(MINIMA.header, tuple(code)), ROWS)


SORTED = dense_program(op("sorted"), Tiles(8, 4))
STORE = next(i for i in SORTED.instructions if isinstance(i, StOut))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        # Two slots of row parameters: the other one holds rows of another tile, or none yet.
        (
            setting(StOut, order=replace(STORE.order, base=STORE.order.base + 48)),
            "order leaves its slot of ACT",
        ),
        (
            setting(StOut, order=replace(STORE.order, rotate=(), slots=1, slot_bytes=0)),
            r"no token orders this write with .*ST\.OUT",
        ),
        (
            setting(StOut, rows=Extent(4, M, I0), order=STORE.order),
            r"order, bytes .*that is not what lies there",
        ),
        (
            setting(LdRow, row=Affine()),
            r"other rows than those of its other operands",
        ),
        (swapping(Signal(Queue.ROW_FREE), StOut), "no token orders"),
    ],
    ids=["outside", "another slot", "part", "rows of another tile", "released too early"],
)
def test_sorted_rows_are_stored_by_their_own_numbers(change, match):
    verify(SORTED, ROWS)
    code = list(SORTED.instructions)
    change(code)
    with pytest.raises(ProgramError, match=match):
        verify(Program(SORTED.header, tuple(code)), ROWS)


@pytest.mark.parametrize(
    ("queue", "count", "match"),
    [
        (Queue.ACT_FREE, 3, "lsb, bytes .*no token orders this access with .*LD.LSB"),
        (Queue.ACC_FREE, 3, "MMA.LSB.*acc, bytes .*no token orders this write with .*ST.OUT"),
        (Queue.WGT_READY, 1, "wgt, bytes .*no token orders this access with .*LD.WGT"),
        (
            Queue.ACT_FREE,
            0,
            "ACT_FREE`: step 1 .*waits for ever, as does instruction 10 `WAIT",
        ),
    ],
)
def test_wrong_numbers_of_tokens_are_refused(queue, count, match):
    tokens = list(MINIMA.header.tokens)
    tokens[queue] = count
    program = Program(replace(MINIMA.header, tokens=tuple(tokens)), MINIMA.instructions)
    with pytest.raises(ProgramError, match=match):
        verify(program, ROWS)


@pytest.mark.parametrize(
    ("queue", "count"),
    [
        *((queue, 1) for queue in Queue if queue.name.endswith("_FREE")),
        # Each load of weights comes behind one of activations, whose tokens bound it.
        (Queue.WGT_FREE, 3),
        # Drained tiles give accumulators back, for which the next loads' readers wait.
        (Queue.ROW_FREE, 3),
        # Weights are loaded behind activations, and the MMAs wait for both.
        (Queue.ACT_READY, 1),
    ],
)
def test_odd_numbers_of_tokens_are_accepted_where_they_do_no_harm(queue, count):
    tokens = list(MINIMA.header.tokens)
    tokens[queue] = count
    program = Program(replace(MINIMA.header, tokens=tuple(tokens)), MINIMA.instructions)
    verify(program, ROWS)
    assert run_everywhere(program, ROWS)


def test_two_loads_into_each_other_are_refused():
    header = with_op(op("dense"), has_min=False)
    program = dense_program(header, Tiles(8, 4))
    code = list(program.instructions)
    at = find(code, LdAct)
    code[at] = replace(code[at], msb=replace(code[at].lsb, offset=Affine(0)))
    with pytest.raises(ProgramError, match=r"that is not what lies there: see .*LD.ACT"):
        verify(Program(program.header, tuple(code)), ROWS)


def with_one_allocation(program: Program) -> Header:
    """The header with all of ACT as one slot."""
    others = [a for a in program.header.allocations if a.buffer != Buffer.ACT]
    act = Allocation("all", Buffer.ACT, 0, 1, SMALL.activation_buffer_bytes)
    return replace(program.header, allocations=(act, *others))


def test_of_a_tile_that_is_partly_overwritten_nothing_is_read():
    code = list(MINIMA.instructions)
    at = find(code, LdPbm)
    dst = replace(LSB.dst, offset=Affine(16))
    code.insert(at, replace(code[at], dst=dst, rows=Extent(1)))
    with pytest.raises(ProgramError, match=r"lsb.*that is not what lies there: see .*LD.PBM"):
        verify(Program(with_one_allocation(MINIMA), tuple(code)), ROWS)


@pytest.mark.parametrize("offset", [0, 24, 48])
def test_a_tile_cut_at_its_begin_middle_or_end(offset):
    program = dense_program(op("channel"), Tiles(8, 4))
    header, code = with_one_allocation(program), list(program.instructions)
    at = find(code, LdLsb)
    whole = code[at]
    cut = replace(code[find(code, LdPbm)], dst=replace(whole.dst, offset=Affine(offset)))
    code[at : at + 1] = [cut, whole, cut, whole]
    sound = Program(header, tuple(code))
    verify(sound)
    assert run_everywhere(sound, ROWS)
    code.insert(at + 4, cut)
    with pytest.raises(ProgramError, match=r"lsb, bytes .*that is not what lies there"):
        verify(Program(header, tuple(code)), ROWS)


def test_too_many_tiles_are_refused():
    tile = (Affine(), Extent(1), Affine(), Extent(16))
    for count in (TABLE_ENTRIES, TABLE_ENTRIES + 1):
        address = Address(Buffer.ACT, 0, (), 1, 0, Affine.loop(0, 2))
        loads = [Loop(0, count, 1), LdPbm(address, *tile), End()]
        store = StOut(Address(Buffer.ACC, 0), Affine(), Extent(1), Affine(), Extent(1))
        match = "nothing was written" if count == TABLE_ENTRIES else "too many tiles in the buffer"
        with pytest.raises(ProgramError, match=match):
            verify(Program(with_one_allocation(FUZZED[0]), (*loads, store)), 1)


FUZZED = [
    dense_program(op("channel"), Tiles(8, 4)),
    dense_program(op("minima", 40), Tiles(8, 4, rows_outer=False, stay=True)),
    dense_program(op("dense"), Tiles(8, 4)),
    dense_program(op("int32"), Tiles(8, 4, stay=True, slots=1)),
    dense_program(op("minima"), Tiles(8, 4, slots=3)),
    dense_program(op("sorted"), Tiles(8, 4)),
    dense_program(op("uint8"), Tiles(8, 4)),
    dense_program(op("sorted rows"), Tiles(8, 4)),
    dense_program(op("rows in groups"), Tiles(8, 4, stay=True)),
    dense_program(op("encoded, grid"), Tiles(8, 8, rows_outer=False)),
]


def is_harmless(damaged: Program, sound: Program, seed: int) -> bool:
    """Whether the damaged program does the same steps, or computes its op all the same."""
    rows = min(ROWS, damaged.header.op.m)
    if rows == ROWS and np.array_equal(damaged.bind(rows), sound.bind(rows)):
        same = replace(damaged.header, tokens=sound.header.tokens)
        if same == sound.header and damaged.header.tokens == sound.header.tokens:
            return True
    return run_everywhere(damaged, rows, seed)


@pytest.mark.parametrize("block", range(10))
def test_damaged_programs_are_refused_or_harmless(block):
    refused = 0
    for seed in range(40 * block, 40 * (block + 1)):
        sound = FUZZED[seed % len(FUZZED)]
        try:
            damaged = Mutator(seed)(sound)
            verify(damaged, ROWS)
        except ProgramError:
            refused += 1
            continue
        assert is_harmless(damaged, sound, seed), seed
    assert refused > 20


@pytest.mark.parametrize("block", range(4))
def test_damaged_bytes_with_a_mended_checksum_are_refused_or_harmless(block):
    rng = np.random.default_rng(block)
    refused = 0
    for _ in range(100):
        sound = FUZZED[int(rng.integers(len(FUZZED)))]
        data = bytearray(sound.to_bytes()[:-32])
        for _ in range(int(rng.integers(1, 4))):
            bit = int(rng.integers(8 * 14, 8 * len(data)))
            data[bit // 8] ^= 1 << (bit % 8)
        mended = bytes(data) + hashlib.sha256(data).digest()
        try:
            damaged = Program.from_bytes(mended)
            verify(damaged, min(ROWS, damaged.header.op.m))
        except ProgramError:
            refused += 1
            continue
        assert is_harmless(damaged, sound, block), struct.unpack_from("<4sHQ", mended)
    assert refused > 50


def test_a_large_op():
    big = replace(
        SMALL,
        activation_buffer_bytes=2**20,
        scratchpad=False,
        weight_buffer_bytes=2**20,
        accumulator_buffer_bytes=2**20,
    )
    header = make_header(512, 4096, 4096, 128, accelerator=big)
    program = dense_program(header, Tiles(64, 128))
    assert len(program.bind(512)) > 100_000
    verify(program, 512)
    tokens = list(program.header.tokens)
    tokens[Queue.ACT_FREE] += 1
    with pytest.raises(ProgramError, match="no token orders this access"):
        verify(Program(replace(program.header, tokens=tuple(tokens)), program.instructions), 512)
