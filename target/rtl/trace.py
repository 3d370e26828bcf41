"""What the array's control does in every cycle of a tile, from its RTL in Amaranth's simulator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.numerics.slicing import SlicedTensor
from sparqle_tvm.target.rtl.array import SplitArray
from sparqle_tvm.target.rtl.shape import ArrayShape


@dataclass(frozen=True, eq=False)
class TileTrace:
    """Signals by cycle, from the acceptance of a tile to that of the next one.

    Attributes
    ----------
    start, ready, dense, sparse : bool (cycles,)
        Ports of `array.SplitArray`; a step of the LSB pass, of the MSB pass.
    step : int64 (cycles,)
        Number of the step within its pass.
    waiting : bool (rows, cycles)
        Rows that have no digit left in a step of the MSB pass.
    digits : int64 (rows,)
        Stored digits of each row.
    """

    start: NDArray[np.bool_]
    ready: NDArray[np.bool_]
    dense: NDArray[np.bool_]
    sparse: NDArray[np.bool_]
    step: NDArray[np.int64]
    waiting: NDArray[np.bool_]
    digits: NDArray[np.int64]


def trace_tile(shape: ArrayShape, sliced: SlicedTensor) -> TileTrace:
    """Run the control of a tile (rows, columns) through the array.

    Digits and weights do not matter to it and are left 0. For small arrays: Amaranth's simulator
    interprets.
    """
    from amaranth.sim import Simulator

    block, mask = SplitArray(shape), sliced.mask()
    rows, columns = mask.shape
    full = np.zeros((shape.rows, shape.columns), dtype=bool)
    full[:rows, :columns] = mask
    bitmap = int.from_bytes(np.packbits(full.ravel(), bitorder="little").tobytes(), "little")
    ports = ("start", "ready", "read_dense", "read_sparse", "step", "waiting")
    cycles: list[tuple[int, ...]] = []

    async def process(ctx: Any) -> None:
        await ctx.tick()
        ctx.set(block.bitmap, bitmap)
        ctx.set(block.columns, columns)
        ctx.set(block.start, 1)
        while True:
            cycles.append(tuple(ctx.get(getattr(block, port)) for port in ports))
            if len(cycles) > 1 and cycles[-1][1]:
                return
            await ctx.tick()
            ctx.set(block.start, 0)

    simulator = Simulator(block)
    simulator.add_clock(1e-9)
    simulator.add_testbench(process)
    simulator.run()
    start, ready, dense, sparse, step, waiting = np.array(cycles, dtype=np.int64).T
    return TileTrace(
        start=start.astype(bool),
        ready=ready.astype(bool),
        dense=dense.astype(bool),
        sparse=sparse.astype(bool),
        step=step,
        waiting=(waiting >> np.arange(shape.rows)[:, None] & 1).astype(bool)[:rows],
        digits=mask.sum(axis=1),
    )
