"""Tensors as they lie in the accelerator's DRAM, made from what the numerics define.

Shapes and layouts are those of `sparqle_tvm.target.isa.access.Tensor`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics import (
    QuantizedWeights,
    SlicedTensor,
    is_row_order,
    pack_digits,
    plane_bytes,
)
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.isa.access import Tensor, ceil_div
from sparqle_tvm.target.isa.header import Header
from sparqle_tvm.target.simulator.streams import tile_order

DramTensors = Mapping[Tensor, NDArray[Any]]


def pack_weights(values: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Pack weights as `Tensor.WGT`.

    Parameters
    ----------
    values : int8 (N, K)
        Integers of `bits` bits, signed or unsigned.
    bits : {2, 4, 8}
        Bits of a stored weight.

    Returns
    -------
    uint8 (N, ceil(K * bits / 8))
        Low element first.
    """
    return pack_digits(values.view(np.uint8) & np.uint8(2**bits - 1), bits)


def pack_activations(q: NDArray[Any], k: int) -> NDArray[np.uint8]:
    """Pack activations of 2k bits as `Tensor.ACT`.

    Parameters
    ----------
    q : int8 or uint8 (M, K) for k = 2 and 4, int16 or uint16 (M, K) for k = 8
        Integers of 2k bits.
    k : {2, 4, 8}
        Bits of a digit.

    Returns
    -------
    uint8 (M, ceil(K * 2k / 8))
    """
    if k == 8:
        return np.ascontiguousarray(q).astype("<u2").view(np.uint8)
    return pack_digits(q.astype(np.uint8) & np.uint8(4**k - 1), 2 * k)


def activation_tensors(
    header: Header, sliced: SlicedTensor, act_scale: NDArray[np.float32] | None = None
) -> dict[Tensor, NDArray[Any]]:
    """Make all tensors of one set of activations.

    Parameters
    ----------
    header : Header
        The op. Of scheme ``dense``, the integers are packed whole.
    sliced : SlicedTensor (M, K)
        Encoded activations.
    act_scale : float32 (M,) or (M, 1), optional
        Their scales; needed for float32 outputs.

    Raises
    ------
    InvalidArgumentError
        If `sliced` has another K, k, type, window or centre than the op.
    """
    op, centre = header.op, sliced.digits.centre
    centre = "one per row" if op.row_zeros or not isinstance(centre, int) else centre
    found = (sliced.shape[1], sliced.k, sliced.signed, sliced.window, centre)
    wanted = "one per row" if op.row_zeros else op.centre
    expected = (op.k, op.digit_bits, op.act_signed, op.window, wanted)
    # Of scheme dense, the window is no matter.
    count = len(expected) if op.scheme == "sparqle" else 3
    if found[:count] != expected[:count]:
        raise InvalidArgumentError(
            f"{header.label!r} takes activations of (K, k, signed, window, centre) = {expected}, "
            f"got {found}"
        )
    tensors: dict[Tensor, NDArray[Any]] = {}
    if act_scale is not None:
        tensors[Tensor.ACT_SCALE] = np.ascontiguousarray(act_scale, np.float32).reshape(-1)
    if op.row_zeros:
        zeros = np.broadcast_to(sliced.zero_point, sliced.shape[0])
        tensors[Tensor.ZERO] = zeros.astype(op.act_dtype)
    if header.op.has_min:
        dtype = np.int16 if header.sum_bytes == 2 else np.int32
        tensors[Tensor.GROUP_SUMS] = sliced.group_sums(header.op.group_size).astype(dtype)
    if header.op.scheme == "dense":
        return {**tensors, Tensor.ACT: pack_activations(sliced.decode(), sliced.k)}
    tensors |= {Tensor.LSB: sliced.lsb, Tensor.PBM: sliced.pbm}
    order = None
    if header.op.block_rows:
        nnz = RowNnz.from_pbm(sliced.pbm, header.op.k)
        order = nnz.order(header.op.block_rows, header.accelerator.lanes)
    return plane_tensors(header, tensors, sliced.msb, sliced.row_ptr, order)


