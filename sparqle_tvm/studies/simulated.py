"""Cost of a pass with its dense layers simulated: programs instead of formulas.

Encodings and the vector unit are counted as in `target.cost.model`; every dense op runs as the
program that the code generator makes for it, timing only, with its real bitmap. Equal ops share
one program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.compile.buckets import bucket
from sparqle_tvm.target.cost.block_rows import Balance
from sparqle_tvm.target.cost.events import simulated_events
from sparqle_tvm.target.cost.expected import TYPICAL_DENSITY
from sparqle_tvm.target.cost.limits import simulated_limits
from sparqle_tvm.target.cost.model import EncodedActivation, PassCost, SimulatedOp, pass_cost
from sparqle_tvm.target.cost.schedule import Decisions, Tiling
from sparqle_tvm.target.cost.vector import TransformerShape
from sparqle_tvm.target.isa import INSTRUCTIONS
from sparqle_tvm.target.op import DenseOp, ProgramScheme
from sparqle_tvm.target.program import Program

if TYPE_CHECKING:
    from sparqle_tvm.target.compile.library import ProgramLibrary

# Tensors of what is loaded by output channels.
_WEIGHTS = {
    part.tensor
    for cls in INSTRUCTIONS.values()
    if cls.EXTENTS.get("rows") == "n"
    for part in cls.PARTS
}


def program_for(
    op: DenseOp,
    scheme: ProgramScheme,
    programs: ProgramLibrary,
    readers: Sequence[DenseOp] = (),
    block_rows: int = 0,
    density: float = TYPICAL_DENSITY,
) -> Program:
    """The program that `simulate_op` runs; row counts share that of their bucket."""
    return programs.program(*_scheduled(op, scheme, programs, readers, block_rows, density))


def _scheduled(
    op: DenseOp,
    scheme: ProgramScheme,
    programs: ProgramLibrary,
    readers: Sequence[DenseOp],
    block_rows: int,
    density: float,
) -> tuple[DenseOp, Decisions]:
    """The op of that program, and its schedule."""

    def compiled(other: DenseOp) -> DenseOp:
        rows = bucket(other.m, programs.accelerator.rows)
        return replace(other.in_scheme(scheme), m=rows, block_rows=block_rows)

    mine, group = compiled(op), [compiled(reader) for reader in readers or (op,)]
    return mine, programs.decisions(mine, group, op.m, density)


def simulate_op(
    op: DenseOp,
    nnz: RowNnz,
    scheme: ProgramScheme,
    programs: ProgramLibrary,
    readers: Sequence[DenseOp] = (),
    block_rows: int = 0,
    density: float = TYPICAL_DENSITY,
) -> SimulatedOp:
    """Run one dense op without values.

    Parameters
    ----------
    op : DenseOp
        The op.
    nnz : RowNnz
        Stored MSB digits of its activations.
    scheme, block_rows
        As in `target.cost.analytical.dense_op_cost`.
    programs : ProgramLibrary
        Takes and keeps the program.
    readers : sequence of DenseOp
        All ops that read the same encoding; by default only this one.
    density : float
        Share of stored digits that the schedule is chosen for.
    """
    from sparqle_tvm.target.simulator import simulate_timing

    mine, schedule = _scheduled(op, scheme, programs, readers, block_rows, density)
    program = programs.program(mine, schedule)
    result = simulate_timing(program, op.m, nnz if scheme == "sparqle" else None)
    return SimulatedOp(
        label=op.label,
        scheme=scheme,
        macs=op.macs,
        tiling=Tiling(op, schedule),
        mma_cycles=result.array.busy,
        dma_cycles=result.dma_cycles,
        weight_bytes=sum(result.counts.dram_read_bytes.get(t, 0) for t in _WEIGHTS),
        dram_bytes=result.counts.dram_bytes,
        total_cycles=result.total_cycles,
        stalled_cycles=result.array.stalled,
        events=simulated_events(result),
        limits=simulated_limits(result),
    )


def simulated_pass_cost(
    encodings: Sequence[EncodedActivation],
    transformer: TransformerShape | None,
    *,
    tokens: int,
    past: int,
    programs: ProgramLibrary,
    scheme: ProgramScheme,
    balance: Balance = "array",
    progress: Callable[[], None] = lambda: None,
) -> PassCost:
    """Cost of one pass of a model, its dense layers simulated.

    Parameters
    ----------
    encodings, transformer, tokens, past, scheme, balance
        As in `target.cost.model.pass_cost`.
    programs : ProgramLibrary
        Programs of the accelerator.
    progress : callable
        Called after every op.
    """
    counted = pass_cost(
        encodings,
        transformer,
        tokens=tokens,
        past=past,
        accelerator=programs.accelerator,
        scheme=scheme,
        balance=balance,
        program_rows=lambda rows: bucket(rows, programs.accelerator.rows),
        count_ops=False,
    )
    ops: list[SimulatedOp] = []
    # Time does not depend on digits where none are stored: equal ops are simulated once.
    known: dict[tuple[DenseOp, tuple[DenseOp, ...]], SimulatedOp] = {}
    for encoding, encode, left in zip(encodings, counted.encodes, counted.left, strict=True):
        own = scheme if left is None else "dense"
        for op in encoding.launches:
            key, readers = (op, encoding.launches), encoding.launches
            found = known.get(key) if own == "dense" else None
            if found is None:
                given = (op, encoding.nnz, own, programs, readers)
                found = simulate_op(*given, encode.block_rows, encoding.density)
            if own == "dense":
                known[key] = found
            ops.append(replace(found, label=op.label, tiling=replace(found.tiling, op=op)))
            progress()
    return replace(counted, ops=tuple(ops))
