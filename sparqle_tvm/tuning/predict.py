"""A quick prediction for any decisions, before anything is built: the pre-filter of the search.

`target.cost.analytical` is held to the simulator within a few per cent, but knows only the
schedules that the compiler chooses by default. Here every combination of the space has a figure,
made of exact traffic and array cycles and a coarse picture of what overlaps: with one slot,
transfers into a tile wait for the computation that reads it. It ranks; it is not reported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.compile.schedule import Decisions
from sparqle_tvm.target.cost import storage
from sparqle_tvm.target.cost.array import msb_steps
from sparqle_tvm.target.cost.overlap import OpLoads
from sparqle_tvm.target.isa.compute import dense_span_steps, reduction_cycles
from sparqle_tvm.target.isa.header import Header
from sparqle_tvm.tuning.task import TuningTask


@dataclass(frozen=True)
class Prediction:
    """Cycles of an op under some decisions.

    Attributes
    ----------
    total_cycles, dma_cycles, mma_cycles : float
        Of the op, of all transfers, and of the array.
    exposed_cycles : float
        That nothing overlaps: first load, last drain and store.
    serial_cycles : float
        Added because an operand has one slot only.
    """

    total_cycles: float
    dma_cycles: float
    mma_cycles: float
    exposed_cycles: float
    serial_cycles: float


class Predictor:
    """Predicts the cycles of one task under decisions.

    Parameters
    ----------
    task, accelerator
        The op and the machine.
    nnz : RowNnz
        Stored digits of its activations.
    """

    def __init__(self, task: TuningTask, accelerator: Accelerator, nnz: RowNnz) -> None:
        spec, shape = task.spec, task.shape
        if spec.block_rows:
            nnz = nnz.sorted(spec.block_rows, accelerator.lanes)
        self.task, self.accelerator, self.nnz = task, accelerator, nnz
        digits, bitmap = storage.plane_bytes(nnz, spec.k, accelerator, spec.scheme)
        self.loads = OpLoads(
            op=shape,
            accelerator=accelerator,
            scheme=spec.scheme,
            activation_bytes=digits + bitmap,
            block_rows=spec.block_rows,
        )
        self._array: dict[tuple[int, int], float] = {}
        self._seen: dict[Decisions, Prediction] = {}

    def mma_cycles(self, chunk: int, split: int) -> float:
        """All work of the array with a K chunk and PE rows per activation row."""
        if (chunk, split) not in self._array:
            self._array[chunk, split] = self._count_mma(chunk, split)
        return self._array[chunk, split]

    def lower_bound_cycles(self) -> float:
        """Cycles that no schedule of the space can go below.

        The largest of: every byte of the op moved once, without descriptors; the dense pass and
        the digits of the sparse one without any waiting; the drain of all outputs.
        """
        shape, array, spec = self.task.shape, self.accelerator, self.task.spec
        sums = storage.row_metadata_bytes(shape.m, shape.k, shape.sum_group_size, shape.digit_bits)
        moved = self.loads.activation_bytes + sums + shape.m * shape.n * array.float_bytes
        moved += shape.n * storage.channel_bytes(shape, shape.k)
        stored = self.nnz.total if spec.scheme == "sparqle" else shape.m * shape.k
        products = shape.n * shape.weight_slices * (shape.m * shape.k + stored)
        return max(
            moved / array.dram_bytes_per_cycle,
            products / array.macs_per_cycle,
            shape.m * shape.n / array.drain_elements_per_cycle,
        )

    def predict(self, decisions: Decisions) -> Prediction:
        """Cycles under decisions."""
        if decisions not in self._seen:
            self._seen[decisions] = self._predict(decisions)
        return self._seen[decisions]

    def cycles(self, decisions: Decisions) -> float:
        """All of them: the key that candidates are sorted by."""
        return self.predict(decisions).total_cycles

    def _predict(self, d: Decisions) -> Prediction:
        shape, loads = self.task.shape, self.loads
        m_tiles, n_tiles, k_tiles = self.task.tile_counts(d.tile)
        m, n, k = shape.m / m_tiles, shape.n / n_tiles, shape.k / k_tiles
        outer, inner = (m_tiles, n_tiles) if d.rows_outer else (n_tiles, m_tiles)
        activation, weight = loads.activation(m, k), loads.weight(n, k)
        # Loads of the operand of the outer loop and of the other one, for an outer iteration.
        first, second = (activation, weight) if d.rows_outer else (weight, activation)
        slots = (d.activation_slots, d.weight_slots)
        first_slots, second_slots = slots if d.rows_outer else slots[::-1]
        kept = d.keep_outer or inner * k_tiles == 1
        first_cycles = first * k_tiles * (1 if kept else inner)
        second_cycles = second * k_tiles * (1 if outer * k_tiles == 1 else inner)
        row = loads.row(m) * (m_tiles if d.rows_outer else m_tiles * n_tiles)
        channel = loads.channel(n) * (n_tiles * m_tiles if d.rows_outer else n_tiles)
        store = loads.store(m, n)
        dma = outer * (first_cycles + second_cycles) + row + channel + m_tiles * n_tiles * store
        mma = self.mma_cycles(d.k, d.row_split)
        drain = m * n / self.accelerator.drain_elements_per_cycle
        mma_tile = mma / (m_tiles * n_tiles * k_tiles)
        # What one slot puts one after the other: seen by the array, and by the DRAM channel.
        array_waits = dma_waits = 0.0
        visits = outer if kept else outer * inner * k_tiles
        if first_slots == 1 and visits > 1:
            array_waits += first_cycles * outer
            dma_waits += visits * mma_tile * (second_slots if kept else 1)
        if second_slots == 1 and outer * inner * k_tiles > 1:
            array_waits += second_cycles * outer
            dma_waits += outer * inner * k_tiles * mma_tile
        if d.accumulator_slots == 1 and m_tiles * n_tiles > 1:
            array_waits += m_tiles * n_tiles * (drain + store)
        stores = m_tiles * n_tiles * (drain + store)
        head = (first * (k_tiles if kept else 1)) + second
        tail = drain + store + mma_tile
        busiest = max(mma, dma, stores)
        total = max(mma + array_waits + head, dma + dma_waits + tail, stores + head)
        return Prediction(total, dma, mma, total - busiest, max(array_waits, dma_waits))

    def _count_mma(self, chunk: int, split: int) -> float:
        task, array = self.task, self.accelerator
        shape, spec = task.shape, task.spec
        header = Header(accelerator=array, op=shape, k_chunk=chunk)
        spans = [min(chunk, shape.k - begin) for begin in range(0, shape.k, chunk)]
        dense = sum(dense_span_steps(header, span, split) for span in spans)
        dense *= math.ceil(shape.m / array.rows)
        sparse = dense
        if spec.scheme == "sparqle":
            steps = msb_steps(header, self.nnz, split)
            starts = np.arange(0, shape.m, array.rows)
            sparse = int(np.maximum.reduceat(steps, starts, axis=0).sum())
        passes = math.ceil(shape.n / array.cols) * shape.weight_slices
        reductions = 2 * len(spans) * reduction_cycles(header, shape.n, split)
        return float((dense + sparse) * passes + reductions)
