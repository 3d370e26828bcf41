from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from attention_cases import SMALL, Case, Operands
from attention_machine import run_attention_everywhere

from sparqle_tvm.errors import InvalidArgumentError, ProgramError
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.attention_op import AttentionOp
from sparqle_tvm.target.compile.attention import attention_program
from sparqle_tvm.target.cost.attention_plan import AttentionPlan
from sparqle_tvm.target.isa.access import Tensor
from sparqle_tvm.target.isa.header import Engine
from sparqle_tvm.target.isa.operands import Buffer
from sparqle_tvm.target.simulator.attention import (
    attention_tensors,
    simulate_attention,
    simulate_attention_timing,
)
from sparqle_tvm.target.simulator.attention_work import digit_work, gather_bytes

OP = AttentionOp(rows=6, keys=40, kv_heads=2, group=3, head_dim=13, label="small")
PLAN = AttentionPlan(block_rows=4, key_chunk=16)


def simulated(case: Case, operands: Operands):
    program = attention_program(case.op, case.accelerator, case.plan, verify=False)
    return program, simulate_attention(program, operands.tensors(program.header), case.rows)


@pytest.mark.parametrize("block", range(10))
def test_values_are_those_of_the_definition(block):
    for seed in range(31 * block, 31 * (block + 1)):
        rng = np.random.default_rng(seed)
        case = Case.random(rng)
        operands = Operands.random(case.op, case.rows, case.past, rng)
        _, result = simulated(case, operands)
        found, expected = result.output, operands.expected(case.op)
        assert np.array_equal(found.view(np.int32), expected.view(np.int32)), (seed, case)


@pytest.mark.parametrize("seed", range(12))
def test_a_machine_that_knows_no_tiles_finds_the_same_in_every_timing(seed):
    rng = np.random.default_rng(1000 + seed)
    case = Case.random(rng)
    case = replace(case, rows=min(case.rows, 3), past=min(case.past, 31))
    operands = Operands.random(case.op, case.rows, case.past, rng)
    program, result = simulated(case, operands)
    sizes = (case.rows, case.past)
    assert run_attention_everywhere(program, *sizes, operands, result.output, seed)


