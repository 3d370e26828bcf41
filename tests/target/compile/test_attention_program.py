from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from attention_cases import SMALL, Case

from sparqle_tvm.errors import InvalidArgumentError, ProgramError, TargetError
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.attention_op import AttentionOp
from sparqle_tvm.target.compile.attention import attention_program
from sparqle_tvm.target.cost.attention import attention_cost
from sparqle_tvm.target.cost.attention_choice import (
    ExpectedAttention,
    choose_plan,
    choose_scheme,
    typical_attention,
)
from sparqle_tvm.target.cost.attention_plan import AttentionPlan
from sparqle_tvm.target.isa.attention import LdKey, MmaQkLsb
from sparqle_tvm.target.isa.base import End, If, Loop
from sparqle_tvm.target.isa.header import Header
from sparqle_tvm.target.isa.operands import Affine, Buffer
from sparqle_tvm.target.op import DenseOp
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.program.bound import BoundProgram
from sparqle_tvm.target.simulator.attention_work import Work

EDGE = PRESETS["sparqle/edge"]
OP = AttentionOp(rows=6, keys=40, kv_heads=2, group=3, head_dim=13, label="small")
PLAN = AttentionPlan(block_rows=4, key_chunk=16)


@pytest.mark.parametrize("stays", [False, True])
def test_listing(golden, stays):
    plan = replace(PLAN, stays=stays)
    golden(
        f"attention_{'stays' if stays else 'streams'}",
        attention_program(OP, SMALL, plan).disassemble(),
    )


def test_binary_form_of_both_kinds():
    program = attention_program(OP, SMALL, PLAN)
    again = Program.from_bytes(program.to_bytes())
    assert again == program and again.header.label == "small"
    assert again.header.KIND == "attention"
    with pytest.raises(ProgramError, match="instruction of attention programs, this one is dense"):
        Program(Header(accelerator=SMALL, op=DenseOp(4, 4, 8), k_chunk=8), program.instructions[:2])


