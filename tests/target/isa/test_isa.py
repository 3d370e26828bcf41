from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from cycle_rules import dense_cycles, sparse_cycles
from handmade import SMALL, Tiles, dense_program, make_header, with_op

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.attention_op import AttentionOp
from sparqle_tvm.target.compile.attention import attention_program
from sparqle_tvm.target.cost.attention_plan import AttentionPlan
from sparqle_tvm.target.isa import INSTRUCTIONS, access, read_instruction
from sparqle_tvm.target.isa.base import (
    TRACE_COLUMNS,
    TRACE_OPERANDS,
    End,
    If,
    Instruction,
    Loop,
    Presence,
    Signal,
    Wait,
    transfer_cycles,
)
from sparqle_tvm.target.isa.compute import Drain, MmaDns, MmaLsb, StOut
from sparqle_tvm.target.isa.header import Engine, Queue
from sparqle_tvm.target.isa.load import (
    LdAct,
    LdChn,
    LdMsb,
    LdRow,
    LdZro,
)
from sparqle_tvm.target.isa.operands import Affine, M, Reader
from sparqle_tvm.target.op import SCHEMES

EDGE = PRESETS["sparqle/edge"]
GROUPED = make_header(20, 10, 40, 16, group_size=8, has_min=True, has_offset=True)
SPLIT = dense_program(GROUPED, Tiles(8, 4))
DENSE = dense_program(
    with_op(GROUPED, scheme="dense", window="unsigned", has_min=False, has_offset=False),
    Tiles(8, 4),
)


ENCODED = dense_program(
    with_op(GROUPED, output="encoded", out_chunk=8, out_low=-128, out_high=127),
    Tiles(8, 8, rows_outer=False),
)


ATTENTION = [
    attention_program(
        AttentionOp(4, 24, 2, 2, 5, scheme=scheme, window="unsigned"), SMALL, AttentionPlan(4, 8)
    )
    for scheme in SCHEMES
]


SHIFTED = {"row_zeros": True, "adds_shift": True}
ROWS = dense_program(with_op(GROUPED, **SHIFTED), Tiles(8, 4))


def one_of_each() -> list[Instruction]:
    programs = (SPLIT, DENSE, ENCODED, ROWS, *ATTENTION)
    found = {type(i): i for program in programs for i in program.instructions}
    return [found[cls] for cls in INSTRUCTIONS.values()]


def test_opcodes_mnemonics_and_trace_fit():
    assert sorted(INSTRUCTIONS) == [*range(21), *range(32, 46)]
    assert len({cls.MNEMONIC for cls in INSTRUCTIONS.values()}) == len(INSTRUCTIONS)
    for cls in INSTRUCTIONS.values():
        if cls not in (Loop, End):
            assert (*(field.name for field in fields(cls)), *cls.DERIVED) == cls.TRACE
            assert TRACE_OPERANDS + len(cls.TRACE) <= TRACE_COLUMNS
    assert MmaLsb.column("acc") == 3
    assert MmaLsb.column("k") == 9


@pytest.mark.parametrize("instruction", one_of_each(), ids=lambda i: i.MNEMONIC)
def test_bytes_round_trip(instruction):
    data = instruction.to_bytes()
    reader = Reader(data)
    assert read_instruction(reader) == instruction
    assert reader.left == 0
    assert data[0] == instruction.OPCODE
    assert str(instruction).startswith(instruction.MNEMONIC)


def test_an_unknown_opcode_is_refused():
    with pytest.raises(ProgramError, match="unknown opcode 21"):
        read_instruction(Reader(b"\x15"))


