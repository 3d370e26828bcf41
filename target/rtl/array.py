"""The array: PE rows, and the control of both passes.

A tile is `rows` activation rows (or fewer: the others have no bits, their sums are not read), one
block of `cols` channels, up to `columns` columns and one weight slice. It is accepted when
``start`` and ``ready`` are both 1, with its bitmap; its steps are issued in the cycles after that,
dense ones first: ``ceil(columns / lanes)``, then as many sparse ones as the row with most stored
digits needs. In the cycle of the last step ``ready`` is 1 again, so tiles follow each other
without a gap. Digits and weights come from memories that answer in the cycle after ``read_dense``
or ``read_sparse`` with ``step``; each PE keeps those weights of the dense pass that the sparse one
needs. `PIPELINE_CYCLES` after the cycle of the last step the accumulators hold the tile's sums.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib.wiring import In, Out

from sparqle_tvm.target.rtl.pe import Block, PeRow
from sparqle_tvm.target.rtl.shape import ACCUMULATOR_BITS, ArrayShape


class SplitArray(Block):
    """The array, see the module. ``waiting``: rows that have no bits left in a sparse step."""

    NAME = "sparqle_array"

    def __init__(self, shape: ArrayShape, flat: bool = True) -> None:
        self.shape = shape
        k, lanes = shape.digit_bits, shape.lanes
        super().__init__(
            {
                "start": In(1),
                "ready": Out(1),
                "bitmap": In(shape.rows * shape.columns),
                "columns": In(range(shape.columns + 1)),
                "zero": In(1),
                "slice": In(range(shape.weight_slices)),
                "weights_signed": In(1),
                "lsb_signed": In(1),
                "turn": In(shape.rows * (k + 1)),
                "read_dense": Out(1),
                "read_sparse": Out(1),
                "step": Out(shape.step_bits),
                "lsb": In(shape.rows * lanes * k),
                "msb": In(shape.rows * lanes * k),
                "weights": In(shape.cols * lanes * k),
                "waiting": Out(shape.rows),
                "drain_row": In(shape.row_bits),
                "drain_group": In(shape.group_bits),
                "drain": Out(shape.cols * ACCUMULATOR_BITS),
            },
            flat,
        )

    def children(self) -> tuple[Block, ...]:
        """The PE row."""
        return (PeRow(self.shape, "split", False),)

    def elaborate(self, platform: Any) -> Module:
        """Control and rows."""
        m, shape = Module(), self.shape
        dense, sparse = Signal(), Signal()
        step = Signal(shape.step_bits)
        zero, weights_signed, lsb_signed = Signal(), Signal(), Signal()
        place, turns = Signal.like(self.slice), Signal.like(self.turn)
        columns = Signal.like(self.columns)
        left = Signal.like(self.columns)
        accept, first, last_dense = Signal(), Signal(), Signal()
        rows = [PeRow(shape, "split", self.flat) for _ in range(shape.rows)]
        any_more, any_after = Cat(r.more for r in rows).any(), Cat(r.after for r in rows).any()
        last = (dense & last_dense & ~any_more) | (sparse & ~any_after)
        m.d.comb += [
            last_dense.eq(left <= shape.lanes),
            self.ready.eq((~dense & ~sparse) | last),
            accept.eq(self.start & self.ready),
            first.eq(dense & (step == 0)),
            self.read_dense.eq(dense),
            self.read_sparse.eq(sparse),
            self.step.eq(step),
            self.waiting.eq(Cat(sparse & ~r.more for r in rows)),
        ]
        m.d.sync += step.eq(step + 1)
        with m.If(dense):
            m.d.sync += left.eq(left - shape.lanes)
            with m.If(last_dense):
                m.d.sync += [dense.eq(0), sparse.eq(any_more), step.eq(0)]
        with m.If(sparse & ~any_after):
            m.d.sync += [sparse.eq(0), step.eq(0)]
        with m.If(accept):
            m.d.sync += [
                dense.eq(1),
                step.eq(0),
                zero.eq(self.zero),
                weights_signed.eq(self.weights_signed),
                lsb_signed.eq(self.lsb_signed),
                place.eq(self.slice),
                turns.eq(self.turn),
                columns.eq(self.columns),
                left.eq(self.columns),
            ]
        used, ends = Signal(shape.lanes), Signal(shape.groups * shape.lane_count_bits)
        m.d.comb += used.eq(Cat(lane < left for lane in range(shape.lanes)))
        self._dense_ends(m, columns, left, ends)
        # What stage 2 needs of a tile has to outlast the acceptance of the next one.
        turn = Signal.like(turns)
        m.d.sync += turn.eq(turns)
        for i, row in enumerate(rows):
            self.include(m, f"row_{i}", row)
            width = shape.lanes * shape.digit_bits
            m.d.comb += [
                row.load.eq(accept),
                row.bits.eq(self.bitmap.word_select(i, shape.columns)),
                row.dense.eq(dense),
                row.sparse.eq(sparse),
                row.clear.eq(zero & first),
                row.place.eq(place),
                row.weights_signed.eq(weights_signed),
                row.lsb_signed.eq(lsb_signed),
                row.lanes_used.eq(used),
                row.lane_ends.eq(ends),
                row.turn.eq(turn.word_select(i, shape.digit_bits + 1)),
                row.lsb.eq(self.lsb.word_select(i, width)),
                row.msb.eq(self.msb.word_select(i, width)),
                row.weights.eq(self.weights),
                row.group.eq(self.drain_group),
            ]
        with m.Switch(self.drain_row):
            for i, row in enumerate(rows):
                with m.Case(i):
                    m.d.comb += self.drain.eq(row.acc)
        return m

    def _dense_ends(self, m: Module, columns: Any, left: Any, ends: Any) -> None:
        """Lanes of a dense step up to the end of each group, at most those that have a column."""
        shape, bits = self.shape, self.shape.lane_count_bits
        begin = Signal(range(shape.columns + 1))
        m.d.comb += begin.eq(columns - left)
        available = Mux(left > shape.lanes, shape.lanes, left)
        for group in range(shape.groups):
            bound = (group + 1) * (shape.columns // shape.groups)
            until = Signal(range(shape.columns + 1), name=f"until_{group}")
            m.d.comb += until.eq(Mux(begin > bound, 0, bound - begin))
            m.d.comb += ends.word_select(group, bits).eq(
                Mux(until > available, available, until)[:bits]
            )
