"""The verifier: a program is refused unless it computes its op, for the rows it is bound to.

It looks at every step of the expanded program and checks

- bounds: tiles within their tensors and K chunks, addresses within a slot of an allocation and
  aligned to their elements;
- tokens: no deadlock, and every queue ends as it began;
- order: no two accesses of the same bytes, one of them a write, that tokens and the engines' own
  order leave open. So the result does not depend on timing;
- tiles: what an instruction reads is exactly a tile (or whole rows of it) that was loaded with the
  same columns and not overwritten since; activations, weights, sums and parameters of one
  instruction are of the same rows, channels and columns;
- accumulators: begun once, each pass (LSB, MSB, minima) over every K chunk exactly once, going on
  from a chunk to a neighbour of those done; drained once, with the parameters of the same rows
  and channels; stored where they belong; not overwritten before that;
- outputs: each stored exactly once; sorted rows with the row numbers of just these rows, encoded
  ones in the order of their stream.

So a program that passes computes every output exactly once from all its products, in every timing.
Refused beyond that, though harmless: K chunks in an order with gaps, reading whole rows of a tile
that is partly overwritten, and more than `TABLE_ENTRIES` tiles in a buffer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.target.isa.base import Kind, Loop
from sparqle_tvm.target.isa.operands import M
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.program.bound import BoundProgram, Operands
from sparqle_tvm.target.verify.bounds import check_bounds
from sparqle_tvm.target.verify.kernel import kernels
from sparqle_tvm.target.verify.order import find_order
from sparqle_tvm.target.verify.tiles import Fault, new_table
from sparqle_tvm.target.verify.touches import TouchColumn, TouchTable, touch_table

_MAP_LIMIT = 2**26


def verify(program: Program, rows: int | None = None) -> None:
    """Refuse a program that does not compute its op.

    Parameters
    ----------
    program : Program
        The program.
    rows : int or None
        M. None: `header.op.m`, 1, and for each loop over M the first edges of its tiles
        (step - 1, step, step + 1, 2 * step + 1). What runs with another M is verified for it.

    Raises
    ------
    ProgramError
        Names the instruction (index and text), the step, and what is wrong.
    """
    for m in [rows] if rows is not None else sample_rows(program):
        verify_bound(BoundProgram(program, m))


def sample_rows(program: Program) -> list[int]:
    """Numbers of rows that `verify` looks at, ascending."""
    samples = {1, program.header.op.m}
    for loop in program.instructions:
        if isinstance(loop, Loop) and loop.limit == M:
            samples |= {loop.step - 1, loop.step, loop.step + 1, 2 * loop.step + 1}
    return sorted(m for m in samples if 1 <= m <= program.header.op.m)


def verify_bound(run: BoundProgram) -> None:
    """Refuse a program for the rows that it is bound to, see `verify`."""
    for operands in run.classes:
        check_bounds(run, operands)
    table = touch_table(run)
    order, clocks = find_order(run, table.kinds, table.args)
    stores = run.of_kind(Kind.STORE)
    if not stores:
        raise ProgramError(f"program {run.header.label!r} stores nothing")
    _check_tiles(run, table, order, clocks, stores)


def _check_tiles(
    run: BoundProgram,
    table: TouchTable,
    order: NDArray[np.int32],
    clocks: NDArray[np.int32],
    stores: tuple[Operands, ...],
) -> None:
    """Walk all touches in `order`; refuse the first that is wrong."""
    header = run.header
    result = np.zeros(4, dtype=np.int64)
    rectangles, row_edges, column_edges = _output_map(run, stores)
    outs = np.zeros((len(row_edges) - 1, len(column_edges) - 1), dtype=np.int8)
    needs = np.array([header.k_chunk, header.chunks, 1, 1, header.op.has_min], dtype=np.int64)
    kernels()["check_tiles"](
        *(table.kinds, run.engines, table.args, order, clocks, table.firsts),
        *(table.touches.reshape(-1), rectangles, outs, new_table()),
        *(needs, result),
    )
    fault, step, touch, other = (int(value) for value in result)
    if fault != Fault.NONE:
        raise run.error(step, _fault_text(run, table, Fault(fault), step, touch, other))
    if not outs.all():
        row, column = np.argwhere(outs == 0)[0]
        raise ProgramError(
            f"program {header.label!r}, M = {run.rows}: output row {row_edges[row]}, "
            f"channel {column_edges[column]} is never stored"
        )


def _output_map(
    run: BoundProgram, stores: tuple[Operands, ...]
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Outputs cut at the edges of all stores: rectangle of each store, row and column edges."""
    row, rows, col, cols = (
        np.concatenate([operands[name] for operands in stores])
        for name in ("row", "rows", "col", "cols")
    )
    row_end, col_end = row + rows, col + cols
    row_edges = np.unique(np.concatenate([row, row_end, [0, run.rows]]))
    col_edges = np.unique(np.concatenate([col, col_end, [0, run.header.op.n]]))
    if len(row_edges) * len(col_edges) > _MAP_LIMIT:
        raise run.error(int(stores[0].index[0]), "the tiles stored are too irregular to be checked")
    bounds = [
        *(np.searchsorted(row_edges, values) for values in (row, row_end)),
        *(np.searchsorted(col_edges, values) for values in (col, col_end)),
    ]
    return np.stack(bounds, axis=1).astype(np.int32), row_edges, col_edges


def _fault_text(
    run: BoundProgram, table: TouchTable, fault: Fault, step: int, touch: int, other: int
) -> str:
    """What `check_tiles` found, in words."""
    number = touch - int(table.firsts[step])
    operand = run.instruction_at(step).accesses(run.header)[number].operand
    low, high = (int(table.touches[touch, column]) for column in (TouchColumn.LO, TouchColumn.HI))
    name = run.name(other) if other >= 0 else "an earlier instruction"
    what = f"{operand}, bytes [{low}, {high}): "
    return what + fault.text.format(other=name)