def test_engines():
    assert Wait(Queue.ACT_FREE).engine == Engine.LOAD
    assert Signal(Queue.ACT_FREE).engine == Engine.MMA
    by_engine = {i.engine for i in one_of_each() if i.MNEMONIC.startswith("LD")}
    assert by_engine == {Engine.LOAD}
    multiply = ("MMA", "QK", "PV")
    assert {i.engine for i in one_of_each() if i.MNEMONIC.startswith(multiply)} == {Engine.MMA}
    assert {i.engine for i in one_of_each() if i.ROLE == "vector"} == {Engine.VECTOR}
    assert Drain.ENGINE == StOut.ENGINE == Engine.STORE


def test_text():
    texts = {i.MNEMONIC: str(i) for i in SPLIT.instructions}
    assert texts["LOOP"] == "LOOP     i2 < n2 = ceil(40 / 16)"
    assert texts["WAIT"] == "WAIT     STORE, CHN_READY"
    assert str(Loop(0, M, 64)) == "LOOP     i0 < n0 = ceil(M / 64)"
    assert texts["LD.WGT"].endswith(
        "<- WGT[4*i1 : +min(4, 10 - 4*i1), 16*i2 : +min(16, 40 - 16*i2)]"
    )
    assert "zero=i2 == 0" in texts["MMA.LSB"]
    texts = {i.MNEMONIC: str(i) for i in ATTENTION[0].instructions}
    assert texts["LD.KEY"].endswith("<- KEYS[block i1 + 1, chunk i2]")
    assert texts["ST.ATT"].startswith("ST.ATT   OUT[block i1] <- ACC[")
    assert str(If(Presence.LAST, Affine(2))) == "IF       block 2 is the last of its head"


def test_bytes_on_chip():
    # A row of 17 4-bit digits is 9 bytes, its bitmap 3. 17 columns touch 3 groups of 8.
    header = make_header(20, 10, 40, 40, group_size=8, has_min=True, has_offset=True, weight_bits=2)
    tile = {"rows": 3, "cols": 17}
    assert access.LSB.nbytes(header, 3, 17) == access.MSB.nbytes(header, 3, 17) == 3 * 9
    assert LdMsb.dram_bytes(header, tile) == 3 * 9 + 8
    assert access.PBM.nbytes(header, 3, 17) == 3 * 3
    assert access.SUM.nbytes(header, 3, 17) == 3 * 3 * 2
    # 17 2-bit weights are 5 bytes; 3 groups have a scale and a minimum of 2 bytes each.
    assert access.WGT.nbytes(header, 3, 17) == 3 * 5
    assert access.GRP.nbytes(header, 3, 17) == 3 * 3 * 4
    assert access.GRP.nbytes(with_op(header, has_min=False), 3, 17) == 3 * 3 * 2
    # The two planes of 17 activations take 9 bytes each on chip, and 17 in DRAM.
    assert access.MSB_PLANE.nbytes(header, 3, 17) == 3 * 9
    assert LdAct.dram_bytes(header, tile) == 3 * 17
    assert access.ROW.nbytes(header, 3) == LdRow.dram_bytes(header, tile) == 12
    assert access.CHN.nbytes(header, 3) == 3 * 8
    per_channel = make_header(20, 10, 40, 40, has_offset=True)
    assert access.CHN.nbytes(per_channel, 3) == 3 * (4 + 4)
    # A zero point of a byte beside every scale, and for MMA.MSB; a sum beside every offset.
    rows = with_op(header, **SHIFTED)
    assert access.ROW.nbytes(rows, 3) == LdRow.dram_bytes(rows, tile) == 3 * 5
    assert access.ZRO.nbytes(rows, 3) == LdZro.dram_bytes(rows, tile) == 3
    assert access.CHN.nbytes(rows, 3) == LdChn.dram_bytes(rows, tile) == 3 * 16
    assert access.CHN.nbytes(with_op(per_channel, **SHIFTED), 3) == 3 * (4 + 4 + 4)
    assert StOut.dram_bytes(header, {"rows": 3, "cols": 5}) == 3 * 5 * SMALL.float_bytes


