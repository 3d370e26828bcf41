"""From the tiles that a program stores back to the transport form of an encoding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.numerics.integers import pack_digits, unpack_digits
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.isa.access import ceil_div
from sparqle_tvm.target.isa.header import Header


def transport_order(
    header: Header, pbm: NDArray[np.uint8], stream: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Reorder stored MSB digits from chunks to whole rows: the inverse of `dram.tile_order`.

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
    digits = digits[_runs(begins.reshape(-1) * per_byte, counts.reshape(-1))]
    totals = counts.sum(axis=1)
    row_ptr = np.zeros(len(pbm) + 1, dtype=np.int64)
    np.cumsum(ceil_div(totals * k, 8), out=row_ptr[1:])
    placed = np.zeros(int(row_ptr[-1]) * per_byte, dtype=np.uint8)
    placed[_runs(row_ptr[:-1] * per_byte, totals)] = digits
    return pack_digits(placed, k), row_ptr.astype(np.int32)


def _runs(begins: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers from each begin on, so many as its length, one run behind the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if ends.size else 0
    return np.repeat(begins - (ends - lengths), lengths) + np.arange(total)
