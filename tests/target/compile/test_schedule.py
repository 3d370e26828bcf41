"""Schedules: they compute the same, fit the buffers, and consist of intrinsics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from dense_cases import EDGE, SPECS, TINY, accelerator_for, expected, random_operands, run_primfunc
from hypothesis import given, settings
from hypothesis import strategies as st

from sparqle_tvm.errors import CompileError, TargetError
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.compile.lowered import lower
from sparqle_tvm.target.compile.schedule import (
    ROW_SPLIT_ATTR,
    SLOTS_ATTR,
    default_decisions,
    default_schedule,
    schedule_with,
)
from sparqle_tvm.target.cost.schedule import Decisions, Tiling, buffer_needs, overflows
from sparqle_tvm.target.cost.tiling import choose_schedules
from sparqle_tvm.target.isa.operands import Buffer
from sparqle_tvm.target.op import DenseOp

SMALL_TILE = Decisions(m=4, n=4, k=32)


@pytest.mark.parametrize(
    ("name", "rows_outer", "keep_outer"),
    [
        ("minima", True, False),
        ("minima", False, True),
        ("dense grouped", True, True),
        ("channel", False, False),
        ("int32", True, True),
    ],
)
def test_scheduled_loops_compute_the_same(name: str, rows_outer: bool, keep_outer: bool) -> None:
    spec = SPECS[name]
    decisions = replace(SMALL_TILE, rows_outer=rows_outer, keep_outer=keep_outer)
    sch = schedule_with(spec, TINY, decisions, tensorize=False)
    operands = random_operands(spec, seed=3)
    out = run_primfunc(sch.mod["main"], spec, operands, decisions.tile)
    np.testing.assert_array_equal(out, expected(spec, operands))


@pytest.mark.parametrize("name", SPECS)
def test_everything_becomes_an_intrinsic(name: str) -> None:
    spec = SPECS[name]
    body, _ = lower(default_schedule(spec, accelerator_for(spec)))
    found = {call.name for call in body.calls()}
    wanted = {"ld_wgt", "zero", "mma_lsb", "mma_msb", "drain", "store"}
    wanted |= {"ld_act"} if spec.scheme == "dense" else {"ld_lsb", "ld_msb"}
    if spec.output == "float32":
        wanted |= {"ld_row", "ld_scale" if spec.group_size else "ld_channel"}
    if spec.has_min:
        wanted |= {"ld_sums", "ld_min", "mma_min"}
    if spec.has_offset:
        wanted |= {"ld_offset"}
    if spec.adds_shift:
        wanted |= {"ld_zero", "ld_wsum"}
    assert found == wanted


def test_annotations_say_slots_and_row_split() -> None:
    decisions = replace(
        SMALL_TILE, activation_slots=3, weight_slots=2, accumulator_slots=1, row_split=2
    )
    body, _ = lower(schedule_with(replace(SPECS["one row"], m=2, has_offset=True), TINY, decisions))
    slots = {c.name: c.annotations[SLOTS_ATTR] for c in body.calls() if SLOTS_ATTR in c.annotations}
    assert slots == {
        **dict.fromkeys(("ld_lsb", "ld_msb", "ld_sums"), 3),
        **dict.fromkeys(("ld_wgt", "ld_scale", "ld_min"), 2),
        **dict.fromkeys(("ld_row", "ld_offset", "zero"), 1),
    }
    splits = {
        c.name: c.annotations[ROW_SPLIT_ATTR]
        for c in body.calls()
        if ROW_SPLIT_ATTR in c.annotations
    }
    assert splits == {"mma_lsb": 2, "mma_msb": 2}


@given(
    m=st.integers(1, 4096),
    n=st.integers(1, 20000),
    k32=st.integers(1, 400),
    group=st.sampled_from([0, 32, 64]),
    has_min=st.booleans(),
    weight_bits=st.sampled_from([2, 4, 8]),
    dense=st.booleans(),
    preset=st.sampled_from(sorted(PRESETS)),
)
@settings(max_examples=60, deadline=None)
def test_default_fits_every_shape(
    m: int,
    n: int,
    k32: int,
    group: int,
    has_min: bool,
    weight_bits: int,
    dense: bool,
    preset: str,
) -> None:
    spec = DenseOp(
        m=m,
        n=n,
        k=k32 * (group or 31),
        group_size=group,
        has_min=has_min and group > 0,
        weight_bits=weight_bits,
        scheme="dense" if dense else "sparqle",
        window="unsigned" if dense else "signed",
    )
    decisions = default_decisions(spec, PRESETS[preset])
    assert not overflows(spec, PRESETS[preset], decisions)
    assert decisions.row_split * spec.m <= max(PRESETS[preset].rows, spec.m)


def test_default_follows_the_search() -> None:
    spec = DenseOp(m=512, n=1536, k=576, group_size=32, has_min=True)
    assert default_decisions(spec, EDGE) == choose_schedules((spec,), EDGE, "sparqle")[0]


def test_a_vector_stays_on_chip() -> None:
    # One row of 512 or of 11008 columns is loaded once, however many chunks there are.
    for k in (512, 11008):
        spec = DenseOp(m=1, n=4096, k=k)
        assert Tiling(spec, default_decisions(spec, EDGE)).activation_loads == 1


def test_slots_and_alignment_are_counted() -> None:
    # 4 rows of 45 columns: 23 bytes of digits, 92 rounded up to 96, twice, and 24 of bits: 216;
    # their scales 16, in two slots.
    spec, tile = DenseOp(m=64, n=4, k=45), Decisions(m=4, n=4, k=48)
    for slots in (1, 2):
        needs = buffer_needs(spec, TINY, replace(tile, activation_slots=slots))
        assert needs[Buffer.ACT] == slots * 216 + 2 * 16
        full = replace(TINY, activation_buffer_bytes=needs[Buffer.ACT])
        assert not overflows(spec, full, replace(tile, activation_slots=slots))
        assert overflows(spec, full, replace(tile, activation_slots=slots + 1)) == [Buffer.ACT]


def test_needs_by_hand() -> None:
    # m = 4, n = 4, k = 32 of 8 x 12 x 64: 2 x 3 x 2 tiles, groups of 32 with minima.
    spec = DenseOp(m=8, n=12, k=64, group_size=32, has_min=True, has_offset=True)
    decisions = replace(SMALL_TILE, keep_outer=True)
    # Rows outside, both chunks kept: 2 slots x 2 tiles of lsb 64, pbm 16, msb 64, sums 8; scales
    # 2 x 16.
    act = 2 * 2 * (64 + 16 + 64 + 8) + 2 * 16
    # One tile of weights 4 * 16, of scales and minima 4 * 4; offsets 4 * 8; two slots each.
    wgt = 2 * (64 + 16) + 2 * 32
    acc = 2 * 4 * 4 * 8
    needs = buffer_needs(spec, TINY, decisions)
    assert needs == {Buffer.ACT: act, Buffer.WGT: wgt, Buffer.ACC: acc}
    # Weights outside instead: both chunks of them are kept, activations are not.
    needs = buffer_needs(spec, TINY, replace(decisions, rows_outer=False))
    assert needs[Buffer.ACT] == 2 * (64 + 16 + 64 + 8) + 2 * 16
    assert needs[Buffer.WGT] == 2 * 2 * (64 + 16) + 2 * 32
    # With one tile in all there is nothing to rotate.
    one = replace(spec, m=4, n=4, k=32)
    assert buffer_needs(one, TINY, decisions)[Buffer.ACC] == 4 * 4 * 8


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"m": 6}, "tile of m = 6 is not a multiple of 4"),
        ({"n": 0}, "tile of n = 0"),
        ({"k": 8}, "tile of k = 8 is not a multiple of 32"),
        ({"weight_slots": 0}, "at least one"),
        ({"row_split": 2}, "row_split = 2 of 6 rows needs 12 PE rows"),
        ({"row_split": 0}, "row_split = 0"),
    ],
)
def test_wrong_decisions_are_refused(changes: dict[str, int], problem: str) -> None:
    with pytest.raises(CompileError, match=problem):
        schedule_with(SPECS["minima"], TINY, replace(SMALL_TILE, **changes))


def test_other_digits_are_refused() -> None:
    with pytest.raises(TargetError, match="digits of 2 bits, accelerator 'tiny' of 4"):
        default_schedule(SPECS["digits of 2"], TINY)
    with pytest.raises(CompileError, match="digits of 2 bits"):
        schedule_with(SPECS["digits of 2"], TINY, SMALL_TILE)
