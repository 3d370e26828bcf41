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

from sparqle_tvm.errors import ProgramError, QuantizationError
from sparqle_tvm.numerics.attention import SCALE_BYTES, Heads, row_factors
from sparqle_tvm.numerics.dense import weight_channel_sums
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.numerics.slicing import SlicedTensor
from sparqle_tvm.numerics.window import PLAIN
from sparqle_tvm.target.isa.access import Tensor
from sparqle_tvm.target.isa.attention_header import AttentionHeader
from sparqle_tvm.target.isa.header import Header
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.program.bundle import select, select_attention, unpack_bundle
from sparqle_tvm.target.simulator import SimResult, dram, plane_tensors, simulate
from sparqle_tvm.target.simulator.attention import (
    AttentionResult,
    attention_tensors,
    simulate_attention,
)
from sparqle_tvm.target.simulator.streams import transport_order
from sparqle_tvm.target.verify import verify

ENCODED_OUTPUTS = 4
# Weights that are worked on at a time, in the cache of a core.
_PIECE_WEIGHTS = 1 << 18
OUTPUTS = {1: (Tensor.OUT,), ENCODED_OUTPUTS: (Tensor.OUT_LSB, Tensor.OUT_PBM)}
"""What programs write into the memory of the caller, by the number of its tensors."""


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
    program: Program[Any]
    result: SimResult


