"""Running the values of a program on the compiled executor."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.target.isa.access import Tensor
from sparqle_tvm.target.isa.header import Header
from sparqle_tvm.target.isa.operands import Buffer
from sparqle_tvm.target.program.bound import BoundProgram
from sparqle_tvm.target.simulator.actions import action_table
from sparqle_tvm.target.simulator.decode import BUFFER_SLACK_BYTES
from sparqle_tvm.target.simulator.dram import OUTPUTS, tensor_formats
from sparqle_tvm.target.simulator.executor import executor
from sparqle_tvm.target.simulator.native import aligned
from sparqle_tvm.target.simulator.ranges import buffer_base, find_ranges
from sparqle_tvm.target.simulator.spec import ValueSpec
from sparqle_tvm.target.simulator.timing import Timing
from sparqle_tvm.threads import ensure_threads

_UNWRITTEN = 0x7F
"""Every byte on chip before it is written: huge as a float or an accumulator, never neutral."""


def run_values(
    bound: BoundProgram, timing: Timing, tensors: dict[Tensor, NDArray[Any]]
) -> dict[Tensor, NDArray[Any]]:
    """Execute the steps in the order of their start: OUT, or the parts of encoded outputs.

    `tensors` are those of `dram.check_tensors`; outputs among them are written in place.
    """
    ensure_threads()
    header = bound.header
    outputs = _outputs(bound, tensors)
    tensors = {**tensors, **outputs}
    spec = ValueSpec.of(header)
    table, memory = action_table(bound, timing, tensors, spec)
    ranges = bound.once(find_ranges)
    used = np.maximum(ranges.reads.max(axis=(0, 1)), ranges.writes.max(axis=(0, 1)))[1]
    act, wgt = (
        aligned(_used_bytes(header, buffer, used) + BUFFER_SLACK_BYTES, np.uint8, _UNWRITTEN)
        for buffer in (Buffer.ACT, Buffer.WGT)
    )
    cells = _used_bytes(header, Buffer.ACC, used) // header.accumulator_bytes
    acc = aligned(cells, spec.accumulator, _UNWRITTEN)
    executor(spec)(table, act, wgt, acc, *memory)
    return outputs


def _outputs(
    bound: BoundProgram, tensors: dict[Tensor, NDArray[Any]]
) -> dict[Tensor, NDArray[Any]]:
    """Memory for what a program writes; what it does not store shows."""
    outputs = {}
    for tensor, (shape, dtype) in tensor_formats(bound.header, bound.rows).items():
        if tensor not in OUTPUTS:
            continue
        output = tensors.get(tensor)
        outputs[tensor] = output = aligned(shape, dtype) if output is None else output
        # NaN, or the smallest integer; the stream begins at 0.
        output[...] = np.nan if dtype == "float32" else np.iinfo(dtype).min
    if Tensor.OUT_MSB_PTR in outputs:
        outputs[Tensor.OUT_LSB][...] = outputs[Tensor.OUT_PBM][...] = 0xFF
        outputs[Tensor.OUT_MSB_PTR][0] = 0
    return outputs


def _used_bytes(header: Header, buffer: Buffer, used: int) -> int:
    """Bytes of a buffer up to the last that any step touches."""
    return int(min(max(used - buffer_base(header, buffer), 0), header.buffer_bytes(buffer)))
