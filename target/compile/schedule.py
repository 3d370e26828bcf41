"""Schedules of the split dense op: tiles that fit the buffers, loop order, what stays on chip.

A schedule is made of `cost.schedule.Decisions`. `default_decisions` are those of the cost model's
search (`sparqle_tvm.target.cost.tiling`); `schedule_with` applies any. The scheduled function looks
like this (``rows_outer``)::

    for m, n:                                   # output tiles
        zero the accumulators of every pass
        for k:                                  # K chunks
            load activation digits, group sums, weights, group parameters
            mma_lsb, mma_msb, mma_min
        load channel parameters
        drain, store

An operand that does not change in the inner of the two outer loops is loaded in the outer one if
`Decisions.keep_outer` says so. Activation scales are loaded per row tile, channel parameters per
column tile. Every block is an intrinsic of `sparqle_tvm.target.compile.intrinsics`.

If there are fewer rows than the array has, `row_split` PE rows share the K columns of one row.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import s_tir

from sparqle_tvm.errors import CompileError
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.compile.intrinsics import LOADS, SCOPES, get_intrinsic
from sparqle_tvm.target.compile.tir import PASSES, split_dense_primfunc
from sparqle_tvm.target.cost.schedule import Decisions
from sparqle_tvm.target.cost.tiling import choose_schedules
from sparqle_tvm.target.op import DenseOp

SLOTS_ATTR = "sparqle.slots"
"""Block annotation of loads and ``zero``: how many tiles of the written buffer exist at a time."""

ROW_SPLIT_ATTR = "sparqle.row_split"
"""Block annotation of MMAs: PE rows that share the K columns of an activation row."""


def default_decisions(op: DenseOp, accelerator: Accelerator) -> Decisions:
    """The schedule that the cost model likes best, for an op that shares its encoding with none.

    Raises
    ------
    TargetError
        If the smallest tile does not fit a buffer, or digits have not the width of the array.
    """
    return choose_schedules((op,), accelerator, op.scheme)[0]


def default_schedule(op: DenseOp, accelerator: Accelerator) -> s_tir.Schedule:
    """Schedule an op by the rule of `default_decisions`.

    Raises
    ------
    TargetError
        If the smallest tile does not fit a buffer.
    CompileError
        If the digits of the op are not those of the accelerator.
    """
    return schedule_with(op, accelerator, default_decisions(op, accelerator))


def schedule_with(
    op: DenseOp, accelerator: Accelerator, decisions: Decisions, *, tensorize: bool = True
) -> s_tir.Schedule:
    """Schedule an op as decided.

    Parameters
    ----------
    op : DenseOp
        The op.
    accelerator : Accelerator
        Its array determines what tiles may be.
    decisions : Decisions
        What to do. Whether it fits the buffers, `codegen.generate` finds out.
    tensorize : bool
        False leaves plain loops instead of intrinsics: the same computation for any TVM target.

    Returns
    -------
    s_tir.Schedule
        Of a module with the function ``main``.

    Raises
    ------
    CompileError
        If the decisions do not fit the op or the array.
    """
    check_decisions(op, accelerator, decisions)
    function = split_dense_primfunc(op, decisions.tile)
    return _Scheduler(op, decisions, s_tir.Schedule(function, debug_mask="none")).run(tensorize)


def check_decisions(op: DenseOp, accelerator: Accelerator, decisions: Decisions) -> None:
    """Refuse decisions that no program exists for.

    Raises
    ------
    CompileError
        Says which and why.
    """
    depth = math.lcm(8, accelerator.lanes, max(op.group_size, 1))
    units = {"m": accelerator.rows, "n": accelerator.cols, "k": depth}
    for name, unit in units.items():
        extent = getattr(decisions, name)
        if extent < 1 or extent % unit:
            raise CompileError(
                f"{_op(op)}: a tile of {name} = {extent} is not a multiple of {unit}; "
                f"accelerator {accelerator.name!r} needs multiples of {units}"
            )
    if op.digit_bits != accelerator.digit_bits:
        raise CompileError(
            f"{_op(op)} has digits of {op.digit_bits} bits, accelerator "
            f"{accelerator.name!r} of {accelerator.digit_bits}"
        )
    if op.block_rows % accelerator.rows:
        raise CompileError(
            f"{_op(op)}: rows sorted {op.block_rows} at a time are no groups of "
            f"{accelerator.rows} rows"
        )
    problem = _stream_problem(op, decisions)
    if problem:
        raise CompileError(f"{_op(op)}: {problem}")
    slots = (decisions.activation_slots, decisions.weight_slots, decisions.accumulator_slots)
    if min(slots) < 1:
        raise CompileError(f"{_op(op)}: {slots} slots; every operand needs at least one")
    split = decisions.row_split
    if split > 1 and not accelerator.rows_share_k:
        raise CompileError(
            f"{_op(op)}: row_split = {split}, but PE rows of accelerator {accelerator.name!r} "
            "do not share K (rows_share_k)"
        )
    if split < 1 or (split > 1 and split * op.m > accelerator.rows):
        raise CompileError(
            f"{_op(op)}: row_split = {split} of {op.m} rows needs {split * op.m} PE rows, "
            f"accelerator {accelerator.name!r} has {accelerator.rows}"
        )


def _stream_problem(op: DenseOp, decisions: Decisions) -> str:
    """Why encoded outputs would not come in the order of their stream, "" if they do."""
    if op.output != "encoded":
        return ""
    if min(decisions.n, op.n) != min(op.out_chunk, op.n):
        return (
            f"a tile of n = {decisions.n} is no chunk of {op.out_chunk} columns of the encoded "
            "outputs"
        )
    if decisions.rows_outer and op.m > decisions.m and op.n > decisions.n:
        return "encoded outputs come chunk by chunk: channels have to be the outer loop"
    return ""


def _op(op: DenseOp) -> str:
    return f"dense op {op.m} x {op.n} x {op.k}"


class _Scheduler:
    """Applies decisions step by step; every step is a schedule primitive of TVM."""

    def __init__(self, op: DenseOp, decisions: Decisions, sch: s_tir.Schedule) -> None:
        """Find the blocks."""
        self.op, self.decisions, self.sch = op, decisions, sch
        self.passes = {name: sch.get_sblock(name) for name in PASSES[: 3 if op.has_min else 2]}
        self.drain = sch.get_sblock("drain")
        groups = decisions.k // op.group_size if op.group_size else 0
        self.chunk = {"mma_lsb": decisions.k, "mma_msb": decisions.k, "mma_min": groups}
        # What becomes an intrinsic: (block, loops around it to replace, name, annotations).
        self.found: list[tuple[Any, int, str, dict[str, int]]] = []

    def run(self, tensorize: bool) -> s_tir.Schedule:
        """Do all steps."""
        outer, inner = self._tile_outputs()
        self._tile_passes(inner)
        chunk_loop = self._share_chunk_loop()
        row_loop, col_loop = (outer, inner) if self.decisions.rows_outer else (inner, outer)
        keep = self.decisions.keep_outer
        rows_at = outer if keep and self.decisions.rows_outer else chunk_loop
        cols_at = outer if keep and not self.decisions.rows_outer else chunk_loop
        self._load_operands(rows_at, cols_at)
        self._load_drain_parameters(row_loop, col_loop)
        if tensorize:
            for found in self.found:
                self._tensorize(*found)
        return self.sch

    def _tile_outputs(self) -> tuple[Any, Any]:
        """Tile the drain and the store; the loops over output tiles, outer and inner."""
        sch, decisions = self.sch, self.decisions
        store = sch.cache_write(self.drain, 0, SCOPES["acc"])
        rows, cols = sch.get_loops(store)
        m0, m1 = sch.split(rows, [None, decisions.m])
        n0, n1 = sch.split(cols, [None, decisions.n])
        outer, inner = (m0, n0) if decisions.rows_outer else (n0, m0)
        sch.reorder(outer, inner, m1, n1)
        sch.compute_at(self.drain, inner, preserve_unit_loops=True)
        self._intrinsic(self.drain, 2, "drain")
        self._intrinsic(store, 2, "store")
        return outer, inner

    def _tile_passes(self, inner: Any) -> None:
        """Move the passes to the output tile, cut K into chunks, take the zeroing out."""
        sch, slots = self.sch, {SLOTS_ATTR: self.decisions.accumulator_slots}
        for name, block in self.passes.items():
            sch.set_scope(block, 0, SCOPES["acc"])
            sch.compute_at(block, inner, preserve_unit_loops=True)
            rows, cols, depth = sch.get_loops(block)[-3:]
            k0, k1 = sch.split(depth, [None, self.chunk[name]])
            sch.reorder(k0, rows, cols, k1)
            zero = sch.decompose_reduction(block, k0)
            self._intrinsic(zero, 2, "zero", slots)
            split = {} if name == "mma_min" else {ROW_SPLIT_ATTR: self.decisions.row_split}
            self._intrinsic(block, 3, name, split)

    def _share_chunk_loop(self) -> Any:
        """Let all passes walk through the K chunks together, so that they share the tiles."""
        loops = [self.sch.get_loops(block)[-4] for block in self.passes.values()]
        return self.sch.merge(*loops)

    def _load_operands(self, rows_at: Any, cols_at: Any) -> None:
        decisions, op = self.decisions, self.op
        digits = list(self.passes.values())[:2]
        groups = self.chunk["mma_min"]
        if op.scheme == "dense":
            self._load("act", digits, rows_at, decisions.k, decisions.activation_slots)
        else:
            for name, block in zip(("lsb", "msb"), digits, strict=True):
                self._load(name, [block], rows_at, decisions.k, decisions.activation_slots)
        self._load("w", digits, cols_at, decisions.k, decisions.weight_slots)
        if op.group_size:
            self._load("w_scale", digits, cols_at, groups, decisions.weight_slots)
        if op.has_min:
            last = [self.passes["mma_min"]]
            self._load("group_sums", last, rows_at, groups, decisions.activation_slots)
            self._load("w_min", last, cols_at, groups, decisions.weight_slots)

    def _load_drain_parameters(self, row_loop: Any, col_loop: Any) -> None:
        slots = self.decisions.accumulator_slots
        if self.op.scaled:
            self._load("act_scale", [self.drain], row_loop, 0, slots)
            if not self.op.group_size:
                self._load("w_scale", [self.drain], col_loop, 0, slots)
        if self.op.has_offset:
            self._load("offset", [self.drain], col_loop, 0, slots)
        if self.op.adds_shift:
            self._load("zero", [self.drain], row_loop, 0, slots)
            self._load("w_sum", [self.drain], col_loop, 0, slots)
        if self.op.has_bias:
            self._load("bias", [self.drain], col_loop, 0, slots)

    def _load(self, array: str, users: list[Any], at: Any, columns: int, slots: int) -> None:
        """Copy what `users` read of an array to the chip at a loop, `columns` columns at a time."""
        sch = self.sch
        names = [str(region.source.name) for region in sch.get(users[0]).reads]
        block = sch.cache_read(users[0], names.index(array), SCOPES[array], consumer_blocks=users)
        sch.compute_at(block, at, preserve_unit_loops=True)
        if columns:
            rows, cols = sch.get_loops(block)[-2:]
            k0, k1 = sch.split(cols, [None, columns])
            sch.reorder(k0, rows, k1)
        name = "ld_channel" if array == "w_scale" and not columns else LOADS[array]
        self._intrinsic(block, 2 if columns else 1, name, {SLOTS_ATTR: slots})

    def _intrinsic(
        self, block: Any, depth: int, name: str, annotations: dict[str, int] | None = None
    ) -> None:
        """Note that the innermost `depth` loops around a block are an intrinsic."""
        self.found.append((block, depth, name, annotations or {}))

    def _tensorize(self, block: Any, depth: int, name: str, annotations: dict[str, int]) -> None:
        sch = self.sch
        intrinsic = get_intrinsic(name, self.op, self.decisions.tile)
        # Tensorizing puts a block around the loops, named after the one inside.
        outside = str(sch.get(block).name_hint) + "_o"
        sch.tensorize(sch.get_loops(block)[-depth], intrinsic, preserve_unit_iters=False)
        for key, value in annotations.items():
            sch.annotate(sch.get_sblock(outside), key, value)