def test_cycles_of_transfers_and_drain():
    header = make_header(20, 10, 40, 16, accelerator=EDGE)
    # 32 cycles for the descriptor, then 16 bytes per cycle.
    assert transfer_cycles(header, 1) == 32 + 1
    assert transfer_cycles(header, 160) == 32 + 10
    assert transfer_cycles(header, 161) == 32 + 11
    # 16 outputs per cycle, and none of two rows: 5 rows of 7, and 5 rows of 16 + 4.
    assert Drain.cycles(header, {"m": 5, "n": 7}) == 5
    assert Drain.cycles(header, {"m": 5, "n": 20}) == 5 * 2


def test_cycles_of_a_dense_pass():
    header = make_header(20, 40, 100, 104, accelerator=EDGE)
    # 17 rows are 2 row groups, 33 channels 3 column blocks, 100 columns 7 steps of 16 lanes.
    assert dense_cycles(header, 17, 33, 100, 1) == 2 * 3 * 7
    assert dense_cycles(header, 17, 33, 100, 1, MmaDns) == 2 * 3 * 7
    # 8-bit weights are two slices of 4 bits.
    assert dense_cycles(with_op(header, weight_bits=8), 17, 33, 100, 1) == 2 * 2 * 3 * 7
    # One row on 4 PE rows: segments of ceil(7 / 4) = 2 steps, 3 column blocks, and 2 cycles per
    # block to add 4 partial sums.
    assert dense_cycles(header, 1, 33, 100, 4) == 3 * 2 + 3 * 2
    # On 16 PE rows: 1 step each, 4 cycles to add up.
    assert dense_cycles(header, 1, 33, 100, 16) == 3 * 1 + 3 * 4


def test_cycles_of_groups_that_do_not_share_steps():
    accelerator = replace(EDGE, msb_across_groups=False)
    header = make_header(20, 16, 72, 96, accelerator=accelerator, group_size=24)
    # 72 columns are 5 steps of 16, but 3 groups of 24 are 3 * 2 steps.
    assert dense_cycles(header, 1, 16, 72, 1) == 6
    # Two segments of 3 * 16 = 48 columns and 24: 2 groups (4 steps) and 1 group (2); 1 to add.
    assert dense_cycles(header, 1, 16, 72, 2) == 4 + 1
    # Three segments of 2 * 16 = 32 columns: 24 + 8 (2 + 1 steps), 16 + 16 (1 + 1), 8 (1); 2 to add.
    assert dense_cycles(header, 1, 16, 72, 3) == 3 + 2


def test_cycles_of_a_sparse_pass():
    header = make_header(20, 40, 64, 64, accelerator=EDGE)
    bits = np.zeros((18, 64), dtype=bool)
    # Row 3 has 17 digits (2 steps), others of its group 0 or 1; row 17 has 1. 3 column blocks.
    bits[3, :17] = bits[5, 9] = bits[17, 63] = True
    assert sparse_cycles(header, bits, 33, 1) == 3 * (2 + 1)
    # No digits, no cycles.
    assert sparse_cycles(header, bits[6:16], 33, 1) == 0
    # 17 digits in columns 0 to 16, dealt to 2 PE rows of 32 columns: still 2 steps, 1 to add up;
    # to 4 of 16 columns: 16 and 1 digits, 1 step, 2 to add up.
    assert sparse_cycles(header, bits[3:4], 16, 2) == 2 + 1
    assert sparse_cycles(header, bits[3:4], 16, 4) == 1 + 2


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("row_split", [1, 3, 16])
@pytest.mark.parametrize("k", [33, 40, 200, 576])
def test_with_all_digits_both_passes_take_as_long(across, row_split, k):
    accelerator = replace(EDGE, msb_across_groups=across)
    header = make_header(4, 20, k, k, accelerator=accelerator, group_size=24)
    dense = dense_cycles(header, 1, 20, k, row_split)
    assert sparse_cycles(header, np.ones((1, k), dtype=bool), 20, row_split) == dense
