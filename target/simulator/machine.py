"""Simulating a program: values, cycles and counts of one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.isa.access import Tensor
from sparqle_tvm.target.isa.header import Engine
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.program.bound import BoundProgram
from sparqle_tvm.target.simulator.counts import Counts, EngineTime, count, engine_times
from sparqle_tvm.target.simulator.digits import digit_tables, nnz_from_bitmap, row_splits
from sparqle_tvm.target.simulator.dram import DramTensors, check_tensors
from sparqle_tvm.target.simulator.ranges import bind
from sparqle_tvm.target.simulator.streams import check_planes
from sparqle_tvm.target.simulator.timing import Timing, find_times
from sparqle_tvm.target.simulator.values import run_values
from sparqle_tvm.target.verify import verify_bound


@dataclass(frozen=True, eq=False)
class SimResult:
    """What a run of a program gave.

    Attributes
    ----------
    output : int32 or float32 (M, N), or None
        The output tensor; None if only the time was asked for, or if the outputs are encoded.
    total_cycles : int
        Cycles until the last engine has ended.
    engines : mapping of Engine to EngineTime
        Busy and stalled cycles.
    counts : Counts
        Bytes, MACs, lane-cycles.
    bound, timing : BoundProgram, Timing
        Every step and when it ran, for `timeline`.
    encoded : mapping of Tensor to ndarray, or None
        Encoded outputs: OUT_LSB, OUT_PBM, OUT_MSB (what the pointers say counts), OUT_MSB_PTR.
    """

    output: NDArray[Any] | None
    total_cycles: int
    engines: Mapping[Engine, EngineTime]
    counts: Counts
    bound: BoundProgram[Any]
    timing: Timing
    encoded: Mapping[Tensor, NDArray[Any]] | None = None

    @property
    def array(self) -> EngineTime:
        """Busy and stalled cycles of the array."""
        return self.engines[Engine.MMA]

    @property
    def dma_cycles(self) -> int:
        """Cycles that the DRAM channel was busy."""
        busy = self.timing.end - self.timing.start
        return sum(int(busy[o.index].sum()) for o in self.bound.classes if o.cls.PARTS)


def simulate(program: Program, tensors: DramTensors) -> SimResult:
    """Run a program: values bit for bit, cycles and counts.

    Parameters
    ----------
    program : Program
        The program. It need not be verified: what would leave a buffer or a tensor is refused.
        Programs with encoded outputs are verified here: how long a store takes depends on the
        values, so these must not depend on time.
    tensors : mapping of Tensor to ndarray
        What `dram.tensor_formats` names, laid out as `isa.access.Tensor` says (see `dram`). Outputs
        may be given to be written in place. M is the number of rows of the activations.

    Raises
    ------
    ProgramError
        If the program cannot be bound to M rows, leaves a buffer or tensor, deadlocks, lets two
        engines touch the same bytes at the same time, or multiplies a bitmap that it has not
        loaded. Names the instruction.
    InvalidArgumentError
        If a tensor is missing or has the wrong format, if tile pointers do not fit the bitmap, or
        if the row order is no permutation of the rows of each block.
    """
    header = program.header
    activations = Tensor.ACT if header.op.scheme == "dense" else Tensor.PBM
    if activations not in tensors:
        raise InvalidArgumentError(f"{header.label!r} needs the tensor {activations.name}")
    rows = len(tensors[activations])
    checked = check_tensors(header, rows, tensors)
    bound = bind(program, rows)
    digits = None
    if header.op.scheme == "sparqle":
        nnz = nnz_from_bitmap(checked[Tensor.PBM], program)
        digits = digit_tables(nnz, header, row_splits(program))
        check_planes(header, digits, checked)
    when = find_times(bound, digits)
    if header.op.output == "encoded":
        bound.once(verify_bound)
    outputs = run_values(bound, when, checked)
    encoded = None
    if header.op.output == "encoded":
        encoded = outputs
        stored = RowNnz.from_pbm(outputs[Tensor.OUT_PBM], header.op.n)
        when = find_times(bound, digits, stored)
    counts, engines = count(bound, when, digits), engine_times(bound, when)
    output = outputs.get(Tensor.OUT)
    return SimResult(output, when.total_cycles, engines, counts, bound, when, encoded)


def simulate_timing(
    program: Program, rows: int, nnz: RowNnz | None = None, out_nnz: RowNnz | None = None
) -> SimResult:
    """Run a program without values: the same cycles and counts as `simulate`.

    Parameters
    ----------
    program : Program
        The program.
    rows : int
        M.
    nnz : RowNnz, optional
        Stored MSB digits of the (M, K) activations, from a bitmap
        (`digits.nnz_from_bitmap`) or drawn (`digits.draw_nnz`). Scheme ``dense`` needs none. Rows
        in their own order: a program with `block_rows` gets them sorted.
    out_nnz : RowNnz, optional
        The same of the (M, N) outputs, if they are encoded; by default they store every digit.

    Raises
    ------
    ProgramError
        As `simulate`.
    InvalidArgumentError
        If `nnz` is missing or is not that of (rows, K) activations.
    """
    header = program.header
    bound = bind(program, rows)
    digits = None
    if header.op.scheme == "sparqle":
        if nnz is None or nnz.rows != rows:
            given = "none" if nnz is None else f"those of {nnz.rows} rows"
            raise InvalidArgumentError(
                f"{header.label!r} needs the stored digits of {rows} rows, got {given}"
            )
        if header.op.block_rows:
            nnz = nnz.sorted(header.op.block_rows, header.accelerator.lanes)
        digits = digit_tables(nnz, header, row_splits(program))
    if out_nnz is not None and (out_nnz.rows, out_nnz.in_features) != (rows, header.op.n):
        raise InvalidArgumentError(
            f"{header.label!r} makes outputs ({rows}, {header.op.n}), out_nnz is of "
            f"({out_nnz.rows}, {out_nnz.in_features})"
        )
    when = find_times(bound, digits, out_nnz)
    counts = count(bound, when, digits)
    return SimResult(None, when.total_cycles, engine_times(bound, when), counts, bound, when)
