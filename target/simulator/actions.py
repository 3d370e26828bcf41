"""The action table of a run: every step that moves or computes, with addresses and pointers.

What a load copies follows from its declaration. Whatever computes, or moves in another form, has a
function here that says which action of the executor it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.target.isa.access import Mode, Tensor, ceil_div
from sparqle_tvm.target.isa.base import Instruction, Kind
from sparqle_tvm.target.isa.compute import Drain, MmaDns, MmaLsb, MmaMin, MmaMsb, StEnc, StOut
from sparqle_tvm.target.isa.load import LdAct
from sparqle_tvm.target.program.bound import BoundProgram, Int64s, Operands
from sparqle_tvm.target.simulator import executor as x
from sparqle_tvm.target.simulator.dram import tensor_formats
from sparqle_tvm.target.simulator.native import aligned
from sparqle_tvm.target.simulator.pools import Pools, make_pools
from sparqle_tvm.target.simulator.ranges import find_ranges
from sparqle_tvm.target.simulator.spec import (
    FLIPPED_PLANE,
    HIGH_PLANE,
    LSB_PLANE,
    MSB_PLANE,
    SPARSE_PLANE,
    ValueSpec,
)
from sparqle_tvm.target.simulator.timing import Timing

_NOTHING = -1
"""The action that does nothing."""


@dataclass(frozen=True, eq=False)
class ActionPlan:
    """What of the action table is the same for every input, as long as `sources` are.

    Attributes
    ----------
    sources : int64 (steps, 4)
        The `Timing.sources` that it was made for.
    spec : ValueSpec
        The formats that it was made for.
    step : int64 (actions,)
        Which step each action belongs to.
    table : int64 (actions, COLUMNS)
        The table in no order; addresses in DRAM count from the begin of their tensor.
    tensor : int64 (actions,)
        That tensor; -1: none.
    pools : Pools
        Where decoded tiles are kept.
    scratch : int
        float64 elements of scratch.
    """

    sources: Int64s
    spec: ValueSpec
    step: Int64s
    table: Int64s
    tensor: Int64s
    pools: Pools
    scratch: int


def action_table(
    bound: BoundProgram, timing: Timing, tensors: dict[Tensor, NDArray[Any]], spec: ValueSpec
) -> tuple[Int64s, list[NDArray[Any]]]:
    """Make the executor's table and the memory for what it decodes.

    `tensors` are all in DRAM, OUT too; they must live as long as the table is used.

    Returns
    -------
    table : int64 (actions, COLUMNS)
    memory : list of ndarray
        The executor's arguments behind the buffers.
    """
    plan = _plan(bound, timing, spec)
    rank = np.empty(len(bound), dtype=np.int64)
    rank[timing.order] = np.arange(len(bound))
    # Stable: actions of one step stay in the order in which they were added.
    order = np.argsort(rank[plan.step], kind="stable")
    table = aligned(plan.table.shape, np.int64)
    np.take(plan.table, order, axis=0, out=table)
    _fill_streams(bound, tensors, table, plan.step[order])
    if spec.joins_planes:
        _join_passes(bound, table, plan.step[order])
    begins = np.zeros(len(Tensor) + 1, dtype=np.int64)
    for tensor, array in tensors.items():
        begins[tensor] = array.ctypes.data
    table[:, x.column("copy", "dram")] += begins[plan.tensor[order]]
    if bound.header.op.output == "encoded":
        _fill_encoded(tensors, table, begins)
    offsets, scratch = aligned(bound.rows + 1, np.int64), aligned(plan.scratch, np.float64)
    return table, [*plan.pools.memory(), offsets, scratch]


def _plan(bound: BoundProgram, timing: Timing, spec: ValueSpec) -> ActionPlan:
    """Make the plan, or take that of the last run if it fits."""
    plan = bound.memo.get(_plan)
    if (
        isinstance(plan, ActionPlan)
        and plan.spec == spec
        and np.array_equal(plan.sources, timing.sources)
    ):
        return plan
    b = _Builder(bound, make_pools(bound, timing, spec))
    for operands in bound.classes:
        cls = operands.cls
        if cls in _ACTIONS:
            _ACTIONS[cls](b, operands)
        elif cls.KIND == Kind.PLAIN and cls.PARTS and cls.DRAM == Mode.READ:
            _add_load(b, operands)
        elif cls.KIND not in (Kind.WAIT, Kind.SIGNAL):
            raise bound.error(int(operands.index[0]), "the simulator knows no values of it")
    m, n = (b.largest(axis) for axis in "mn")
    op = bound.header.op
    groups = spec.groups(op.k) if spec.grouped else 0
    row_bytes = ceil_div(2 * op.digit_bits * op.k, 8)
    bound.memo[_plan] = plan = ActionPlan(
        sources=timing.sources,
        spec=spec,
        step=np.concatenate([step for step, _, _ in b.parts]),
        table=np.concatenate([table for _, table, _ in b.parts]),
        tensor=np.concatenate([tensor for _, _, tensor in b.parts]),
        pools=b.pools,
        scratch=int(max(4 * n + m, m * groups, row_bytes // 8 + 2)),
    )
    return plan


class _Builder:
    """Makes the table: steps, their actions, and the tensors those address."""

    def __init__(self, bound: BoundProgram, pools: Pools) -> None:
        self.bound, self.pools, self.header = bound, pools, bound.header
        # A program may have no instructions.
        none = np.empty(0, dtype=np.int64)
        self.parts: list[tuple[Int64s, Int64s, Int64s]] = []
        self.parts.append((none, none.reshape(0, x.COLUMNS), none))

    def add(
        self, operands: Operands, action: str, columns: dict[str, Any], tensor: int = -1
    ) -> None:
        """Add an action for every step of a class."""
        table = np.zeros((len(operands), x.COLUMNS), dtype=np.int64)
        table[:, 0] = x.number(action)
        for operand, values in columns.items():
            table[:, x.column(action, operand)] = values
        self.parts.append((operands.index, table, np.full(len(operands), tensor)))

    def largest(self, axis: str) -> int:
        """Largest extent of accumulators."""
        classes = (*self.bound.of_kind(Kind.MMA), *self.bound.of_kind(Kind.DRAIN))
        return max((int(operands[axis].max()) for operands in classes), default=1)

    def pitch(self, tensor: Tensor) -> int:
        """Bytes from one row of a tensor to the next."""
        shape, dtype = tensor_formats(self.header, self.bound.rows)[tensor]
        return math.prod(shape[1:]) * np.dtype(dtype).itemsize


def _add_load(b: _Builder, operands: Operands) -> None:
    """Copy what a class loads, part behind part: on chip its rows lie as in DRAM."""
    header, rows = b.header, operands["rows"]
    for target in operands.cls.accesses(header)[:1]:
        dst = operands[target.operand]
        for part in operands.cls.PARTS:
            begin, row_bytes = part.in_row(header, operands)
            if not part.onchip or not np.any(row_bytes):
                continue
            pitch = b.pitch(part.tensor)
            # Whole rows are one piece. A stream is one too, see `_fill_streams`.
            whole = (row_bytes == pitch) | part.digits
            columns = {
                "buffer": int(target.tile.buffer),
                "dst": dst,
                "dram": operands["row"] * pitch + begin,
                "pitch": pitch,
                "nbytes": np.where(whole, rows * row_bytes, row_bytes),
                "rows": np.where(whole, 1, rows),
            }
            b.add(operands, "copy", columns, part.tensor)
            dst = dst + rows * row_bytes


def _fill_streams(
    bound: BoundProgram, tensors: dict[Tensor, NDArray[Any]], table: Int64s, step: Int64s
) -> None:
    """Fill in the bytes of the MSB stream from one tile pointer to another."""
    header, array_rows = bound.header, bound.header.accelerator.rows
    for operands in bound.classes:
        cls = operands.cls
        if cls.DRAM != Mode.READ or not any(part.digits for part in cls.PARTS):
            continue
        pointers = tensors[Tensor.MSB_PTR].astype(np.int64)
        at = np.flatnonzero(bound.opcodes[step] == cls.OPCODE)
        row, rows, col = (
            bound.trace[step[at], cls.column(operand)] for operand in ("row", "rows", "col")
        )
        chunk = col // header.k_chunk * ceil_div(bound.rows, array_rows)
        begin = pointers[chunk + row // array_rows]
        table[at, x.column("copy", "dram")] = begin
        table[at, x.column("copy", "nbytes")] = (
            pointers[chunk + ceil_div(row + rows, array_rows)] - begin
        )


def _join_passes(bound: BoundProgram, table: Int64s, step: Int64s) -> None:
    """Let passes over both planes of a tile be one: the low plane comes along with the high one.

    It is decoded from what then lies in its buffer, so nothing between the two may write there, nor
    touch their accumulators.
    """

    def of(at: Int64s, *operands: str) -> Int64s:
        return table[at[:, None], [x.column("multiply", operand) for operand in operands]]

    multiplies = np.flatnonzero(table[:, 0] == x.number("multiply"))
    low, high = multiplies[:-1], multiplies[1:]
    same = ("cell", "m", "n", "k", "wgt_entry", "wgt_key")
    fit = (of(low, *same) == of(high, *same)).all(axis=1)
    fit &= (of(low, "plane") < HIGH_PLANE).all(axis=1) & (of(high, "plane") >= HIGH_PLANE)[:, 0]
    keys = ("act_key", "wgt_key")
    fit &= (of(low, *keys) >= 0).all(axis=1) & (of(high, *keys) >= 0).all(axis=1)
    fit &= (of(low, "act_entry") != of(high, "act_entry"))[:, 0] & (of(high, "zero") == 0)[:, 0]
    low, high = low[fit], high[fit]
    ranges = bound.once(find_ranges)
    # Every action between the two of a pair.
    pair = np.repeat(np.arange(len(low)), high - low - 1)
    first = np.concatenate([[0], np.cumsum(high - low - 1)])[:-1]
    between = step[low[pair] + 1 + np.arange(len(pair)) - first[pair]]
    mine = step[low[pair]]
    reads, writes = ranges.reads[between], ranges.writes[between]
    hit = _overlap(writes, ranges.reads[mine]) | _overlap(writes, ranges.writes[mine])
    hit |= _overlap(reads, ranges.writes[mine])
    clean = np.bincount(pair[hit], minlength=len(low)) == 0
    low, high = low[clean], high[clean]
    base = table[multiplies, x.column("multiply", "act_key")].max(initial=0) + 1
    (low_key,), (high_key,) = of(low, "act_key").T, of(high, "act_key").T
    for operand, values in (
        ("low", of(low, "act")),
        ("low_plane", of(low, "plane")),
        ("low_entry", of(low, "act_entry")),
        ("low_key", low_key[:, None]),
        # What the entry holds depends on both.
        ("act_key", ((low_key + 1) * base + high_key)[:, None]),
        ("zero", of(low, "zero")),
    ):
        table[high, x.column("multiply", operand)] = values[:, 0]
    table[low, 0] = _NOTHING


def _overlap(ranges: Int64s, others: Int64s) -> NDArray[np.bool_]:
    """Which steps have a range [begin, end) that overlaps one of the other's."""
    a, b = ranges[:, :, None], others[:, None]
    common = np.minimum(a[..., 1], b[..., 1]) > np.maximum(a[..., 0], b[..., 0])
    return np.asarray(common.any(axis=(1, 2)))


