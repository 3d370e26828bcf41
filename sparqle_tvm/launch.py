"""Runs accelerator programs for compiled modules: the host side of ``sparqle.launch``.

A compiled module calls the packed function ``sparqle.launch`` for every offloaded dense op. It
picks the program for the number of rows, hands the operands to the simulator as they lie in the
accelerator's DRAM, and keeps what the simulator counted for whoever asked (:func:`recording`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.target.bundle import select, unpack_bundle
from sparqle_tvm.target.header import Header
from sparqle_tvm.target.isa import Tensor
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.simulator import SimResult, pack_weights, simulate, tile_order


@dataclass(frozen=True, eq=False)
class LaunchRecord:
    """One run of a program.

    Attributes
    ----------
    label : str
        The op.
    rows : int
        M of the call.
    program : Program
        What ran.
    result : SimResult
        Cycles, bytes, MACs; the output is not kept.
    """

    label: str
    rows: int
    program: Program
    result: SimResult


@dataclass
class _State(threading.local):
    """Per thread: where records go, if somebody listens."""

    records: list[LaunchRecord] | None = None
    programs: dict[bytes, tuple[Program, ...]] = field(default_factory=dict)


_STATE = _State()


@contextmanager
def recording() -> Iterator[list[LaunchRecord]]:
    """Collect the launches of this thread within a ``with`` block."""
    outer, _STATE.records = _STATE.records, []
    try:
        yield _STATE.records
    finally:
        _STATE.records = outer


def launch(label: str, bundle: Any, *operands: Any) -> None:
    """Run one dense op; called by compiled modules.

    Parameters
    ----------
    label : str
        The op.
    bundle : tensor of uint8 (bytes,)
        Programs, see `target.bundle`.
    operands : tensors
        lsb, pbm, msb, row_ptr, weight; the offset if the program has one; for float32 outputs
        act_scale and w_scale; with minima w_min and group_sums; last the output, which is written.
        The weight is packed uint8, or int8 (N, K).

    Raises
    ------
    ProgramError
        If the programs are damaged, or none is for so many rows.
    """
    programs = _programs(np.from_dlpack(bundle).tobytes())
    arrays = [np.from_dlpack(operand) for operand in operands]
    *inputs, out = arrays
    rows = out.size // out.shape[-1] if out.shape[-1] else 0
    if rows == 0:
        return
    program = select(programs, rows)
    tensors = _tensors(program.header, rows, inputs)
    tensors[Tensor.OUT] = out.reshape(rows, out.shape[-1])
    result = simulate(program, tensors)
    if _STATE.records is not None:
        # The output is the virtual machine's memory, which it may use again after the call.
        kept = replace(result, output=None)
        _STATE.records.append(LaunchRecord(str(label), rows, program, kept))


def _programs(data: bytes) -> tuple[Program, ...]:
    if data not in _STATE.programs:
        _STATE.programs[data] = unpack_bundle(data)
    return _STATE.programs[data]


def _tensors(header: Header, rows: int, inputs: list[NDArray[Any]]) -> dict[Tensor, NDArray[Any]]:
    """The operands as they lie in the accelerator's DRAM."""
    lsb, pbm, msb, row_ptr, weight, *others = inputs
    pbm = pbm.reshape(rows, -1)
    stream, pointers = tile_order(header, pbm, msb, row_ptr)
    packed = pack_weights(weight, header.weight_bits) if weight.dtype == np.int8 else weight
    tensors = {
        Tensor.LSB: lsb.reshape(rows, -1),
        Tensor.PBM: pbm,
        Tensor.MSB: stream,
        Tensor.MSB_PTR: pointers,
        Tensor.WGT: packed,
    }
    if header.has_offset:
        tensors[Tensor.OFFSET] = others.pop(0)
    if header.output == "float32":
        act_scale, w_scale, *minimum = others
        tensors[Tensor.ACT_SCALE] = np.ascontiguousarray(
            np.broadcast_to(act_scale.reshape(-1), rows)
        )
        tensors[Tensor.W_SCALE] = w_scale
        if minimum:
            w_min, sums = minimum
            dtype = np.int16 if header.sum_bytes == 2 else np.int32
            tensors[Tensor.W_MIN] = w_min
            tensors[Tensor.GROUP_SUMS] = sums.reshape(rows, -1).astype(dtype)
    return tensors
