"""What costs energy: counts of everything an accelerator does, by formula and from the simulator.

Both sources follow one rule, that of `sparqle_tvm.target.simulator.counts.Counts`; tests hold
them together. What a count costs stands in `sparqle_tvm.target.cost.energy`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from sparqle_tvm.files import Count
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost import storage
from sparqle_tvm.target.cost.array import lsb_pass_updates, msb_pass_updates
from sparqle_tvm.target.cost.baselines import Scheme, array_of, baseline
from sparqle_tvm.target.cost.schedule import Decisions, Tiling
from sparqle_tvm.target.isa.operands import Buffer
from sparqle_tvm.target.op import DenseOp

if TYPE_CHECKING:
    from sparqle_tvm.target.simulator import SimResult


@dataclass(frozen=True)
class Events:
    """Counts of one op, or of many: events can be added, and multiplied by a whole number.

    Attributes
    ----------
    cycles : int
        Time in clock cycles.
    lsb_products, msb_products : int
        Products of k-bit digits of the first and of the second pass, all weight slices.
    selected_products : int
        Products of the sparse pass: their weights are selected by the bitmap.
    wide_products : int
        Products of 2k-bit activations with k-bit digits (baseline ``native``).
    accumulator_updates : int
        Sums of up to `lanes` products that a PE adds to its accumulator.
    scale_operations : int
        Partial sums of weight groups (or group sums) that are scaled and added in 64 bits.
    find_first_steps : int
        MSB digits that a PE row locates in its bitmap, once per block of columns and slice.
    activation_read_bytes, activation_write_bytes : int
        Traffic of the activation buffer.
    weight_read_bytes, weight_write_bytes : int
        Traffic of the weight buffer.
    accumulator_read_bytes, accumulator_write_bytes : int
        Traffic of the accumulator buffer.
    dram_read_bytes, dram_write_bytes : int
        Traffic of the DRAM.
    drained_elements : int
        Outputs that the drain path scales.
    drain_operations : int
        Float operations of the drain path besides: it adds biases, and quantizes.
    encoded_elements : int
        Activations that are split, marked in the bitmap and compressed.
    vector_operations, vector_macs : int
        Elementwise operations and multiply-accumulates of the vector unit.
    """

    cycles: Count = 0
    lsb_products: Count = 0
    msb_products: Count = 0
    selected_products: Count = 0
    wide_products: Count = 0
    accumulator_updates: Count = 0
    scale_operations: Count = 0
    find_first_steps: Count = 0
    activation_read_bytes: Count = 0
    activation_write_bytes: Count = 0
    weight_read_bytes: Count = 0
    weight_write_bytes: Count = 0
    accumulator_read_bytes: Count = 0
    accumulator_write_bytes: Count = 0
    dram_read_bytes: Count = 0
    dram_write_bytes: Count = 0
    drained_elements: Count = 0
    drain_operations: Count = 0
    encoded_elements: Count = 0
    vector_operations: Count = 0
    vector_macs: Count = 0

    def __add__(self, other: Events) -> Events:
        """Both together, one after the other."""
        mine, theirs = vars(self), vars(other)
        return Events(**{name: mine[name] + theirs[name] for name in NAMES})

    def __mul__(self, times: int) -> Events:
        """The same `times` times."""
        return Events(**{name: value * times for name, value in vars(self).items()})

    __rmul__ = __mul__

    @property
    def dram_bytes(self) -> int:
        """All bytes that pass the DRAM channel."""
        return self.dram_read_bytes + self.dram_write_bytes


NAMES = tuple(field.name for field in fields(Events))


def op_events(
    op: DenseOp,
    nnz: RowNnz,
    schedule: Decisions,
    accelerator: Accelerator,
    scheme: Scheme,
    block_rows: int = 0,
) -> Events:
    """Events of a dense op within the accelerator, by formula; cycles and DRAM are left at 0.

    Parameters
    ----------
    op : DenseOp
        The op.
    nnz : RowNnz
        Stored MSB digits of its activations; only ``sparqle`` depends on them.
    schedule : Decisions
        Its schedule.
    accelerator : Accelerator
        Its array and buffers.
    scheme : {"sparqle", "dense", "native", "a4"}
        How the activations are stored and computed.
    block_rows : int
        Rows that are sorted together, 0: none.
    """
    slices = op.weight_slices
    array = array_of(accelerator, scheme)
    wide, passes = baseline(scheme).wide, baseline(scheme).passes
    products = op.macs * slices
    updates = passes * lsb_pass_updates(op, schedule.k, array)
    stored = 0
    if scheme == "sparqle":
        stored = nnz.total
        updates += msb_pass_updates(op, nnz, schedule.k, accelerator, schedule.row_split)
    blocks = math.ceil(op.n / accelerator.cols) * slices
    all_passes = passes + (scheme == "sparqle")
    groups = math.ceil(op.k / op.group_size) if op.group_size else 0
    planes = sum(storage.plane_bytes(nnz, schedule.k, accelerator, scheme))
    return Events(
        lsb_products=0 if wide else products,
        msb_products=products * (passes - 1) + stored * op.n * slices,
        selected_products=stored * op.n * slices,
        wide_products=products if wide else 0,
        accumulator_updates=updates,
        scale_operations=op.m * op.n * groups * (all_passes + op.has_min),
        find_first_steps=stored * blocks,
        drained_elements=op.m * op.n,
        drain_operations=op.m * op.n * op.drain_operations,
        encoded_elements=op.m * op.n * (op.output == "encoded"),
        **buffer_bytes(op, planes, Tiling(op, schedule), accelerator, scheme, block_rows),
    )


def buffer_bytes(
    op: DenseOp,
    planes: Any,
    tiling: Tiling,
    accelerator: Accelerator,
    scheme: Scheme,
    block_rows: int = 0,
) -> dict[str, Any]:
    """Traffic of the buffers by the rule of `simulator.counts.Counts`, by the names of `Events`.

    `planes` are the bytes of digits and bitmap of all activations, once. `tiling` may be that of
    many candidates, with `planes` for each.
    """
    passes = baseline(scheme).passes + (scheme == "sparqle")
    slices = op.weight_slices
    blocks = math.ceil(op.n / accelerator.cols) * slices
    row_groups = math.ceil(op.m / accelerator.rows)
    sums = storage.sum_bytes(op.m, op.k, op.sum_group_size, op.digit_bits)
    row_parameters = op.m * storage.row_parameter_bytes(op, block_rows)
    centres = op.m * tiling.k_tiles * storage.centre_bytes(op, scheme)
    weights = op.n * storage.weight_bytes(op, op.k)
    packed = op.n * math.ceil(op.k * op.weight_bits / 8)
    channels = op.n * op.channel_parameter_bytes
    group_reads = (weights - packed) * (passes + op.has_min) * tiling.m_tiles
    elements = op.m * op.n
    accumulators = elements * op.accumulator_bytes
    updates = accumulators * (passes + op.has_min) * tiling.k_tiles
    return {
        "activation_write_bytes": tiling.activation_loads * (planes + sums + centres)
        + tiling.row_loads * row_parameters,
        "activation_read_bytes": blocks * (planes + centres)
        + tiling.n_tiles * (sums + row_parameters),
        "weight_write_bytes": tiling.weight_loads * weights + tiling.channel_loads * channels,
        "weight_read_bytes": passes * row_groups * packed + group_reads + tiling.m_tiles * channels,
        # The first pass over the first chunk clears; the drain reads, rewrites, and is stored.
        "accumulator_write_bytes": updates + 4 * elements,
        "accumulator_read_bytes": updates + 4 * elements,
    }


def simulated_events(result: SimResult) -> Events:
    """Events of a dense op as the simulator ran it."""
    counts = result.counts
    buffers: dict[str, int] = {}
    for buffer in Buffer:
        buffers[f"{buffer.word}_read_bytes"] = counts.onchip_read_bytes[buffer]
        buffers[f"{buffer.word}_write_bytes"] = counts.onchip_write_bytes[buffer]
    return Events(
        cycles=result.total_cycles,
        lsb_products=counts.lsb.macs,
        msb_products=counts.msb.macs,
        selected_products=counts.msb.macs if result.bound.header.op.scheme == "sparqle" else 0,
        accumulator_updates=counts.lsb.accumulator_updates + counts.msb.accumulator_updates,
        scale_operations=counts.scale_operations,
        find_first_steps=counts.find_first_steps,
        dram_read_bytes=sum(counts.dram_read_bytes.values()),
        dram_write_bytes=sum(counts.dram_write_bytes.values()),
        drained_elements=counts.drained_elements,
        drain_operations=counts.drain_operations,
        vector_operations=counts.vector_operations,
        encoded_elements=counts.encoded_elements,
        **buffers,
    )
