"""The time of any decisions by formula, before anything is built: the pre-filter of the search.

It is that of `target.cost.overlap`, by which the default schedule is chosen, with the digits that
candidates are measured with. It ranks; it is not reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost import storage
from sparqle_tvm.target.cost.array import msb_steps
from sparqle_tvm.target.cost.overlap import OpLoads, Timeline
from sparqle_tvm.target.cost.schedule import Candidates, Decisions
from sparqle_tvm.target.isa.compute import dense_span_steps, reduction_cycles
from sparqle_tvm.target.isa.header import Header
from sparqle_tvm.tuning.task import TuningTask

# Of many points, so many are walked through together.
_WALKED = 256


@dataclass(frozen=True)
class Prediction:
    """Cycles of an op under some decisions.

    Attributes
    ----------
    total_cycles, dma_cycles, mma_cycles : float
        Of the op, of all transfers, and of the array.
    waiting_cycles : float
        That the array waits before its last pass.
    tail_cycles : float
        After that: the last drain and store.
    """

    total_cycles: float
    dma_cycles: float
    mma_cycles: float
    waiting_cycles: float
    tail_cycles: float


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
        self._bound = self._lower_bound()

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
        return self._bound

    def _lower_bound(self) -> float:
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
            self.look_at([decisions])
        return self._seen[decisions]

    def cycles(self, decisions: Decisions) -> float:
        """All of them: the key that candidates are sorted by."""
        return self.predict(decisions).total_cycles

    def look_at(self, some: Iterable[Decisions]) -> None:
        """Predict many at once, which is quicker than one by one."""
        new = [d for d in dict.fromkeys(some) if d not in self._seen]
        if not new:
            return
        timeline = self._timeline(new)
        times = timeline.run()
        waits, mma = sum(times.waits.values()), timeline.array_cycles
        columns = (times.total_cycles, timeline.dma_cycles, mma, waits, times.tail_cycles)
        found = np.stack(columns, axis=1).tolist()
        self._seen.update((d, Prediction(*row)) for d, row in zip(new, found, strict=True))

    def best_first(self, points: Sequence[Decisions]) -> Iterator[Decisions]:
        """Points by their cycles, `_WALKED` at a time: those whose lower bounds are least first."""
        order = np.argsort(self._timeline(points).least_cycles(), kind="stable")
        for begin in range(0, len(points), _WALKED):
            some = [points[i] for i in order[begin : begin + _WALKED].tolist()]
            self.look_at(some)
            yield from sorted(some, key=self.cycles)

    def _timeline(self, some: Sequence[Decisions]) -> Timeline:
        mma = np.array([self.mma_cycles(d.k, d.row_split) for d in some])
        return Timeline(self.loads, Candidates.of(some), mma)

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