def steps_by_hand(program: Program[Any], rows: int, past: int) -> list[tuple[int, ...]]:
    """(index of the instruction, block, chunk) of every step that is a load of keys or a product,
    by running loops and conditions one iteration after the other.
    """
    header, code = program.header, program.instructions
    op, per_head = header.op, -(-header.op.group * rows // header.block_rows)
    sizes = {"M": rows, "B": op.kv_heads * per_head, "T": rows + past}
    found: list[tuple[int, ...]] = []

    def keys(block: int) -> int:
        last = min((block % per_head + 1) * header.block_rows, op.group * rows) - 1
        return past + last // op.group + 1

    def holds(what: int, block: int, chunk: int) -> bool:
        exists = 0 <= block < sizes["B"]
        seen = exists and chunk * header.key_chunk < keys(block)
        ends = (block % per_head == 0, block % per_head == per_head - 1)
        return {1: exists, 2: exists and ends[0], 3: exists and ends[1], 4: seen}[what]

    def value(affine: Affine, at: dict[int, int]) -> int:
        return affine.const + sum(c * at[loop] for loop, c in affine.terms)

    def run(index: int, at: dict[int, int], act: bool) -> int:
        while index < len(code):
            i = code[index]
            if isinstance(i, End):
                return index + 1
            if isinstance(i, Loop):
                limit = sizes[i.limit] if isinstance(i.limit, str) else i.limit
                for number in range(-(-limit // i.step)):
                    behind = run(index + 1, at | {i.loop: number}, act)
                index = behind
                continue
            if isinstance(i, If):
                met = holds(i.what, value(i.block, at), value(i.chunk, at))
                index = run(index + 1, at, act and met)
                continue
            if act and isinstance(i, LdKey | MmaQkLsb):
                found.append((index, value(i.block, at), value(i.chunk, at)))
            index += 1
        return index

    run(0, {}, True)
    return found


@pytest.mark.parametrize("seed", range(10))
def test_steps_are_those_of_loops_and_conditions(seed):
    case = Case.random(np.random.default_rng(seed))
    program = attention_program(case.op, SMALL, case.plan, verify=False)
    if not case.op.causal:
        return
    bound = BoundProgram(program, case.rows, case.past)
    steps = [
        (int(bound.trace[step, 1]), block, chunk)
        for cls in (LdKey, MmaQkLsb)
        for operands in (bound.of(cls),)
        for step, block, chunk in zip(
            operands.index.tolist(),
            operands["block"].tolist(),
            operands["chunk"].tolist(),
            strict=True,
        )
    ]
    assert sorted(steps) == sorted(steps_by_hand(program, case.rows, case.past))
    assert "i" in bound.where(len(bound) - 1)


def test_every_pair_is_multiplied_once():
    program = attention_program(OP, SMALL, PLAN)
    run = BoundProgram(program, 5, 30)
    scores = run.of(MmaQkLsb)
    pairs = set()
    for row, rows, key, keys in zip(
        *(scores[name].tolist() for name in ("row", "rows", "key", "keys")), strict=True
    ):
        for r in range(row, row + rows):
            for k in range(key, key + keys):
                assert (r, k) not in pairs
                pairs.add((r, k))
    # 2 heads of 5 tokens of 3 query rows; token t sees 30 + t + 1 keys, and what its block sees.
    needed = {
        (head * 15 + row, head * 35 + key)
        for head in range(2)
        for row in range(15)
        for key in range(30 + row // 3 + 1)
    }
    assert needed <= pairs
    assert all(key // 35 == row // 15 for row, key in pairs)


def test_buffers_are_as_full_as_the_plan_says():
    program = attention_program(OP, SMALL, PLAN)
    needs = PLAN.needs(OP, SMALL)
    for buffer in Buffer:
        used = sum(a.slots * a.slot_bytes for a in program.header.allocations if a.buffer == buffer)
        assert used == needs[buffer]
    apart = replace(
        SMALL,
        scratchpad=False,
        **{f"{buffer.word}_buffer_bytes": nbytes for buffer, nbytes in needs.items()},
    )
    # One memory for all takes what does not fit its own buffer.
    shifted = replace(
        apart,
        activation_buffer_bytes=needs[Buffer.ACT] + 8,
        accumulator_buffer_bytes=needs[Buffer.ACC] - 8,
    )
    for fitting in (apart, replace(apart, scratchpad=True), replace(shifted, scratchpad=True)):
        assert PLAN.fits(OP, fitting)
    less = replace(apart, accumulator_buffer_bytes=needs[Buffer.ACC] - 8)
    for small in (less, shifted, replace(less, scratchpad=True)):
        assert not PLAN.fits(OP, small)
        with pytest.raises(TargetError, match=r"'small'.* bytes of ACC, more than"):
            attention_program(OP, small, PLAN)


@pytest.mark.parametrize(
    ("sizes", "rows", "stays"),
    [
        # One token: one block, whose keys are used once.
        ((1, 2048, 8, 4, 128), 4, False),
        ((512, 512, 3, 3, 64), None, True),
    ],
)
def test_choice_of_plans(sizes, rows, stays):
    op = AttentionOp(*sizes)
    plan = choose_plan(op, EDGE)
    assert plan.fits(op, EDGE)
    assert plan.stays == stays
    if rows:
        assert plan.block_rows == rows
        assert plan.row_split > 1
        alone = choose_plan(op, replace(EDGE, rows_share_k=False))
        assert alone.row_split == 1


def test_of_plans_as_fast_the_one_of_least_energy():
    """BitNet's prefill waits for the vector engine: keys that stay move a fifth of the bytes."""
    op = AttentionOp(2048, 2048, 32, 1, 100)
    chosen = choose_plan(op, EDGE)
    some = replace(op, kv_heads=1)
    share = typical_attention(op.keys).shares(chosen.block_rows)

    def cost(plan):
        header = plan.header(some, EDGE)
        digits = (share.queries, share.live, share.probabilities)
        limits = header.limits(some.rows, 0)
        return attention_cost(
            some, EDGE, plan, Work.uniform(header, limits, *digits, runs=share.runs)
        )

    mine, streamed = cost(chosen), cost(AttentionPlan(64, 128))
    assert chosen.stays
    assert mine.total_cycles < 1.02 * streamed.total_cycles
    assert mine.dram_bytes < streamed.dram_bytes / 3


def test_plans_and_schemes_are_chosen_for_what_is_expected():
    few, all_of_them = (
        ExpectedAttention(share, share, (1.0,), (share,), (share / 2,)) for share in (0.01, 1.0)
    )
    op = AttentionOp(512, 512, 3, 3, 64)
    assert choose_scheme(op, EDGE, few) == (op, None)
    dense, left = choose_scheme(op, EDGE, all_of_them)
    assert dense.scheme == "dense" and left.msb_sparsity == 0


def test_long_contexts_get_smaller_blocks_or_are_refused():
    op = AttentionOp(1, 32768, 8, 4, 128)
    assert choose_plan(op, EDGE).fits(op, EDGE)
    long = AttentionOp(4096, 32768, 8, 4, 128)
    assert choose_plan(long, EDGE).block_rows < 16
    small = replace(EDGE, weight_buffer_bytes=65536, scratchpad=False)
    with pytest.raises(TargetError, match=r"a row with 60000 keys do not fit the buffers"):
        choose_plan(AttentionOp(1, 60000, 8, 4, 128), small)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"rows": 0}, "rows = 0 must be a whole number"),
        ({"rows": 50}, "50 rows see themselves"),
        ({"head_dim": 2.5}, "head_dim = 2.5"),
        ({"keys": 100_000}, "100000 keys: sums of 32 bits hold"),
        ({"scheme": "native"}, "scheme = 'native' must be one of"),
        ({"scheme": "dense"}, "window 'signed' needs scheme 'sparqle'"),
        ({"causal": 1}, "causal true or false"),
    ],
)
def test_ops_that_do_not_hold_together(change, match):
    with pytest.raises(InvalidArgumentError, match=match):
        replace(OP, **change)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"key_chunk": 12}, "key_chunk = 12 must be a multiple of 8"),
        ({"block_rows": 0}, "block_rows = 0"),
        ({"row_split": 2}, "row_split = 2 needs more rows of PEs"),
        ({"accelerator": replace(SMALL, digit_bits=8)}, "digits of 4 bits, the machine of 8"),
        ({"tokens": (1,)}, "tokens must be"),
        (
            {"accelerator": replace(SMALL, rows_share_k=False), "row_split": 2, "block_rows": 2},
            "rows of PEs that share K",
        ),
    ],
)
def test_headers_that_do_not_hold_together(change, match):
    header = PLAN.header(OP, SMALL)
    with pytest.raises(ProgramError, match=match):
        replace(header, **change)
    assert {f.name for f in fields(header)} > set(change)