def plane_tensors(
    header: Header,
    rows: DramTensors,
    msb: NDArray[np.uint8],
    row_ptr: NDArray[np.int32],
    order: NDArray[np.int32] | None = None,
) -> dict[Tensor, NDArray[Any]]:
    """Complete the tensors of encoded activations: MSB digits in tile order, rows sorted.

    Parameters
    ----------
    header : Header
        The op.
    rows : mapping of Tensor to ndarray (M, ..)
        LSB, PBM, and what else there is per row, in the order of the rows.
    msb : uint8 (bytes,)
        Digits row by row.
    row_ptr : int32 (M + 1,)
        Where rows begin.
    order : int32 (M,), optional
        Row numbers in the order of a program with `block_rows`; others take none.
    """
    if header.op.block_rows:
        if order is None or len(order) != len(row_ptr) - 1:
            raise InvalidArgumentError(f"{header.label!r} needs the order of its rows")
        row_ptr = np.append(row_ptr[:-1][order], row_ptr[-1])
        numbers = order.astype(np.uint16 if header.order_bytes == 2 else np.int32)
        rows = {tensor: array[order] for tensor, array in rows.items()}
        rows = {**rows, Tensor.ROW_ORDER: numbers}
    stream, pointers = tile_order(header, rows[Tensor.PBM], msb, row_ptr)
    return {**rows, Tensor.MSB: stream, Tensor.MSB_PTR: pointers}


def weight_tensors(
    header: Header, weights: QuantizedWeights, offset: NDArray[Any] | None = None
) -> dict[Tensor, NDArray[Any]]:
    """Make all tensors of the weights of an op.

    Parameters
    ----------
    header : Header
        The op.
    weights : QuantizedWeights (N, K)
        Its weights.
    offset : int32 (N,), float64 with groups, optional
        Its constants, if `DenseOp.has_offset`.

    Raises
    ------
    InvalidArgumentError
        If shape, bits or groups are not those of the op, or there is an offset where it has none.
    """
    found = (weights.shape, weights.bits, weights.group_size, weights.minimum is not None)
    shape = (header.op.n, header.op.k)
    expected = (shape, header.op.weight_bits, header.op.group_size, header.op.has_min)
    if (*found, offset is not None) != (*expected, header.op.has_offset):
        raise InvalidArgumentError(
            f"{header.label!r} takes weights of (shape, bits, group_size, minima) = {expected} "
            f"and {'an' if header.op.has_offset else 'no'} offset, got {found} and "
            f"{'none' if offset is None else 'one'}"
        )
    tensors: dict[Tensor, NDArray[Any]] = {
        Tensor.WGT: pack_weights(weights.values, weights.bits),
        Tensor.W_SCALE: weights.scale,
    }
    if weights.minimum is not None:
        tensors[Tensor.W_MIN] = weights.minimum
    if offset is not None:
        tensors[Tensor.OFFSET] = offset
    if header.op.adds_shift:
        tensors[Tensor.W_SUM] = channel_sums(weights.values, weights.scale, header.op.group_size)
    return tensors


def channel_sums(values: NDArray[np.int8], scale: NDArray[Any], group_size: int) -> NDArray[Any]:
    """Sums of the weights (N, K) of every channel as `Tensor.W_SUM`; `scale` is of the groups."""
    if not group_size:
        return np.asarray(values.sum(axis=1, dtype=np.int32))
    by_group = values.reshape(*scale.shape, -1).sum(axis=2, dtype=np.int64)
    return np.asarray((by_group * scale.astype(np.float64)).sum(axis=1))