def _fill_encoded(tensors: dict[Tensor, NDArray[Any]], table: Int64s, begins: Int64s) -> None:
    """Fill in the scales of drains, and where the parts of the encoding begin."""
    drains = table[:, 0] == x.number("drain")
    for operand, tensor in (("scale", Tensor.OUT_SCALE), ("mid_scale", Tensor.MID_SCALE)):
        if tensor in tensors:
            table[drains, x.column("drain", operand)] = tensors[tensor].view(np.int32)[0]
    stores = table[:, 0] == x.number("encode")
    for operand, tensor in (
        ("pbm", Tensor.OUT_PBM),
        ("msb", Tensor.OUT_MSB),
        ("pointers", Tensor.OUT_MSB_PTR),
    ):
        table[stores, x.column("encode", operand)] += begins[tensor]


def _add_dense_load(b: _Builder, operands: Operands) -> None:
    (part,), pitch = LdAct.PARTS, b.pitch(Tensor.ACT)
    columns = {
        "lsb": operands["lsb"],
        "msb": operands["msb"],
        "dram": operands["row"] * pitch + part.in_row(b.header, operands)[0],
        "pitch": pitch,
        "cols": operands["cols"],
        "rows": operands["rows"],
    }
    b.add(operands, "split", columns, Tensor.ACT)


