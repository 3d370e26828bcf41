"""The action table of a run: every step that moves or computes, with addresses and pointers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.numerics.slicing import window_bias
from sparqle_tvm.numerics.window import WINDOWS
from sparqle_tvm.target.isa import (
    TRACE_OPCODE,
    Drain,
    LdAct,
    LdChn,
    LdGrp,
    LdLsb,
    LdMsb,
    LdPbm,
    LdRow,
    LdSum,
    LdWgt,
    MmaDns,
    MmaLsb,
    MmaMin,
    MmaMsb,
    StEnc,
    StOut,
    Tensor,
    TileLoad,
    ceil_div,
)
from sparqle_tvm.target.simulator import executor as x
from sparqle_tvm.target.simulator.dram import tensor_formats
from sparqle_tvm.target.simulator.native import aligned
from sparqle_tvm.target.simulator.pools import Pool, Pools, make_pools
from sparqle_tvm.target.simulator.spec import ValueSpec
from sparqle_tvm.target.simulator.steps import (
    ACT_OPERAND,
    GRP_OPERAND,
    WGT_OPERAND,
    InstructionClass,
    Int64s,
    Steps,
)
from sparqle_tvm.target.simulator.timing import Schedule


@dataclass(frozen=True, eq=False)
class ActionPlan:
    """What of the action table is the same for every input, as long as `sources` are.

    Attributes
    ----------
    sources : int64 (steps, 4)
        The `Schedule.sources` that it was made for.
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
    steps: Steps, schedule: Schedule, tensors: dict[Tensor, NDArray[Any]], spec: ValueSpec
) -> tuple[Int64s, list[NDArray[Any]]]:
    """Make the executor's table and the memory for what it decodes.

    Parameters
    ----------
    steps, schedule : Steps, Schedule
        The bound program and its order.
    tensors : dict
        All tensors in DRAM, OUT too; they must live as long as the table is used.
    spec : ValueSpec
        Formats.

    Returns
    -------
    table : int64 (actions, COLUMNS)
    memory : list of ndarray
        The executor's arguments behind the buffers.
    """
    plan = _plan(steps, schedule, spec)
    rank = np.empty(len(steps), dtype=np.int64)
    rank[schedule.order] = np.arange(len(steps))
    # Stable: actions of one step stay in the order in which they were added.
    order = np.argsort(rank[plan.step], kind="stable")
    table = aligned(plan.table.shape, np.int64)
    np.take(plan.table, order, axis=0, out=table)
    _fill_streams(steps, tensors, table, plan.step[order])
    begins = np.zeros(len(Tensor) + 1, dtype=np.int64)
    for tensor, array in tensors.items():
        begins[tensor] = array.ctypes.data
    table[:, x.DRAM] += begins[plan.tensor[order]]
    if steps.header.op.output == "encoded":
        _fill_encoded(tensors, table, begins)
    offsets, scratch = aligned(steps.rows + 1, np.int64), aligned(plan.scratch, np.float64)
    return table, [*plan.pools.memory(), offsets, scratch]


