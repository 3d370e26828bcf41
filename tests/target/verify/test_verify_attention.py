from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from attention_cases import SMALL, Operands
from attention_machine import run_attention_everywhere
from mutations import Mutator

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.target.attention_op import AttentionOp
from sparqle_tvm.target.compile.attention import attention_program
from sparqle_tvm.target.cost.attention_plan import AttentionPlan
from sparqle_tvm.target.isa.attention import (
    DrnOut,
    LdKey,
    LdQry,
    LdScl,
    LdVal,
    MmaPvLsb,
    MmaPvMsb,
    MmaQkLsb,
    MmaQkMsb,
    StAtt,
)
from sparqle_tvm.target.isa.base import If, Presence, Signal, Wait
from sparqle_tvm.target.isa.header import Queue
from sparqle_tvm.target.isa.operands import Affine
from sparqle_tvm.target.isa.vector import VecSmx
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.verify.attention import sample_sizes, verify_attention

ROWS, PAST = 3, 18
OP = AttentionOp(rows=4, keys=24, kv_heads=2, group=2, head_dim=5, label="small")
PROGRAMS = [
    attention_program(OP, SMALL, AttentionPlan(4, 8)),
    attention_program(OP, SMALL, AttentionPlan(3, 8, stays=True)),
    attention_program(OP, SMALL, AttentionPlan(4, 16, False, 1, 1, 1, 1, 1)),
    attention_program(replace(OP, scheme="dense", window="unsigned"), SMALL, AttentionPlan(4, 8)),
]
STREAMS, STAYS = PROGRAMS[:2]


def changed(program: Program, cls: type, **operands: object) -> Program:
    """Every instruction of a class with other operands."""
    code = (replace(i, **operands) if isinstance(i, cls) else i for i in program.instructions)
    return Program(program.header, tuple(code))


def without(program: Program, cls: type, queue: Queue | None = None) -> Program:
    """Without the instructions of a class (on a queue)."""
    code = tuple(
        i
        for i in program.instructions
        if not (isinstance(i, cls) and (queue is None or i.queue == queue))
    )
    return Program(program.header, code)


def address(program: Program, cls: type, operand: str):
    return getattr(next(i for i in program.instructions if isinstance(i, cls)), operand)


@pytest.mark.parametrize("program", PROGRAMS)
def test_sound_programs_pass_for_all_sizes(program):
    for rows in range(1, 5):
        for past in (0, 1, 7, 8, 20):
            verify_attention(program, rows, past)


def test_sizes_that_are_looked_at():
    # Blocks of 4 rows of groups of 2: 2 tokens a block.
    assert sample_sizes(STREAMS.header) == [
        (rows, past) for rows in (1, 2, 3, 4) for past in (0, 24 - rows)
    ]