def test_macs_and_pairs():
    op = AttentionOp(rows=4, keys=10, kv_heads=2, group=3, head_dim=8)
    # Tokens see 7, 8, 9 and 10 keys.
    assert (op.past, op.pairs, op.macs) == (6, 34 * 6, 2 * 34 * 6 * 8)
    assert replace(op, causal=False).pairs == 4 * 10 * 6


def test_attention_is_left_dense_where_the_vector_engine_is_the_limit():
    # SmolLM2's prefill: planes save the array time that nobody waits for.
    op = AttentionOp(512, 512, 3, 3, 64)
    dense, left = choose_scheme(op, EDGE)
    assert (dense.scheme, dense.window) == ("dense", "unsigned")
    assert left.dense_cycles < left.split_cycles
    assert "cycles split" in left.reason
    # They are those of the whole op, all heads and rows.
    plan = choose_plan(dense, EDGE)
    header = plan.header(dense, EDGE)
    whole = attention_cost(
        dense, EDGE, plan, Work.uniform(header, header.limits(512, 0), 0.0, 1.0, 0.0)
    )
    assert left.dense_cycles == pytest.approx(whole.total_cycles, rel=0.05)
    # With vector lanes enough it is split.
    fast = replace(EDGE, vector_lanes=8 * EDGE.vector_lanes)
    assert choose_scheme(op, fast) == (op, None)
    planes = replace(op, key_planes="p--")
    assert choose_scheme(planes, EDGE) == (replace(dense, key_planes="p--"), left)
    # A decode step loads live values only.
    step = AttentionOp(1, 4096, 3, 3, 64)
    assert choose_scheme(step, EDGE) == (step, None)