def tensor_formats(header: Header, rows: int) -> dict[Tensor, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every tensor of an op; MSB and OUT_MSB are at least as long as given."""
    k, columns, channels = header.op.digit_bits, header.op.k, header.op.n
    groups = ceil_div(columns, header.op.group_size) if header.op.group_size else 0
    row_groups = ceil_div(rows, header.accelerator.rows)
    formats: dict[Tensor, tuple[tuple[int, ...], str]] = {
        Tensor.WGT: ((channels, plane_bytes(columns, header.op.weight_bits)), "uint8"),
    }
    if header.op.output == "encoded":
        formats |= _encoded_formats(header, rows)
    else:
        formats[Tensor.OUT] = ((rows, channels), header.op.output)
    if header.op.scheme == "dense":
        formats[Tensor.ACT] = ((rows, plane_bytes(columns, 2 * k)), "uint8")
    else:
        formats[Tensor.LSB] = ((rows, plane_bytes(columns, k)), "uint8")
        formats[Tensor.PBM] = ((rows, plane_bytes(columns, 1)), "uint8")
        formats[Tensor.MSB] = ((0,), "uint8")
        formats[Tensor.MSB_PTR] = ((header.chunks * row_groups + 1,), "int32")
    if header.op.scaled:
        formats[Tensor.ACT_SCALE] = ((rows,), "float32")
    if header.op.row_zeros:
        formats[Tensor.ZERO] = ((rows,), header.op.act_dtype)
    if header.op.adds_shift:
        formats[Tensor.W_SUM] = ((channels,), header.op.accumulator_dtype)
    if header.op.block_rows:
        formats[Tensor.ROW_ORDER] = ((rows,), "uint16" if header.order_bytes == 2 else "int32")
    if header.op.group_size:
        formats[Tensor.W_SCALE] = ((channels, groups), header.op.group_dtype)
    elif header.op.scaled:
        formats[Tensor.W_SCALE] = ((channels,), "float32")
    if header.op.has_min:
        formats[Tensor.W_MIN] = ((channels, groups), header.op.group_dtype)
        formats[Tensor.GROUP_SUMS] = ((rows, groups), f"int{8 * header.sum_bytes}")
    if header.op.has_offset:
        formats[Tensor.OFFSET] = ((channels,), header.op.accumulator_dtype)
    return formats


OUTPUTS = (Tensor.OUT, Tensor.OUT_LSB, Tensor.OUT_PBM, Tensor.OUT_MSB, Tensor.OUT_MSB_PTR)
"""What programs write."""


def _encoded_formats(header: Header, rows: int) -> dict[Tensor, tuple[tuple[int, ...], str]]:
    """As `tensor_formats`, of encoded outputs; OUT_MSB as long as with every digit."""
    k, channels, chunk = header.op.digit_bits, header.op.n, header.op.out_chunk
    widths = [min(chunk, channels - begin) for begin in range(0, channels, chunk)]
    row_groups = ceil_div(rows, header.accelerator.rows)
    bias: dict[Tensor, tuple[tuple[int, ...], str]] = {}
    if header.op.has_bias:
        bias[Tensor.BIAS] = ((channels,), "float32")
    if header.op.has_mid:
        bias[Tensor.MID_SCALE] = ((1,), "float32")
    return {
        **bias,
        Tensor.OUT_SCALE: ((1,), "float32"),
        Tensor.OUT_LSB: ((rows, plane_bytes(channels, k)), "uint8"),
        Tensor.OUT_PBM: ((rows, plane_bytes(channels, 1)), "uint8"),
        Tensor.OUT_MSB: ((rows * sum(plane_bytes(width, k) for width in widths),), "uint8"),
        Tensor.OUT_MSB_PTR: ((header.out_chunks * row_groups + 1,), "int32"),
    }


def check_tensors(header: Header, rows: int, tensors: DramTensors) -> dict[Tensor, NDArray[Any]]:
    """Take the tensors that an op has, contiguous; what it writes may be missing.

    Raises
    ------
    InvalidArgumentError
        If one is missing, or has another shape or dtype than the op says, or if the list of sorted
        rows has not every row of each block once.
    """
    result = {}
    for tensor, (shape, dtype) in tensor_formats(header, rows).items():
        if tensor not in tensors:
            if tensor in OUTPUTS:
                continue
            raise InvalidArgumentError(f"{header.label!r} needs the tensor {tensor.name}")
        array = np.asarray(tensors[tensor])
        fits = array.shape == shape
        if tensor in (Tensor.MSB, Tensor.OUT_MSB):
            fits = array.ndim == 1 and array.size >= shape[0]
        if not fits or array.dtype != dtype:
            raise InvalidArgumentError(
                f"{header.label!r}: {tensor.name} must be {dtype} {shape}, got {array.dtype} "
                f"{array.shape}"
            )
        if tensor in OUTPUTS and not (array.flags.c_contiguous and array.flags.writeable):
            raise InvalidArgumentError(
                f"{header.label!r}: {tensor.name} must be contiguous and writeable"
            )
        result[tensor] = np.ascontiguousarray(array)
    block = header.op.block_rows
    if block and not is_row_order(result[Tensor.ROW_ORDER], block):
        raise InvalidArgumentError(
            f"{header.label!r}: ROW_ORDER does not have each row of every block of {block} rows "
            "exactly once"
        )
    return result
