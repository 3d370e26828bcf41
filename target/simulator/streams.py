"""The stored MSB digits in both their orders: tile by tile for loads, row by row for transport."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.tirx.script import builder as T

from sparqle_tvm import tirscript
from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.integers import pack_digits, unpack_digits
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.numerics.slicing import stream_positions
from sparqle_tvm.target.isa.access import Tensor, ceil_div
from sparqle_tvm.target.isa.header import Header
from sparqle_tvm.target.simulator.digits import DigitTables
from sparqle_tvm.target.simulator.native import aligned, compile_kernel


def tile_order(
    header: Header, pbm: NDArray[np.uint8], msb: NDArray[np.uint8], row_ptr: NDArray[np.int32]
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Reorder the MSB digits of the transport form for the loads of a program.

    Parameters
    ----------
    header : Header
        K chunk, rows of the array and bits of a digit.
    pbm : uint8 (M, ceil(K / 8))
        Precision bitmap.
    msb : uint8 (bytes,)
        Digits, each row in one piece; what is behind ``row_ptr[M]`` is ignored.
    row_ptr : int32 (M + 1,)
        Where rows begin, in any order, and where all of them end.

    Returns
    -------
    msb : uint8 (bytes,)
        `Tensor.MSB`.
    pointers : int32 (chunks * row groups + 1,)
        `Tensor.MSB_PTR`.
    """
    k, rows = header.op.digit_bits, len(pbm)
    counts = RowNnz.from_pbm(pbm, header.op.k).per_chunk(header.k_chunk)
    nbytes = ceil_div(counts.T * k, 8)
    ends = np.cumsum(nbytes)
    targets = aligned((rows, header.chunks), np.int64)
    targets[...] = (ends.reshape(nbytes.shape) - nbytes).T
    sources = aligned((rows, header.chunks), np.int64)
    sources[...] = np.cumsum(counts, axis=1) - counts + row_ptr[:-1, None].astype(np.int64) * 8 // k
    digits = aligned((rows, header.chunks), np.int64)
    digits[...] = counts
    total = int(ends[-1]) if ends.size else 0
    # One byte more on both sides: the last step of a row reads and the kernel needs one.
    stream, result = aligned(int(row_ptr[-1]) + 1, np.uint8, fill=0), aligned(total + 1, np.uint8)
    stream[:-1] = msb[: row_ptr[-1]]
    if rows:
        _tile_order_kernel(k)(stream, digits, sources, targets, result)
    groups = np.arange(0, rows, header.accelerator.rows)
    pointers = np.append(targets.T[:, groups].reshape(-1), total).astype(np.int32)
    return result[:total], pointers


def transport_order(
    header: Header, pbm: NDArray[np.uint8], stream: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Reorder stored MSB digits from chunks to whole rows: the inverse of `tile_order`.

    Parameters
    ----------
    header : Header
        Of a program with encoded outputs.
    pbm : uint8 (M, ceil(N / 8))
        `Tensor.OUT_PBM`.
    stream : uint8 (bytes,)
        `Tensor.OUT_MSB`; what is behind its last digit is ignored.

    Returns
    -------
    msb : uint8 (bytes,)
        Digits row by row, each row padded to a byte.
    row_ptr : int32 (M + 1,)
        Where rows begin.
    """
    k, per_byte = header.op.digit_bits, 8 // header.op.digit_bits
    counts = RowNnz.from_pbm(pbm, header.op.n).per_chunk(header.op.out_chunk)
    nbytes = ceil_div(counts.T * k, 8)
    ends = np.cumsum(nbytes)
    begins = (ends.reshape(nbytes.shape) - nbytes).T
    used = int(ends[-1]) if ends.size else 0
    digits = unpack_digits(stream[:used], k, used * per_byte)
    digits = digits[stream_positions(counts.reshape(-1), begins.reshape(-1), k)]
    totals = counts.sum(axis=1)
    row_ptr = np.zeros(len(pbm) + 1, dtype=np.int64)
    np.cumsum(ceil_div(totals * k, 8), out=row_ptr[1:])
    placed = np.zeros(int(row_ptr[-1]) * per_byte, dtype=np.uint8)
    placed[stream_positions(totals, row_ptr[:-1], k)] = digits
    return pack_digits(placed, k), row_ptr.astype(np.int32)


def check_planes(header: Header, digits: DigitTables, tensors: Mapping[Tensor, Any]) -> None:
    """Check that the bitmap is canonical, and that pointers fit it and the stream.

    Raises
    ------
    InvalidArgumentError
        If they do not.
    """
    if header.op.k % 8 and (tensors[Tensor.PBM][:, -1] >> header.op.k % 8).any():
        raise InvalidArgumentError(f"{header.label!r}: PBM has bits set behind the last column")
    pointers = tensors[Tensor.MSB_PTR].astype(np.int64)
    expected = np.diff(digits.nbytes, axis=1).reshape(-1)
    if pointers[0] != 0 or (np.diff(pointers) != expected).any():
        raise InvalidArgumentError(
            f"{header.label!r}: MSB_PTR does not fit the bitmap, chunk of {header.k_chunk} columns "
            f"by chunk, {header.accelerator.rows} rows by {header.accelerator.rows} rows"
        )
    if pointers[-1] > tensors[Tensor.MSB].size:
        raise InvalidArgumentError(
            f"{header.label!r}: MSB has {tensors[Tensor.MSB].size} bytes, MSB_PTR ends at "
            f"{pointers[-1]}"
        )


@cache
def _tile_order_kernel(k: int) -> Callable[..., None]:
    """Compile the copy of digits: stream, digits, sources, targets, result (see `tile_order`)."""

    def body() -> None:
        rows, chunks = tirscript.size("rows"), tirscript.size("chunks")
        stream = tirscript.parameter("stream", "uint8", tirscript.size("bytes"))
        digits, sources, targets = (
            tirscript.parameter(name, "int64", rows, chunks)
            for name in ("digits", "sources", "targets")
        )
        result = tirscript.parameter("result", "uint8", tirscript.size("result_bytes"))

        def copy_row(row: Any) -> None:
            with tirscript.loop(chunks) as chunk:
                bits = digits[row, chunk] * k
                begin = sources[row, chunk] * k
                shift = tirscript.cast("int32", T.bitwise_and(begin, T.int64(7)))
                first = T.shift_right(begin, T.int64(3))
                with tirscript.loop(tirscript.ceil_div(bits, 8)) as byte:
                    low = tirscript.cast("int32", stream[first + byte])
                    high = tirscript.cast("int32", stream[first + byte + 1])
                    word = T.shift_right(T.bitwise_or(low, T.shift_left(high, 8)), shift)
                    left = tirscript.cast("int32", T.min(bits - byte * 8, T.int64(8)))
                    kept = T.bitwise_and(word, T.shift_left(T.int32(1), left) - 1)
                    result[targets[row, chunk] + byte] = tirscript.cast("uint8", kept)

        tirscript.spread(rows, rows > 16, copy_row)

    return compile_kernel("tile_order", body)
