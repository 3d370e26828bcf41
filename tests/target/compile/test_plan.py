"""Plans of lowered functions: what moves together, and what no program can be made of."""

from __future__ import annotations

from dataclasses import replace

import pytest
from dense_cases import TINY

from sparqle_tvm.errors import CompileError
from sparqle_tvm.target.compile.lowered import Body, CallNode, LoopNode, lower
from sparqle_tvm.target.compile.plan import PlannedBody, PlannedLoop, make_plan
from sparqle_tvm.target.compile.schedule import SLOTS_ATTR, schedule_with
from sparqle_tvm.target.cost.schedule import Decisions
from sparqle_tvm.target.isa.header import Queue
from sparqle_tvm.target.isa.operands import Affine
from sparqle_tvm.target.op import DenseOp

SPEC = DenseOp(m=8, n=8, k=64, group_size=32, has_min=True, has_offset=True)
DECISIONS = Decisions(m=4, n=4, k=32)


def lowered(decisions: Decisions = DECISIONS) -> Body:
    """The tree of a scheduled op."""
    return lower(schedule_with(SPEC, TINY, decisions))[0]


def innermost(body: Body) -> Body:
    """The body of the loop over K chunks."""
    loops = [child for child in body.children if isinstance(child, LoopNode)]
    return innermost(loops[0].body) if loops else body


def position(body: Body, name: str) -> int:
    """Where a call stands in a body."""
    return [getattr(child, "name", "") for child in body.children].index(name)


def change(body: Body, name: str, **changes: object) -> None:
    """Change fields of a call."""
    call = body.children[position(body, name)]
    body.children[position(body, name)] = replace(call, **changes)


def names(body: PlannedBody) -> list[str]:
    """Names of the calls; loops by their axis."""
    return [
        step.child.axis if isinstance(step.child, PlannedLoop) else step.child.name
        for step in body.steps
    ]


def loop_body(body: PlannedBody) -> PlannedBody:
    """The body of the loop in a body."""
    (loop,) = [step.child for step in body.steps if isinstance(step.child, PlannedLoop)]
    return loop.body


def test_loads_of_one_kind_move_together() -> None:
    plan = make_plan(lowered(), SPEC)
    chunk = loop_body(loop_body(loop_body(plan.body)))
    assert names(chunk) == [
        *("ld_lsb", "ld_msb", "ld_sums"),
        *("ld_wgt", "ld_scale"),
        *("mma_lsb", "mma_msb", "mma_min"),
    ]
    waits = {step.child.name: step.waits for step in chunk.steps if step.waits}
    signals = {step.child.name: step.signals for step in chunk.steps if step.signals}
    assert waits == {
        "ld_lsb": (Queue.ACT_FREE,),
        "ld_wgt": (Queue.WGT_FREE,),
        "mma_lsb": (Queue.ACT_READY, Queue.WGT_READY),
    }
    assert signals == {
        "ld_sums": (Queue.ACT_READY,),
        "ld_scale": (Queue.WGT_READY,),
        "mma_min": (Queue.ACT_FREE, Queue.WGT_FREE),
    }


def test_what_lives_where() -> None:
    plan = make_plan(lowered(), SPEC)
    rows = loop_body(plan.body)
    outputs = loop_body(rows)
    chunk = loop_body(outputs)
    assert [body.storages for body in (plan.body, rows, outputs, chunk)] == [
        *((), ("row",), ("chn", "acc")),
        ("lsb", "pbm", "msb", "sum", "wgt", "grp"),
    ]
    assert plan.tile == {"m": 4, "n": 4, "k": 32}
    assert set(plan.slots.values()) == {2}
    kept = make_plan(lowered(replace(DECISIONS, keep_outer=True)), SPEC)
    assert kept.grids["lsb"] == kept.grids["msb"] == kept.grids["sum"] == (1, 2)
    assert kept.grids["wgt"] == kept.grids["acc"] == (1, 1)


def test_slots_without_annotation_are_single() -> None:
    body = lowered()
    chunk = innermost(body)
    for name in ("ld_wgt", "ld_scale", "ld_min"):
        change(chunk, name, annotations={})
    assert make_plan(body, SPEC).slots["wgt"] == 1
    change(chunk, "ld_wgt", annotations={SLOTS_ATTR: 0})
    with pytest.raises(CompileError, match="'ld_wgt' asks for 0 slots"):
        make_plan(body, SPEC)