def _plan(steps: Steps, schedule: Schedule, spec: ValueSpec) -> ActionPlan:
    """Make the plan, or take that of the last run if it fits."""
    plan = steps.memo.get("actions")
    if (
        isinstance(plan, ActionPlan)
        and plan.spec == spec
        and np.array_equal(plan.sources, schedule.sources)
    ):
        return plan
    b = _Builder(steps, [])
    for cls, tensor in _PLAIN_LOADS.items():
        _add_tile_load(b, cls, tensor)
    b.copy(LdMsb, Tensor.MSB, dst=b.get(LdMsb, "dst"), offset=0, nbytes=0, rows=1)
    _add_parameter_loads(b)
    _add_dense_loads(b)
    pools = _find_tiles(steps, schedule, spec)
    for multiply in (MmaLsb, MmaMsb, MmaDns):
        _add_multiplies(b, multiply, pools)
    _add_minima(b, pools)
    _add_stores(b)
    m, n = (np.concatenate([steps.get(c, o) for c in (MmaLsb, Drain)]).max(initial=1) for o in "mn")
    groups = spec.groups(steps.header.op.k) if spec.grouped else 0
    row_bytes = LdAct.dram_bytes(steps.header, 1, steps.header.op.k)
    steps.memo["actions"] = plan = ActionPlan(
        sources=schedule.sources,
        spec=spec,
        step=np.concatenate([step for step, _, _ in b.parts]),
        table=np.concatenate([table for _, table, _ in b.parts]),
        tensor=np.concatenate([tensor for _, _, tensor in b.parts]),
        pools=pools,
        scratch=int(max(2 * n + m, m * groups, row_bytes // 8 + 2)),
    )
    return plan


@dataclass(frozen=True, eq=False)
class _Builder:
    """Makes the table: steps, their actions, and the tensors those address."""

    steps: Steps
    parts: list[tuple[Int64s, Int64s, Int64s]]

    def __post_init__(self) -> None:
        """Begin with nothing: a program may have no instructions."""
        none = np.empty(0, dtype=np.int64)
        self.parts.append((none, none.reshape(0, x.COLUMNS), none))

    def add(
        self, cls: InstructionClass, action: int, columns: dict[int, Any], tensor: int = -1
    ) -> None:
        """Add an action for every step of a class."""
        at = self.steps.of(cls)
        table = np.zeros((len(at), x.COLUMNS), dtype=np.int64)
        table[:, 0] = action
        for column, values in columns.items():
            table[:, column] = values
        self.parts.append((at, table, np.full(len(at), tensor)))

    def get(self, cls: InstructionClass, operand: str) -> Int64s:
        """Operand of all steps of a class."""
        return self.steps.get(cls, operand)

    def pitch(self, tensor: Tensor) -> int:
        """Bytes from one row of a tensor to the next."""
        shape, dtype = tensor_formats(self.steps.header, self.steps.rows)[tensor]
        return math.prod(shape[1:]) * np.dtype(dtype).itemsize

    def copy(
        self,
        cls: InstructionClass,
        tensor: Tensor,
        *,
        dst: Any,
        offset: Any,
        nbytes: Any,
        rows: Any,
    ) -> None:
        """Add a copy of `rows` rows of `nbytes` each, from a byte offset of a tensor on."""
        if not len(self.steps.of(cls)):
            return
        columns = {
            x.COPY_BUFFER: int(cls in (LdWgt, LdGrp, LdChn)),
            x.COPY_DST: dst,
            x.DRAM: offset,
            x.COPY_PITCH: self.pitch(tensor),
            x.COPY_BYTES: nbytes,
            x.COPY_ROWS: rows,
        }
        self.add(cls, x.COPY, columns, tensor)


_PLAIN_LOADS: dict[type[TileLoad], Tensor] = {
    LdLsb: Tensor.LSB,
    LdPbm: Tensor.PBM,
    LdSum: Tensor.GROUP_SUMS,
    LdWgt: Tensor.WGT,
}


def _add_tile_load(b: _Builder, cls: type[TileLoad], tensor: Tensor) -> None:
    """Rows of a tensor that is packed like the tile: columns begin at whole bytes."""
    if not len(b.steps.of(cls)):
        return
    header = b.steps.header
    nbytes = cls.row_bytes(header, b.get(cls, "cols"))
    offset = b.get(cls, "row") * b.pitch(tensor) + cls.row_bytes(header, b.get(cls, "col"))
    b.copy(
        cls, tensor, dst=b.get(cls, "dst"), offset=offset, nbytes=nbytes, rows=b.get(cls, "rows")
    )


def _fill_streams(
    steps: Steps, tensors: dict[Tensor, NDArray[Any]], table: Int64s, step: Int64s
) -> None:
    """Fill in the bytes of the MSB stream from one tile pointer to another."""
    if not len(steps.of(LdMsb)):
        return
    header, array_rows = steps.header, steps.header.accelerator.rows
    pointers = tensors[Tensor.MSB_PTR].astype(np.int64)
    at = np.flatnonzero(steps.trace[step, TRACE_OPCODE] == LdMsb.OPCODE)
    row, rows, col = (
        steps.trace[step[at], LdMsb.column(operand)] for operand in ("row", "rows", "col")
    )
    chunk = col // header.k_chunk * ceil_div(steps.rows, array_rows)
    begin = pointers[chunk + row // array_rows]
    table[at, x.DRAM] = begin
    table[at, x.COPY_BYTES] = pointers[chunk + ceil_div(row + rows, array_rows)] - begin


def _fill_encoded(tensors: dict[Tensor, NDArray[Any]], table: Int64s, begins: Int64s) -> None:
    """Fill in the scale of the outputs, and where the parts of their encoding begin."""
    scale = tensors[Tensor.OUT_SCALE].view(np.int32)[0]
    table[table[:, 0] == x.DRAIN, x.DRAIN_SCALE] = scale
    stores = table[:, 0] == x.ENCODE
    for column, tensor in (
        (x.ENC_PBM, Tensor.OUT_PBM),
        (x.ENC_MSB, Tensor.OUT_MSB),
        (x.ENC_POINTERS, Tensor.OUT_MSB_PTR),
    ):
        table[stores, column] += begins[tensor]


def _add_parameter_loads(b: _Builder) -> None:
    """Loads that gather parts of two tensors, one behind the other, and row scales."""
    header = b.steps.header
    if header.op.scaled and len(b.steps.of(LdRow)):
        row, rows, dst = (b.get(LdRow, operand) for operand in ("row", "rows", "dst"))
        for tensor in (Tensor.ACT_SCALE, Tensor.ROW_ORDER)[: 1 + (header.op.block_rows > 0)]:
            size = b.pitch(tensor)
            b.copy(LdRow, tensor, dst=dst, offset=size * row, nbytes=size * rows, rows=1)
            dst = dst + size * rows
    if header.op.group_size and len(b.steps.of(LdGrp)):
        row, rows, dst = (b.get(LdGrp, operand) for operand in ("row", "rows", "dst"))
        nbytes = 2 * ceil_div(b.get(LdGrp, "cols"), header.op.group_size)
        begin = 2 * (b.get(LdGrp, "col") // header.op.group_size)
        for i, tensor in enumerate((Tensor.W_SCALE, Tensor.W_MIN)[: 1 + header.op.has_min]):
            b.copy(
                *(LdGrp, tensor),
                dst=dst + i * rows * nbytes,
                offset=row * b.pitch(tensor) + begin,
                nbytes=nbytes,
                rows=rows,
            )
    if len(b.steps.of(LdChn)):
        row, rows, dst = (b.get(LdChn, operand) for operand in ("row", "rows", "dst"))
        parts = [Tensor.W_SCALE] if header.op.scaled and not header.op.group_size else []
        parts += [Tensor.OFFSET] if header.op.has_offset else []
        for tensor in parts:
            size = b.pitch(tensor)
            b.copy(LdChn, tensor, dst=dst, offset=size * row, nbytes=size * rows, rows=1)
            dst = dst + size * rows


def _add_dense_loads(b: _Builder) -> None:
    if not len(b.steps.of(LdAct)):
        return
    begin = LdAct.dram_bytes(b.steps.header, 1, b.get(LdAct, "col"))
    pitch = b.pitch(Tensor.ACT)
    columns = {
        x.SPLIT_LSB: b.get(LdAct, "lsb"),
        x.SPLIT_MSB: b.get(LdAct, "msb"),
        x.DRAM: b.get(LdAct, "row") * pitch + begin,
        x.SPLIT_PITCH: pitch,
        x.SPLIT_COLS: b.get(LdAct, "cols"),
        x.SPLIT_ROWS: b.get(LdAct, "rows"),
    }
    b.add(LdAct, x.SPLIT, columns, Tensor.ACT)


def _find_tiles(steps: Steps, schedule: Schedule, spec: ValueSpec) -> Pools:
    activations, weights, parameters = (Pool(steps, schedule) for _ in range(3))
    dense = steps.header.op.scheme == "dense"
    activations.add(MmaLsb, ACT_OPERAND, LdAct if dense else LdLsb, "m")
    activations.add(MmaMsb, ACT_OPERAND, LdPbm, "m")
    activations.add(MmaDns, ACT_OPERAND, LdAct, "m", write=1)
    for cls in (MmaLsb, MmaMsb, MmaDns):
        weights.add(cls, WGT_OPERAND, LdWgt, "n")
        parameters.add(cls, GRP_OPERAND, LdGrp, "n")
    parameters.add(MmaMin, GRP_OPERAND, LdGrp, "n")
    return make_pools(steps, spec, activations, weights, parameters)


def _accumulators(b: _Builder, cls: InstructionClass, m: str, n: str) -> dict[int, Any]:
    cells = b.get(cls, "acc") // b.steps.header.accumulator_bytes
    return {x.CELL: cells, x.M: b.get(cls, m), x.N: b.get(cls, n)}


def _add_multiplies(b: _Builder, cls: InstructionClass, pools: Pools) -> None:
    low = x.FLIPPED_PLANE if WINDOWS[b.steps.header.op.window].centred else x.LSB_PLANE
    plane = {MmaLsb: low, MmaMsb: x.SPARSE_PLANE, MmaDns: x.MSB_PLANE}[cls]
    operand = {MmaLsb: "lsb", MmaMsb: "pbm", MmaDns: "msb"}[cls]
    columns = {
        **_accumulators(b, cls, "m", "n"),
        x.K: b.get(cls, "k"),
        x.ZERO: b.get(cls, "zero"),
        x.PLANE: plane,
        x.ACT: b.get(cls, operand),
        x.STREAM: b.get(cls, "msb") if cls is MmaMsb else 0,
        x.WGT: b.get(cls, "wgt"),
        x.GRP: b.get(cls, "grp"),
    }
    columns[x.ACT_ENTRY], columns[x.ACT_KEY] = pools.activations[cls]
    columns[x.WGT_ENTRY], columns[x.WGT_KEY] = pools.weights[cls]
    columns[x.GRP_ENTRY], columns[x.GRP_KEY] = pools.parameters[cls]
    b.add(cls, x.MULTIPLY, columns)


def _add_minima(b: _Builder, pools: Pools) -> None:
    entry, key = pools.parameters[MmaMin]
    columns = {
        **_accumulators(b, MmaMin, "m", "n"),
        x.K: b.get(MmaMin, "k"),
        x.ZERO: b.get(MmaMin, "zero"),
        x.ACT: b.get(MmaMin, "sum"),
        x.GRP: b.get(MmaMin, "grp"),
        x.GRP_ENTRY: entry,
        x.GRP_KEY: key,
    }
    b.add(MmaMin, x.MINIMA, columns)


def _add_stores(b: _Builder) -> None:
    header = b.steps.header
    drains = {
        **_accumulators(b, Drain, "m", "n"),
        x.DRAIN_ROW: np.maximum(b.get(Drain, "row"), 0),
        x.DRAIN_CHANNEL: np.maximum(b.get(Drain, "chn"), 0),
        x.DRAIN_OFFSET: int(header.op.has_offset),
        x.DRAIN_FLOAT: int(header.op.scaled),
        x.DRAIN_ZERO: header.op.out_zero,
        x.DRAIN_LOW: header.op.out_low,
        x.DRAIN_HIGH: header.op.out_high,
    }
    b.add(Drain, x.DRAIN, drains)
    if header.op.output == "encoded":
        _add_encoded_stores(b)
        return
    pitch = b.pitch(Tensor.OUT)
    row = 0 if header.op.block_rows else b.get(StOut, "row")
    stores = {
        **_accumulators(b, StOut, "rows", "cols"),
        x.DRAM: row * pitch + 4 * b.get(StOut, "col"),
        x.STORE_PITCH: pitch,
        # Row numbers lie behind the scales.
        x.STORE_ORDER: b.get(StOut, "order") + 4 * b.get(StOut, "rows"),
        x.STORE_ORDER_BYTES: header.order_bytes,
    }
    b.add(StOut, x.STORE, stores, Tensor.OUT)


def _add_encoded_stores(b: _Builder) -> None:
    header = b.steps.header
    array_rows, k = header.accelerator.rows, header.op.digit_bits
    row, col = b.get(StEnc, "row"), b.get(StEnc, "col")
    lsb_pitch, pbm_pitch = b.pitch(Tensor.OUT_LSB), b.pitch(Tensor.OUT_PBM)
    groups = col // header.op.out_chunk * ceil_div(b.steps.rows, array_rows) + row // array_rows
    columns = {
        **_accumulators(b, StEnc, "rows", "cols"),
        x.DRAM: row * lsb_pitch + col * k // 8,
        x.ENC_LSB_PITCH: lsb_pitch,
        x.ENC_PBM: row * pbm_pitch + col // 8,
        x.ENC_PBM_PITCH: pbm_pitch,
        x.ENC_POINTERS: 4 * groups,
        x.ENC_GROUP: array_rows,
        x.ENC_BIAS: window_bias(k, header.op.out_window),
    }
    b.add(StEnc, x.ENCODE, columns, Tensor.OUT_LSB)
