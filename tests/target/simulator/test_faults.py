"""Programs that are wrong: they are refused, or their results are wrong; nothing worse happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from handmade import Tiles
from handmade import dense_program as handmade_program
from mutations import Mutator
from simulator_programs import TINY, dense_program, header_for, integer_header, random_operands

from sparqle_tvm.errors import InvalidArgumentError, ProgramError
from sparqle_tvm.target.isa.access import Tensor
from sparqle_tvm.target.isa.base import Instruction, Signal, Wait
from sparqle_tvm.target.isa.compute import Drain, MmaLsb, MmaMsb, StOut
from sparqle_tvm.target.isa.header import Queue
from sparqle_tvm.target.isa.load import LdChn, LdGrp, LdLsb, LdMsb, LdPbm, LdRow, LdSum, LdWgt
from sparqle_tvm.target.isa.operands import ALWAYS, NEVER, Affine, Condition, Extent
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.simulator import simulate
from sparqle_tvm.target.verify import verify

M, N, K = 8, 8, 64
HEADER = header_for(TINY, M, N, K, 32)
PROGRAM = dense_program(HEADER, 4, 4)
OPERANDS = random_operands(np.random.default_rng(0), HEADER, M)

Change = Callable[[Instruction], Instruction | None]


def changed(change: Change, program: Program = PROGRAM) -> Program:
    code = [change(instruction) for instruction in program.instructions]
    return Program(program.header, tuple(i for i in code if i is not None))


def without(*queues: Queue) -> Program:
    """Without the tokens of some queues."""
    return changed(lambda i: None if isinstance(i, Wait | Signal) and i.queue in queues else i)


def run(program: Program) -> np.ndarray:
    output = simulate(program, OPERANDS.tensors).output
    assert output is not None
    return output


def test_the_program_is_right():
    np.testing.assert_array_equal(run(PROGRAM), OPERANDS.expected)


@pytest.mark.parametrize(
    "queues",
    [
        (Queue.ACT_READY, Queue.WGT_READY),
        (Queue.WGT_READY,),
        (Queue.CHN_READY, Queue.ACC_READY),
        (Queue.ACC_READY,),
    ],
    ids=lambda queues: "+".join(queue.name for queue in queues),
)
def test_reading_before_data_are_there(queues):
    try:
        output = run(without(*queues))
    except ProgramError as error:
        assert "a token is missing" in str(error) or "pbm is no bitmap" in str(error)
    else:
        assert not np.array_equal(output, OPERANDS.expected)


def test_overwriting_what_is_still_read():
    # One slot, and the loads of the next tile do not wait for the array.
    single = dense_program(HEADER, 4, 4, slots=1)
    free = (Queue.ACT_FREE, Queue.WGT_FREE)
    program = changed(
        lambda i: None if isinstance(i, Wait | Signal) and i.queue in free else i, single
    )
    with pytest.raises(ProgramError, match=r"MMA\.LSB.*a token is missing.*LD\.LSB"):
        run(program)


def test_a_dropped_wait_or_signal_is_found():
    for at, instruction in enumerate(PROGRAM.instructions):
        if isinstance(instruction, Wait | Signal):
            code = PROGRAM.instructions[:at] + PROGRAM.instructions[at + 1 :]
            with pytest.raises(ProgramError):
                run(Program(PROGRAM.header, code))


def test_a_deadlock_names_who_waits():
    tokens = list(PROGRAM.header.tokens)
    tokens[Queue.WGT_FREE] = 0
    program = Program(replace(PROGRAM.header, tokens=tuple(tokens)), PROGRAM.instructions)
    with pytest.raises(ProgramError, match=r"deadlocks.*WAIT     LOAD, WGT_FREE.*WAIT     MMA"):
        run(program)


def test_tokens_that_are_left_over_are_found():
    program = Program(PROGRAM.header, (*PROGRAM.instructions, Signal(Queue.ROW_FREE)))
    with pytest.raises(ProgramError, match=r"leaves \+1 tokens in ROW_FREE"):
        run(program)


WRONG: dict[str, Change] = {
    "lsb one byte on": lambda i: (
        replace(i, lsb=replace(i.lsb, offset=Affine(1))) if isinstance(i, MmaLsb) else i
    ),
    "weights of the other slot": lambda i: (
        replace(i, wgt=replace(i.wgt, offset=Affine(4))) if isinstance(i, MmaLsb) else i
    ),
    "accumulators never cleared": lambda i: replace(i, zero=NEVER) if isinstance(i, MmaLsb) else i,
    "accumulators always cleared": lambda i: (
        replace(i, zero=ALWAYS) if isinstance(i, MmaLsb) else i
    ),
    "cleared in the wrong chunk": lambda i: (
        replace(i, zero=Condition.last(2)) if isinstance(i, MmaLsb) else i
    ),
    "always the first rows": lambda i: replace(i, row=Affine()) if isinstance(i, LdLsb) else i,
    "always the first channels": lambda i: replace(i, row=Affine()) if isinstance(i, LdWgt) else i,
    "no drain": lambda i: None if isinstance(i, Drain) else i,
    "outputs not stored": lambda i: None if isinstance(i, StOut) else i,
    "three rows stored": lambda i: replace(i, rows=Extent(3)) if isinstance(i, StOut) else i,
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_wrong_operands_give_wrong_results(change):
    try:
        output = run(changed(change))
    except ProgramError as error:
        assert "a token is missing, or an address is wrong" in str(error)
    else:
        assert not np.array_equal(output, OPERANDS.expected)


REFUSED: dict[str, tuple[Change, str]] = {
    "other bitmap": (
        lambda i: replace(i, row=Affine()) if isinstance(i, LdPbm) else i,
        "msb is not what one load has left of these rows and columns",
    ),
    "bitmap not at its begin": (
        lambda i: replace(i, pbm=replace(i.pbm, offset=Affine(4))) if isinstance(i, MmaMsb) else i,
        "pbm is no bitmap tile",
    ),
    "stream not at its begin": (
        lambda i: replace(i, msb=replace(i.msb, offset=Affine(1))) if isinstance(i, MmaMsb) else i,
        "msb is not what one load has left",
    ),
    "part of a bitmap": (
        lambda i: replace(i, m=Extent(3)) if isinstance(i, MmaMsb) else i,
        "pbm is no bitmap tile",
    ),
    "stream within a row group": (
        lambda i: replace(i, row=i.row + 2, rows=Extent(2)) if isinstance(i, LdMsb) else i,
        "there are tile pointers every 4 rows only",
    ),
    "behind the last row": (
        lambda i: replace(i, row=i.row + 4) if isinstance(i, LdLsb) else i,
        r"rows leave the tensor's 8: \[8, 12\)",
    ),
    "within a chunk": (
        lambda i: replace(i, col=i.col + 8, cols=Extent(16)) if isinstance(i, LdWgt) else i,
        "not a whole chunk of 32 columns",
    ),
    "behind the buffer": (
        lambda i: (
            replace(i, dst=replace(i.dst, offset=Affine(16384))) if isinstance(i, LdWgt) else i
        ),
        "dst leaves WGT of 16384 bytes",
    ),
    "before the buffer": (
        lambda i: replace(i, acc=replace(i.acc, offset=Affine(-4))) if isinstance(i, Drain) else i,
        "acc leaves ACC",
    ),
    "accumulators between cells": (
        lambda i: replace(i, acc=replace(i.acc, offset=Affine(2))) if isinstance(i, MmaLsb) else i,
        "acc is not a multiple of 4 bytes",
    ),
    "too many rows for a split": (
        lambda i: replace(i, row_split=2) if isinstance(i, MmaLsb) else i,
        r"m \* row_split is larger than the 4 rows of PEs",
    ),
    "too many columns": (
        lambda i: replace(i, k=Extent(65)) if isinstance(i, MmaLsb) else i,
        "k is larger than its tensor",
    ),
    "too many channels": (
        lambda i: replace(i, n=Extent(9)) if isinstance(i, MmaLsb) else i,
        "n is larger than its tensor",
    ),
    "outputs behind the last channel": (
        lambda i: replace(i, col=i.col + 4) if isinstance(i, StOut) else i,
        r"columns leave the tensor's 8: \[8, 12\)",
    ),
}


@pytest.mark.parametrize(("change", "problem"), REFUSED.values(), ids=REFUSED)
def test_impossible_steps_are_refused_and_named(change, problem):
    with pytest.raises(ProgramError, match=rf"instruction \d+ `.*{problem}"):
        run(changed(change))


def test_rows_beyond_the_program_are_refused():
    operands = random_operands(np.random.default_rng(0), HEADER, M + 1)
    with pytest.raises(ProgramError, match="takes 1 to 8 rows"):
        simulate(PROGRAM, operands.tensors)


def test_buffers_begin_with_garbage():
    # The first tile of weights is never loaded: what lies there is no zero.
    header = integer_header(4, 4, 32, 32)
    operands = random_operands(np.random.default_rng(0), header, 4)
    program = changed(lambda i: None if isinstance(i, LdWgt) else i, dense_program(header, 4, 4))
    output = simulate(program, operands.tensors).output
    assert output is not None
    assert not np.array_equal(output, operands.expected)
    assert output.any()


@pytest.mark.parametrize("cls", [MmaLsb, LdChn, LdGrp, LdRow, LdSum])
def test_nothing_on_chip_is_neutral_before_it_is_written(cls):
    # Accumulators that nobody clears, parameters that nobody loads: never as if they were zero.
    header = header_for(TINY, 4, 4, 32, 32, group_size=8, has_min=True, has_offset=True)
    operands = random_operands(np.random.default_rng(0), header, 4)
    program = changed(
        lambda i: (replace(i, zero=NEVER) if cls is MmaLsb else None) if isinstance(i, cls) else i,
        dense_program(header, 4, 4),
    )
    output = simulate(program, operands.tensors).output
    assert (output != operands.expected).all()


SORTED = header_for(TINY, 12, 10, 48, 16, block_rows=8)
"""Sorted rows: 12 rows in blocks of 8."""


@pytest.mark.parametrize(
    "order",
    [
        [0, 1, 2, 3, 4, 5, 6, 8, 7, 9, 10, 11],
        [0, 0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 65535],
    ],
    ids=["row of another block", "row twice", "no row"],
)
def test_a_list_that_is_no_permutation_of_its_blocks_is_refused(order):
    operands = random_operands(np.random.default_rng(0), SORTED, 12)
    tensors = {**operands.tensors, Tensor.ROW_ORDER: np.array(order, dtype=np.uint16)}
    with pytest.raises(InvalidArgumentError, match="each row of every block of 8 rows exactly"):
        simulate(dense_program(SORTED, 8, 8), tensors)


def test_any_other_list_puts_rows_where_it_says():
    operands = random_operands(np.random.default_rng(0), SORTED, 12)
    sorted_by_hand = operands.tensors[Tensor.ROW_ORDER]
    listed = np.array([7, 6, 5, 4, 3, 2, 1, 0, 11, 10, 9, 8], dtype=np.uint16)
    tensors = {**operands.tensors, Tensor.ROW_ORDER: listed}
    output = simulate(dense_program(SORTED, 8, 8), tensors).output
    assert output is not None
    np.testing.assert_array_equal(output[listed], operands.expected[sorted_by_hand])


def test_sorted_rows_need_their_list():
    tensors = dict(random_operands(np.random.default_rng(0), SORTED, 12).tensors)
    del tensors[Tensor.ROW_ORDER]
    with pytest.raises(InvalidArgumentError, match="needs the tensor ROW_ORDER"):
        simulate(dense_program(SORTED, 8, 8), tensors)


@pytest.mark.parametrize(
    "change",
    [
        lambda i: replace(i, order=replace(i.order, base=0)) if isinstance(i, StOut) else i,
        lambda i: replace(i, rows=Extent(4)) if isinstance(i, StOut) else i,
        lambda i: replace(i, row=Affine()) if isinstance(i, LdRow) else i,
        lambda i: None if isinstance(i, LdRow) else i,
    ],
    ids=["other bytes", "fewer rows", "other rows", "never loaded"],
)
def test_rows_are_stored_by_numbers_that_were_loaded_for_them(change):
    operands = random_operands(np.random.default_rng(0), SORTED, 12)
    with pytest.raises(ProgramError, match=r"order is not what one load has left"):
        simulate(changed(change, dense_program(SORTED, 8, 8)), operands.tensors)


@pytest.mark.parametrize("batch", range(5))
def test_damaged_programs_do_no_harm(batch):
    # What the verifier accepts has to be exact here, too; anything else may be refused or wrong.
    options = [{}, {"group_size": 8, "has_min": True}, {"weight_bits": 8}, {"group_size": 16}]
    options.append({"block_rows": 4})
    header = header_for(TINY, 12, 10, 48, 16, **options[batch])
    operands = random_operands(np.random.default_rng(batch), header, 11)
    tiles = (Tiles(8, 4), Tiles(8, 4, rows_outer=False, stay=True), Tiles(4, 4, slots=1))
    program = handmade_program(header, tiles[batch % 3])
    mutate = Mutator(batch)
    exact = refused = 0
    for _ in range(75):
        try:
            damaged = mutate(program)
            output = simulate(damaged, operands.tensors).output
        except ProgramError:
            refused += 1
            continue
        exact += np.array_equal(output, operands.expected)
        try:
            verify(damaged, 11)
        except ProgramError:
            continue
        np.testing.assert_array_equal(output, operands.expected)
    assert refused > 20 and exact > 0
