"""Cycles and bytes of dense ops and encodings, from the real bitmaps, in closed form.

Cycles of the array are counted in `cost.array`, from the rules of the instructions: a PE row walks
only its stored digits, and the rows of a group wait for the slowest. The baselines take dense
passes (`cost.baselines`). With groups of weights along K, the scale unit of a PE adds ``partial
sum * scale + group sum * minimum`` beside the next group's MACs and costs no cycles. Bytes are
those of `cost.storage`, with the reloads of the tiling. Loads, array, drain and stores overlap
(`cost.overlap`); loads and stores share the DRAM bandwidth.

`benchmarks/tie.py` holds all this against the simulator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost import storage
from sparqle_tvm.target.cost.array import lsb_pass_cycles, msb_pass_cycles, msb_pass_waits
from sparqle_tvm.target.cost.baselines import Scheme, array_of, baseline
from sparqle_tvm.target.cost.events import Events, op_events
from sparqle_tvm.target.cost.expected import TYPICAL_DENSITY
from sparqle_tvm.target.cost.factors import NO_FACTORS, EncodeFactors
from sparqle_tvm.target.cost.limits import Limits, divide
from sparqle_tvm.target.cost.overlap import OpLoads, Timeline, Times, walk
from sparqle_tvm.target.cost.schedule import Decisions, Tiling
from sparqle_tvm.target.cost.sorting import block_waits, sort_work
from sparqle_tvm.target.cost.tiling import Question, choose_schedules, choose_together
from sparqle_tvm.target.isa.header import row_number_bytes
from sparqle_tvm.target.op import DenseOp

Bound = Literal["compute", "memory"]

# Vector-unit operations per element: the running maximum, then scale-round-clip. Splitting,
# bitmap and compaction take a third pass of the same width.
QUANTIZE_OPS = 2
ENCODE_OPS = 1
# The running minimum, which the zero point of a row takes besides.
ZERO_OPS = 1


@dataclass(frozen=True)
class OpCost:
    """Cost of one dense op.

    Attributes
    ----------
    label : str
        The op.
    scheme : {"sparqle", "dense", "native", "a4"}
        How the activations are stored and computed.
    macs : int
        Multiply-accumulates at full precision.
    tiling : Tiling
        Tiles behind the figures, and with them the schedule.
    lsb_cycles, msb_cycles : int
        Cycles of the array in the first and in the second pass, all weight slices.
    waiting_cycles : int
        Of them the share in which PEs wait for the slowest row of their group.
    drain_cycles : int
        Cycles of the drain path, beside the array.
    activation_bytes : int
        Digits read: LSB and MSB planes, or 2k-bit values, all reloads included.
    metadata_bytes : int
        Bitmap, tile pointers, activation scales, zero points and group sums read, all reloads
        included.
    weight_bytes : int
        Weights, scales, minima and offsets read, all reloads included.
    output_bytes : int
        Outputs written.
    dma_cycles : int
        Cycles of all transfers: bytes / bandwidth + descriptors * fixed cycles.
    total_cycles : int
        Time of the op, see `overlap.Timeline`.
    events : Events
        What costs energy.
    limits : mapping of str to int
        What the time is limited by, see `limits`.
    """

    label: str
    scheme: Scheme
    macs: int
    tiling: Tiling
    lsb_cycles: int
    msb_cycles: int
    waiting_cycles: int
    drain_cycles: int
    activation_bytes: int
    metadata_bytes: int
    weight_bytes: int
    output_bytes: int
    dma_cycles: int
    total_cycles: int
    events: Events
    limits: Limits

    @property
    def mma_cycles(self) -> int:
        """Cycles of the array, both passes."""
        return self.lsb_cycles + self.msb_cycles

    @property
    def compute_cycles(self) -> int:
        """Cycles of the slower of array and drain, which work beside each other."""
        return max(self.mma_cycles, self.drain_cycles)

    @property
    def dram_bytes(self) -> int:
        """All bytes read and written."""
        return self.activation_bytes + self.metadata_bytes + self.weight_bytes + self.output_bytes

    @property
    def exposed_cycles(self) -> int:
        """Part of the time that no overlap hides: first load, last drain and store."""
        return self.total_cycles - max(self.compute_cycles, self.dma_cycles)

    @property
    def bound(self) -> Bound:
        """What limits the op."""
        return "compute" if self.compute_cycles >= self.dma_cycles else "memory"


@dataclass(frozen=True)
class EncodeCost:
    """Cost of quantizing a tensor and writing what the dense ops read.

    The vector unit does it where the tensor is produced, so nothing is read from DRAM but what
    factors and bands an encoding has.

    Attributes
    ----------
    label : str
        The encoding.
    scheme : {"sparqle", "dense", "native", "a4"}
        What is written: planes, bitmap and pointers, or 2k-bit values.
    vector_cycles : int
        Cycles of the vector unit.
    activation_bytes, metadata_bytes : int
        Bytes written, as in `OpCost`, once.
    dma_cycles, descriptor_cycles : int
        Cycles of the transfers; of them those of descriptors.
    events : Events
        What costs energy. The tensor is written into the activation buffer as floats, read twice
        (for its maximum and to be scaled), and what is made of it passes the buffer once more;
        to sort rows, their bitmap is read.
    block_rows : int
        Rows that are sorted together, see `block_rows`; 0: none.
    waiting_cycles : int
        What does not overlap, because a block is written when all of it is sorted.
    factor_bytes : int
        Bytes of factors and bands, read once.
    """

    label: str
    scheme: Scheme
    vector_cycles: int
    activation_bytes: int
    metadata_bytes: int
    dma_cycles: int
    descriptor_cycles: int
    events: Events
    block_rows: int = 0
    waiting_cycles: int = 0
    factor_bytes: int = 0

    @property
    def dram_bytes(self) -> int:
        """All bytes written and read."""
        return self.activation_bytes + self.metadata_bytes + self.factor_bytes

    @property
    def total_cycles(self) -> int:
        """Time: vector unit and stores beside each other, except what waits for a block."""
        return max(self.vector_cycles, self.dma_cycles) + self.waiting_cycles

    @property
    def limits(self) -> Limits:
        """What the time is limited by, see `limits`."""
        channel = {
            "activations": float(self.dma_cycles - self.descriptor_cycles),
            "descriptors": float(self.descriptor_cycles),
        }
        return divide(self.total_cycles, [{"encode": float(self.vector_cycles)}, channel])

    @property
    def bound(self) -> Bound:
        """What limits it."""
        return "compute" if self.vector_cycles >= self.dma_cycles else "memory"


def dense_op_cost(
    op: DenseOp,
    nnz: RowNnz,
    schedule: Decisions,
    accelerator: Accelerator,
    scheme: Scheme,
    block_rows: int = 0,
    outputs: RowNnz | None = None,
) -> OpCost:
    """Cost of one dense op.

    Parameters
    ----------
    op, nnz, schedule, accelerator, scheme, block_rows
        See `events.op_events`; `nnz` is in the order of tokens.
    outputs : RowNnz, optional
        Stored MSB digits of the (m, n) outputs, if the drain encodes them; the schedule is
        then one of `tiling.choose_drained`.

    Raises
    ------
    InvalidArgumentError
        If `nnz` is not that of (m, k) activations, or `outputs` of (m, n) outputs.
    """
    timeline, cost = _prepared(op, nnz, schedule, accelerator, scheme, block_rows, outputs)
    return cost(timeline.run())


def _prepared(
    op: DenseOp,
    nnz: RowNnz,
    schedule: Decisions,
    accelerator: Accelerator,
    scheme: Scheme,
    block_rows: int = 0,
    outputs: RowNnz | None = None,
) -> tuple[Timeline, Callable[[Times], OpCost]]:
    """What is to be walked through for `dense_op_cost`, and what makes the cost of its times."""
    _check_nnz(op, nnz)
    if outputs is not None:
        _check_nnz(replace(op, k=op.n), outputs)
        op = replace(op, output="encoded")
    if block_rows:
        nnz = nnz.sorted(block_rows, accelerator.lanes)
    tiling, split = Tiling(op, schedule), schedule.row_split
    lsb = lsb_pass_cycles(op, schedule.k, array_of(accelerator, scheme), split)
    msb = lsb * (baseline(scheme).passes - 1)
    if scheme == "sparqle":
        msb = msb_pass_cycles(op, nnz, schedule.k, accelerator, split)
    digits, bitmap = storage.plane_bytes(nnz, schedule.k, accelerator, scheme)
    sums = storage.sum_bytes(op.m, op.k, op.sum_group_size, op.digit_bits)
    output_bytes = op.m * storage.output_bytes(op.n, schedule.n, accelerator, block_rows)
    encoded_bytes = 0
    if outputs is not None:
        encoded_bytes = output_bytes = storage.encoded_output_bytes(
            op.m, op.n, schedule.n, accelerator, outputs
        )
    loads = OpLoads(
        op=op,
        accelerator=accelerator,
        scheme=scheme,
        activation_bytes=digits + bitmap,
        block_rows=block_rows,
        encoded_bytes=encoded_bytes,
    )
    timeline = Timeline(loads, schedule, lsb + msb)
    tiles = tiling.activation_loads * tiling.m_tiles * tiling.k_tiles
    centres = op.m * tiling.k_tiles * storage.centre_bytes(op, scheme)
    metadata = tiling.activation_loads * (bitmap + sums + centres)
    metadata += tiling.row_loads * op.m * storage.row_parameter_bytes(op, block_rows)
    metadata += storage.TILE_POINTER_BYTES * tiles if scheme == "sparqle" else 0
    weights = tiling.weight_loads * storage.weight_bytes(op, op.k)
    weights += tiling.channel_loads * op.channel_parameter_bytes
    activation_bytes, weight_bytes = tiling.activation_loads * digits, op.n * weights
    dma_cycles = math.ceil(timeline.dma_cycles[0])
    drain_cycles = int(timeline.drain_cycles[0])
    waiting = 0
    if scheme == "sparqle":
        waiting = msb_pass_waits(op, nnz, schedule.k, accelerator, split)
    moved = {
        "weights": weight_bytes / accelerator.dram_bytes_per_cycle,
        "activations": (activation_bytes + metadata + output_bytes)
        / accelerator.dram_bytes_per_cycle,
    }
    moved["descriptors"] = max(dma_cycles - sum(moved.values()), 0.0)
    events = op_events(op, nnz, schedule, accelerator, scheme, block_rows)

    def cost(times: Times) -> OpCost:
        total_cycles = math.ceil(times.total_cycles[0])
        return OpCost(
            label=op.label,
            scheme=scheme,
            macs=op.macs,
            tiling=tiling,
            lsb_cycles=lsb,
            msb_cycles=msb,
            waiting_cycles=waiting,
            drain_cycles=drain_cycles,
            activation_bytes=activation_bytes,
            metadata_bytes=metadata,
            weight_bytes=weight_bytes,
            output_bytes=output_bytes,
            dma_cycles=dma_cycles,
            total_cycles=total_cycles,
            events=replace(
                events,
                cycles=total_cycles,
                dram_read_bytes=activation_bytes + metadata + weight_bytes,
                dram_write_bytes=output_bytes,
            ),
            limits=divide(
                total_cycles,
                [
                    {"array": lsb + msb - waiting, "waiting_rows": waiting},
                    moved,
                    {"drain": drain_cycles},
                ],
                begin=float(times.begin_cycles[0]),
                end=float(times.tail_cycles[0]),
                waits={cause: float(cycles[0]) for cause, cycles in times.waits.items()},
            ),
        )

    return timeline, cost


def encode_cost(
    label: str,
    nnz: RowNnz,
    schedule: Decisions,
    sum_group_size: int,
    accelerator: Accelerator,
    scheme: Scheme,
    block_rows: int = 0,
    factors: EncodeFactors = NO_FACTORS,
    zero_bytes: int = 0,
) -> EncodeCost:
    """Cost of quantizing and writing one tensor.

    Parameters
    ----------
    label : str
        The encoding.
    nnz : RowNnz
        Its stored MSB digits.
    schedule : Decisions
        That of the first dense op that reads it: it is written in tiles of those rows and columns.
    sum_group_size : int
        Weights per group if its readers need group sums, else 0.
    accelerator, scheme, block_rows
        As in `dense_op_cost`.
    factors : EncodeFactors
        Whether it has factors and bands; baselines have none.
    zero_bytes : int
        Bytes of the zero point of a row, if it is found at run time, else 0.
    """
    rows, k = nnz.rows, nnz.in_features
    factor_bytes = factors.read_bytes(k)
    digits, metadata = storage.plane_bytes(nnz, schedule.k, accelerator, scheme)
    metadata += storage.row_metadata_bytes(rows, k, sum_group_size, accelerator.digit_bits)
    metadata += rows * zero_bytes
    if scheme == "sparqle":
        metadata += storage.pointer_bytes(rows, k, schedule.k, accelerator.rows)
    ops = QUANTIZE_OPS + (ENCODE_OPS if scheme == "sparqle" else 0) + factors.element_operations
    ops += ZERO_OPS if zero_bytes else 0
    operations = rows * k * ops
    tiles = math.ceil(rows / schedule.m) * math.ceil(k / schedule.k)
    # A piece of memory for each tile, and the scales of its rows.
    fixed = 2 * tiles * accelerator.dma_descriptor_cycles
    sort_cycles = sort_operations = counted = 0
    if block_rows:
        metadata += rows * row_number_bytes(rows)
        counted = storage.pbm_bytes(rows, k)
        sort_cycles, sort_operations = sort_work(rows, k, block_rows, accelerator)
    vector_cycles = math.ceil(operations / accelerator.vector_lanes) + sort_cycles
    moved_bytes = digits + metadata + factor_bytes
    dma_cycles = math.ceil(moved_bytes / accelerator.dram_bytes_per_cycle + fixed)
    waiting_cycles = block_waits(rows, block_rows, vector_cycles, dma_cycles)
    floats = rows * k * accelerator.float_bytes
    return EncodeCost(
        label=label,
        scheme=scheme,
        vector_cycles=vector_cycles,
        activation_bytes=digits,
        metadata_bytes=metadata,
        dma_cycles=dma_cycles,
        descriptor_cycles=fixed,
        events=Events(
            cycles=max(vector_cycles, dma_cycles) + waiting_cycles,
            activation_read_bytes=2 * floats + digits + metadata + counted + rows * factor_bytes,
            activation_write_bytes=floats + moved_bytes,
            dram_read_bytes=factor_bytes,
            dram_write_bytes=digits + metadata,
            encoded_elements=rows * k if scheme == "sparqle" else 0,
            vector_operations=operations + sort_operations,
        ),
        block_rows=block_rows,
        waiting_cycles=waiting_cycles,
        factor_bytes=factor_bytes,
    )


def costs_with(
    ops: Sequence[tuple[DenseOp, Decisions]], accelerator: Accelerator, scheme: Scheme
) -> list[OpCost]:
    """Costs of ops under a baseline with given schedules, which need not be those it would have."""
    prepared = []
    for op, schedule in ops:
        nothing = RowNnz(np.zeros((op.m, 1), dtype=np.int32), op.k, op.k)
        prepared.append(_prepared(op, nothing, schedule, accelerator, scheme))
    times = walk([line for line, _ in prepared]) if prepared else []
    return [cost(found) for (_, cost), found in zip(prepared, times, strict=True)]


@dataclass(frozen=True, eq=False)
class Encoded:
    """An encoding whose cost is asked for, with all dense ops that read it.

    Attributes
    ----------
    label : str
        Its name.
    nnz : RowNnz
        Its stored MSB digits.
    consumers : tuple of DenseOp
        The ops.
    scheme : {"sparqle", "dense", "native", "a4"}
        How it is stored and computed.
    block_rows : int
        Rows that are sorted together, see `block_rows.choose_block_rows`; 0: none.
    factors : EncodeFactors
        Whether it has factors and bands.
    density : float
        Share of stored digits that the schedules are chosen for.

    Raises
    ------
    InvalidArgumentError
        If there is no consumer, or an op does not fit the bitmap.
    """

    label: str
    nnz: RowNnz
    consumers: tuple[DenseOp, ...]
    scheme: Scheme
    block_rows: int = 0
    factors: EncodeFactors = NO_FACTORS
    density: float = TYPICAL_DENSITY

    def __post_init__(self) -> None:
        """Check that digits and ops belong together."""
        if not self.consumers:
            raise InvalidArgumentError(f"encoding {self.label!r} has no dense op that reads it")
        for op in self.consumers:
            _check_nnz(op, self.nnz)

    def question(self, accelerator: Accelerator) -> Question:
        """What schedules are chosen by."""
        ops = tuple(replace(op, block_rows=self.block_rows) for op in self.consumers)
        return Question(ops, accelerator, self.scheme, self.density)


def encoding_costs(
    label: str,
    nnz: RowNnz,
    consumers: Sequence[DenseOp],
    accelerator: Accelerator,
    scheme: Scheme,
    block_rows: int = 0,
    factors: EncodeFactors = NO_FACTORS,
    density: float = TYPICAL_DENSITY,
) -> tuple[EncodeCost, tuple[OpCost, ...]]:
    """Cost of one encoding and of all dense ops that read it, with tiles chosen together.

    For the arguments see `Encoded`.

    Raises
    ------
    InvalidArgumentError
        If there is no consumer, or an op does not fit the bitmap.
    TargetError
        If no tile fits the buffers.
    """
    asked = Encoded(label, nnz, tuple(consumers), scheme, block_rows, factors, density)
    return costs_together([asked], accelerator)[0]


def costs_together(
    asked: Sequence[Encoded], accelerator: Accelerator, *, count_ops: bool = True
) -> list[tuple[EncodeCost, tuple[OpCost, ...]]]:
    """`encoding_costs` of many encodings, which takes hardly longer than of one.

    Without `count_ops` only encodings are counted, and no op is.

    Raises
    ------
    TargetError
        If no tile fits the buffers.
    """
    choose_together(one.question(accelerator) for one in asked)
    lines: list[Timeline] = []
    finish: list[tuple[EncodeCost, list[tuple[int, str]]]] = []
    costs: list[Callable[[Times], OpCost]] = []
    for one in asked:
        question = one.question(accelerator)
        schedules = choose_schedules(
            question.ops, question.accelerator, question.scheme, question.density
        )
        encode = encode_cost(
            *(one.label, one.nnz, schedules[0], storage.sum_group_size(one.consumers)),
            *(accelerator, one.scheme, one.block_rows, one.factors),
            zero_bytes=one.consumers[0].zero_bytes,
        )
        # Ops that differ in nothing but their names (gate and up) are counted once.
        pairs = list(zip(one.consumers, schedules, strict=True)) if count_ops else []
        numbers: dict[tuple[DenseOp, Decisions], int] = {}
        for op, schedule in pairs:
            if (op, schedule) not in numbers:
                numbers[op, schedule] = len(lines)
                line, cost = _prepared(
                    op, one.nnz, schedule, accelerator, one.scheme, one.block_rows
                )
                lines.append(line)
                costs.append(cost)
        finish.append((encode, [(numbers[pair], pair[0].label) for pair in pairs]))
    walked = walk(lines) if lines else []
    counted = [cost(times) for cost, times in zip(costs, walked, strict=True)]
    return [
        (encode, tuple(replace(counted[i], label=label) for i, label in numbers))
        for encode, numbers in finish
    ]


def _check_nnz(op: DenseOp, nnz: RowNnz) -> None:
    if (op.m, op.k) != (nnz.rows, nnz.in_features):
        raise InvalidArgumentError(
            f"dense op {op.label!r} takes ({op.m}, {op.k}) activations, "
            f"the bitmap is of ({nnz.rows}, {nnz.in_features})"
        )