def test_what_is_counted_by_hand():
    # One key head of two query heads, one token after 8: 2 rows, 9 keys in chunks of 8 and 1.
    op = AttentionOp(rows=1, keys=9, kv_heads=1, group=2, head_dim=32, label="hand")
    program = attention_program(op, SMALL, AttentionPlan(2, 8))
    rng = np.random.default_rng(0)
    operands = Operands.random(op, 1, 8, rng)
    result = simulate_attention(program, operands.tensors(program.header), 1)
    work, busy = result.work.tables, {e: t.busy_cycles for e, t in result.engines.items()}
    # LSB pass of the scores: 2 slices, blocks of 4 keys (2 + 1), 32 channels are 4 steps of 8.
    assert busy[Engine.MMA]["QK.LSB"] == 2 * (2 + 1) * 4
    assert busy[Engine.MMA]["QK.MSB"] == 2 * (2 + 1) * int(work["q_steps"][0])
    # Mixing: 32 channels are 8 blocks of columns; up to 8 live keys are one step.
    live = work["live"][0]
    assert busy[Engine.MMA]["PV.LSB"] == 2 * 8 * sum(-(-n // 8) for n in live)
    # 11 operations on each of 2 x 9 scores, one on every probability of a live key; 64 lanes.
    assert busy[Engine.VECTOR]["VEC.SMX"] == -(-(11 * 18 + 2 * live.sum()) // 64)
    # 2 x 32 outputs, 16 a cycle; stored as 2 bytes each.
    assert busy[Engine.STORE]["DRN.OUT"] == 4
    assert result.counts.dram_write_bytes == {Tensor.OUT: 2 * 2 * 32}
    # Keys with a byte per channel, and two scales of 4 bytes; values of live keys: whole bursts.
    read = result.counts.dram_read_bytes
    assert read[Tensor.KEYS] == 9 * 32 and read[Tensor.KEY_SCALES] == 9 * 8
    assert read[Tensor.VALUES] == 32 * live.sum()
    # Two pointers of 4 bytes. Factors, 16 bytes of LSB digits and 4 of bits a row, the digits.
    assert read[Tensor.QUERY_PTR] == 8
    assert read[Tensor.QUERIES] == 2 * (4 + 16 + 4) + work["q_bytes"][0]
    # Queries, two loads of keys and scales, two gathers, one store.
    assert result.counts.descriptors == 1 + 4 + 2 + 1
    for time in result.engines.values():
        assert time.busy + time.stalled == result.total_cycles


def test_values_that_are_not_loaded_make_no_difference():
    """All values of dead keys are replaced by others: the outputs are the same, as are bytes."""
    rng = np.random.default_rng(7)
    operands = Operands.random(OP, 6, 34, rng)
    program = attention_program(OP, SMALL, PLAN)
    tensors = operands.tensors(program.header)
    result = simulate_attention(program, tensors, 6)
    live = result.work.tables["live"]
    assert 0 < live.sum() < 0.9 * sum(40 - 6 + 1 + 3 * b // 3 for b in range(10))
    assert result.counts.dram_read_bytes[Tensor.VALUES] == sum(
        result.work.tables["value_bytes"].reshape(-1)
    )
    # A value is needed by some row of its head, or by none.
    probabilities = np.zeros((2, 40), bool)
    for head in range(6):
        x = operands.q[:, head].astype(np.int32) @ operands.keys.values[:, head // 3].T.astype(int)
        from sparqle_tvm.numerics import attention as numerics

        e = numerics.exponentials(
            numerics.scores(
                x.astype(np.int32),
                np.ascontiguousarray(operands.factors[:, head]),
                np.ascontiguousarray(operands.keys.scale[:, head // 3]),
            ),
            numerics.causal_mask(0, 6, 34, 40),
        )
        scale = np.ascontiguousarray(operands.values.scale[:, head // 3])
        probabilities[head // 3] |= (numerics.probabilities(e, scale)[0] > 0).any(axis=0)
    values = tensors[Tensor.VALUES].copy()
    values[~probabilities] = -128
    assert not np.array_equal(values, tensors[Tensor.VALUES])
    again = simulate_attention(program, {**tensors, Tensor.VALUES: values}, 6)
    assert np.array_equal(again.output, result.output)


def test_planes_of_the_cache_counted_by_hand():
    """Keys of a head in planes, of the other plain; values of both in planes, gathered."""
    op = replace(OP, rows=1, keys=20, group=1, key_planes="p-", value_planes="p")
    rng = np.random.default_rng(4)
    operands = Operands.random(op, 1, 18, rng)
    program = attention_program(op, SMALL, AttentionPlan(block_rows=1, key_chunk=16))
    result = simulate_attention(program, operands.tensors(program.header), 1)
    assert np.array_equal(result.output, operands.expected(op))

    def digits(heads, head):
        # What does not lie in -8..7 has a high digit.
        rows = heads.values[:, head].astype(int)
        return ((rows < -8) | (rows > 7)).sum(axis=1)

    # 13 channels: 7 bytes of LSB digits and 2 of bits, two stored digits to a byte; 19 keys are
    # chunks of 16 and 3, two pointers of 4 bytes each; a plain row has 13 bytes.
    stored = digits(operands.keys, 0)
    sizes = 9 + -(-stored // 2)
    expected = sizes.sum() + 2 * 8 + 19 * 13
    read = result.counts.dram_read_bytes
    assert read[Tensor.KEYS] == expected
    located = stored.sum()
    moved, begin = 0, 0
    for head in range(2):
        of_values = digits(operands.values, head)
        ends = begin + np.cumsum(np.append(0, 9 + -(-of_values // 2)))
        begin = ends[-1]
        live = live_keys(operands, head)
        located += of_values[live].sum()
        for first in (0, 16):
            keys = [key for key in live if first <= key < first + 16]
            runs = [key for key in keys if key - 1 not in keys]
            for key in runs:
                last = key
                while last + 1 in keys:
                    last += 1
                # Bursts of 32 bytes from the first to the last byte, two pointers.
                moved += 32 * (-(-ends[last + 1] // 32) - ends[key] // 32) + 8
    assert read[Tensor.VALUES] == moved
    found = result.work.tables
    assert located == found["key_digits"].sum() + found["value_digits"].sum()
    # On chip they are int8 again: keys of both heads, values of live keys, scales and queries.
    plain = replace(op, key_planes="-", value_planes="-")
    other = attention_program(plain, SMALL, AttentionPlan(block_rows=1, key_chunk=16))
    as_int8 = simulate_attention(other, operands.tensors(other.header), 1)
    assert np.array_equal(as_int8.output, result.output)
    steps = result.counts.find_first_steps - as_int8.counts.find_first_steps
    assert steps == located


def live_keys(operands, head):
    """Keys that some row of one query token needs, a query head for each key head."""
    from sparqle_tvm.numerics import attention as numerics

    found = numerics.attend_rows(
        np.ascontiguousarray(operands.q[:, head]),
        np.ascontiguousarray(operands.factors[:, head]),
        *(operands.keys, operands.values, head),
    )
    return np.flatnonzero(found.probabilities.any(axis=0)).tolist()


def test_a_damaged_cache_is_refused():
    op = replace(OP, key_planes="p")
    program = attention_program(op, SMALL, PLAN)
    tensors = Operands.random(op, 6, 20, np.random.default_rng(0)).tensors(program.header)
    pointers = tensors[Tensor.KEY_PTR].copy()
    pointers[1, 5] += 40
    with pytest.raises(InvalidArgumentError, match="pointers do not fit the keys"):
        simulate_attention(program, {**tensors, Tensor.KEY_PTR: pointers}, 6)
    with pytest.raises(InvalidArgumentError, match="KEYS must be uint8"):
        simulate_attention(program, {**tensors, Tensor.KEYS: np.zeros((2, 26, 13), np.int8)}, 6)


def test_time_alone_is_that_of_the_run():
    rng = np.random.default_rng(3)
    for _ in range(5):
        case = Case.random(rng)
        operands = Operands.random(case.op, case.rows, case.past, rng)
        program, result = simulated(case, operands)
        alone = simulate_attention_timing(program, case.rows, case.past, result.work)
        assert alone.output is None
        assert alone.total_cycles == result.total_cycles
        assert alone.counts == result.counts


def test_dense_and_planes_give_the_same_outputs():
    rng = np.random.default_rng(5)
    operands = Operands.random(OP, 6, 20, rng)
    outputs = []
    for op in (OP, replace(OP, scheme="dense", window="unsigned"), replace(OP, window="unsigned")):
        program = attention_program(op, SMALL, PLAN)
        outputs.append(simulate_attention(program, operands.tensors(program.header), 6).output)
    assert all(np.array_equal(outputs[0], other) for other in outputs[1:])


def test_every_int8_is_a_query():
    """All integers of 8 bits, -128 too, in both windows."""
    op = AttentionOp(rows=1, keys=5, kv_heads=1, group=1, head_dim=256, label="all")
    q = np.arange(-128, 128, dtype=np.int8).reshape(1, 1, 256)
    rng = np.random.default_rng(0)
    operands = replace(
        Operands.random(op, 1, 4, rng), q=q, factors=np.full((1, 1), 0.1, np.float32)
    )
    machine = PRESETS["sparqle/edge"]
    for window in ("signed", "unsigned"):
        program = attention_program(replace(op, window=window), machine, AttentionPlan(1, 8))
        tensors = operands.tensors(program.header)
        result = simulate_attention(program, tensors, 1)
        assert np.array_equal(result.output, operands.expected(op))
        assert result.work.tables["q_digits"][0] == 240


def test_work_of_digits_and_gathers():
    header = AttentionPlan(4, 16, row_split=1).header(OP, SMALL)
    stored = np.zeros((6, 20), bool)
    stored[0, :9] = stored[1, 3] = stored[5, :17] = True
    # Steps of 8: rows take 2, 1, 0, 0 and 0, 3; 9, 1 and 17 digits are 5, 1 and 9 bytes.
    assert digit_work(header, stored) == {
        "bytes": 15,
        "digits": 27,
        "steps": 2 + 3,
        "taken": 6,
        "waits": (4 * 2 + 2 * 3) - 6,
    }
    split = AttentionPlan(2, 16, row_split=2).header(OP, SMALL)
    # 20 columns are 3 steps, segments of 2 steps: 9 digits lie in the first, 4 more in the second.
    some = stored[:2].copy()
    some[0, 16:] = True
    assert digit_work(split, some)["steps"] == 2
    assert digit_work(split, some)["taken"] == 2 + 1 + 1
    live = np.array([1, 1, 0, 1, 0, 0, 1, 1, 1], bool)
    # Runs of 2, 1 and 3 rows of 20 bytes: 40, 20 and 60 bytes in bursts of 32.
    assert gather_bytes(live, 20) == 64 + 32 + 64
    assert gather_bytes(live, 64) == 6 * 64
    assert gather_bytes(~live & False, 64) == 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({Tensor.KEYS: None}, "needs the tensor KEYS"),
        ({Tensor.VALUES: np.zeros((2, 9, 13), np.int8)}, r"VALUES must be int8 \(2, 26, 13\)"),
        ({Tensor.KEY_SCALES: np.zeros((2, 26, 2))}, "KEY_SCALES must be float32"),
        ({Tensor.QUERY_PTR: np.zeros(3, np.int32)}, "QUERY_PTR must be int32"),
        ({Tensor.QUERIES: np.zeros(8, np.uint8)}, "does not fit the blocks of QUERIES"),
        ({Tensor.OUT: np.zeros((6, 6, 12), np.float32)}, "OUT must be float32"),
    ],
)
def test_wrong_tensors_are_refused(change, match):
    program = attention_program(OP, SMALL, PLAN)
    tensors = Operands.random(OP, 6, 20, np.random.default_rng(0)).tensors(program.header)
    tensors = {t: a for t, a in (tensors | change).items() if a is not None}
    with pytest.raises(InvalidArgumentError, match=match):
        simulate_attention(program, tensors, 6)


def test_sizes_that_the_program_has_not_are_refused():
    program = attention_program(OP, SMALL, PLAN)
    operands = Operands.random(replace(OP, rows=7, keys=41), 7, 34, np.random.default_rng(0))
    wider = replace(program.header, op=replace(OP, rows=7, keys=41))
    with pytest.raises(ProgramError, match="takes 1 to 6 rows and 40 keys at most"):
        simulate_attention(program, operands.tensors(wider), 7)


def test_tensors_on_chip_and_the_timeline():
    program = attention_program(OP, SMALL, PLAN)
    operands = Operands.random(OP, 6, 20, np.random.default_rng(0))
    tensors = attention_tensors(
        *(program.header, operands.q, operands.factors),
        *((operands.keys.values, operands.keys.scale),),
        *((operands.values.values, operands.values.scale),),
    )
    from sparqle_tvm.target.simulator.timeline import timeline

    result = simulate_attention(program, tensors, 6)
    events = [e for e in timeline([result])["traceEvents"] if e["ph"] == "X"]
    names = {e["name"] for e in events if e["tid"] == Engine.VECTOR}
    assert "VEC.SMX" in names and "stall: SCR_READY" in names
    assert all(result.counts.onchip_read_bytes[buffer] > 0 for buffer in Buffer)