@dataclass
class _State(threading.local):
    """Per thread: where records go, if somebody listens; programs, and what was verified."""

    records: list[LaunchRecord] | None = None
    attention: list[AttentionLaunch] | None = None
    programs: dict[bytes, tuple[Program[Any], ...]] = field(default_factory=dict)
    # By identity: `programs` keeps them.
    verified: set[tuple[int, int]] = field(default_factory=set)


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
        Programs, see `target.program.bundle`.
    operands : tensors
        If a program takes dense passes, first the window of the planes, a text. Then lsb, pbm, msb,
        row_ptr, weight; the offset if the program has one; for float32 outputs act_scale and
        w_scale; with minima w_min and group_sums; zero points if rows have their own (or one for
        all); sums of the weights if the op adds shifts; the row order if there is one; last the
        output, which is written. The weight is packed uint8, or int8 (N, K). Encoded outputs take
        what float32 ones do, then bias and mid_scale if the op has them, and out_scale; written are
        lsb, pbm, msb and row_ptr.

    Raises
    ------
    ProgramError
        If the programs are damaged, or of an op with other operands, none is for so many rows, or
        the one that is does not pass verification for these rows (looked at the first time).
    """
    programs = _programs(np.from_dlpack(bundle).tobytes())
    # The window comes first if a program for some number of rows needs it.
    windowed = any(program.header.op.scheme == "dense" for program in programs)
    window = str(operands[0]) if windowed and operands else PLAIN
    arrays = [np.from_dlpack(operand) for operand in operands[windowed:]]
    count = ENCODED_OUTPUTS if programs[0].header.op.output == "encoded" else 1
    inputs, outs = arrays[:-count], arrays[-count:]
    rows = outs[0].size // outs[0].shape[-1] if outs[0].shape[-1] else 0
    if rows == 0:
        # Only the pointers of an empty encoding have an element.
        for out in outs:
            out[...] = 0
        return
    program = select(programs, rows)
    _verify(program, rows)
    # An order comes along if programs for more or fewer rows need it, too.
    ordered = any(other.header.op.block_rows for other in programs)
    tensors = _tensors(program.header, rows, inputs, ordered, window)
    tensors |= zip(OUTPUTS[count], (out.reshape(rows, -1) for out in outs[:2]), strict=False)
    result = simulate(program, tensors)
    if result.encoded is not None:
        _, _, msb, row_ptr = outs
        found = result.encoded
        digits, row_ptr[...] = transport_order(
            program.header, found[Tensor.OUT_PBM], found[Tensor.OUT_MSB]
        )
        msb[: digits.size] = digits
    if _STATE.records is not None:
        # The output is the virtual machine's memory, which it may use again after the call.
        kept = replace(result, output=None, encoded=None)
        _STATE.records.append(LaunchRecord(str(label), rows, program, kept))


@dataclass(frozen=True, eq=False)
class AttentionLaunch:
    """One run of an attention program.

    Attributes
    ----------
    label : str
        The op.
    rows, past : int
        Tokens, and tokens before them.
    program : Program
        What ran.
    result : AttentionResult
        Cycles, bytes, MACs, and the work that it met; the output is not kept.
    """

    label: str
    rows: int
    past: int
    program: Program[AttentionHeader]
    result: AttentionResult


@contextmanager
def recording_attention() -> Iterator[list[AttentionLaunch]]:
    """Collect the launches of attention of this thread within a ``with`` block."""
    outer, _STATE.attention = _STATE.attention, []
    try:
        yield _STATE.attention
    finally:
        _STATE.attention = outer


def launch_attention(
    label: str, bundle: Any, scale: float, q: Any, k: Any, v: Any, out: Any
) -> None:
    """Run one attention; called by compiled modules.

    Parameters
    ----------
    label : str
        The op.
    bundle : tensor of uint8 (bytes,)
        Programs, see `target.program.bundle`.
    scale : float
        Of the scores.
    q, k, v : tensors of int8 (.., T, H, D + 4)
        What ``R.sparqle.quantize_heads`` made.
    out : tensor of float32 (.., T, H, D)
        Written.

    Raises
    ------
    ProgramError
        If the programs are damaged, none is for so many rows and keys, or the one that is does not
        pass verification for them.
    QuantizationError
        If a query, key or value was NaN or infinite.
    """
    programs = _programs(np.from_dlpack(bundle).tobytes())
    queries, keys, values = (
        _heads(str(label), *named) for named in (("queries", q), ("keys", k), ("values", v))
    )
    outputs = np.from_dlpack(out)
    rows, count = len(queries.values), len(keys.values)
    if rows == 0:
        return
    program = select_attention(programs, rows, count)
    factors = row_factors(queries.scale.reshape(-1), float(scale)).reshape(queries.scale.shape)
    tensors = attention_tensors(
        *(program.header, queries.values, factors),
        *((keys.values, keys.scale), (values.values, values.scale)),
    )
    tensors[Tensor.OUT] = outputs.reshape(rows, *outputs.shape[-2:])
    result = simulate_attention(program, tensors, rows)
    kept = replace(result, output=None)
    if _STATE.attention is not None:
        _STATE.attention.append(AttentionLaunch(str(label), rows, count - rows, program, kept))
    if _STATE.records is not None:
        _STATE.records.append(LaunchRecord(str(label), rows, program, kept))


def _heads(label: str, name: str, tensor: Any) -> Heads:
    """Integers and scales of what `quantize_heads` put side by side."""
    stored = np.from_dlpack(tensor)
    stored = stored.reshape(-1, *stored.shape[-2:])
    scale = np.ascontiguousarray(stored[..., -SCALE_BYTES:]).view("<f4")[..., 0]
    if not np.isfinite(scale).all():
        raise QuantizationError(f"{label}: {name} hold NaN or infinity; programs take numbers")
    return Heads(np.ascontiguousarray(stored[..., :-SCALE_BYTES]), scale)


def _programs(data: bytes) -> tuple[Program[Any], ...]:
    if data not in _STATE.programs:
        _STATE.programs[data] = unpack_bundle(data)
    return _STATE.programs[data]


def _verify(program: Program, rows: int) -> None:
    if (id(program), rows) not in _STATE.verified:
        verify(program, rows)
        _STATE.verified.add((id(program), rows))


def _tensors(
    header: Header, rows: int, inputs: list[NDArray[Any]], ordered: bool, window: str
) -> dict[Tensor, NDArray[Any]]:
    """The operands as they lie in the accelerator's DRAM; if `ordered`, the last is an order.

    Planes come in transport form; where the accelerator stores integers of 2k bits, they are put
    together again by their `window`.
    """
    count = 5 + header.op.has_offset + 2 * header.op.scaled + 2 * header.op.has_min + ordered
    count += header.op.row_zeros + header.op.adds_shift + (header.op.output == "encoded")
    count += header.op.has_bias + header.op.has_mid
    if len(inputs) != count:
        raise ProgramError(
            f"{header.label!r} takes {count} operands and an output, {len(inputs) + 1} came; "
            "compile the module again"
        )
    lsb, pbm, msb, row_ptr, weight, *others = inputs
    packed = dram.pack_weights(weight, header.op.weight_bits) if weight.dtype == np.int8 else weight
    by_row = {Tensor.LSB: lsb.reshape(rows, -1), Tensor.PBM: pbm.reshape(rows, -1)}
    if header.op.scheme == "dense":
        by_row = {Tensor.ACT: _integers(header, rows, inputs[:4], window)}
    by_channel = {Tensor.WGT: packed}
    if header.op.has_offset:
        by_channel[Tensor.OFFSET] = others.pop(0)
    if header.op.output == "encoded":
        by_channel[Tensor.OUT_SCALE] = others.pop().reshape(1)
    if header.op.has_mid:
        by_channel[Tensor.MID_SCALE] = others.pop().reshape(1)
    if header.op.has_bias:
        by_channel[Tensor.BIAS] = others.pop()
    if header.op.scaled:
        act_scale, by_channel[Tensor.W_SCALE] = others.pop(0), others.pop(0)
        by_row[Tensor.ACT_SCALE] = np.ascontiguousarray(
            np.broadcast_to(act_scale.reshape(-1), rows)
        )
        if header.op.has_min:
            by_channel[Tensor.W_MIN], sums = others.pop(0), others.pop(0)
            dtype = np.int16 if header.sum_bytes == 2 else np.int32
            by_row[Tensor.GROUP_SUMS] = sums.reshape(rows, -1).astype(dtype)
    if header.op.row_zeros:
        zeros = others.pop(0).reshape(-1)
        by_row[Tensor.ZERO] = np.ascontiguousarray(np.broadcast_to(zeros, rows))
    if header.op.adds_shift:
        by_channel[Tensor.W_SUM] = others.pop(0)
    if header.op.scheme == "dense":
        return {**by_row, **by_channel}
    order = others[0] if header.op.block_rows else None
    return {**plane_tensors(header, by_row, msb, row_ptr, order), **by_channel}


def _integers(
    header: Header, rows: int, planes: list[NDArray[Any]], window: str
) -> NDArray[np.uint8]:
    """The integers of an encoding as `Tensor.ACT`."""
    lsb, pbm, msb, row_ptr = planes
    op = header.op
    sliced = SlicedTensor(
        lsb=lsb.reshape(rows, -1),
        pbm=pbm.reshape(rows, -1),
        msb=msb[: row_ptr[rows]],
        row_ptr=row_ptr,
        shape=(rows, op.k),
        k=op.digit_bits,
        window=window,
        signed=op.act_signed,
    )
    return dram.pack_activations(sliced.decode(), op.digit_bits)


def balance_rows(pbm: Any, in_features: int, block_rows: int, lanes: int, out: Any) -> None:
    """Sort the rows of an encoding, see ``R.sparqle.balance_rows``; called by compiled modules.

    Parameters
    ----------
    pbm : tensor of uint8 (.., ceil(in_features / 8))
        Precision bitmap.
    in_features, block_rows, lanes : int
        As in the op.
    out : tensor of int32 (M,)
        Row numbers, written.
    """
    bitmap = np.asarray(np.from_dlpack(pbm), dtype=np.uint8)
    nnz = RowNnz.from_pbm(bitmap.reshape(-1, bitmap.shape[-1]), in_features)
    np.from_dlpack(out)[...] = nnz.order(block_rows, lanes)


def pack_weights(weight: Any, bits: int, out: Any) -> None:
    """Pack weights as they lie in the accelerator's DRAM; called when a module is compiled.

    Parameters
    ----------
    weight : tensor of int8 (N, K)
        Integers of `bits` bits.
    bits : {2, 4, 8}
        Bits of a stored weight.
    out : tensor of uint8 (N, ceil(K * bits / 8))
        Written.
    """
    values, packed = np.asarray(np.from_dlpack(weight), np.int8), np.from_dlpack(out)
    for part in _pieces(values):
        packed[part] = dram.pack_weights(values[part], bits)


def weight_sums(weight: Any, *operands: Any) -> None:
    """Sum up the channels of a weight; called when a module is compiled.

    Parameters
    ----------
    weight : tensor of int8 (N, K)
    operands : tensors
        The scales of groups (N, G), if there are any; then an int that sums are multiplied with;
        last the output (N,), int32 or, with scales, float64, which is written.
    """
    *scales, factor, out = operands
    values, sums = np.asarray(np.from_dlpack(weight), np.int8), np.from_dlpack(out)
    factors = [np.from_dlpack(scale) for scale in scales]
    for part in _pieces(values):
        sums[part] = weight_channel_sums(factor, values[part], *(each[part] for each in factors))


def _pieces(values: NDArray[Any]) -> Iterator[slice]:
    """Rows that are worked on at a time."""
    rows = max(_PIECE_WEIGHTS // max(values.shape[1], 1), 1)
    for begin in range(0, len(values), rows):
        yield slice(begin, begin + rows)