def _accumulators(b: _Builder, operands: Operands, m: str, n: str) -> dict[str, Any]:
    cells = operands["acc"] // b.header.accumulator_bytes
    return {"cell": cells, m: operands[m], n: operands[n]}


def _product(b: _Builder, operands: Operands, operand: str) -> dict[str, Any]:
    """What all MMAs have: accumulators, tiles and where those lie decoded."""
    return {
        **_accumulators(b, operands, "m", "n"),
        "k": operands["k"],
        "zero": operands["zero"],
        "act": operands[operand],
        "grp": operands["grp"],
        **b.pools.columns[operands.cls],
    }


def _add_multiplies(b: _Builder, operands: Operands, plane: int, operand: str) -> None:
    op = b.header.op
    if plane == LSB_PLANE and op.digits.bias:
        plane = FLIPPED_PLANE
    if plane == MSB_PLANE and not op.act_signed:
        plane = HIGH_PLANE
    columns = {
        **_product(b, operands, operand),
        "plane": plane,
        "stream": operands["msb"] if plane == SPARSE_PLANE else 0,
        "turn": op.turn,
        "low_key": -1,
        "zeros": operands["zro"] if plane == SPARSE_PLANE and op.row_centres else 0,
        "wgt": operands["wgt"],
    }
    b.add(operands, "multiply", columns)


