"""Lowering to a tree: loops, calls and arrays of a scheduled function."""

from __future__ import annotations

import pytest
from dense_cases import SPECS, TINY
from tvm.tirx.script import builder as T

from sparqle_tvm.errors import CompileError
from sparqle_tvm.target.compile.lowered import Body, LoopNode, calls_of, lower
from sparqle_tvm.target.compile.schedule import schedule_with
from sparqle_tvm.target.compile.tir import EXTENT_ATTR
from sparqle_tvm.target.cost.schedule import Decisions
from sparqle_tvm.target.op import DenseOp


def loops(body: Body) -> list[tuple[int, int]]:
    """Number and extent of all loops, outside first."""
    found = []
    for child in body.children:
        if isinstance(child, LoopNode):
            found += [(child.loop, child.extent), *loops(child.body)]
    return found


def test_tree_of_a_schedule() -> None:
    sch = schedule_with(DenseOp(m=10, n=9, k=40), TINY, Decisions(m=4, n=4, k=16))
    body, extents = lower(sch)
    assert extents == (10, 9, 40)
    assert loops(body) == [(0, 3), (1, 3), (2, 3)]
    (store,) = [call for call in body.calls() if call.name == "store"]
    to, source = store.tiles
    assert (to.dram, to.shape, to.extents) == (True, (12, 12), (4, 4))
    assert [str(start) for start in to.starts] == ["4*i0", "4*i1"]
    assert (source.dram, source.shape, [str(s) for s in source.starts]) == (
        False,
        (4, 4),
        ["0"] * 2,
    )


def test_same_array_same_number() -> None:
    body, _ = lower(schedule_with(SPECS["minima"], TINY, Decisions(m=4, n=4, k=32)))
    calls = {call.name: call for call in body.calls()}
    assert calls["ld_wgt"].tiles[0].buffer == calls["mma_lsb"].tiles[2].buffer
    assert calls["mma_lsb"].tiles[2].buffer == calls["mma_msb"].tiles[2].buffer
    assert calls["mma_lsb"].tiles[0].buffer != calls["mma_msb"].tiles[0].buffer


def test_single_iterations_leave_no_loop() -> None:
    spec = DenseOp(m=4, n=4, k=16)
    body, _ = lower(schedule_with(spec, TINY, Decisions(m=4, n=4, k=16)))
    assert loops(body) == []
    assert len(list(body.calls())) == len(body.children)
    assert [call.name for child in body.children for call in calls_of(child)][-1] == "store"


def test_module_and_function_are_the_same() -> None:
    sch = schedule_with(SPECS["int32"], TINY, Decisions(m=4, n=4, k=16))
    trees = [lower(form)[0] for form in (sch, sch.mod, sch.mod["main"])]
    assert trees[0] == trees[1] == trees[2]


def test_other_functions_are_refused() -> None:
    from tvm.script.ir_builder import IRBuilder

    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("other")
            T.func_attr({EXTENT_ATTR: [1, 1, 1]})
            with T.sblock("call"):
                T.evaluate(T.call_extern("int32", "memset"))
        function = builder.get()
    with pytest.raises(CompileError, match="calls 'memset', not an intrinsic"):
        lower(function)