SCORES = address(STREAMS, MmaQkLsb, "scores")
FAULTS = {
    "no scores of stored digits": (
        lambda: without(STREAMS, MmaQkMsb),
        r"VEC\.SMX .*not both passes made the scores",
    ),
    "a pass twice": (
        lambda: Program(
            STREAMS.header,
            tuple(
                i
                for one in STREAMS.instructions
                for i in ((one, one) if isinstance(one, MmaPvMsb) else (one,))
            ),
        ),
        r"PV\.MSB .*was added before",
    ),
    "no mixing of stored digits": (
        lambda: without(STREAMS, MmaPvMsb),
        r"DRN\.OUT .*after both passes over all chunks",
    ),
    "not drained": (lambda: without(STREAMS, DrnOut), r"ST\.ATT .*stored after they were drained"),
    "not stored": (lambda: without(STREAMS, StAtt), r"overwrites outputs that were not stored"),
    "keys of the first chunk": (
        lambda: changed(STREAMS, LdKey, chunk=Affine(0)),
        r"QK\.LSB .*that is not what lies there",
    ),
    "values of the first block": (
        lambda: changed(STREAMS, LdVal, block=Affine(0)),
        r"LD\.VAL .*that is not what lies there",
    ),
    "queries of the first block": (
        lambda: changed(STREAMS, LdQry, block=Affine(0)),
        r"that is not what lies there",
    ),
    "no scales": (
        lambda: without(STREAMS, LdScl),
        r"VEC\.SMX key_scales: nothing was written|"
        r"VEC\.SMX .*key_scales: nothing was written",
    ),
    "a block that is not there": (
        lambda: changed(STREAMS, VecSmx, block=Affine(9)),
        r"VEC\.SMX .*there are 4 blocks, not this one",
    ),
    "scores one beside the other": (
        lambda: changed(STREAMS, MmaQkLsb, scores=replace(SCORES, offset=Affine(2))),
        r"QK\.LSB .*scores is not a multiple of 4 bytes",
    ),
    "no token for keys": (
        lambda: without(STREAMS, Wait, Queue.WGT_READY),
        r"queue WGT_READY ends with",
    ),
    "keys not waited for": (
        lambda: without(without(STREAMS, Wait, Queue.WGT_READY), Signal, Queue.WGT_READY),
        r"no token orders this access with",
    ),
    "live keys not waited for": (
        lambda: without(without(STREAMS, Wait, Queue.LIV_READY), Signal, Queue.LIV_READY),
        r"LD\.VAL .*(no token orders|nothing was written)",
    ),
    "scores not waited for": (
        lambda: without(without(STREAMS, Wait, Queue.SCR_READY), Signal, Queue.SCR_READY),
        r"VEC\.SMX .*(no token orders|nothing was written|not both passes)",
    ),
    "factors overwritten": (
        lambda: without(without(STAYS, Wait, Queue.ACT_FREE), Signal, Queue.ACT_FREE),
        r"(LD\.QRY .*no token orders this write|QK\.LSB .*that is not what lies there)",
    ),
    "never waits": (lambda: without(STREAMS, Signal, Queue.PRB_READY), r"waits for ever"),
    "keys come with the last block": (
        lambda: changed(STAYS, If, what=int(Presence.LAST)),
        r"(waits for ever|nothing was written|not what lies there)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(fault):
    make, match = FAULTS[fault]
    with pytest.raises(ProgramError, match=match):
        verify_attention(make(), ROWS, PAST)


@pytest.mark.parametrize("block", range(8))
def test_damaged_programs_are_refused_or_harmless(block):
    refused = 0
    for seed in range(30 * block, 30 * (block + 1)):
        sound = PROGRAMS[seed % len(PROGRAMS)]
        try:
            damaged = Mutator(seed)(sound)
            verify_attention(damaged, ROWS, PAST)
        except ProgramError:
            refused += 1
            continue
        same = np.array_equal(damaged.bind(ROWS, PAST), sound.bind(ROWS, PAST))
        if same and damaged.header.tokens == sound.header.tokens:
            continue
        op = sound.header.op
        operands = Operands.random(op, ROWS, PAST, np.random.default_rng(seed))
        expected = operands.expected(op)
        assert run_attention_everywhere(damaged, ROWS, PAST, operands, expected, seed), seed
    assert refused > 15


def test_damaged_bytes_are_refused_or_the_same():
    rng = np.random.default_rng(0)
    data = STREAMS.to_bytes()
    assert Program.from_bytes(data) == STREAMS
    for _ in range(50):
        damaged = bytearray(data)
        bit = int(rng.integers(8 * len(data)))
        damaged[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(ProgramError):
            Program.from_bytes(bytes(damaged))


def test_blocks_that_are_never_stored():
    code = list(STREAMS.instructions)
    loop = next(n for n, i in enumerate(code) if i.MNEMONIC == "LOOP" and i.limit == "B")
    code[loop] = replace(code[loop], limit=1)
    with pytest.raises(ProgramError, match=r"block 1 is never stored|ends with"):
        verify_attention(Program(STREAMS.header, tuple(code)), ROWS, PAST)
    assert MmaPvLsb.SERVES == "attention"