def test_twice_is_refused() -> None:
    body = lowered()
    chunk = innermost(body)
    chunk.children.append(chunk.children[position(chunk, "ld_wgt")])
    with pytest.raises(CompileError, match="'ld_wgt' stands at two places"):
        make_plan(body, SPEC)


def test_uncleared_accumulators_are_refused() -> None:
    body = lowered()
    rows = body.children[0].body
    outputs = next(c for c in rows.children if isinstance(c, LoopNode)).body
    outputs.children = [c for c in outputs.children if getattr(c, "name", "") != "zero"]
    with pytest.raises(CompileError, match="'mma_lsb' adds to accumulators that were not cleared"):
        make_plan(body, SPEC)


def test_reading_before_loading_is_refused() -> None:
    body = lowered()
    chunk = innermost(body)
    chunk.children.append(chunk.children.pop(position(chunk, "ld_wgt")))
    chunk.children.append(chunk.children.pop(position(chunk, "ld_scale")))
    with pytest.raises(CompileError, match=r"\['grp', 'wgt'\] are not written first"):
        make_plan(body, SPEC)


def test_tiles_that_disagree_are_refused() -> None:
    body = lowered()
    chunk = innermost(body)
    tile, source = chunk.children[position(chunk, "ld_wgt")].tiles
    change(chunk, "ld_wgt", tiles=(tile, replace(source, extents=(2, 32))))
    with pytest.raises(CompileError, match="'ld_wgt' works on 2 along n, others on 4"):
        make_plan(body, SPEC)


def test_loads_from_elsewhere_are_refused() -> None:
    body = lowered()
    chunk = innermost(body)
    tile, source = chunk.children[position(chunk, "ld_wgt")].tiles
    shifted = replace(source, starts=(source.starts[0] + 4, source.starts[1]))
    change(chunk, "ld_wgt", tiles=(tile, shifted))
    with pytest.raises(CompileError, match=r"'ld_wgt' takes w from .* on along n"):
        make_plan(body, SPEC)


def test_loops_of_two_axes_are_refused() -> None:
    body = lowered()
    chunk = innermost(body)
    tile, source = chunk.children[position(chunk, "ld_wgt")].tiles
    rows, columns = source.starts
    change(chunk, "ld_wgt", tiles=(tile, replace(source, starts=(columns, rows))))
    with pytest.raises(CompileError, match="a loop walks along one axis"):
        make_plan(body, SPEC)


def test_idle_and_nested_loops_are_refused() -> None:
    body = lowered()
    with pytest.raises(CompileError, match="loop 9 of 3 iterations indexes nothing"):
        make_plan(Body([LoopNode(9, 3, body)]), SPEC)
    with pytest.raises(CompileError, match="axis m is tiled by two nested loops"):
        make_plan(Body([LoopNode(0, 2, Body(body.children, body.allocations))]), SPEC)


def test_missing_allocation_is_refused() -> None:
    body = lowered()
    innermost(body).allocations.clear()
    with pytest.raises(CompileError, match="'grp' tiles are used, but not allocated on chip"):
        make_plan(body, SPEC)


def test_wrong_trip_count_is_refused() -> None:
    body = lowered()
    body.children[0].extent = 3
    with pytest.raises(CompileError, match="a loop of 3 steps of 4 does not walk along m"):
        make_plan(body, SPEC)


def test_use_within_a_tile_is_refused() -> None:
    body = lowered(replace(DECISIONS, keep_outer=True))
    chunk = innermost_mma(body)
    acc, plane, *rest = chunk.children[position(chunk, "mma_lsb")].tiles
    within = replace(plane, starts=(plane.starts[0], plane.starts[1] + Affine(8)))
    change(chunk, "mma_lsb", tiles=(acc, within, *rest))
    with pytest.raises(CompileError, match=r"'mma_lsb' takes lsb.* within a tile of 32"):
        make_plan(body, SPEC)


def innermost_mma(body: Body) -> Body:
    """The body that the MMAs stand in."""
    for child in body.children:
        if isinstance(child, CallNode):
            if child.name == "mma_lsb":
                return body
        elif any(call.name == "mma_lsb" for call in child.body.calls()):
            return innermost_mma(child.body)
    raise AssertionError("no MMA")