def _add_minima(b: _Builder, operands: Operands) -> None:
    b.add(operands, "minima", _product(b, operands, "sum"))


def _add_drains(b: _Builder, operands: Operands) -> None:
    op = b.header.op
    columns = {
        **_accumulators(b, operands, "m", "n"),
        "row": np.maximum(operands["row"], 0),
        "channel": np.maximum(operands["chn"], 0),
        "has_offset": int(op.has_offset),
        "as_float": int(op.scaled),
        "zeros": operands["row"] + b.header.zeros_offset * operands["m"],
        "zero": op.out_zero,
        "low": op.out_low,
        "high": op.out_high,
        "mid_zero": op.mid_zero,
        "mid_low": op.mid_low,
        "mid_high": op.mid_high,
    }
    b.add(operands, "drain", columns)


def _add_stores(b: _Builder, operands: Operands) -> None:
    header, pitch = b.header, b.pitch(Tensor.OUT)
    row = 0 if header.op.block_rows else operands["row"]
    columns = {
        **_accumulators(b, operands, "rows", "cols"),
        "dram": row * pitch + 4 * operands["col"],
        "pitch": pitch,
        # Row numbers lie behind the scales.
        "order": operands["order"] + 4 * operands["rows"],
        "order_bytes": header.order_bytes,
    }
    b.add(operands, "store", columns, Tensor.OUT)


def _add_encoded_stores(b: _Builder, operands: Operands) -> None:
    header = b.header
    array_rows, k = header.accelerator.rows, header.op.digit_bits
    row, col = operands["row"], operands["col"]
    lsb_pitch, pbm_pitch = b.pitch(Tensor.OUT_LSB), b.pitch(Tensor.OUT_PBM)
    groups = col // header.op.out_chunk * ceil_div(b.bound.rows, array_rows) + row // array_rows
    columns = {
        **_accumulators(b, operands, "rows", "cols"),
        "dram": row * lsb_pitch + col * k // 8,
        "lsb_pitch": lsb_pitch,
        "pbm": row * pbm_pitch + col // 8,
        "pbm_pitch": pbm_pitch,
        "pointers": 4 * groups,
        "group": array_rows,
        "shift": header.op.out_shift,
        "edge": header.op.out_edge,
    }
    b.add(operands, "encode", columns, Tensor.OUT_LSB)


_ACTIONS: Mapping[type[Instruction], Callable[[_Builder, Operands], None]] = {
    LdAct: _add_dense_load,
    MmaLsb: partial(_add_multiplies, plane=LSB_PLANE, operand="lsb"),
    MmaMsb: partial(_add_multiplies, plane=SPARSE_PLANE, operand="pbm"),
    MmaDns: partial(_add_multiplies, plane=MSB_PLANE, operand="msb"),
    MmaMin: _add_minima,
    Drain: _add_drains,
    StOut: _add_stores,
    StEnc: _add_encoded_stores,
}
"""How the values of an instruction are computed; what is not here is a plain load."""
